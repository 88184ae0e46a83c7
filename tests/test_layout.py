"""How the package is laid out: small files, imports that point downward, an index to every name."""

import ast
import inspect
import re
import sys
import tomllib

import pytest
from course import PATHS, ROOT, code, plain, read
from packaging.requirements import Requirement
from processes import COMPUTE_A_KERNEL, HIDDEN, python, without_jupyter

import ntk
import ntk_helpers

FLOORS = [  # from the ground up; a file imports from the floors below its own
    ["ntk.checks"],
    ["ntk.model", "ntk.gradients", "ntk.graph", "ntk.reading"],
    ["ntk.shares", "ntk.infinite"],
    ["ntk.layers"],
    ["ntk.memory"],
    ["ntk.products"],
    ["ntk.kernel", "ntk.tangent", "ntk.batch"],
    ["ntk.training"],
    ["ntk"],
    ["ntk.notebook", "ntk.notebook.pictures", "ntk.notebook.controls",
     "ntk.notebook.progress"],
    ["ntk.notebook.drawing", "ntk.notebook.stills", "ntk.notebook.claim",
     "ntk.notebook.questions"],
    ["ntk.notebook.views", "ntk.notebook.exercises"],
    ["ntk.notebook.explorer"],
    ["ntk.notebook.pointer"],
    ["ntk_helpers"],
]
FLOOR = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


PACKAGE = sorted((ROOT / "ntk").rglob("*.py"))
FILES = {module_of(path): path for path in [*PACKAGE, ROOT / "ntk_helpers.py"]}
FURNITURE = [name for name in FILES if name.startswith("ntk.notebook")]
NUMERICS = [name for name in FILES if name not in [*FURNITURE, "ntk_helpers"]]


def imports(node, inside=False):
    "Yield (module, whether in a function) for each import in a syntax tree."
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "an import from the package names it"
            for alias in child.names:
                full = f"{child.module}.{alias.name}"
                yield (full if full in FILES else child.module), inside
        else:
            yield from imports(child, inside or isinstance(child, ast.FunctionDef))


def imports_of(module):
    return list(imports(ast.parse(FILES[module].read_text(encoding="utf-8"))))


def from_outside(modules, inside=False):
    "What modules of ours import besides the standard library, outside functions or inside."
    found = {name.partition(".")[0] for module in modules
             for name, where in imports_of(module) if where == inside}
    return found - sys.stdlib_module_names - {"ntk"}


@pytest.mark.parametrize("module", FILES)
def test_a_file_can_be_read_in_one_sitting(module):
    lines = FILES[module].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= (60 if module == "ntk_helpers" else 320)
    assert max(map(len, lines), default=0) <= 100


def test_every_file_has_its_floor():
    assert FLOOR.keys() == FILES.keys()


@pytest.mark.parametrize("module", FILES)
def test_imports_point_downward(module):
    for name, _ in imports_of(module):
        if name.partition(".")[0] in ("ntk", "ntk_helpers"):
            assert FLOOR[name] < FLOOR[module], name


def test_numerics_need_four_packages():
    assert from_outside(NUMERICS) == {"torch", "numpy", "joblib", "tqdm"}
    assert from_outside(NUMERICS, inside=True) <= {"scipy"}  # only where one function needs it


def test_what_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [project["dependencies"], project["optional-dependencies"]["notebook"]]
    needed, extra = ({Requirement(line).name for line in lines} for lines in declared)
    assert from_outside(NUMERICS) == needed
    name_on_pypi = {"PIL": "pillow", "IPython": "ipython"}
    assert {name_on_pypi.get(name, name) for name in from_outside(FURNITURE)} - needed == extra


@pytest.mark.slow
def test_a_kernel_without_jupyter_and_matplotlib(tmp_path):
    environment = without_jupyter(tmp_path, ROOT)
    loaded = python("-c", f"{COMPUTE_A_KERNEL}\nimport sys\nprint(*sys.modules)",
                    cwd=tmp_path, env=environment).split()
    assert "ntk.kernel" in loaded and "ntk.notebook" not in loaded
    assert not set(HIDDEN) & set(loaded)


CPU_TIMES = """
from time import process_time
start = process_time()
import torch
after_torch = process_time()
import joblib, numpy, tqdm.auto
before = process_time()
import ntk
print(after_torch - start, process_time() - before)
"""


@pytest.mark.slow
def test_import_adds_little_to_that_of_torch(tell):
    "In time of the processor, which other programs do not prolong; the first of three may compile."
    runs = [python("-c", CPU_TIMES, cwd=ROOT).split() for _ in range(3)]
    torch_alone, ours = (min(map(float, times)) for times in zip(*runs))
    tell(f"import ntk: {1000 * ours:.0f} ms, besides {1000 * torch_alone:.0f} ms for torch")
    assert ours < torch_alone / 10


# The index


def index():
    "(module, name, notebook's number) from each line of ntk_helpers.py that imports."
    text = (ROOT / "ntk_helpers.py").read_text(encoding="utf-8")
    return re.findall(r"^from (\S+) import (\w+) +# (\d\d)_\w+", text, re.M)


def uses(notebook):
    "The names that a notebook takes from ntk_helpers."
    trees = [ast.parse(plain(cell.source)) for cell in code(notebook)]
    return {alias.name for tree in trees for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "ntk_helpers"
            for alias in node.names}


def test_index_lists_every_name_in_the_order_of_the_course():
    lines = index()
    assert len(lines) == len(imports_of("ntk_helpers"))
    assert [name for _, name, _ in lines] == ntk_helpers.__all__
    numbers = [number for _, _, number in lines]
    assert numbers == sorted(numbers)


def test_index_leads_to_the_file_and_to_the_notebook():
    used = {path.name[:2]: uses(read(path)) for path in PATHS}
    for module, name, number in index():
        assert inspect.getsourcefile(getattr(ntk_helpers, name)) == str(FILES[module])
        assert name in used[number], f"{name} is not used in {number}"


def test_notebooks_import_from_the_index_alone():
    for path in PATHS:
        for cell in code(read(path)):
            names = [name for name, _ in imports(ast.parse(plain(cell.source)))]
            assert not any(name.partition(".")[0] == "ntk" for name in names), path.name


@pytest.mark.parametrize("package", [ntk, ntk_helpers])
def test_every_public_name_says_what_it_is(package):
    assert package.__all__ and len(set(package.__all__)) == len(package.__all__)
    for name in package.__all__:
        assert len(inspect.getdoc(getattr(package, name)) or "") > 40, name
