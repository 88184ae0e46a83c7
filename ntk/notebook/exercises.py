"""Exercises that check themselves.

A verdict on an answer is a sentence with one hint, the first that fits, from the most telling down.
It comes whatever the answer is, and nothing is raised: a notebook runs through with its exercises
unsolved.
"""

import copy
import dis
import inspect
import math

import numpy as np
import torch
from torch import nn

from ntk.notebook import progress

RIGHT = "✓ Right."
NOT_ATTEMPTED = "… Not attempted yet: put your answer in place of the … and run the cell again."


def check(answer, expected):
    """Print whether an exercise's answer is right and, if not, what differs. Returns nothing.

    answer: a number, string, shape, tensor or array, or a function; `...` or None counts as not
        attempted yet. Whatever it is, nothing is raised.
    expected: what it should be. Whole numbers must agree exactly, others to 0.1 % (arrays: plus
        0.001 % of the largest), strings but for their case. For a function, a list of pairs
        ((argument, …), result): all are tried, the first that differs is shown.
    """
    verdict = verdict_on(answer, expected)
    caller = inspect.getframeinfo(inspect.currentframe().f_back)
    line = "".join(caller.code_context or [repr(expected)]).strip()  # stays if a cell is run again
    progress.note("exercises", line, verdict == RIGHT, attempted=verdict != NOT_ATTEMPTED)
    print(verdict)


def score():
    """Print how many exercises of this notebook were passed and questions answered right.

    The first notebook lists all others, too. A small file beside the notebooks remembers, also
    after a restart: see `ntk.notebook.progress`.
    """
    name = progress.notebook_name()
    since = "So far" if name else "Since the last restart"
    print(f"{since}: {progress.count(progress.of_this_notebook())}.")
    if name.startswith("00"):
        print(*progress.through_the_series(), sep="\n")


# The verdict on an answer


def verdict_on(answer, expected):
    if answer is ... or answer is None:
        return NOT_ATTEMPTED
    if is_list_of_calls(expected):
        return verdict_on_function(answer, expected)
    if isinstance(expected, (str, bool)):
        return verdict_on_word(answer, expected)
    return verdict_on_numbers(answer, expected)


def is_list_of_calls(expected):
    if not (isinstance(expected, list) and expected and isinstance(expected[0], tuple)):
        return False
    return isinstance(expected[0][0], tuple)


def verdict_on_function(function, calls):
    if not callable(function):
        return f"✗ Not yet: expected a function, got {type(function).__name__}."
    for arguments, expected in calls:
        name = getattr(function, "__name__", "your function")
        call = f"{name}({', '.join(map(in_brief, arguments))})"
        try:
            answer = function(*copy.deepcopy(arguments))
            verdict = verdict_on(answer, expected)
        except Exception as error:
            return f"✗ Not yet: {call} raises {type(error).__name__}: {error}"
        if answer is None and not is_unwritten(function):
            return f"✗ Not yet: {call} returned nothing (`return` missing?)."
        if verdict == NOT_ATTEMPTED:
            return NOT_ATTEMPTED
        if verdict != RIGHT:
            return f"{verdict} Tried: {call}"
    return RIGHT


def is_unwritten(function):
    "Whether this is still `def function(…): ...`, which compiles to what an empty function does."
    def empty():
        ...

    if not inspect.isfunction(function) or function.__name__ == "<lambda>":
        return False
    steps, none = ([step.opname for step in dis.get_instructions(f)] for f in (function, empty))
    return steps == none


def in_brief(value):
    if isinstance(value, (torch.Tensor, np.ndarray)):
        few = math.prod(value.shape) <= 4
        return str(value.tolist()) if few else f"tensor of shape {tuple(value.shape)}"
    return f"{type(value).__name__}(…)" if isinstance(value, nn.Module) else repr(value)


def verdict_on_word(answer, expected):
    if isinstance(answer, (torch.Tensor, np.ndarray)) and math.prod(answer.shape) == 1:
        answer = answer.reshape(()).tolist()  # True from tensor(True)
    same = str(answer).strip().casefold() == str(expected).strip().casefold()
    return RIGHT if same else f"✗ Not yet: {answer!r} is not it."


def verdict_on_numbers(answer, expected):
    got, want = as_numbers(answer), as_numbers(expected)
    if got is None or want is None:
        return f"✗ Not yet: expected numbers, got {type(answer).__name__}."
    if got.shape != want.shape:
        hint = hint_on_shape(got, want)
        return f"✗ Not yet: expected shape {want.shape}, got {got.shape}{hint}."
    if not np.isfinite(got).all():
        return f"✗ Not yet: {np.sum(~np.isfinite(got))} of {got.size} entries are NaN or infinite."
    if agree(got, want).all():
        return RIGHT
    if got.ndim == 0 and is_exact(want):  # a row, say: it is neither small nor large
        return f"✗ Not yet: {answer} is not it."
    in_common = common_error(got.astype(float), want)
    if in_common is not None:
        return f"✗ Not yet: {in_common}"
    if got.ndim == 0:
        return f"✗ Not yet: {answer} is too {'large' if got > want else 'small'}."
    return f"✗ Not yet: {first_difference(got, want)}"


def as_numbers(value):
    "The value as an array of numbers, or None."
    try:
        array = np.asarray(without_tensors(value))
    except Exception:  # from a learner's own class, say
        return None
    return array if array.dtype.kind in "iubf" else None


def without_tensors(value):
    "Arrays in place of tensors, also in lists. NumPy has neither graphs nor bfloat16."
    if isinstance(value, torch.Tensor):
        value = value.double() if value.is_floating_point() else value
        return value.numpy(force=True)
    return [without_tensors(v) for v in value] if isinstance(value, (list, tuple)) else value


def is_exact(want):
    "Whether these are whole numbers or truth values."
    return want.dtype.kind in "iub"


def agree(got, want):
    if is_exact(want):
        return got == want  # beyond 2⁵³, too
    return np.isclose(got, want, rtol=1e-3, atol=1e-5 * np.abs(want).max(initial=0))


def hint_on_shape(got, want):
    "What a wrong shape may come from."
    if want.ndim and got.shape == want.shape[1:] and agree(got, want.sum(axis=0)).all():
        return " (the sum over the examples: one row for each was asked for)"
    if got.ndim == want.ndim == 2 and len(got) == len(want) and got.size < want.size:
        return " (columns are missing: all parameters in it, biases, too?)"
    if got.shape == want.shape[::-1]:
        return " (transposed?)"
    if got.size == want.size:
        return " (the right number of entries, in another arrangement)"
    return ""


def common_error(got, want):
    "What is wrong with all entries alike, or None."
    if agree(-got, want).all():
        return "the sign is wrong."
    if got.ndim and not is_exact(want) and is_shifted(got, want):
        shift = (got - want).mean()
        return f"every entry is off by the same {shift:.3g}. A bias left out, or added?"
    factor = common_factor(got, want)
    if factor is None or is_exact(want) and max(factor, 1 / factor) != 2:
        return None
    return f"too {'large' if factor > 1 else 'small'} by a factor {max(factor, 1 / factor):.3g}."


def is_shifted(got, want):
    "Whether got is want plus a number. If want is constant, that says nothing."
    return np.ptp(want - got) < 1e-3 * np.abs(want - got).max() and np.ptp(want) > 0


def common_factor(got, want):
    "The c > 0, other than 1, for which got is c · want, or None."
    with np.errstate(all="ignore"):  # zeros, or squares of numbers near the largest float
        factor = np.vdot(got, got) / np.vdot(got, want)
        tolerance = 1e-5 * factor * np.abs(want).max(initial=0)
        proportional = np.allclose(got, factor * want, rtol=1e-3, atol=tolerance)
    return factor if proportional and 0 < factor < np.inf and abs(factor - 1) > 0.01 else None


def first_difference(got, want):
    wrong = np.argwhere(~agree(got, want)).tolist()
    place = tuple(wrong[0])
    values = f"got {float(got[place]):.4g}"
    if not is_exact(want) or want.size >= 10:  # or it would give away counts and rows
        values = f"expected {float(want[place]):.4g}, {values}"
    return f"{len(wrong)} of {got.size} entries differ, first {wrong[0]}: {values}."
