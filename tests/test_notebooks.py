"""What must hold for every notebook as it is committed.

That its cells still give these outputs is nbval's to say.
"""

import ast
import re
import symtable
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from course import (
    DECIDE,
    NAMES,
    PATHS,
    ROOT,
    code,
    is_folded,
    outputs,
    plain,
    prose,
    read,
    settling,
)
from processes import run
from refresh_notebooks import badges, normalise, repository, with_addresses
from wrong_answers import WRONG

from ntk.notebook.questions import ask, stored_questions

COURSE = [
    "00_start_here", "01_model", "02_gradients", "03_ntk", "04_heatmap", "05_parametrization",
    "06_infinite_width", "07_depth", "08_deep_and_narrow", "09_training", "10_spectral_bias",
    "11_lazy", "12_feature_learning", "13_generalisation", "14_optimisers", "15_ensembles",
    "16_fast_ntk", "17_real_data", "18_coordinates",
]
MACHINE_PATHS = [str(ROOT), str(Path.home()), tempfile.gettempdir(), "site-packages", "/home/",
                 "/Users/"]


@pytest.fixture(params=PATHS, ids=NAMES)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return read(path)


def test_names_are_those_of_the_course():
    assert NAMES == [f"{name}.ipynb" for name in COURSE if f"{name}.ipynb" in NAMES]
    assert NAMES[0] == "00_start_here.ipynb"


def test_every_code_cell_was_run_in_order(notebook):
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1))


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
    notebook = read(path)
    normalise(notebook)
    for cell in notebook.cells:
        cell.source = with_addresses(cell.source, repository(), path.name)
    assert nbformat.writes(notebook) + "\n" == path.read_text(encoding="utf-8")


def test_nothing_of_this_machine_or_run_is_in_the_outputs(notebook):
    for output in outputs(notebook):
        text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
        assert not any(place in text for place in MACHINE_PATHS)
        assert not re.search(r"\b0x[0-9a-f]{6,}", text)


def test_lines_of_code_fit_on_the_page(notebook):
    lines = [line for cell in code(notebook) for line in cell.source.splitlines()]
    assert max(map(len, lines)) <= 128


def test_no_trailing_semicolons(notebook):
    "nbval fails on them."
    assert not any(cell.source.rstrip().endswith(";") for cell in code(notebook))


def test_ignored_comparisons_say_why(notebook):
    for cell in code(notebook):
        if "NBVAL" in cell.source:
            marker, reason = cell.source.splitlines()[:2]
            assert marker == "# NBVAL_IGNORE_OUTPUT"
            assert re.fullmatch(r"# \(timings .*\)", reason), "nothing else is excused"


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
    for part in ("> **Predict.**", "## Move it", "## Exercises", "<details>", "## Recap",
                 "**Reference"):
        assert part in prose(notebook), part
    sources = [cell.source for cell in code(notebook)]
    assert sum(len(re.findall(r"\bclaim\(|\bassert ", source)) for source in sources) >= 4
    assert sum("check(" in source and "..." in source for source in sources) >= 2
    assert sum("Explorer(" in source for source in sources) >= 1
    assert sum(source.startswith("ask(") for source in sources) >= 2 and sources[-1] == "score()"


def test_rhythm(notebook):
    """Small cells, and few words. What is folded is looked up, not read, and so are references; a
    formula is a word."""
    cells = [cell for cell in notebook.cells if not is_folded(cell)]
    assert 25 <= len(cells) <= 45
    lengths = sorted(len([line for line in cell.source.splitlines() if line.strip()])
                     for cell in cells if cell.cell_type == "code")
    assert lengths[len(lengths) // 2] <= 6
    assert lengths[-1] <= 12
    unfolded = re.sub(r"<details>.*?</details>", "", prose(notebook), flags=re.S)
    text, references = unfolded.split("**Reference")
    words = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", "formula", text, flags=re.S).split()
    assert 600 <= len(words) <= 1500 and references


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


WORK = r"(.+ \(\d{4}\), \*.+?\*)(?:, [^\[]+)?"  # authors (year), *title*, where
ARXIV = r"(?:, \[arXiv:([\d.]+)\]\(https://arxiv\.org/abs/([\d.]+)\))?"
REFERENCE = rf"- {WORK}{ARXIV}: \S.+"  # and what for


def references(notebook):
    "(authors, year and title; number; number in the address) of each entry in the references."
    entries = re.findall("^- .+", notebook.cells[-1].source.split("**Reference")[1], re.M)
    for entry in entries:
        if not entry.startswith("- PyTorch documentation"):
            parts = re.fullmatch(REFERENCE, entry)
            assert parts, f"not of the form authors (year), *title*, where: what for\n{entry}"
            yield parts.groups()


def test_a_paper_is_referred_to_in_one_form():
    forms = {}
    for path in PATHS:
        for form, number, address in references(read(path)):
            assert number == address
            assert forms.setdefault(number or form, form) == form, path.name


def test_readme_lists_every_notebook():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert all(f"notebooks/{name}" in links for name in NAMES)
    assert badges(repository(), NAMES[0]) in text


def sections(name):
    "(what JupyterLab calls a heading in a link, the text below it) for each in a notebook."
    parts = re.split(r"^#+ ", prose(read(ROOT / "notebooks" / name)), flags=re.M)[1:]
    pairs = [part.partition("\n") for part in parts]
    return [(heading.replace(" ", "-"), text) for heading, _, text in pairs]


def test_glossary_sends_to_where_a_term_is_introduced():
    "In bold, in the section that the link names. In the order of the alphabet."
    [text] = [cell.source.split("## Glossary")[1] for cell in read(PATHS[0]).cells
              if "## Glossary" in cell.source]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| \[(\d\d)\]\((.+?)#(.+?)\) \|$", text, re.M)
    assert len(rows) == text.count("\n| ") - 1 > 40
    assert [row[0].casefold() for row in rows] == sorted(row[0].casefold() for row in rows)
    found = {name: sections(name) for name in NAMES}
    for term, _, number, name, anchor in rows:
        assert name.startswith(number)
        texts = [text for heading, text in found[name] if heading == anchor]
        assert len(texts) == 1, (term, name, anchor)
        bold = [" ".join(words.split()).casefold()
                for words in re.findall(r"\*\*(.+?)\*\*", texts[0], re.S)]
        assert any(term.split(" (")[0].casefold() in words for words in bold), (term, bold)


def test_claims_compare_something(notebook):
    "`claim(…, True)`, `assert True` and the like prove nothing."
    for cell in code(notebook):
        for node in ast.walk(ast.parse(plain(cell.source))):
            if isinstance(node, ast.Assert):
                assert not isinstance(node.test, (ast.Constant, ast.Tuple))
            if is_call(node, "claim"):
                assert not isinstance(node.args[1], (ast.Constant, ast.Tuple))


def is_call(node, name):
    return isinstance(node, ast.Call) and getattr(node.func, "id", None) == name


def test_claims_are_sentences_that_hold_in_cells_of_their_own(notebook):
    "Nothing in these notebooks raises because a learner's change has ended a claim."
    for cell in code(notebook):
        calls = [node for node in ast.walk(ast.parse(plain(cell.source))) if is_call(node, "claim")]
        assert "assert " not in cell.source
        assert bool(calls) == cell.source.startswith("# checked\n"), cell.source
        said = "".join(output.get("text", "") for output in cell.outputs)
        for call in calls:
            first, *_, last = ast.unparse(call.args[0]).removeprefix("f").strip("'\"")
            assert first.isupper() or not first.isalpha(), said
            assert last == ".", said
        assert not calls or re.fullmatch("(✓ .+\n)+", said), said


def test_predictions_are_not_given_away(notebook):
    "What settles one is hidden until it has run, and its place says so."
    for cell in settling(notebook):
        if cell.outputs:
            assert cell.metadata["jupyter"]["outputs_hidden"]
            assert cell.outputs[0].data == DECIDE and len(cell.outputs) > 1
    shown = [cell for cell in code(notebook) if cell not in [*settling(notebook)]]
    assert not any(output.get("data") == DECIDE for cell in shown for output in cell.outputs)
    assert any(cell.outputs for cell in settling(notebook))


def test_no_cell_tells_the_answer(notebook, path):
    "Of a question, nor of an exercise: what is expected stands in a folded cell."
    for cell in code(notebook):
        for node in ast.walk(ast.parse(plain(cell.source))):
            if is_call(node, "ask"):
                assert len(node.args) == 1 and not node.keywords, cell.source
            if is_call(node, "check"):
                expected = ast.unparse(node.args[1])
                assert re.fullmatch(r"expected_\d|True", expected), cell.source


def names_from_outside(function):
    "The global names that a function's symbol table, and those of functions inside it, refer to."
    inside = [names_from_outside(child) for child in function.get_children()]
    names = {symbol.get_name() for symbol in function.get_symbols() if symbol.is_global()}
    return names.union(*inside)


def test_what_an_explorer_draws_with_keeps_its_meaning(notebook):
    """Its sliders are moved after Run All.

    A name that `draw` uses and a later cell binds anew would break it then.
    """
    tables = [symtable.symtable(plain(cell.source), "cell", "exec") for cell in code(notebook)]
    uses = {}  # function: the names it uses from outside
    for i, (cell, table) in enumerate(zip(code(notebook), tables)):
        for function in table.get_children():
            if isinstance(function, symtable.Function):
                uses[function.get_name()] = names_from_outside(function)
        for draw in re.findall(r"\b(?:Explorer|Points|Canvas)\((\w+),", cell.source):
            needed = used_at_any_depth(uses, draw)
            for later in tables[i + 1:]:
                bound = {name.get_name() for name in later.get_symbols() if name.is_assigned()}
                assert not needed & bound, f"{draw} uses {needed & bound}"


def used_at_any_depth(uses, function):
    "The names that a function uses, those that functions among them use, and so on."
    needed, found = set(), uses[function]
    while found:
        needed |= found
        found = set().union(*(uses.get(name, set()) for name in found)) - needed
    return needed


def exercises(notebook):
    "Each exercise cell with the solution that is folded under it."
    for cell, after in zip(notebook.cells, notebook.cells[1:]):
        if cell.cell_type == "code" and "..." in cell.source and "check(" in cell.source:
            folded = r"<details><summary>Solution</summary>\n\n```python\n(.*?)```"
            solution = re.search(folded, after.source, re.S)
            assert solution, f"no solution under:\n{cell.source}"
            yield cell, solution[1]


def solved(exercise, solution):
    "The exercise with its statement that holds the `...` replaced by the solution."
    lines = exercise.splitlines()
    for node in ast.parse(exercise).body:
        holds = [n for n in ast.walk(node) if isinstance(n, ast.Constant) and n.value is ...]
        if holds:
            lines[node.lineno - 1:node.end_lineno] = solution.splitlines()
            return "\n".join(lines)
    raise AssertionError(f"nothing to fill in:\n{exercise}")


def attempted(exercise, solution, wrong):
    "The exercise with each wrong answer that is meant for it, numbered, then with the solution."
    attempts = [f"print('wrong answer {i}:')\n{solved(exercise, answer)}"
                for i, (start, answer, _) in enumerate(wrong) if exercise.startswith(start)]
    asks_for_code = isinstance(ast.parse(solution).body[0], ast.FunctionDef)
    assert len(attempts) >= 2 or not asks_for_code, f"two wrong answers are wanted for:\n{exercise}"
    return "\n".join([*attempts, solved(exercise, solution)])


@pytest.mark.slow
def test_solutions_pass_their_checks_and_wrong_answers_do_not(notebook, path, tmp_path):
    "One run, everything as the learner has it, but for the exercises, which are attempted."
    found, wrong = list(exercises(notebook)), WRONG.get(path.name[:2], [])
    for cell, solution in found:
        cell.source = attempted(cell.source, solution, wrong)
    script = "\n\n".join(plain(cell.source) for cell in code(notebook))
    file = tmp_path / "solved.py"
    file.write_text(f"import matplotlib\nmatplotlib.use('agg')\n{script}", encoding="utf-8")
    done = run(sys.executable, file, cwd=ROOT / "notebooks")
    said = done.stdout
    assert done.returncode == 0, done.stderr
    assert said.count("✓ Right.") == len(found), said
    assert f"{len(found)} of {len(found)} exercises passed" in said, said
    verdicts = dict(re.findall(r"^wrong answer (\d+):\n(.*)$", said, re.M))
    for i, (start, _, hint) in enumerate(wrong):
        verdict = verdicts[str(i)]
        assert re.search(f"^✗ Not yet: (.*{hint}|{hint})", verdict), f"{start}: {verdict}"


def asked(cell):
    "The question of a cell that begins with ask(."
    if len(ast.parse(cell.source).body[0].value.args) == 1:
        return ask(ast.literal_eval(cell.source.removeprefix("ask")))
    return eval(cell.source, {"ask": ask})


def test_questions_come_before_they_are_settled(notebook):
    "Three options or more, each with its reason; a prediction stands in the text above."
    for before, cell in zip(notebook.cells, notebook.cells[1:]):
        if cell.source.startswith("ask("):
            question = asked(cell)
            assert "**Predict.**" in before.source, question
            assert len(question.options) >= 3, question
            assert all(len(reason) > 20 for reason in question.options.values()), question


def test_every_stored_question_is_asked_where_its_name_says():
    used = [(path.name[:2], asked(cell).question) for path in PATHS for cell in code(read(path))
            if cell.source.startswith("ask(")]
    stored = [(name[:2], question["question"]) for name, question in stored_questions().items()]
    assert used == stored


def test_a_reader_without_a_kernel_can_answer(notebook):
    "A question is stored once, as a page that folds open; its text does not tell what is right."
    for cell in code(notebook):
        if cell.source.startswith("ask("):
            [output] = cell.outputs
            assert output.data["text/plain"].startswith("▶ Run this cell to answer.\n")
            assert output.data["text/html"] == asked(cell).as_page()
            assert not re.search("[✓✗]", output.data["text/plain"])
