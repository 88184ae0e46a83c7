"""Questions with options to click: a guess first, and the verdict once the experiment has run.

The questions of the notebooks stand in questions.toml, so that no cell shows its own answer.
"""

import html
import tomllib
from pathlib import Path

import ipywidgets as widgets
from IPython import get_ipython
from IPython.display import display

from ntk.checks import require
from ntk.notebook.progress import note

LIVE_VIEW = "application/vnd.jupyter.widget-view+json"
STYLE = """<style>
.ntk-question .jupyter-button {text-align: left; white-space: normal}
/* two lines are kept free, so that nothing below jumps when one answers */
.ntk-verdict, .ntk-verdict .widget-html-content {min-height: 3em; line-height: 1.5}
.ntk-verdict p {margin: 0; padding-left: 0.5em; border-left: 4px solid transparent}
.ntk-verdict .ntk-right {border-color: var(--jp-success-color0, #388e3c)}
.ntk-verdict .ntk-wrong {border-color: var(--jp-warn-color0, #e65100)}
.ntk-right .ntk-mark {color: var(--jp-success-color0, #388e3c)}
.ntk-wrong .ntk-mark {color: var(--jp-warn-color0, #e65100)}
.ntk-mark {font-size: 1.5em; line-height: 0; font-weight: bold}
/* the kernel is gone: buttons can be pressed, but nobody answers */
.ntk-question.jupyter-widgets-disconnected::before {
    content: "The kernel was restarted: run this cell again."; font: inherit; font-weight: bold;
    color: inherit; padding: 0}
.ntk-question .jupyter-widgets-disconnected::before {content: none}
</style>"""

pending = []  # questions with a guess and without a verdict


def ask(question, options=None, right=None):
    """A multiple-choice question as a widget, for a cell's last line.

    A click is a guess, and one can change one's mind. Whether it was right, and why, one is told
    when the next cell has run, or by the button "Tell me".

    question: its text, or without options its name in questions.toml, such as "00.brightest".
    options: {option: the reason why it is right or wrong} in the order shown, or a list of options.
    right: the right option. Raises ValueError if it is none of them, or if no question has that
        name, and TypeError for options that are no such dict or list.
    """
    if options is None:
        stored = stored_questions()
        require(question in stored, f"no question is called {question!r}, but {', '.join(stored)}")
        return Question(**stored[question])
    if isinstance(options, (list, tuple)) and all(isinstance(option, str) for option in options):
        options = dict.fromkeys(options, "")
    texts = [*options, *options.values()] if isinstance(options, dict) else [None]
    require(all(isinstance(text, str) for text in texts), "options must be a list of strings or "
            f"a dict {{option: the reason why it is right or wrong}}, got {options!r}", TypeError)
    require(right in options, f"right must be one of the options {list(options)}, got {right!r}")
    return Question(question, options, right)


def stored_questions():
    "Name → question, options and right, of all notebooks."
    path = Path(__file__).with_name("questions.toml")
    notebooks = tomllib.loads(path.read_text(encoding="utf-8"))
    return {f"{number}.{name}": question
            for number, questions in notebooks.items() for name, question in questions.items()}


class Question(widgets.VBox):
    "Its text, a button for each option, and a line for the guess and then for the verdict on it."

    def __init__(self, question, options, right):
        self.question, self.options, self.right = question, options, right
        self.guess, self.is_told = None, False
        note("questions", question, False, attempted=False)
        free = {"width": "auto", "height": "auto"}
        self.buttons = [widgets.Button(description=option, layout=free) for option in options]
        self.tell_me = widgets.Button(description="Tell me", layout={"visibility": "hidden"})
        self.verdict = widgets.HTML()
        self.verdict.add_class("ntk-verdict")
        text = widgets.HTML(f"<b>{html.escape(question)}</b>")
        super().__init__([text, *self.buttons, self.verdict, self.tell_me, widgets.HTML(STYLE)])
        self.add_class("ntk-question")
        for button in self.buttons:
            button.on_click(self.take)
        self.tell_me.on_click(lambda _: self.tell())

    def take(self, button):
        "Keep the option on a button as the guess; once it was told, go on to say what is right."
        self.guess = button.description
        note("questions", self.question, self.guess == self.right)
        for other in self.buttons:
            other.icon = "arrow-right" if other is button else ""
        if self.is_told:
            self.tell()
        else:
            self.verdict.value = status(f"Your guess: {html.escape(self.guess)}")
            self.tell_me.layout.visibility = "visible"
            tell_after_next_cell(self)

    def tell(self):
        self.is_told = True
        self.tell_me.layout.visibility = "hidden"
        is_right = self.guess == self.right
        for button in self.buttons:
            if button.description == self.guess:
                button.icon = "check" if is_right else "times"
        verdict = html.escape(f"{self.guess}: {'Right.' if is_right else 'Not so.'}")
        reason = html.escape(self.options[self.guess])
        self.verdict.value = status(f'<span class="ntk-mark">{mark(is_right)}</span> '
                                    f"<b>{verdict}</b> {reason}",
                                    "ntk-right" if is_right else "ntk-wrong")

    def __repr__(self):
        options = (f"  ○ {option}" for option in self.options)
        return "\n".join(["▶ Run this cell to answer.", self.question, *options])

    def as_page(self):
        "For readers without a kernel: each option folds open to its verdict and reason."
        folds = "\n".join(
            f"<details><summary>{html.escape(option)}</summary>{mark(option == self.right)} "
            f"{html.escape(reason)}</details>" for option, reason in self.options.items())
        return (f"<p><b>{html.escape(self.question)}</b><br>▶ Run this cell to answer, or open the "
                f"option that you would choose.</p>\n{folds}")

    def _ipython_display_(self, **kwargs):  # ipywidgets 7 asks for it, and 8 takes it
        display(self._repr_mimebundle_(), raw=True)

    def _repr_mimebundle_(self, **kwargs):
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {LIVE_VIEW: view, "text/html": self.as_page(), "text/plain": repr(self)}


def mark(is_right):
    return "✓" if is_right else "✗"


def status(text, kind=""):
    "A paragraph that screen readers read out."
    return f'<p role="status" class="{kind}">{text}</p>'


# The verdict after the next cell


def tell_after_next_cell(question):
    "The guess came between two cells, so the first one that ends from now on is the experiment."
    if question not in pending:
        pending.append(question)
    shell = get_ipython()
    if shell and tell_pending not in shell.events.callbacks["post_run_cell"]:
        shell.events.register("post_run_cell", tell_pending)


def tell_pending(result=None):
    "Tell every verdict that waits, and wait for no other cell."
    while pending:
        question = pending.pop()
        if not question.is_told:
            question.tell()
    shell = get_ipython()
    if shell and tell_pending in shell.events.callbacks["post_run_cell"]:
        shell.events.unregister("post_run_cell", tell_pending)
