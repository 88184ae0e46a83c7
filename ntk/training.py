"""Training, and its prediction."""

import copy
import math
import warnings
from collections import namedtuple
from numbers import Real

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, stack_module_state, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from ntk.checks import (
    check_model,
    checked_forward,
    exact_cudnn,
    is_close,
    is_finite,
    require,
    require_positive_ints,
    undisturbed,
)
from ntk.gradients import stateless
from ntk.kernel import compute_ntk
from ntk.reading import matrix, spectrum, square

History = namedtuple("History", "steps times losses outputs distances kernels")
BEHIND = "it uses a parameter behind the back of functional_call"  # its outputs depend on it, but not as on the others


def train(model, x, y, *, lr, steps, every=1, scale=1.0, kernel=False, progress=False):
    """Full-batch gradient descent on ½ Σ (g − y)² / scale² for g = f₀ + scale (f − f₀), with f₀ the outputs at the start.

    model: an `nn.Module`, or a list of S of one architecture, which are trained as one batch (`torch.func.vmap`); in place.
    x (N, …), y (N,) for one output or (N, O).
    lr: the learning rate η, stable below 2/λmax(Θ). Above, a warning comes before the first step.
    scale: the α of Chizat et al. 2019 (arXiv:1812.07956): their α (f − f₀) is g − f₀. At 1 the model itself is trained, at
        large ones nearly its linearisation. Division by α² keeps the time t = η · step the same for all.
    every: steps from one record to the next; the first and the last step are always recorded.
    kernel: record the NTK of f at x as well.

    Returns a History of T records: steps (T,), times (T,) = η · steps, losses (T,) = ½ Σ (g − y)², outputs (T, N[, O]) = g,
    distances (T,) = ‖θ − θ₀‖, kernels (T, N, N[, O, O]) or None. For a list an axis S comes after T.
    Raises RuntimeError when the loss has grown a millionfold (the model keeps the weights of that step); TypeError or
    ValueError for what `compute_ntk` refuses, y of another shape, values out of range, and models that form no batch.
    """
    require(isinstance(model, nn.Module) or isinstance(model, (list, tuple)) and model,
             f"model must be a torch.nn.Module or a list of them, got {model!r}", TypeError)
    models = [model] if isinstance(model, nn.Module) else [*model]
    require(isinstance(steps, (int, np.integer)) and steps >= 0, f"steps must be an integer, zero or more, got {steps!r}")
    require_positive_ints(every=every)
    for name, value in {"lr": lr, "scale": scale}.items():
        require(isinstance(value, Real) and 0 < value < math.inf, f"{name} must be a finite number above zero, got {value!r}")
    alone = []
    for each in models:
        with undisturbed(each, x) as (x,):
            check_model(each, x, "x")
            alone.append(checked_forward(each, x, "x")[0].detach())
    y, shape = torch.as_tensor(y).detach().to(alone[0]), tuple(alone[0].shape)
    y = y[:, None] if shape[1] == y.ndim == 1 else y
    require(y.shape == shape and is_finite(y), f"y must be finite, a target for each output {shape}, got shape {tuple(y.shape)}")
    with torch.inference_mode(False), torch.no_grad(), exact_cudnn(models[0]), sdpa_kernel(SDPBackend.MATH):
        f, params, top = batch(models, x)
        first, kernels = {name: p.clone() for name, p in params.items()}, []
        recorded = torch.tensor(sorted({*range(0, steps + 1, every), steps}))
        losses, distances = (alone[0].new_empty(len(recorded), len(models)) for _ in range(2))  # else each would pin `out`
        outputs = alone[0].new_empty(len(recorded), len(models), *shape)
        try:
            for step in tqdm(range(steps + 1), desc="training", unit=" steps", disable=not progress):
                out, pullback = vjp(f, params)  # pullback: v ↦ Jᵀ v
                if step == 0:
                    f0, bound = out, 1e6 * ((out - y).square() + y.square()).sum((1, 2))
                    require(is_close(out, torch.stack(alone)), "the models of a list must differ in their weights only")
                    if lr * top > 2:
                        warnings.warn(f"lr = {lr:.3g} is above 2/λmax = {2 / top:.3g}: training will not converge as predicted",
                                      stacklevel=2)
                g = torch.lerp(f0, out, scale)
                loss = (g - y).square().sum((1, 2)) / 2
                require((loss <= bound).all(), f"training diverged at step {step}, with a loss of {loss.max():.3g}; "
                         f"lr = {lr:.3g}, and 2/λmax was {2 / top:.3g} at the start", RuntimeError)
                if step % every == 0 or step == steps:
                    row = math.ceil(step / every)
                    losses[row], outputs[row] = loss, g
                    distances[row] = sum((p - first[k]).square().reshape(len(p), -1).sum(1) for k, p in params.items()).sqrt()
                    if kernel:
                        write_back(models, params)
                        kernels.append(torch.stack([compute_ntk(each, x) for each in models]))
                if step < steps:
                    for p, gradient in zip(params.values(), pullback((g - y) / scale)[0].values()):
                        p -= lr * gradient
        finally:
            write_back(models, params)
    one = 0 if models[0] is model else slice(None)  # a model by itself has no axis S
    kernels = torch.stack(kernels)[:, one] if kernel else None
    return History(recorded, lr * recorded.double(), losses[:, one], outputs.squeeze(3)[:, one], distances[:, one], kernels)


def batch(models, x):
    "The outputs (S, N, O) of all models at x as a function of their parameters; these, stacked along a first axis; and λmax."
    call = stateless(models[0])
    try:
        stacked, buffers = stack_module_state(models)
        params = {name: p.detach() for name, p in stacked.items() if p.requires_grad}
        f = lambda params: vmap(lambda state: call(state, x))({**buffers, **stacked, **params})
        if len(models) == 1:  # a single one needs no vmap, which some do not allow
            f = lambda params: call({name: t[0] for name, t in {**buffers, **stacked, **params}.items()}, x)[None]
        with torch.enable_grad():
            out, pullback = vjp(f, params)
        require(not out.requires_grad, BEHIND)
        return f, params, largest_eigenvalue(pullback, out)
    except (RuntimeError, ValueError, KeyError) as error:
        what = "train cannot serve this model" if len(models) == 1 else "these models are not one batch, train them one by one"
        raise ValueError(f"{what}: {error}") from error


def write_back(models, params):
    for i, model in enumerate(models):
        for name, p in params.items():
            model.get_parameter(name).copy_(p[i])


def largest_eigenvalue(pullback, out):
    "λmax of Θ = J Jᵀ, over all models, by at most 20 steps of Lanczos."
    _, push = vjp(lambda v: pullback(v)[0], torch.zeros_like(out))  # the transpose of Jᵀ
    basis, images = [F.normalize(torch.cos(torch.arange(1.0, 1 + out.numel())).to(out).view(len(out), -1))], []
    for _ in range(min(20, basis[0].shape[1])):
        images.append(push(pullback(basis[-1].view_as(out))[0])[0].flatten(1))
        basis.append(torch.linalg.qr(torch.stack([*basis, images[-1]], dim=2))[0][:, :, -1])  # orthogonal to those before
    projected = torch.stack(basis[:-1], dim=1) @ torch.stack(images, dim=2)
    return torch.linalg.eigvalsh((projected + projected.mT) / 2).max()  # a tensor: 2 / λmax may be 2 / 0


def linearize(model):
    """The tangent model f_lin(x, Δθ) = f(x; θ₀) + J(x) Δθ at the model's present parameters θ₀, as a function of x and Δθ.

    x (N, …), Δθ (P,) in the order of `get_grads`' columns → (N, O), as the model has it; differentiable in Δθ. What becomes of
    the model later does not change it. Source: Lee et al. 2019, arXiv:1902.06720, eq. 5.
    Raises ValueError for Δθ of another shape, what `compute_ntk` refuses, and what the model itself raises.
    """
    require(isinstance(model, nn.Module), f"model must be a torch.nn.Module, got {type(model).__name__}", TypeError)
    frozen = copy.deepcopy(model)
    params = {name: p.detach() for name, p in frozen.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in params.values()]
    require(sizes, "model has no trainable parameter")

    def f_lin(x, delta):
        require(delta.shape == (sum(sizes),), f"Δθ must have shape ({sum(sizes)},), got {tuple(delta.shape)}")
        moves = {name: d.view_as(p) for d, (name, p) in zip(delta.split(sizes), params.items())}
        check_model(frozen, x, "x")
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            out, pullback = vjp(lambda params: functional_call(frozen, params, (x.clone(),)), params)
        require(not out.requires_grad, f"linearize cannot serve this model: {BEHIND}")
        _, push = vjp(lambda v: pullback(v)[0], torch.zeros_like(out))  # the transpose of Jᵀ: some have no forward mode
        return out.detach() + push(moves)[0]

    return f_lin


def gradient_flow(ntk, targets, initial, times, *, ntk_test=None, initial_test=None):
    """Outputs under gradient flow df/dt = −Θ (f − y) on ½ Σ (f − y)² with a constant kernel, in closed form:

        f(t) = y + exp(−Θ t) (f₀ − y)        f(x, t) = f₀(x) + Θ(x, X) Θ⁻¹ (1 − exp(−Θ t)) (y − f₀)

    (Jacot et al. 2018, arXiv:1806.07572, section 5; Lee et al. 2019, arXiv:1902.06720, section 2.2.) Gradient descent with a
    small learning rate η is there at t = η · step. For a mean over N instead of the sum, divide t by N.

    ntk (N, N), targets y and initial f₀ (N,) or (N, O), times (T,), in any order, ∞ allowed → (T, N[, O]), in float64.
    With ntk_test Θ(x, X) (M, N) and initial_test (M[, O]) a pair, the second the outputs off the training data, (T, M[, O]).

    Eigenvalues that are zero to the precision of the kernel's dtype are set to zero, with a warning that counts them: outputs
    do not move along their eigenvectors, and t = ∞ is the minimum-norm solution, Θ⁻¹ being the pseudo-inverse.
    Raises ValueError for shapes that do not fit, NaN, negative times, and a kernel that is not positive semidefinite.
    """
    ntk = square(ntk)
    eigenvalues, modes = spectrum(ntk)
    zero = eigenvalues.abs().max() * max(10, len(ntk)) * torch.finfo(ntk.dtype).eps
    require(eigenvalues.min() >= -10 * zero, "ntk must be positive semidefinite, got an eigenvalue "
             f"{eigenvalues.min():.3g}, with the largest {eigenvalues.max():.3g}")
    moving = eigenvalues > zero
    if not moving.all():
        warnings.warn(f"the kernel is singular: {(~moving).sum()} of {len(ntk)} eigenvalues are zero to its precision, below "
                      f"{zero:.2g}. What lies along their eigenvectors is never learned.", stacklevel=2)
    float64 = lambda a: torch.as_tensor(a).detach().to(modes)
    targets, initial, times = float64(targets), float64(initial), float64(times)
    require(targets.ndim in (1, 2) and len(targets) == len(ntk) and targets.shape == initial.shape,
             f"targets and initial must both have shape ({len(ntk)},) or ({len(ntk)}, O), "
             f"got {tuple(targets.shape)} and {tuple(initial.shape)}")
    require(times.ndim == 1 and (times >= 0).all(), f"times must be a list of numbers, zero or more, got {times.tolist()}")
    require((targets.isfinite() & initial.isfinite()).all(), "targets and initial must be finite, got NaN or infinity")
    require((ntk_test is None) == (initial_test is None), "ntk_test and initial_test belong together: give both or none")
    λ, modes = eigenvalues[moving], modes[:, moving]
    learned = -torch.expm1(-λ * times[:, None])  # (T, modes): the part of each mode that is learned by then
    along = torch.einsum("nk,n...->k...", modes, targets - initial)
    moved = lambda waves, share: torch.einsum("mk,tk...->tm...", waves, torch.einsum("tk,k...->tk...", share, along))
    outputs = initial + moved(modes, learned)
    if ntk_test is None:
        return outputs
    ntk_test, initial_test = matrix(ntk_test).to(modes), float64(initial_test)
    require(ntk_test.shape == (len(initial_test), len(ntk)) and initial_test.shape[1:] == initial.shape[1:]
             and is_finite(initial_test), f"ntk_test must have shape (M, {len(ntk)}) and initial_test (M, …) as initial, finite, "
             f"got {tuple(ntk_test.shape)} and {tuple(initial_test.shape)}")
    return outputs, initial_test + moved(ntk_test @ modes, learned / λ)
