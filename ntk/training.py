"""Training a model, and what its kernel says of that beforehand.

Three functions, each the limit of the one before. `train` is gradient descent on the square loss,
by steps, on any model. `linearize` replaces the model f by its tangent in the parameters, which is
where descent goes as long as they hardly move. `gradient_flow` solves the training of the tangent
with steps of no length: only the kernel Θ = J Jᵀ at the start is left of the model, and a formula.

J itself is never formed. A backward pass is v ↦ Jᵀ v, and its own backward pass is v ↦ J v.
"""

import copy
import math
import warnings
from numbers import Integral, Real
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import stack_module_state, vjp, vmap
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
from ntk.reading import checked_kernel, checked_matrix, spectrum

BEHIND = "it uses a parameter behind the back of functional_call"  # not by way of vjp


class History(NamedTuple):
    """What `train` recorded: steps and times (T,), losses and distances (T[, S]), outputs
    (T[, S], N[, O]), kernels (T[, S], N, N[, O, O]) or None."""

    steps: torch.Tensor
    times: torch.Tensor
    losses: torch.Tensor
    outputs: torch.Tensor
    distances: torch.Tensor
    kernels: torch.Tensor | None


def train(model, x, y, *, lr, steps, every=1, scale=1.0, kernel=False, progress=False):
    """Full-batch gradient descent on ½ Σ (g − y)² / scale² for g = f₀ + scale (f − f₀), in place.

    model: an `nn.Module`, or a list of S of one architecture, which are trained as one batch
        (`torch.func.vmap`). f₀ is what it makes of x at the start.
    x (N, …), y (N,) for one output or (N, O).
    lr: the learning rate η, stable below 2/λmax(Θ). Above, a warning comes before the first step.
    scale: the α of Chizat et al. 2019 (arXiv:1812.07956): their α (f − f₀) is g − f₀. At 1 the
        model itself is trained, at large ones nearly its linearisation. Division by α² keeps the
        time t = η · step the same for all.
    every: steps from one record to the next; the first and the last step are always recorded.
    kernel: record the NTK of f at x as well.

    Returns a History of T records: steps, times = η · steps, losses = ½ Σ (g − y)² and distances
    ‖θ − θ₀‖, each (T,), outputs g (T, N[, O]), kernels (T, N, N[, O, O]) or None. For a list, all
    but the first two have an axis S after T.

    Raises RuntimeError when the loss has grown a millionfold (the model keeps the weights of that
    step); TypeError or ValueError for what `compute_ntk` refuses, y of another shape, values out
    of range, and models that form no batch.
    """
    models = [model] if isinstance(model, nn.Module) else model
    require(isinstance(models, (list, tuple)) and models,
            f"model must be a torch.nn.Module or a list of them, got {model!r}", TypeError)
    check_settings(lr, steps, every, scale)
    x, alone = outputs_of_each(models, x)
    y = checked_targets(y, alone[0])
    with (torch.inference_mode(False), torch.no_grad(), exact_cudnn(models[0]),
          sdpa_kernel(SDPBackend.MATH)):
        f, params, f0, top = batch(models, x)
        require(is_close(f0, torch.stack(alone)),
                "the models of a list must differ in their weights only")
        if lr * top > 2:
            warnings.warn(f"lr = {lr:.3g} is above 2/λmax = {2 / top:.3g}: training will not "
                          "converge as predicted", stacklevel=2)
        bound = 1e6 * ((f0 - y).square() + y.square()).sum((1, 2))
        start = {name: p.clone() for name, p in params.items()}
        history, kernels = empty_history(f0, lr, steps, every), []
        rows = {step: row for row, step in enumerate(history.steps.tolist())}
        bar = tqdm(range(steps + 1), desc="training", unit=" steps", disable=not progress)
        try:
            for step, (g, loss) in zip(bar, descent(f, params, f0, y, lr, scale)):
                require((loss <= bound).all(), f"training diverged at step {step}, with a loss of "
                        f"{loss.max():.3g}; lr = {lr:.3g}, and 2/λmax was {2 / top:.3g} at the "
                        "start", RuntimeError)
                if step in rows:
                    row = rows[step]
                    history.losses[row], history.outputs[row] = loss, g
                    history.distances[row] = distance(params, start)
                    if kernel:
                        write_back(models, params)
                        kernels.append(torch.stack([compute_ntk(each, x) for each in models]))
        finally:
            write_back(models, params)
    one = 0 if models[0] is model else slice(None)  # a model by itself has no axis S
    return history._replace(losses=history.losses[:, one], distances=history.distances[:, one],
                            outputs=history.outputs.squeeze(3)[:, one],
                            kernels=torch.stack(kernels)[:, one] if kernel else None)


def descent(f, params, f0, y, lr, scale):
    "Yield g (S, N, O) and ½ Σ (g − y)² (S,), move `params` by a step, in place, and so on."
    while True:
        outputs, pullback = vjp(f, params)  # v ↦ Jᵀ v
        g = torch.lerp(f0, outputs, scale)  # f₀ + α (f − f₀), and f itself where α = 1
        yield g, (g - y).square().sum((1, 2)) / 2
        [gradients] = pullback((g - y) / scale)
        for name, p in params.items():
            p -= lr * gradients[name]


def check_settings(lr, steps, every, scale):
    require(isinstance(steps, Integral) and steps >= 0,
            f"steps must be an integer, zero or more, got {steps!r}")
    require_positive_ints(every=every)
    for name, value in {"lr": lr, "scale": scale}.items():
        require(isinstance(value, Real) and 0 < value < math.inf,
                f"{name} must be a finite number above zero, got {value!r}")


def outputs_of_each(models, x):
    "x as autograd can use it, and each model's (N, O); what `compute_ntk` refuses is refused."
    outputs = []
    for model in models:
        with undisturbed(model, x) as (x,):
            check_model(model, x, "x")
            outputs.append(checked_forward(model, x, "x")[0].detach())
    return x, outputs


def checked_targets(y, outputs):
    "y as a tensor like the outputs (N, O)."
    y = torch.as_tensor(y).detach().to(outputs)
    y = y[:, None] if y.ndim == outputs.shape[1] == 1 else y
    require(y.shape == outputs.shape and is_finite(y), "y must be finite, a target for each output "
            f"{tuple(outputs.shape)}, got shape {tuple(y.shape)}")
    return y


def empty_history(outputs, lr, steps, every):
    "Room for all records of outputs (S, N, O). Made one by one, they would pin each step's memory."
    recorded = torch.tensor(sorted({*range(0, steps + 1, every), steps}))
    losses, distances = (outputs.new_empty(len(recorded), len(outputs)) for _ in range(2))
    room = outputs.new_empty(len(recorded), *outputs.shape)
    return History(recorded, lr * recorded.double(), losses, room, distances, kernels=None)


def distance(params, start):
    "‖θ − θ₀‖ (S,)."
    squares = ((p - start[name]).square().reshape(len(p), -1).sum(1) for name, p in params.items())
    return sum(squares).sqrt()


def write_back(models, params):
    for i, model in enumerate(models):
        for name, p in params.items():
            model.get_parameter(name).copy_(p[i])


# Many models as one function


def batch(models, x):
    "Outputs (S, N, O) at x as a function of params {name: (S, …)}; these; outputs now; and λmax."
    try:
        f, params = stacked(models, x)
        with torch.enable_grad():
            outputs, pullback = vjp(f, params)
        require(not outputs.requires_grad, BEHIND)
        return f, params, outputs, largest_eigenvalue(pullback, outputs)
    except (RuntimeError, ValueError, KeyError) as error:
        refusal = ("train cannot serve this model" if len(models) == 1 else
                   "these models are not one batch, train them one by one")
        raise ValueError(f"{refusal}: {error}") from error


def stacked(models, x):
    "The same function and its params, of models that can be stacked."
    call = stateless(models[0])
    own, buffers = stack_module_state(models)

    def f(params):
        state = {**buffers, **own, **params}
        if len(models) == 1:  # without vmap, which some models do not allow
            return call({name: tensor[0] for name, tensor in state.items()}, x)[None]
        return vmap(lambda state: call(state, x))(state)

    return f, {name: p.detach() for name, p in own.items() if p.requires_grad}


def largest_eigenvalue(pullback, outputs):
    "λmax of Θ = J Jᵀ, the largest of all models, by at most 20 steps of Lanczos."
    push = transpose(pullback, outputs)
    start = torch.cos(torch.arange(1.0, 1 + outputs.numel())).to(outputs).view(len(outputs), -1)
    basis, images = [F.normalize(start)], []  # of one vector for each model
    for _ in range(min(20, start.shape[1])):
        images.append(push(pullback(basis[-1].view_as(outputs))[0]).flatten(1))  # Θ v
        orthogonal, _ = torch.linalg.qr(torch.stack([*basis, images[-1]], dim=2))
        basis.append(orthogonal[:, :, -1])  # what is new in it
    projected = torch.stack(basis[:-1], dim=1) @ torch.stack(images, dim=2)
    return torch.linalg.eigvalsh((projected + projected.mT) / 2).max()  # a tensor: it may be 0


def transpose(pullback, outputs):
    "v ↦ J v from v ↦ Jᵀ v, backward, since not every operation has a forward mode."
    _, push = vjp(lambda v: pullback(v)[0], torch.zeros_like(outputs))
    return lambda moves: push(moves)[0]


# The tangent, and its training in closed form


def linearize(model):
    """The tangent f_lin(x, Δθ) = f(x; θ₀) + J(x) Δθ at the model's present parameters θ₀.

    Returns a function of x (N, …) and Δθ (P,), in the order of `get_grads`' columns, with values
    (N, O) as the model has them; differentiable in Δθ. What becomes of the model later does not
    change it. Source: Lee et al. 2019, arXiv:1902.06720, eq. 5. Raises TypeError for what is not an
    `nn.Module`; ValueError for Δθ of another shape, what `compute_ntk` refuses, and what the model
    itself raises.
    """
    require(isinstance(model, nn.Module),
            f"model must be a torch.nn.Module, got {type(model).__name__}", TypeError)
    frozen = copy.deepcopy(model)
    call = stateless(frozen)
    params = {name: p.detach() for name, p in frozen.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in params.values()]
    require(sizes, "model has no trainable parameter")

    def f_lin(x, delta):
        require(delta.shape == (sum(sizes),),
                f"Δθ must have shape ({sum(sizes)},), got {tuple(delta.shape)}")
        moves = {name: d.view_as(p) for d, (name, p) in zip(delta.split(sizes), params.items())}
        check_model(frozen, x, "x")
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            f0, pullback = vjp(lambda params: call(params, x), params)
        require(not f0.requires_grad, f"linearize cannot serve this model: {BEHIND}")
        return f0.detach() + transpose(pullback, f0)(moves)

    return f_lin


def gradient_flow(ntk, targets, initial, times, *, ntk_test=None, initial_test=None):
    """Outputs under gradient flow df/dt = −Θ (f − y) on ½ Σ (f − y)² with a constant kernel.

        f(t) = y + exp(−Θ t) (f₀ − y)
        f(x, t) = f₀(x) + Θ(x, X) Θ⁻¹ (1 − exp(−Θ t)) (y − f₀)

    (Jacot et al. 2018, arXiv:1806.07572, section 5; Lee et al. 2019, arXiv:1902.06720, section
    2.2.) Gradient descent with a small learning rate η is there at t = η · step. For a mean over N
    instead of the sum, divide t by N.

    ntk (N, N), targets y and initial f₀ (N,) or (N, O), times (T,) in any order, ∞ allowed →
    outputs (T, N[, O]) in float64. With ntk_test Θ(x, X) (M, N) and initial_test (M[, O]) a pair,
    the second the outputs off the training data, (T, M[, O]).

    Eigenvalues that are zero to the precision of the kernel's dtype are set to zero, with a
    warning that counts them: outputs do not move along their eigenvectors, and t = ∞ is the
    minimum-norm solution, Θ⁻¹ being the pseudo-inverse. Raises ValueError for shapes that do not
    fit, NaN, negative times, and a kernel that is not positive semidefinite.
    """
    λ, modes = moving_modes(checked_kernel(ntk))
    float64 = lambda a: torch.as_tensor(a).detach().to(modes)
    targets, initial, times = float64(targets), float64(initial), float64(times)
    check_flow(len(modes), targets, initial, times)
    require((ntk_test is None) == (initial_test is None),
            "ntk_test and initial_test belong together: give both or none")

    to_learn = torch.einsum("nk,n...->k...", modes, targets - initial)
    learned = -torch.expm1(-λ * times[:, None])  # (T, K): the part of each mode, by then
    outputs = initial + along(modes, learned, to_learn)
    if ntk_test is None:
        return outputs
    ntk_test, initial_test = checked_matrix(ntk_test).to(modes), float64(initial_test)
    require(ntk_test.shape == (len(initial_test), len(modes))
            and initial_test.shape[1:] == initial.shape[1:] and is_finite(initial_test),
            f"ntk_test must have shape (M, {len(modes)}) and initial_test (M, …) as initial, "
            f"finite, got {tuple(ntk_test.shape)} and {tuple(initial_test.shape)}")
    return outputs, initial_test + along(ntk_test @ modes, learned / λ, to_learn)


def moving_modes(ntk):
    "Eigenvalues (K,) that are not zero to the kernel's precision, and their eigenvectors (N, K)."
    eigenvalues, modes = spectrum(ntk)
    zero = eigenvalues.abs().max() * max(10, len(ntk)) * torch.finfo(ntk.dtype).eps
    require(eigenvalues.min() >= -10 * zero, "ntk must be positive semidefinite, got an eigenvalue "
            f"{eigenvalues.min():.3g}, with the largest {eigenvalues.max():.3g}")
    moving = eigenvalues > zero
    if not moving.all():
        warnings.warn(f"the kernel is singular: {(~moving).sum()} of {len(ntk)} eigenvalues are "
                      f"zero to its precision, below {zero:.2g}. What lies along their "
                      "eigenvectors is never learned.", stacklevel=3)
    return eigenvalues[moving], modes[:, moving]


def check_flow(n, targets, initial, times):
    require(targets.ndim in (1, 2) and len(targets) == n and targets.shape == initial.shape,
            f"targets and initial must both have shape ({n},) or ({n}, O), "
            f"got {tuple(targets.shape)} and {tuple(initial.shape)}")
    require(times.ndim == 1 and (times >= 0).all(),
            f"times must be a list of numbers, zero or more, got {times.tolist()}")
    require((targets.isfinite() & initial.isfinite()).all(),
            "targets and initial must be finite, got NaN or infinity")


def along(modes, shares, amounts):
    "Σ over k of modes[m, k] shares[t, k] amounts[k, …], (T, M, …)."
    return torch.einsum("mk,tk...->tm...", modes, torch.einsum("tk,k...->tk...", shares, amounts))
