"""What must hold for every notebook as it is committed. That its cells still give these outputs is nbval's to say."""

import ast
import re
import subprocess
import symtable
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from refresh_notebooks import ROOT, badges, normalise, repository, with_addresses
from wrong_answers import WRONG

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.name for path in PATHS]
MACHINE_PATHS = (str(ROOT), str(Path.home()), tempfile.gettempdir(), "site-packages", "/home/", "/Users/")


@pytest.fixture(params=PATHS, ids=NAMES)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def outputs(notebook):
    return [output for cell in code(notebook) for output in cell.outputs]


COURSE = ["00_start_here", "01_model", "02_gradients", "03_ntk", "04_heatmap", "05_infinite_width", "06_depth", "07_training",
          "08_spectral_bias", "09_lazy_and_rich", "10_ensembles", "11_fast_ntk", "12_real_data"]


def test_names_are_those_of_the_course():
    assert NAMES == [f"{name}.ipynb" for name in COURSE if f"{name}.ipynb" in NAMES] and NAMES[0] == "00_start_here.ipynb"


def test_every_code_cell_was_run_in_order(notebook):
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))


def test_no_cell_is_empty_and_ids_are_unique(notebook):
    assert all(cell.source.strip() for cell in notebook.cells)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


def test_no_errors_stderr_or_widget_state(notebook):
    assert "widgets" not in notebook.metadata
    for output in outputs(notebook):
        assert output.output_type != "error" and output.get("name") != "stderr"
        assert not any("widget" in mime for mime in output.get("data", {}))


def test_file_is_as_the_refresh_command_writes_it(path):
    notebook = nbformat.read(path, as_version=4)
    normalise(notebook)
    for cell in notebook.cells:
        cell.source = with_addresses(cell.source, repository(), path.name)
    assert nbformat.writes(notebook) + "\n" == path.read_text(encoding="utf-8")


def test_nothing_of_this_machine_or_run_is_in_the_outputs(notebook):
    for output in outputs(notebook):
        text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
        assert not any(place in text for place in MACHINE_PATHS)
        assert not re.search(r"\b0x[0-9a-f]{6,}", text)


def test_no_trailing_semicolons(notebook):
    """nbval fails on them."""
    assert not any(cell.source.rstrip().endswith(";") for cell in code(notebook))


def test_ignored_comparisons_say_why(notebook):
    for cell in code(notebook):
        if "NBVAL" in cell.source:
            marker, reason = cell.source.splitlines()[:2]
            assert marker == "# NBVAL_IGNORE_OUTPUT"
            assert re.fullmatch(r"# \(timings .*\)", reason), "timings are the one thing that is excused"


def test_size(path):
    assert path.stat().st_size < 1_500_000


def test_every_picture_has_a_text_of_its_own(notebook):
    texts = []
    for output in outputs(notebook):
        if "image/png" in output.get("data", {}):
            texts.append(output.metadata["image/png"]["alt"])
    assert texts and all(len(text) > 40 for text in texts)
    assert len(set(texts)) == len(texts)
    assert not re.search(r"!\[\]\(|<img(?![^>]*\balt=)", prose(notebook))


def test_shape(notebook, path):
    first, *rest = notebook.cells
    assert first.cell_type == "markdown" and first.source.startswith(f"# {path.name[:2]} · ")
    assert badges(repository(), path.name) in first.source
    assert re.search(r"^\*\d+ minutes · ", first.source, re.M)
    assert 'sys.path[:0] = ["..", "ntk-course"]' in code(notebook)[0].source
    for part in ("> **Predict.**", "## Exercises", "## Recap", "**Reference", "<details>", "## Move it"):
        assert part in prose(notebook), part
    sources = [cell.source for cell in code(notebook)]
    assert sum(source.count("assert ") for source in sources) >= 4
    assert sum("check(" in source and "..." in source for source in sources) >= 2
    assert sum("Explorer(" in source for source in sources) >= 1
    assert sum(source.startswith("ask(") for source in sources) >= 2 and sources[-1] == "score()"


def test_rhythm(notebook):
    """Small cells: half within 6 lines, nine in ten within 15. A formula is a word; references and folded solutions
    are looked up, not read. A question and the score are text that stands in a code cell."""
    cells = [cell for cell in notebook.cells if not cell.source.startswith(("ask(", "score("))]
    lines = sorted(sum(bool(line.strip()) for line in cell.source.splitlines()) for cell in cells if cell.cell_type == "code")
    assert lines[len(lines) // 2] <= 6
    assert lines[int(0.9 * (len(lines) - 1))] <= 15
    assert 25 <= len(cells) <= 58
    text, references = re.sub(r"<details>.*?</details>", "", prose(notebook), flags=re.S).split("**Reference")
    assert 600 <= len(re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", "formula", text, flags=re.S).split()) <= 2000 and references


def test_headings_nest(notebook):
    levels = [len(marks) for marks in re.findall(r"^(#+) ", prose(notebook), re.M)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:]))


def test_links_resolve(notebook, path):
    links = re.findall(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)", prose(notebook))
    for link in links:
        if not link.startswith("http"):
            assert (path.parent / link.split("#")[0]).exists(), link
    position = NAMES.index(path.name)
    neighbours = NAMES[max(0, position - 1):position] + NAMES[position + 1:position + 2]
    assert set(neighbours) <= set(links)


REFERENCE = r"- (.+ \(\d{4}\), \*.+?\*)(?:, [^\[]+)?(?:, \[arXiv:([\d.]+)\]\(https://arxiv\.org/abs/([\d.]+)\))?: \S.+"


def references(notebook):
    "(authors, year and title; number; number in the address) for each entry of the list of references."
    entries = re.findall("^- .+", notebook.cells[-1].source.split("**Reference")[1], re.M)
    for entry in entries:
        if not entry.startswith("- PyTorch documentation"):
            parts = re.fullmatch(REFERENCE, entry)
            assert parts, f"not of the form authors (year), *title*, where: what for\n{entry}"
            yield parts.groups()


def test_a_paper_is_referred_to_in_one_form():
    forms = {}
    for path in PATHS:
        for form, number, address in references(nbformat.read(path, as_version=4)):
            assert number == address
            assert forms.setdefault(number or form, form) == form, path.name


def test_readme_links_resolve_and_list_every_notebook():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    for link in links:
        if not link.startswith(("http", "#")):
            assert (ROOT / link).exists(), link
    assert all(f"notebooks/{name}" in links for name in NAMES)
    assert badges(repository(), NAMES[0]) in text


def anchors(name):
    "What JupyterLab calls a notebook's headings in a link."
    text = prose(nbformat.read(ROOT / "notebooks" / name, as_version=4))
    return [heading.replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, re.M)]


def test_glossary_sends_to_where_a_term_is_introduced():
    """In bold, in the section that the link names. In the order of the alphabet."""
    [text] = [cell.source for cell in nbformat.read(PATHS[0], as_version=4).cells if "## Glossary" in cell.source]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| \[(\d\d)\]\((.+?)#(.+?)\) \|$", text, re.M)
    assert len(rows) == text.count("\n| ") - 1 > 40
    assert [row[0].casefold() for row in rows] == sorted(row[0].casefold() for row in rows)
    for term, _, number, name, anchor in rows:
        assert name.startswith(number) and anchor in anchors(name), (term, name, anchor)
        sections = re.split(r"^#+ ", prose(nbformat.read(ROOT / "notebooks" / name, as_version=4)), flags=re.M)
        [section] = [text for text in sections if text.partition("\n")[0].replace(" ", "-") == anchor]
        bold = [" ".join(words.split()).casefold() for words in re.findall(r"\*\*(.+?)\*\*", section, re.S)]
        assert any(term.split(" (")[0].casefold() in words for words in bold), (term, bold)


def plain(source):
    "A cell's source without its shell commands."
    return re.sub(r"^(\s*)[!%].*", r"\1pass", source, flags=re.M)


def test_asserts_compare_something(notebook):
    """`assert True` and the like prove nothing."""
    for cell in code(notebook):
        for node in ast.walk(ast.parse(plain(cell.source))):
            if isinstance(node, ast.Assert):
                assert not isinstance(node.test, (ast.Constant, ast.Tuple))


def names_from_outside(function):
    "The global names that a function's symbol table, and those of functions inside it, refer to."
    inside = [names_from_outside(child) for child in function.get_children()]
    return {symbol.get_name() for symbol in function.get_symbols() if symbol.is_global()}.union(*inside)


def test_what_an_explorer_draws_with_keeps_its_meaning(notebook):
    """Its sliders are moved after Run All. A name that `draw` uses and a later cell binds anew would break it then."""
    tables = [symtable.symtable(plain(cell.source), "cell", "exec") for cell in code(notebook)]
    uses = {}
    for i, (cell, table) in enumerate(zip(code(notebook), tables)):
        uses |= {f.get_name(): names_from_outside(f) for f in table.get_children() if isinstance(f, symtable.Function)}
        for draw in re.findall(r"\bExplorer\((\w+),", cell.source):
            needed, found = set(), uses[draw]
            while found:
                needed |= found
                found = set().union(*(uses.get(name, set()) for name in found)) - needed
            for later in tables[i + 1:]:
                bound = {symbol.get_name() for symbol in later.get_symbols() if symbol.is_assigned()}
                assert not needed & bound, f"{draw} uses {needed & bound}"


def exercises(notebook):
    "Each exercise cell with the solution that is folded under it."
    for cell, after in zip(notebook.cells, notebook.cells[1:]):
        if cell.cell_type == "code" and "..." in cell.source and "check(" in cell.source:
            solution = re.search(r"<details><summary>Solution</summary>\n\n```python\n(.*?)```", after.source, re.S)
            assert solution, f"no solution under:\n{cell.source}"
            yield cell, solution[1]


def test_solutions_pass_their_checks_and_wrong_answers_do_not(notebook, path, tmp_path):
    """One run, everything as the learner has it, but in place of each exercise its wrong answers and then its solution."""
    found, wrong = list(exercises(notebook)), WRONG.get(path.name[:2], [])
    for cell, solution in found:
        exercise = cell.source
        attempts = [(i, code) for i, (start, code, _) in enumerate(wrong) if exercise.startswith(start)]
        asks_for_code = isinstance(ast.parse(solution).body[0], ast.FunctionDef)
        assert len(attempts) >= 2 or not asks_for_code, f"two wrong answers are wanted for:\n{exercise}"
        cell.source = "\n".join(f"print('wrong answer {i}:')\n{solved(exercise, code)}" for i, code in attempts)
        cell.source += f"\n{solved(exercise, solution)}"
    script = "\n\n".join(cell.source for cell in code(notebook)).replace("    !git", "    pass  # git")
    file = tmp_path / "solved.py"
    file.write_text("import matplotlib\nmatplotlib.use('agg')\n" + script, encoding="utf-8")
    run = subprocess.run([sys.executable, file], cwd=ROOT / "notebooks", capture_output=True, text=True, timeout=180)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Right.") == len(found), run.stdout
    assert f"{len(found)} of {len(found)} exercises passed" in run.stdout, run.stdout
    verdicts = dict(re.findall(r"^wrong answer (\d+):\n(.*)$", run.stdout, re.M))
    for i, (start, _, hint) in enumerate(wrong):
        assert re.search(f"^Not yet: .*{hint}|^Not yet: {hint}", verdicts[str(i)]), f"{start}: {verdicts[str(i)]}"


def test_questions_come_before_they_are_settled(notebook):
    """Three options or more, each with its reason; a prediction stands above each question, in the text."""
    for before, cell in zip(notebook.cells, notebook.cells[1:]):
        if cell.source.startswith("ask("):
            question, options = (ast.literal_eval(node) for node in ast.parse(cell.source).body[0].value.args)
            assert "**Predict.**" in before.source, question
            assert len(options) >= 3 and all(len(reason) > 20 for reason in options.values()), question


def solved(exercise, solution):
    "The exercise with its statement that holds the `...` replaced by the solution."
    lines = exercise.splitlines()
    for node in ast.parse(exercise).body:
        holds = [n for n in ast.walk(node) if isinstance(n, ast.Constant) and n.value is ...]
        if holds:
            lines[node.lineno - 1:node.end_lineno] = solution.splitlines()
            return "\n".join(lines)
    raise AssertionError(f"nothing to fill in:\n{exercise}")
