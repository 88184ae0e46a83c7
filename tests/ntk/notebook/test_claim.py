"""A claim says whether it holds, and never stops a notebook."""

import numpy as np
import pytest
import torch

from ntk.notebook.claim import claim


@pytest.mark.parametrize("condition", [
    True, np.True_, np.array([True, True]), torch.tensor(True), torch.tensor([[True], [True]]),
    torch.ones(2) > 0, np.ones(3).all(), torch.eye(2).eq(1).any(),
])
def test_a_claim_that_holds_is_ticked(condition, capsys):
    assert claim("The diagonal is bright.", condition) is None
    assert capsys.readouterr().out == "✓ The diagonal is bright.\n"


@pytest.mark.parametrize("condition", [
    False, np.False_, np.array([True, False]), torch.tensor(False), torch.tensor([[True], [False]]),
    torch.tensor(float("nan")) > 0,
])
def test_a_claim_that_ends_says_so_and_the_next_line_runs(condition, capsys):
    claim("The diagonal is bright.", condition)
    claim("The next line runs.", True)
    assert capsys.readouterr().out == (
        "✗ Here the claim ends: The diagonal is bright.\n✓ The next line runs.\n")


@pytest.mark.parametrize("condition, got", [
    (None, "NoneType"), ("True", "str"), ("", "str"), (1, "int"), ([True], "list"), ((), "tuple"),
    (np.ones(2), "float64"), (torch.ones(()), "torch.float32"), (np.float64(1), "float64"),
    (np.array([True, None]), "object"), (lambda: True, "function"),
])
def test_what_is_no_truth_value_is_refused_by_name(condition, got):
    with pytest.raises(TypeError, match=f"^condition must be a truth value .* got {got}$"):
        claim("The diagonal is bright.", condition)


def test_arguments_that_are_swapped_are_refused():
    with pytest.raises(TypeError, match="^sentence must be a string, got True$"):
        claim(True, "The diagonal is bright.")
