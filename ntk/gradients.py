"""One gradient per example: the Jacobian J, and the proof that it is right.

`torch.func` differentiates functions, and a module is none: its parameters are hidden in it. So the
model is called with other tensors in their place (`functional_call`), and `vmap` runs all examples
at once. Where a model does not allow that, a loop of ordinary backward passes gives the same.

Nothing is trusted. `vmap` has wrong gradients for some operations, without a word, and knows
nothing of hooks. So a few examples are run as anyone would run them, and the gradient of Σ R · f,
with a random R, has to be Σ R · J.
"""

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
from torch.func import functional_call, jacrev, vmap

from ntk.checks import LOCK, check_model, checked_forward, precision, require, undisturbed

HANDFUL = 3  # examples that are run once more


def get_grads(model, x):
    """The Jacobian J of the outputs by the trainable parameters: one gradient per example.

    x (N, …) → (N, P) for a model with one output, (N, O, P) for several. The columns follow
    `model.parameters()`, a shared parameter counts once, and `.grad` is not touched. Refuses what
    `compute_ntk` refuses, with its errors.
    """
    with undisturbed(model, x) as (x,), LOCK:
        check_model(model, x, "x")
        checked_forward(model, x, "x")
        return jacobian(model, x).squeeze(1)


def trainable(model, names=None):
    "{name: parameter}, of all that require a gradient, or of those named."
    return {name: p for name, p in model.named_parameters()
            if p.requires_grad and (names is None or name in names)}


def jacobian(model, x, names=None, by_loop=False, batch=None):
    """J (N, O, P) of the parameters named, or all: by `vmap`, in batches of examples. By a loop
    where the model forbids that, where `by_loop` is set, and for parameters of which `vmap` is
    wrong."""
    sizes = {name: p.numel() for name, p in trainable(model, names).items()}
    found = None if by_loop else jacobian_by_vmap(model, x, sizes, batch)
    wrong = list(sizes) if found is None else contradicted(model, x, found, sizes)
    if not wrong:
        return found
    sizes_of_wrong = {name: sizes[name] for name in wrong}
    right = jacobian_by_loop(model, x, wrong)
    still_wrong = contradicted(model, x, right, sizes_of_wrong)
    require(not still_wrong, f"the gradients of {', '.join(still_wrong)} for several examples "
            "are not the sum of those for each: a hook in the model mixes examples, or they depend "
            "on chance")
    if len(wrong) == len(sizes):
        return right
    columns = dict(zip(sizes, found.split(list(sizes.values()), dim=2)))
    for name, part in zip(wrong, right.split(list(sizes_of_wrong.values()), dim=2)):
        columns[name].copy_(part)
    return found


def jacobian_by_vmap(model, x, names, batch=None):
    "J (N, O, P), or None where the model does not allow it."
    f, params = functional(model, names)
    with suppress(RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on what is slow under vmap
        if not f(params, x[0]).requires_grad:  # else it reads one behind functional_call's back
            blocks = vmap(jacrev(f), (None, 0), chunk_size=batch)(params, x)  # {name: (N, O, …)}
            rows = [blocks[name].reshape(*blocks[name].shape[:2], -1) for name in params]
            return torch.cat(rows, dim=2)
    return None


def jacobian_by_loop(model, x, names=None):
    "The same by one backward pass for each example and output: the definition."
    params = list(trainable(model, names).values())
    rows = [torch.stack([torch.cat(gradients_of(output, params)) for output in outputs[0]])
            for outputs in (model(xi[None].clone()) for xi in x)]
    return torch.stack(rows).detach()


def gradients_of(output, params):
    "[∇p of one number, flat, …], by an ordinary backward pass."
    if not output.requires_grad:  # every path to a parameter is detached
        return [torch.zeros_like(p).flatten() for p in params]
    grads = torch.autograd.grad(output, params, retain_graph=True, materialize_grads=True)
    return [g.to_dense().flatten() for g in grads]  # an embedding's may be sparse


# The proof


class Witness(NamedTuple):
    """What an ordinary backward pass says of a few examples, `rows`: {name: ∇ of Σ R · f, flat}
    for a random `direction` R (rows, O); and the precision `eps` with which the model computes."""

    rows: list
    direction: torch.Tensor
    gradients: dict
    eps: float

    @classmethod
    def of(cls, model, x, names):
        rows = torch.randperm(len(x))[:HANDFUL].tolist()
        params = trainable(model, names)
        outputs = model(x[rows].clone())
        direction = torch.randn(outputs.shape).to(outputs)
        gradients = gradients_of((direction * outputs).sum(), list(params.values()))
        eps = torch.finfo(precision(model, outputs)).eps
        return cls(rows, direction, dict(zip(params, gradients)), eps)


class Claim(NamedTuple):
    """What is `found` of a parameter's gradient of Σ R · f, and what the witness has; and a
    function that gives the size of what was summed to it, by which rounding is judged."""

    found: torch.Tensor
    expected: torch.Tensor
    size: Callable


def refuted(model, x, names, claims):
    """The names of which claims(witness), {name: Claim}, is not what the witness says.

    In coarse precision a second witness has to agree: a unit may be on in one batch and, by
    rounding, off in another.
    """
    wrong = list(names)
    for _ in range(2):
        witness = Witness.of(model, x, names)
        said, eps = claims(witness), witness.eps
        doubtful = [name for name in wrong
                    if not is_same(*said[name][:2], eps**0.5 * said[name].expected.norm())]
        # what is not small in itself may be so beside all else, which cancelled before
        total = sum(claim.size() for claim in said.values()) if doubtful else 0
        wrong = [name for name in doubtful
                 if not is_same(*said[name][:2], eps**0.5 * said[name].size() + 100 * eps * total)]
        if not wrong or eps < 1e-10:
            break
    return wrong


def is_same(found, expected, tolerance):
    "Also where the gradient is not finite: the kernel will not be either, and is refused for that."
    return bool(torch.dist(found, expected) <= tolerance) or not expected.isfinite().all()


def contradicted(model, x, jacobian, sizes):
    "The parameters, of {name: P}, of which the Jacobian (N, O, ΣP) is not what a `Witness` says."
    def claims(witness):
        rows, direction = jacobian[witness.rows], witness.direction.to(jacobian)
        found = torch.einsum("io,iop->p", direction, rows)
        parts = found.split(list(sizes.values()))
        return {name: Claim(part, witness.gradients[name], partial(size, direction, rows))
                for name, part in zip(sizes, parts)}

    def size(direction, rows):
        return (direction.abs() * rows.norm(dim=2)).sum()

    return refuted(model, x, list(sizes), claims)


# The model as a function


def functional(model, names=None):
    "The model as f(params, xi) → (O,) of the parameters named, or all, and these parameters."
    call = stateless(model)
    params = {name: p.detach() for name, p in trainable(model).items()}
    f = lambda some, xi: call({**params, **some}, xi[None])[0]
    return f, {name: p for name, p in params.items() if names is None or name in names}


def stateless(model):
    """The model as a function of a state, {name: parameter or buffer}, and inputs.

    Each tensor is exchanged once, in the module that holds it: where a module has two names,
    functional_call by itself exchanges it twice, and cannot give it back.
    """
    def tensors(module, **options):
        return chain(module.named_parameters(**options), module.named_buffers(**options))

    first_name = {tensor: name for name, tensor in tensors(model)}
    slots = {}  # where each module keeps a tensor → the first name of that tensor
    for where, module in model.named_modules():
        for name, tensor in tensors(module, recurse=False, remove_duplicate=False):
            slots[f"{where}.{name}".strip(".")] = first_name[tensor]

    def call(state, x):
        held = {slot: state[name] for slot, name in slots.items() if name in state}
        return functional_call(model, held, (x.clone(),), tie_weights=False)

    return call
