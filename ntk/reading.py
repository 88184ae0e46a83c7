"""Reading a kernel."""

from collections import namedtuple

import torch
import torch.nn.functional as F

from ntk.checks import require

Spectrum = namedtuple("Spectrum", "eigenvalues eigenvectors")


def cosine(kernel):
    """The cosine of the angle between two gradients: kernel[i, j] / √(kernel[i, i] kernel[j, j]), with ones on the diagonal.

    kernel (N, N), a tensor or array → (N, N). A row whose diagonal is zero (a gradient of length zero) becomes zero.
    Raises ValueError if the kernel is not square, symmetric and finite, or has a negative diagonal.
    """
    kernel = square(kernel)
    norms = kernel.diagonal().sqrt()
    require(not norms.isnan().any(), f"kernel must have no negative diagonal entry, got {kernel.diagonal().min():.3g}")
    inverse = torch.where(norms > 0, 1 / norms, 0)
    return kernel * inverse[:, None] * inverse


def alignment(kernel, labels):
    """Centred kernel-target alignment ⟨Θ, T⟩ / (‖Θ‖ ‖T‖), both centred: 1 if the kernel is the labels' own, 0 if unrelated.

    kernel (N, N). labels (N,) of integers or booleans are classes: T[i, j] = 1 within a class, else 0. Floating labels
    (N,) or (N, O) are targets: T = y yᵀ. For two classes both give the same number.
    Source: Cortes, Mohri & Rostamizadeh 2012, arXiv:1203.0550, section 2 (uncentred: Cristianini et al. 2001).
    Raises ValueError for a kernel that is not square, symmetric and finite, for labels of another length or not finite,
    and where centring leaves nothing (all labels equal, a constant kernel).
    """
    kernel, labels = square(kernel).double(), torch.as_tensor(labels)
    classes = not labels.is_floating_point()
    require(labels.ndim in ((1,) if classes else (1, 2)) and len(labels) == len(kernel),
             f"labels must have shape ({len(kernel)},), one per row of the kernel, got {tuple(labels.shape)}")
    require(labels.isfinite().all(), "labels must be finite, got NaN or infinity")
    targets = (F.one_hot(labels.unique(return_inverse=True)[1]) if classes else labels.reshape(len(labels), -1)).to(kernel)
    pair = {"kernel": kernel, "labels": targets @ targets.T}
    centred = {name: k - k.mean(0) - k.mean(1, keepdim=True) + k.mean() for name, k in pair.items()}
    for name, k in centred.items():
        require(k.norm() > 1e-10 * pair[name].norm(), f"{name} must not be constant: centring leaves nothing to compare")
    k, target = centred.values()
    return float((k * target).sum() / (k.norm() * target.norm()))


def spectrum(kernel):
    """Eigenvalues (N,) from the largest down, and eigenvectors (N, N) in columns, of a symmetric kernel (N, N).

    Computed in float64, whatever the kernel's dtype. The sign of each eigenvector is fixed: its largest entry is positive.
    Raises ValueError if the kernel is not square, symmetric and finite.
    """
    eigenvalues, vectors = torch.linalg.eigh(square(kernel).double())
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    return Spectrum(eigenvalues.flip(0), (vectors * signs).flip(1))


def square(kernel):
    kernel = matrix(kernel)
    require(kernel.shape[0] == kernel.shape[1], f"kernel must be square, got shape {tuple(kernel.shape)}")
    require((kernel - kernel.T).abs().max() <= (1e-8 if kernel.dtype == torch.float64 else 1e-4) * kernel.abs().max(),
             "kernel must be symmetric; for the kernel between two sets of inputs this has no meaning")
    return kernel


def matrix(kernel):
    kernel = torch.as_tensor(kernel).detach()
    hint = "; choose a pair of outputs, kernel[:, :, a, b]" if kernel.ndim == 4 else ""
    require(kernel.ndim == 2 and kernel.numel(), f"kernel must have two axes, (N, N), got shape {tuple(kernel.shape)}{hint}")
    kernel = kernel if kernel.is_floating_point() else kernel.double()
    require(kernel.isfinite().all(), "kernel must be finite, got NaN or infinity")
    return kernel
