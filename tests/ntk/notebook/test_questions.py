"""Questions: a guess that one may change, a verdict that waits for the experiment, and a page."""

import re
import subprocess
import sys

import pytest
from IPython.core.interactiveshell import InteractiveShell

from ntk.notebook import progress, questions
from ntk.notebook.exercises import score
from ntk.notebook.questions import ask

OPTIONS = {"it halves": "Nobody divides here.", "it doubles <b>": "Twice the terms & no mean."}
MARKS = re.compile(r'<span class="ntk-mark">(.)</span>')


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(progress, "kept", {})
    monkeypatch.setattr(questions, "pending", [])


@pytest.fixture
def question():
    return ask("What does a <sum> do?", OPTIONS, right="it doubles <b>")


@pytest.fixture
def shell(monkeypatch):
    "IPython as in a kernel: cells can be run, and it tells when one has ended."
    shell = InteractiveShell()
    monkeypatch.setattr(questions, "get_ipython", lambda: shell)
    return shell


def told(capsys):
    score()
    return re.search(r"(\d of \d) questions", capsys.readouterr().out)[1]


# A guess, then a verdict


def test_a_click_is_a_guess_and_tells_nothing(question):
    wrong, right = question.buttons
    assert "&lt;sum&gt;" in question.children[0].value and question.verdict.value == ""
    assert question.tell_me.layout.visibility == "hidden"
    for button, guess in ((wrong, "it halves"), (right, "it doubles &lt;b&gt;")):
        button.click()
        text = re.sub("</?p[^>]*>", "", question.verdict.value)
        assert text == f"Your guess: {guess}"
    assert (wrong.icon, right.icon) == ("", "arrow-right")
    assert question.tell_me.layout.visibility == "visible"


def test_the_button_tells_the_verdict_and_the_reason(question, capsys):
    wrong, right = question.buttons
    wrong.click()
    question.tell_me.click()
    assert "it halves: Not so.</b> Nobody divides here." in question.verdict.value
    assert MARKS.findall(question.verdict.value) == ["✗"]
    assert question.tell_me.layout.visibility == "hidden"
    assert (wrong.icon, right.icon) == ("times", "") and told(capsys) == "0 of 1"
    right.click()
    assert "doubles &lt;b&gt;: Right.</b> Twice the terms &amp; no mean." in question.verdict.value
    assert MARKS.findall(question.verdict.value) == ["✓"]
    assert (wrong.icon, right.icon) == ("", "check") and told(capsys) == "1 of 1"


def test_the_last_guess_counts(question, capsys):
    wrong, right = question.buttons
    assert told(capsys) == "0 of 1"
    right.click()
    assert told(capsys) == "1 of 1"
    wrong.click()
    assert told(capsys) == "0 of 1"


def test_the_next_cell_tells_the_verdict(question, shell):
    other = ask("And now?", ["yes", "no"], "yes")
    shell.run_cell("1 + 1")
    assert question.verdict.value == other.verdict.value == ""
    question.buttons[0].click()
    question.buttons[1].click()
    assert "Your guess" in question.verdict.value
    shell.run_cell("1 + 1")
    assert "Right." in question.verdict.value and other.verdict.value == ""
    other.buttons[1].click()
    assert "Your guess" in other.verdict.value
    shell.run_cell("1 / 0")
    assert "Not so." in other.verdict.value


def test_ipython_is_asked_for_the_next_cell_once_and_not_for_more(question, shell):
    callbacks = shell.events.callbacks["post_run_cell"]
    before = len(callbacks)
    for button in question.buttons * 2:
        button.click()
    assert len(callbacks) == before + 1
    shell.run_cell("1")
    assert len(callbacks) == before


def test_who_was_told_is_not_told_again(question, shell):
    question.buttons[0].click()
    question.tell_me.click()
    question.buttons[1].click()
    before = question.verdict.value
    shell.run_cell("1")
    assert "Right." in before and question.verdict.value == before


def test_options_may_come_without_reasons():
    question = ask("Which?", ["this", "that"], "this")
    question.buttons[0].click()
    question.tell_me.click()
    assert "this: Right." in question.verdict.value
    assert "<summary>that</summary>✗ </details>" in question.as_page()


# What one sees


def test_what_one_is_told_is_read_out_and_needs_no_colour(question):
    for press in (question.buttons[0].click, question.tell_me.click):
        press()
        assert question.verdict.value.startswith('<p role="status"')
    colours = re.findall(r"var\(--jp-(\w+)-color0, #\w{6}\)", questions.STYLE)
    assert set(colours) == {"success", "warn"}


def test_the_style_keeps_two_lines_and_says_when_the_kernel_is_gone(question):
    style = question.children[-1].value
    assert re.search(r"\.ntk-verdict.*\{min-height: 3em; line-height: 1\.5\}", style)
    gone = r"\.ntk-question\.jupyter-widgets-disconnected::before \{\s+content: \"The kernel was"
    assert re.search(gone, style)
    assert ".ntk-question .jupyter-widgets-disconnected::before {content: none}" in style


def test_a_page_without_a_kernel_asks_and_answers(question):
    bundle = question._repr_mimebundle_()
    assert bundle[questions.LIVE_VIEW]["model_id"] == question.model_id
    assert bundle["text/plain"] == ("▶ Run this cell to answer.\nWhat does a <sum> do?\n"
                                    "  ○ it halves\n  ○ it doubles <b>")
    page = bundle["text/html"]
    assert "<b>What does a &lt;sum&gt; do?</b>" in page
    assert re.findall("<details><summary>(.*)</summary>(.*)</details>", page) == [
        ("it halves", "✗ Nobody divides here."),
        ("it doubles &lt;b&gt;", "✓ Twice the terms &amp; no mean.")]


def test_it_is_shown_once(question, shell, monkeypatch):
    "As a live view with a page beside it, by the way that ipywidgets 7 and 8 both know."
    shown = []
    monkeypatch.setattr(questions, "display", lambda data, raw: shown.append((sorted(data), raw)))
    shell.display_formatter.format(question)
    assert shown == [([questions.LIVE_VIEW, "text/html", "text/plain"], True)]


# What is refused, and the stored questions


def test_a_right_option_that_is_not_there_is_refused():
    for right in ("neither", None):
        with pytest.raises(ValueError, match="right must be one of the options"):
            ask("Which?", OPTIONS, right=right)


@pytest.mark.parametrize("options", [
    "this", {"this", "that"}, 4, {"this": None}, ["this", 4], {"this": "yes", 4: "no"},
])
def test_options_that_are_no_dict_and_no_list_are_refused(options):
    wanted = ("options must be a list of strings or a dict {option: the reason why it is right or "
              "wrong}, got")
    with pytest.raises(TypeError, match=re.escape(wanted)):
        ask("Which?", options, right="this")


def test_a_stored_question_is_asked_by_its_name():
    question = ask("00.brightest")
    assert question.question == "Where will an untrained net's kernel be brightest?"
    assert question.right == "On the diagonal" and len(question.options) == 3


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no question is called '00\.brigt'.*00\.brightest"):
        ask("00.brigt")


@pytest.mark.parametrize("name", questions.stored_questions())
def test_every_stored_question_can_be_asked(name):
    question = ask(name)
    assert len(question.options) >= 3
    assert all(len(reason) > 20 for reason in question.options.values())


@pytest.mark.slow
def test_the_verdict_waits_for_a_cell_of_a_real_ipython(tmp_path):
    script = tmp_path / "cells.py"
    script.write_text("""
from IPython.testing.globalipapp import start_ipython
shell = start_ipython()
shell.run_cell('from ntk_helpers import ask; q = ask("Which?", ["this", "that"], "this")')
shell.user_ns["q"].buttons[0].click()
print(shell.user_ns["q"].verdict.value)
shell.run_cell("1")
print(shell.user_ns["q"].verdict.value)
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True,
                          cwd=questions.__file__.rpartition("/ntk/")[0], timeout=600,
                          env={"PYTHONPATH": ".", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})
    guess, verdict = re.findall("<p.*</p>", done.stdout)
    assert "Your guess: this" in guess and "this: Right." in verdict, done.stderr
