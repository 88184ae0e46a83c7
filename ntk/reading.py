"""Reading a kernel: angles between gradients, agreement with labels, and the spectrum.

A kernel of one set of inputs with itself is symmetric, for it holds inner products. Each mixes how
long two gradients are with how well they agree. `cosine` leaves the lengths out. `alignment`
compares the entries with those that the labels would like to see. `spectrum` finds the directions
in which the kernel acts as a number. All three take a tensor, an array or nested lists, and read
lists in float64, as NumPy does.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ntk.checks import require


def cosine(kernel):
    """The cosine of the angle between two gradients, Θ[i, j] / √(Θ[i, i] Θ[j, j]).

    kernel (N, N) → (N, N) in its dtype, with exact ones on the diagonal and nothing beyond ±1, so
    that `arccos` has no NaN. A row whose diagonal is zero (a gradient of length zero) becomes zero.
    Raises ValueError if the kernel is not square, symmetric, real and finite, or has a negative
    diagonal.
    """
    kernel = checked_kernel(kernel)
    lengths = kernel.diagonal().sqrt()
    require(not lengths.isnan().any(), "kernel must have no negative diagonal entry, "
            f"got {kernel.diagonal().min():.3g}")
    inverse = torch.where(lengths > 0, 1 / lengths, 0)
    cosines = (kernel * inverse[:, None] * inverse).clamp(-1, 1)
    cosines.diagonal().copy_(lengths > 0)
    return cosines


def alignment(kernel, labels):
    """Centred alignment ⟨Θ, T⟩ / (‖Θ‖ ‖T‖): 1 for the labels' own kernel, near 0 for others.

    kernel Θ (N, N). labels (N,) of integers or booleans are classes: T[i, j] = 1 within a class,
    else 0. Floating labels (N,) or (N, O) are targets: T = y yᵀ. For two classes both give the
    same number. Both Θ and T are centred first.

    Source: Cortes, Mohri & Rostamizadeh 2012, arXiv:1203.0550, section 2 (uncentred: Cristianini
    et al. 2001). Raises ValueError for a kernel that is not square, symmetric, real and finite,
    for labels of another length, complex or not finite, and where centring leaves nothing (all
    labels equal, a constant kernel).
    """
    kernel = checked_kernel(kernel).double()
    target = labels_own_kernel(labels, kernel)
    kernel, target = centred(kernel, "kernel"), centred(target, "labels")
    return float((kernel * target).sum() / (kernel.norm() * target.norm()))


def labels_own_kernel(labels, kernel):
    "T (N, N), with the dtype and on the device of the kernel that it is for."
    labels = real_numbers(labels, "labels")
    targets = labels.is_floating_point()
    require(labels.ndim in ((1, 2) if targets else (1,)) and len(labels) == len(kernel),
            f"labels must have shape ({len(kernel)},), one per row of the kernel, "
            f"got {tuple(labels.shape)}")
    require(labels.isfinite().all(), "labels must be finite, got NaN or infinity")
    if targets:
        y = labels.reshape(len(labels), -1).to(kernel)
    else:
        y = F.one_hot(labels.unique(return_inverse=True)[1]).to(kernel)
    return y @ y.T


def centred(kernel, name):
    "The kernel of the same features less their mean: each row and column has mean zero."
    rest = kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()
    require(rest.norm() > 1e-10 * kernel.norm(),
            f"{name} must not be constant: centring leaves nothing to compare")
    return rest


class Spectrum(NamedTuple):
    "Eigenvalues (N,) from the largest down, and eigenvectors (N, N) in columns."

    eigenvalues: torch.Tensor
    eigenvectors: torch.Tensor


def spectrum(kernel):
    """Eigenvalues (N,) from the largest down, and eigenvectors (N, N) in columns, of a kernel (N,
    N).

    Computed in float64, whatever the kernel's dtype. The sign of each eigenvector is fixed: its
    largest entry is positive. Raises ValueError if the kernel is not square, symmetric, real and
    finite.
    """
    eigenvalues, vectors = torch.linalg.eigh(checked_kernel(kernel).double())
    largest = vectors.abs().argmax(0, keepdim=True)
    signs = vectors.gather(0, largest).sign()
    return Spectrum(eigenvalues.flip(0), (vectors * signs).flip(1))


# What counts as a kernel


def checked_kernel(kernel):
    "A kernel (N, N) of one set of inputs, as a finite tensor; refused unless it is symmetric."
    kernel = checked_matrix(kernel)
    require(kernel.shape[0] == kernel.shape[1],
            f"kernel must be square, got shape {tuple(kernel.shape)}")
    tolerance = 1e-8 if kernel.dtype == torch.float64 else 1e-4
    require((kernel - kernel.T).abs().max() <= tolerance * kernel.abs().max(), "kernel must be "
            "symmetric; for the kernel between two sets of inputs this has no meaning")
    return kernel


def checked_matrix(kernel):
    "Any kernel (N1, N2), as a floating tensor without a graph; refused unless it is finite."
    kernel = real_numbers(kernel, "kernel")
    hint = "; choose a pair of outputs, kernel[:, :, a, b]" if kernel.ndim == 4 else ""
    require(kernel.ndim == 2 and kernel.numel() > 0,
            f"kernel must have two axes, (N, N), got shape {tuple(kernel.shape)}{hint}")
    kernel = kernel if kernel.is_floating_point() else kernel.double()
    require(kernel.isfinite().all(), "kernel must be finite, got NaN or infinity")
    return kernel


def real_numbers(values, name):
    """A tensor without a graph, of a tensor, an array or nested lists of numbers called `name`.

    By way of NumPy, which reads lists in float64, and copies what has negative strides.
    """
    if isinstance(values, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in values):
        values = torch.stack([real_numbers(v, name) for v in values])
    try:
        tensor = values if isinstance(values, torch.Tensor) else torch.as_tensor(np.array(values))
    except (TypeError, ValueError) as error:
        reason = str(error).split(". ")[0]
        raise type(error)(f"{name} must be a tensor, an array or a list of numbers, got "
                          f"{type(values).__name__}: {reason}") from error
    require(not tensor.is_complex(), f"{name} must be real, got {tensor.dtype}")
    return tensor.detach()
