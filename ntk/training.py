"""Gradient descent on the square loss, by steps, on any model or on many at once.

Each step is what anyone would do: forward, `torch.autograd.grad`, and parameters moved in place. So
hooks work, and so does whatever PyTorch can differentiate once. How many models become one, and any
model one in float64, stands in `batch.py`.
"""

import math
import warnings
from contextlib import ExitStack
from numbers import Integral, Real
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from ntk.batch import batched, check_parameters, in_float64, pulled_back
from ntk.checks import (
    check_model,
    checked_forward,
    is_finite,
    require,
    require_positive_ints,
    undisturbed,
)
from ntk.kernel import compute_ntk
from ntk.reading import real_numbers


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
        λmax is found by up to 20 steps of Lanczos with second derivatives, or where an operation
        has none by finite differences, in float64 if the model can.
    scale: the α of Chizat et al. 2019 (arXiv:1812.07956): their α (f − f₀) is g − f₀. At 1 the
        model itself is trained, at large ones nearly its linearisation. Division by α² keeps the
        time t = η · step the same for all. Above 1 training is in float64, as f − f₀ would lose
        its digits. The record is exact; a model in float32 gets its weights back rounded, which
        cannot hold their change once α is large. A model that computes in float32 alone is trained
        in that, with a warning.
    every: steps from one record to the next; the first and the last step are always recorded.
    kernel: record the NTK of f at x as well.

    Returns a History of T records: steps, times = η · steps, losses = ½ Σ (g − y)² and distances
    ‖θ − θ₀‖, each (T,), outputs g (T, N[, O]), kernels (T, N, N[, O, O]) or None. For a list, all
    but the first two have an axis S after T. Numbers have the dtype of the model's outputs.

    Hooks on parameters and tensors act as in any training; in a list they are refused. Buffers are
    as before. Raises RuntimeError when the loss has grown a millionfold (the model keeps the
    weights of that step); TypeError or ValueError for what `compute_ntk` refuses, y of another
    shape, values out of range, models that form no batch, and those of which one's parameters are
    also another's.
    """
    models = [model] if isinstance(model, nn.Module) else model
    require(isinstance(models, (list, tuple)) and models,
            f"model must be a torch.nn.Module or a list of them, got {model!r}", TypeError)
    check_settings(lr, steps, every, scale)
    with ExitStack() as stack:
        for each in models:
            [x] = stack.enter_context(undisturbed(each, x))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        outputs = checked_outputs(models, x)
        check_parameters(models)
        y = checked_targets(y, outputs[0])
        if scale > 1:
            x, exact = stack.enter_context(in_float64(models, x))
            if not exact:
                warnings.warn(f"this model computes in {outputs[0].dtype} alone: what is recorded "
                              f"of f − f₀ loses the digits that scale = {scale:g} calls for",
                              stacklevel=2)
        batch = batched(models, x)
        top = largest_eigenvalue(models, batch, x)
        if lr * top > 2:
            warnings.warn(f"lr = {lr:.3g} is above 2/λmax = {2 / top:.3g}: training will not "
                          "converge as predicted", stacklevel=2)
        history = empty_history(torch.stack(outputs), lr, steps, every)
        run = descent(batch, x, y, lr, scale)
        bar = tqdm(range(steps + 1), desc="training", unit=" steps", disable=not progress)
        try:
            recorded = models if kernel else []
            kernels, diverged = record(zip(bar, run), history, batch, y, recorded, x)
        finally:
            batch.write_back(models)
    require(diverged is None, f"training diverged at {diverged}; lr = {lr:.3g}, and 2/λmax was "
            f"{2 / top:.3g} at the start", RuntimeError)
    one = 0 if models[0] is model else slice(None)  # a model by itself has no axis S
    return history._replace(losses=history.losses[:, one], distances=history.distances[:, one],
                            outputs=history.outputs.squeeze(3)[:, one],
                            kernels=torch.stack(kernels)[:, one] if kernel else None)


def descent(batch, x, y, lr, scale):
    "Yield g (S, N, O) and ½ Σ (g − y)² (S,), move the parameters by a step, and so on."
    params, f0 = list(batch.params.values()), None
    while True:
        outputs = batch.forward(x)
        f0 = outputs.detach() if f0 is None else f0
        g = torch.lerp(f0, outputs.detach(), scale)  # f₀ + α (f − f₀), and f itself where α = 1
        yield g, (g - y).square().sum((1, 2)) / 2
        gradients = pulled_back(outputs, (g - y) / scale, params)
        del outputs  # and its graph, before the next
        with torch.no_grad():
            for p, gradient in zip(params, gradients):
                p -= lr * gradient


def record(run, history, batch, y, models, x):
    """Fill the history from (step, (g, loss)). Gives kernels of the models, and None, or where the
    loss had grown a millionfold."""
    rows = {step: row for row, step in enumerate(history.steps.tolist())}
    start, kernels, bound = [p.detach().clone() for p in batch.params.values()], [], None
    for step, (g, loss) in run:
        bound = 1e6 * (2 * loss + y.square().sum()) if bound is None else bound
        if not (loss <= bound).all():
            return kernels, f"step {step}, with a loss of {loss.max():.3g}"
        if step in rows:
            row = rows[step]
            history.losses[row], history.outputs[row] = loss, g
            history.distances[row] = distance(batch.params.values(), start, len(g))
            if models:
                batch.write_back(models)
                now = torch.stack([compute_ntk(model, x) for model in models])
                kernels.append(now.to(history.outputs))
    return kernels, None


# What is refused, and room for the rest


def check_settings(lr, steps, every, scale):
    require(isinstance(steps, Integral) and steps >= 0,
            f"steps must be an integer, zero or more, got {steps!r}")
    require_positive_ints(every=every)
    for name, value in {"lr": lr, "scale": scale}.items():
        require(isinstance(value, Real) and 0 < value < math.inf,
                f"{name} must be a finite number above zero, got {value!r}")


def checked_outputs(models, x):
    "Each model's (N, O); what `compute_ntk` refuses of a model is refused."
    outputs = []
    for model in models:
        check_model(model, x, "x")
        outputs.append(checked_forward(model, x, "x")[0].detach())
    return outputs


def checked_targets(y, outputs):
    "y as a tensor like the outputs (N, O)."
    y = real_numbers(y, "y").to(outputs)
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


def distance(params, start, models):
    "‖θ − θ₀‖ (S,)."
    moves = ((p.detach() - q).square().reshape(models, -1) for p, q in zip(params, start))
    return sum(move.sum(1) for move in moves).sqrt()


# The largest eigenvalue


def largest_eigenvalue(models, batch, x):
    "λmax of Θ = J Jᵀ, the largest of all models."
    try:
        return lanczos(*by_second_derivatives(batch, x))
    except Exception:  # the model's own functions may raise anything
        with in_float64(models, x) as (x, _):
            return lanczos(*by_differences(batched(models, x), x))


def by_second_derivatives(batch, x):
    "Outputs (S, N, O), and v ↦ Θ v for v like these."
    outputs, params = batch.forward(x), list(batch.params.values())
    direction = torch.zeros_like(outputs, requires_grad=True)
    pulled = torch.autograd.grad((direction * outputs).sum(), params, create_graph=True,
                                 materialize_grads=True)

    def product(v):
        moves = pulled_back(outputs, v, params, retain_graph=True)
        along = sum((gradient * move).sum() for gradient, move in zip(pulled, moves))
        return torch.autograd.grad(along, direction, retain_graph=True)[0]  # J Jᵀ v

    return outputs.detach(), product


def by_differences(batch, x):
    """The same: J u is (f(θ + h u) − f(θ)) / h, where h u is next to θ as the root of the dtype's
    precision is to 1."""
    params = list(batch.params.values())
    start, f0 = [p.detach().clone() for p in params], batch.forward(x).detach()
    norm = lambda tensors: sum(t.square().sum() for t in tensors).sqrt()
    typical = norm(start) / sum(p.numel() for p in params) ** 0.5 or 1.0
    size = torch.finfo(f0.dtype).eps ** 0.5 * typical

    @torch.no_grad()
    def product(v):
        with torch.enable_grad():
            u = pulled_back(batch.forward(x), v, params)
        length = norm(u)
        if length == 0:
            return torch.zeros_like(f0)
        for p, q, move in zip(params, start, u):
            p.copy_(q + size / length * move)
        moved = batch.forward(x)
        for p, q in zip(params, start):
            p.copy_(q)
        return (moved - f0) * (length / size)

    return f0, product


def lanczos(outputs, product):
    """λmax, from v ↦ Θ v for v like the outputs (S, N, O): by at most 20 steps, and fewer once v
    is an eigenvector to three digits, λ to about twice as many."""
    start = torch.cos(torch.arange(1.0, 1 + outputs.numel())).to(outputs).view(len(outputs), -1)
    basis, images = [F.normalize(start)], []  # of one vector for each model
    for _ in range(min(20, start.shape[1])):
        images.append(product(basis[-1].view_as(outputs)).flatten(1))
        projected = torch.stack(basis, dim=1) @ torch.stack(images, dim=2)
        values, vectors = torch.linalg.eigh((projected + projected.mT) / 2)
        orthogonal, triangle = torch.linalg.qr(torch.stack([*basis, images[-1]], dim=2))
        if (rest_of(triangle, vectors) <= 1e-3 * values[:, -1]).all():
            break
        basis.append(orthogonal[:, :, -1])  # what is new in the image
    return values[:, -1].max()  # a tensor: it may be 0


def rest_of(triangle, vectors):
    "|Θ v − λ v| (S,) for the largest λ: what the last image has outside the basis, times v's part."
    return (triangle[:, -1, -1] * vectors[:, -1, -1]).abs()
