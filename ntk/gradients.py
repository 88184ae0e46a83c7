"""One gradient per example: the Jacobian J, and the model as a function of its parameters.

`torch.func` differentiates functions, and a module is none: its parameters are hidden in it. So the
model is called with other tensors in their place (`functional_call`), and `vmap` runs all examples
at once. Where a model does not allow that, a loop of ordinary backward passes gives the same
numbers.
"""

import threading
import warnings
from contextlib import suppress
from itertools import chain

import torch
from torch.func import functional_call, jacrev, vmap

from ntk.checks import check_model, checked_forward, undisturbed

LOCK = threading.RLock()  # functional_call exchanges the model's own parameters while it runs


def get_grads(model, x):
    """The Jacobian J of the outputs by the trainable parameters: one gradient per example.

    x (N, …) → (N, P) for a model with one output, (N, O, P) for several. The columns follow
    `model.parameters()`, a shared parameter counts once, and `.grad` is not touched. Refuses what
    `compute_ntk` refuses, with its errors.
    """
    with undisturbed(model, x) as (x,):
        check_model(model, x, "x")
        checked_forward(model, x, "x")
        return jacobian(model, x).squeeze(1)


def jacobian(model, x, names=None):
    "J (N, O, P) of the parameters named, or all: by `vmap`, or where that fails by a loop."
    f, params = functional(model, names)
    with suppress(RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on what is slow under vmap
        if not f(params, x[0]).requires_grad:  # else it reads one behind functional_call's back
            blocks = vmap(jacrev(f), (None, 0))(params, x)  # {name: (N, O, *the parameter's shape)}
            rows = [blocks[name].reshape(*blocks[name].shape[:2], -1) for name in params]
            return torch.cat(rows, dim=2)
    return jacobian_by_loop(model, x, names)


def jacobian_by_loop(model, x, names=None):
    "The same by one backward pass for each example and output: the definition."
    params = [p for name, p in model.named_parameters()
              if p.requires_grad and (names is None or name in names)]

    def gradient(output):
        if not output.requires_grad:  # every path to a parameter is detached
            return output.new_zeros(sum(p.numel() for p in params))
        grads = torch.autograd.grad(output, params, retain_graph=True, materialize_grads=True)
        return torch.cat([g.to_dense().flatten() for g in grads])  # an embedding's may be sparse

    rows = [torch.stack([gradient(output) for output in model(xi[None].clone())[0]]) for xi in x]
    return torch.stack(rows).detach()


def functional(model, names=None):
    "The model as f(params, xi) → (O,) of the parameters named, or all, and these parameters."
    call = stateless(model)
    params = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
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
