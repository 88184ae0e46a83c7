"""Exercises and questions."""

import copy
import html
import inspect
import math

import ipywidgets as widgets
import numpy as np
import torch
from torch import nn

from ntk.checks import require

_passed, _answered = {}, {}  # of this kernel: exercise or question → right or not


def check(answer, expected):
    """Print whether an exercise's answer is right and, if not, what differs. Stops nothing and returns nothing.

    answer: a number, string, shape, tensor or array, or a function; `...` or None counts as not attempted yet.
    expected: what it should be. Whole numbers must agree exactly, others to 0.1 % (arrays: plus 0.001 % of the largest).
        For a function, a list of pairs ((argument, …), result): all are tried, the first that differs is shown.
    """
    verdict = _verdict(answer, expected)
    caller = inspect.getframeinfo(inspect.currentframe().f_back)  # its line stays, whatever stands above it
    _passed["".join(caller.code_context or [repr(expected)]).strip()] = verdict == "Right."
    print(verdict)


def ask(question, options, right):
    """A multiple-choice question as a widget, for a cell's last line: one click shows whether an option is right, and why.

    options: a dict {option: the reason why it is right or wrong}, in the order shown; right: the right option.
    """
    require(right in options, f"right must be one of the options {list(options)}, got {right!r}")
    return _Question(question, options, right)


def score():
    "Print how many exercises were passed and how many questions answered right, of those that were run in this kernel."
    print(f"Since the last restart: {sum(_passed.values())} of {len(_passed)} exercises passed, "
          f"{sum(_answered.values())} of {len(_answered)} questions answered right.")


class _Question(widgets.VBox):
    def __init__(self, question, options, right):
        self.question, self.options, self.right = question, options, right
        _answered.setdefault(question, False)
        self.buttons = [widgets.Button(description=option, layout={"width": "auto", "height": "auto"}) for option in options]
        self.reason = widgets.HTML()
        style = widgets.HTML("<style>.ntk-question .jupyter-button {text-align: left; white-space: normal}</style>")
        super().__init__([widgets.HTML(f"<b>{html.escape(question)}</b>"), *self.buttons, self.reason, style])
        self.add_class("ntk-question")
        for button in self.buttons:
            button.on_click(self._choose)

    def _choose(self, chosen):
        _answered[self.question] = chosen.description == self.right
        for button in self.buttons:
            button.icon = ("check" if _answered[self.question] else "times") if button is chosen else ""
        verdict = "Right." if _answered[self.question] else "Not so."
        reason = html.escape(self.options[chosen.description])
        self.reason.value = f'<p role="alert"><b>{html.escape(chosen.description)}: {verdict}</b> {reason}</p>'

    def __repr__(self):
        return "\n".join([self.question, *(f"  ○ {option}" for option in self.options)])

    def _repr_mimebundle_(self, **kwargs):
        return {**super()._repr_mimebundle_(**kwargs), "text/plain": repr(self)}


def _verdict(answer, expected):
    if answer is ... or answer is None:
        return "Not attempted yet: put your answer in place of the … and run the cell again."
    if isinstance(expected, list) and expected and isinstance(expected[0], tuple) and isinstance(expected[0][0], tuple):
        return _verdict_on_calls(answer, expected)
    if isinstance(expected, (str, bool)):
        same = str(answer).strip().casefold() == str(expected).strip().casefold()
        return "Right." if same else f"Not yet: {answer!r} is not it."
    try:
        got, want = _numbers(answer), _numbers(expected)
    except Exception:
        return f"Not yet: expected numbers, got {type(answer).__name__}."
    if got.shape != want.shape:
        hint = " (the right number of entries, in another arrangement)" if got.size == want.size else ""
        hint = " (transposed?)" if got.shape == want.shape[::-1] else hint
        if want.ndim and got.shape == want.shape[1:] and _agrees(got, want.sum(axis=0)).all():
            hint = " (the sum over the examples: one row for each was asked for)"
        elif got.ndim == want.ndim == 2 and len(got) == len(want) and got.size < want.size:
            hint = " (columns are missing: all parameters in it, biases, too?)"
        return f"Not yet: expected shape {want.shape}, got {got.shape}{hint}."
    if not np.isfinite(got).all():
        return f"Not yet: {np.sum(~np.isfinite(got))} of {got.size} entries are NaN or infinite."
    exact, scale = want.dtype.kind in "iub", np.abs(want).max(initial=0)
    if _agrees(got, want).all():
        return "Right."
    got = got.astype(float)
    if _agrees(-got, want).all():
        return "Not yet: the sign is wrong."
    if got.ndim == 2 and got.shape[0] == got.shape[1] and _agrees(got.T, want).all():
        return "Not yet: this is the transpose of it."
    if got.ndim and not exact and np.ptp(want - got) < 1e-3 * np.abs(want - got).max() and np.ptp(want) > 0:
        return f"Not yet: every entry is off by the same {(got - want).mean():.3g}. A bias left out, or added?"
    with np.errstate(all="ignore"):
        factor = np.vdot(got, got) / np.vdot(got, want)
        proportional = np.allclose(got, factor * want, rtol=1e-3, atol=1e-5 * factor * scale)
    if proportional and 0 < factor < np.inf and abs(factor - 1) > 0.01 and (not exact or max(factor, 1 / factor) in (2, 10)):
        return f"Not yet: too {'large' if factor > 1 else 'small'} by a factor {max(factor, 1 / factor):.3g}."
    if got.ndim == 0:
        return f"Not yet: {answer} is too {'large' if got > want else 'small'}."
    wrong = np.argwhere(~_agrees(got, want)).tolist()
    first = tuple(wrong[0])
    wanted = "" if exact and want.size < 10 else f"expected {want[first]:.4g}, "  # or it would give counts and rows away
    return f"Not yet: {len(wrong)} of {got.size} entries differ, first {wrong[0]}: {wanted}got {got[first]:.4g}."


def _verdict_on_calls(function, cases):
    if not callable(function):
        return f"Not yet: expected a function, got {type(function).__name__}."
    for arguments, wanted in cases:
        call = f"{getattr(function, '__name__', 'your function')}({', '.join(map(_brief, arguments))})"
        try:
            verdict = _verdict(function(*copy.deepcopy(arguments)), wanted)
        except Exception as error:
            return f"Not yet: {call} raises {type(error).__name__}: {error}"
        if verdict != "Right.":
            return f"{verdict} Tried: {call}" if verdict.startswith("Not yet") else verdict
    return "Right."


def _brief(value):
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"tensor of shape {tuple(value.shape)}" if math.prod(value.shape) > 4 else str(value.tolist())
    return f"{type(value).__name__}(…)" if isinstance(value, nn.Module) else repr(value)


def _agrees(got, want):
    if want.dtype.kind in "iub":
        return got == want  # exact beyond 2⁵³, too
    return np.isclose(got, want, rtol=1e-3, atol=1e-5 * np.abs(want).max(initial=0))


def _numbers(value):
    value = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    require(value.dtype.kind in "iubf", f"expected numbers, got {value.dtype}", TypeError)
    return value
