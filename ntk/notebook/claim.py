"""Sentences that say of themselves whether they hold here, with this seed and this width."""

import numpy as np
import torch

from ntk.checks import require


def claim(sentence, condition):
    """Print the sentence with a ✓ where the condition holds, else that the claim ends here.

    Nothing is returned, and a condition that does not hold raises nothing: a change of yours that
    ends a claim stops no cell.

    condition: a truth value of Python, NumPy or PyTorch, or an array or tensor of them, all of
        which must hold. Raises TypeError for anything else.
    """
    require(isinstance(sentence, str), f"sentence must be a string, got {sentence!r}", TypeError)
    print(f"{'✓ ' if holds(condition) else '✗ Here the claim ends: '}{sentence}")


def holds(condition):
    if isinstance(condition, bool):
        return condition
    kind = str(getattr(condition, "dtype", type(condition).__name__))
    require(isinstance(condition, (np.generic, np.ndarray, torch.Tensor)) and "bool" in kind,
            f"condition must be a truth value or an array of truth values, got {kind}", TypeError)
    return bool(condition.all())
