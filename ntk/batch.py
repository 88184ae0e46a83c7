"""Many models of one architecture as one, and any model as one in float64.

A single model is called as it is. Of many, the parameters are stacked to (S, …), and one call by
`torch.func.vmap` serves all. As vmap knows nothing of hooks, and is wrong for some operations, the
outputs and gradients of each model are held against its own.
"""

from collections.abc import Callable
from contextlib import contextmanager, suppress
from itertools import chain
from typing import NamedTuple

import torch
from torch.func import stack_module_state, vmap

from ntk.checks import agree, forward, precision, require
from ntk.gradients import HANDFUL, Witness, is_same, stateless, trainable


class Batch(NamedTuple):
    """S models as one. `forward` takes x to outputs (S, N, O) with their graph; `params` are {name:
    (S, …)}, or for one model its own."""

    forward: Callable
    params: dict

    def write_back(self, models):
        "Give each model its parameters."
        with torch.no_grad():
            for i, model in enumerate(models if len(models) > 1 else []):
                for name, p in self.params.items():
                    model.get_parameter(name).copy_(p[i])


def batched(models, x):
    "The batch; refused unless it is, at x, what the models are by themselves."
    if len(models) == 1:
        [model] = models
        return Batch(lambda x: model(x.clone())[None], trainable(model))
    try:
        batch = stacked(models)
        outputs = batch.forward(x).detach()
        wrong = contradicted(models, batch, x)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError("these models are not one batch, train them one by one: "
                         f"{error}") from error
    for model, got in zip(models, outputs):
        require(agree(model, x, got, forward(model, x, "x")[0].detach()),
                "the models of a list must differ in their weights only")
    require(not wrong, "these models are not one batch, train them one by one: the gradients of "
            f"{', '.join(sorted(wrong))} are other ones by torch.func.vmap, which serves no hooks, "
            "and some operations wrongly")
    return batch


def stacked(models):
    call = stateless(models[0])
    own, buffers = stack_module_state(models)

    def batch_forward(x):
        return vmap(lambda state: call(state, x))({**buffers, **own})

    return Batch(batch_forward, {name: p for name, p in own.items() if p.requires_grad})


def contradicted(models, batch, x):
    """The parameters of which an ordinary backward pass has other gradients, for a few examples.

    In coarse precision once more, as in `ntk.gradients.refuted`: a unit may be on in one and, by
    rounding, off in the other.
    """
    wrong = set(batch.params)
    for _ in range(2):
        rows = torch.randperm(len(x))[:HANDFUL].tolist()
        together = batch.forward(x[rows])
        direction = torch.randn(together.shape).to(together)
        found = pulled_back(together, direction, list(batch.params.values()))
        now = set()
        for i, model in enumerate(models):
            vectors = {name: g[i].flatten() for name, g in zip(batch.params, found)}
            now |= refuted_by(witness_of(model, x, rows, direction[i]), vectors)
        wrong &= now
        if not wrong or precision(models[0], together) == torch.float64:
            break
    return wrong


def witness_of(model, x, rows, direction):
    "A model's own gradients of Σ R · f at these rows."
    outputs, params = model(x[rows].clone()), trainable(model)
    own = pulled_back(outputs, direction, list(params.values()))
    eps = torch.finfo(precision(model, outputs)).eps
    return Witness(rows, direction, {name: g.flatten() for name, g in zip(params, own)}, eps)


def refuted_by(witness, vectors):
    eps, total = witness.eps, sum(vector.norm() for vector in vectors.values())
    return {name for name, found in vectors.items() if not is_same(
        found, witness.gradients[name], eps**0.5 * found.norm() + 100 * eps * total)}


def pulled_back(outputs, direction, params, retain_graph=False):
    "Jᵀ v: what an ordinary backward pass of Σ v · f gives for each of the parameters."
    if not outputs.requires_grad:  # no path leads to a parameter
        return [torch.zeros_like(p) for p in params]
    gradients = torch.autograd.grad((direction * outputs).sum(), params,
                                    retain_graph=retain_graph, materialize_grads=True)
    return [gradient.to_dense() for gradient in gradients]


# What cannot be trained


def check_parameters(models):
    "Refuse parameters that share memory, and hooks on them that would not be heard."
    for name, p in chain.from_iterable(trainable(model).items() for model in models):
        require(not getattr(p, "_post_accumulate_grad_hooks", None), f"{name} has a hook that "
                "waits for .grad, which train leaves alone: remove it")
        require(len(models) == 1 or not p._backward_hooks, f"{name} has a hook, which is not "
                "heard while many models are one: train them one by one")
    places = sorted(place for i, model in enumerate(models) for place in places_of(model, i))
    last = last_trained = Place(0, 0, False, 0, "")  # those that reach furthest, so far
    for place in places:
        other = last if place.trained else last_trained
        whose = "" if len(models) == 1 else f" of models {other.model} and {place.model}"
        require(place.start >= other.stop, f"{other.name} and {place.name}{whose} share memory, so "
                "that training one changes the other: use copy.deepcopy")
        last = max(last, place, key=lambda p: p.stop)
        if place.trained:
            last_trained = max(last_trained, place, key=lambda p: p.stop)


class Place(NamedTuple):
    "Where in memory a tensor lies, whether it is trained, and of which model it is."

    start: int
    stop: int
    trained: bool
    model: int
    name: str


def places_of(model, i):
    for name, t in chain(model.named_parameters(), model.named_buffers()):
        if t.layout == torch.strided and t.numel() > 0:
            last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride()))
            start = t.data_ptr()
            yield Place(start, start + (last + 1) * t.itemsize, t.requires_grad, i, name)


# In float64


@contextmanager
def in_float64(models, x):
    """Inputs, and whether the models can compute in float64. If so, they do within, and their
    parameters and buffers are rounded back afterwards; if not, all is as it is."""
    with exchanged(models):
        finer = x.double() if x.is_floating_point() else x
        exact = False
        with suppress(Exception), torch.no_grad():
            exact = all(model(finer[:1].clone()).dtype == torch.float64 for model in models)
    if exact:
        with exchanged(models):
            yield finer, True
    else:
        yield x, False


@contextmanager
def exchanged(models):
    tensors = {t: t.data for model in models for t in chain(model.parameters(), model.buffers())
               if t.is_floating_point()}
    try:
        for t, data in tensors.items():
            t.data = data.double()
        yield
    finally:
        for t, data in tensors.items():
            data.copy_(t.data)
            t.data = data
