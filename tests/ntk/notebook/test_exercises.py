"""Verdicts on answers whose mistake is known, and the score.

What likely wrong answers to the notebooks' own exercises are told stands in wrong_answers.py.
"""

import math
import re
import string
import warnings

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from ntk.notebook import progress
from ntk.notebook.exercises import check, score

grid = torch.arange(6.0).reshape(2, 3)


@pytest.fixture(autouse=True)
def fresh_score(monkeypatch):
    monkeypatch.setattr(progress, "kept", {})


@pytest.fixture
def verdict(capsys):
    "verdict(answer, expected): what check prints on stdout, and it does nothing else."
    def verdict(answer, expected):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert check(answer, expected) is None
        out, err = capsys.readouterr()
        assert out.endswith("\n") and not err
        return out.strip()

    return verdict


# Right, or not attempted


@pytest.mark.parametrize("expected", [3, 2.5, "relu", (2, 3), grid, True])
@pytest.mark.parametrize("answer", [..., None])
def test_what_was_not_attempted_is_known(answer, expected, verdict):
    assert verdict(answer, expected).startswith("… Not attempted yet")


@pytest.mark.parametrize("answer, expected", [
    (3, 3), (3.0, 3), (np.int64(3), 3), (torch.tensor(3), 3), (True, True), (np.True_, True),
    (1 / 3, 0.3333333), (0.3335, 1 / 3), (torch.tensor(0.5, requires_grad=True), 0.5), (0, 0.0),
    ("relu", "relu"), (" ReLU ", "relu"),
    (torch.Size([2, 3]), (2, 3)), ((2, 3), torch.Size([2, 3])), ([2, 3], (2, 3)),
    (grid, grid), (grid.numpy(), grid), (grid.tolist(), grid),
    (grid.double() * 1.0005, grid), (grid + 1e-6, grid),
    ([True, False], [True, False]), ([], []), (math.nextafter(2.5, 3), 2.5), (2**53, 2**53),
    (torch.tensor(True), True), (torch.tensor([False]), False), (np.array([[True]]), True),
    (True, torch.tensor(True)), (torch.eye(2).eq(torch.eye(2).T).all(), True),
    (grid.bfloat16(), grid), (grid.half(), grid), (grid, grid.bfloat16()), (grid.int(), grid),
    (torch.tensor(0.5, dtype=torch.bfloat16), 0.5), (grid.to(torch.float8_e5m2), grid),
    ([torch.tensor(1.0, requires_grad=True), torch.tensor(2.0)], [1.0, 2.0]),
    (list(grid.bfloat16()), grid), (tuple(grid), grid.tolist()),
    (torch.view_as_complex(grid.reshape(3, 2)).conj().imag, [-1.0, -3, -5]),
])
def test_what_is_right_is_called_right(answer, expected, verdict):
    assert verdict(answer, expected) == "✓ Right."


@pytest.mark.parametrize("error, start", [(0.0009, "✓ Right"), (0.002, "✗ Not yet")])
def test_a_tenth_of_a_percent_is_allowed(error, start, verdict):
    assert verdict(7.0 * (1 + error), 7.0).startswith(start)


@pytest.mark.parametrize("error, start", [(0.9e-5, "✓ Right"), (2e-5, "✗ Not yet")])
def test_a_small_error_next_to_large_entries_is_allowed(error, start, verdict):
    assert verdict([100.0, 100 * error], [100.0, 0.0]).startswith(start)


# What differs


@pytest.mark.parametrize("answer, expected, message", [
    (grid.flatten(), grid, r"expected shape \(2, 3\), got \(6,\) \(the right number of entries"),
    (grid[0], grid, r"expected shape \(2, 3\), got \(3,\)\."),
    (3.0, grid, r"expected shape \(2, 3\), got \(\)"),
    (grid.T, grid, r"expected shape \(2, 3\), got \(3, 2\) \(transposed\?\)"),
    (grid.sum(dim=0), grid, r"got \(3,\) \(the sum over the examples"),
    (grid[:, :2], grid, r"got \(2, 2\) \(columns are missing"),
    (-grid, grid, "sign"),
    (-2.5, 2.5, "sign"),
    (-3, 3, "-3 is not it"),  # whole numbers get no direction: a row is neither small nor large
    (grid * 1.0 - 0.25, grid, r"off by the same -0\.25\. A bias left out"),
    (2 * grid, grid, "too large by a factor 2"),
    (grid / 5, grid, "too small by a factor 5"),
    (10, 5, "10 is not it"),
    (10, 5.0, "too large by a factor 2"),
    (0.5, 2.0, "too small by a factor 4"),
    ([[0, 1, 2], [3, 13, 5]], grid,
     r"1 of 6 entries differ, first \[1, 1\]: expected 4, got 13"),
    ([1.0, 2, 7, 9], [1.0, 2, 3, 4], r"2 of 4 entries differ, first \[2\]: expected 3, got 7"),
    ([5, 2], [5, 3], r"first \[1\]: got 2"),
    (torch.zeros(3), torch.ones(3), r"3 of 3 entries differ, first \[0\]: expected 1, got 0"),
    ([True, False], [True, True], r"1 of 2 entries differ, first \[1\]"),
    ([1e300, 1.0], [1.0, 2.0], r"2 of 2 entries differ, first \[0\]"),
    (0.2, 0.0, "0.2 is too large"),
    (-0.2, 0.0, "-0.2 is too small"),
    (-1.0, 2.0, "-1.0 is too small"),
    (1.0, -2.0, "1.0 is too large"),
    (3.0001, 3, r"3\.0001 is not it"),  # whole numbers are exact
    (torch.tensor(12), np.int64(3), "12.* is not it"),
    (math.nan, 1.0, "1 of 1 entries are NaN or infinite"),
    (grid / 0, grid, "6 of 6 entries are NaN or infinite"),
    ("3", 3, "expected numbers, got str"),
    (torch.tensor(False), True, "False is not it"),
    (torch.tensor([True, True]), True, "is not it"),
    (torch.tensor(1), True, "1 is not it"),
    (2 * grid.bfloat16(), grid, "too large by a factor 2"),
    ("tanh", "relu", "'tanh' is not it"),
    (3, "relu", "3 is not it"),
    (grid, "relu", "is not it"),
])
def test_the_verdict_says_what_differs(answer, expected, message, verdict):
    assert re.search(f"^✗ Not yet: .*{message}", verdict(answer, expected), re.DOTALL)


def test_whole_numbers_too_large_for_a_float_are_told_apart(verdict):
    n = 2**53
    assert verdict(n + 1, n) == "✗ Not yet: 9007199254740993 is not it."
    assert verdict(n - 1, n) == "✗ Not yet: 9007199254740991 is not it."
    assert verdict([1, n + 1], [1, n]).startswith("✗ Not yet: 1 of 2 entries differ, first [1]")


@pytest.mark.parametrize("answer", [True, False])
def test_a_truth_value_has_no_size(answer, verdict):
    text = verdict(answer, not answer)
    assert text.startswith("✗ Not yet") and not re.search("large|small|factor|sign", text)


class Rude:
    def __array__(self, *args, **kwargs):
        raise ArithmeticError("no")


JUNK = [
    "", b"x", 1j, 10**400, float("nan"), range(0), ["a", "b"], {"a": 1}, {1, 2}, [[]],
    [[1], [1, 2]], [1, None], [grid, 3], len, lambda: 0, (n for n in range(3)), object(),
    [object()], nn.Linear, nn.Linear(2, 2), Figure(), string, NotImplemented, torch.zeros(0),
    torch.ones(2, 2).to_sparse(), np.array("x"), np.datetime64("2020-01-01"), Rude(),
]
EXPECTED = {"float": 1.5, "int": 3, "str": "relu", "shape": (2, 3), "array": grid, "bool": True,
            "bools": [True, False], "square": torch.eye(2)}


@pytest.mark.parametrize("expected", EXPECTED.values(), ids=EXPECTED)
@pytest.mark.parametrize("answer", JUNK, ids=lambda answer: type(answer).__name__)
def test_nothing_is_raised_whatever_the_answer_is(answer, expected, verdict):
    assert verdict(answer, expected).startswith("✗ Not yet")


# Functions


DOUBLES = [((2.0,), 4.0), ((torch.tensor([1.0, 3.0]),), torch.tensor([2.0, 6.0]))]


@pytest.mark.parametrize("answer, calls, message", [
    (lambda a: 2 * a, DOUBLES, r"✓ Right\.$"),
    (lambda a: ..., DOUBLES, "… Not attempted yet"),
    (lambda a: None, DOUBLES,
     r"✗ Not yet: <lambda>\(2\.0\) returned nothing \(`return` missing\?\)\.$"),
    (print, [((), "a line")], r"✗ Not yet: print\(\) returned nothing"),
    (..., DOUBLES, "… Not attempted yet"),
    (lambda a: a + 2, DOUBLES,
     r"✗ Not yet: 2 of 2 .* expected 2, got 3\. Tried: <lambda>\(\[1\.0, 3\.0\]\)"),
    (lambda a: 4.0, DOUBLES, r"✗ Not yet: expected shape \(2,\), got \(\)\. Tried: "),
    (lambda a: a / 0, DOUBLES, r"✗ Not yet: <lambda>\(2\.0\) raises ZeroDivisionError"),
    (lambda: 4.0, DOUBLES, r"✗ Not yet: <lambda>\(2\.0\) raises TypeError"),
    (4.0, DOUBLES, "✗ Not yet: expected a function, got float"),
    (lambda a: a.sum(), [((grid,), grid.sum())], r"✓ Right\.$"),
    (lambda a: a, [((grid,), grid.T)], r"transposed.*Tried: <lambda>\(tensor of shape \(2, 3\)\)"),
    (lambda net: 0.0, [((nn.Linear(2, 2),), 1.0)], r"Tried: <lambda>\(Linear\(…\)\)"),
])
def test_a_function_is_tried_on_every_case(answer, calls, message, verdict):
    assert re.search(message, verdict(answer, calls), re.DOTALL)


def unwritten(a):
    ...


def unwritten_but_described(a):
    "Twice a."


def forgetful(a):
    2 * a


def forgetful_for_large_numbers(a):
    if a < 2:
        return 2 * a


def in_place(a):
    a *= 2


@pytest.mark.parametrize("function, start", [
    (unwritten, "… Not attempted yet"), (unwritten_but_described, "… Not attempted yet"),
    (forgetful, r"✗ Not yet: forgetful\(1\.0\) returned nothing"),
    (forgetful_for_large_numbers,
     r"✗ Not yet: forgetful_for_large_numbers\(3\.0\) returned nothing"),
    (in_place, r"✗ Not yet: in_place\(1\.0\) returned nothing"),
])
def test_a_function_that_forgets_to_return_is_not_one_that_is_still_to_be_written(
        function, start, verdict):
    assert re.match(start, verdict(function, [((1.0,), 2.0), ((3.0,), 6.0)]))


def test_a_function_is_lent_copies(verdict):
    lent = torch.ones(3)
    assert verdict(lambda a: a.mul_(2), [((lent,), 2 * torch.ones(3))]) == "✓ Right."
    assert lent.tolist() == [1, 1, 1]


# The score


def test_an_exercise_counts_once_however_often_it_is_tried(capsys):
    for answer in (..., 3, 2, 3):
        check(answer, 2 + 1)
    check(1, 2)
    capsys.readouterr()
    score()
    assert capsys.readouterr().out == (
        "Since the last restart: 1 of 2 exercises passed, 0 of 0 questions answered right.\n")
