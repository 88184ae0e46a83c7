"""The package as pip installs it: what the wheel holds, what it asks for, and a kernel from it."""

import json
import shutil
import zipfile

import pytest
from processes import COMPUTE_A_KERNEL, HIDDEN, ROOT, python, without_jupyter

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "Built from a copy, since the build writes beside its source; without a look at the network."
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in "pyproject.toml", "README.md", "LICENSE", "ntk_helpers.py":
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "ntk", source / "ntk", ignore=shutil.ignore_patterns("__pycache__"))
    python("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index",
           "--wheel-dir", str(folder), str(source))
    [wheel] = folder.glob("*.whl")
    return wheel


def test_wheel_holds_every_file_of_the_package_and_the_index(wheel):
    files = [path for path in (ROOT / "ntk").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    expected = {path.relative_to(ROOT).as_posix() for path in files} | {"ntk_helpers.py"}
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_the_pinned_environment_satisfies_it(wheel):
    "So that `pip install .` beside the course replaces no package, PyTorch least of all."
    report = python("-m", "pip", "install", "--dry-run", "--no-index", "--quiet", "--report", "-",
                    f"{wheel}[notebook]")
    installed = [package["metadata"]["name"] for package in json.loads(report)["install"]]
    assert installed == ["ntk-course"]


def test_a_kernel_from_the_wheel_without_jupyter(wheel, tmp_path):
    target = tmp_path / "target"
    python("-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    where = "import ntk\nprint(ntk.__file__)"
    said = python("-c", COMPUTE_A_KERNEL + where, cwd=tmp_path,
                  env=without_jupyter(tmp_path, target))
    assert said.strip() == str(target / "ntk/__init__.py")


def test_what_is_hidden_cannot_be_imported(tmp_path):
    program = f"""
for name in {HIDDEN}:
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        print(error.name)
"""
    said = python("-c", program, cwd=tmp_path, env=without_jupyter(tmp_path))
    assert said.split() == HIDDEN
