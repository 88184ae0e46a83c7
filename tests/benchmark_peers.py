"""What benchmark_ntk.py compares compute_ntk with: the article's loop, torch.func, other libraries.

Kernels are in the form of compute_ntk. No library is needed; each that can be imported gets its
columns. Its function takes a model, its inputs and `outputs` to a function that computes the
kernel, or to what stands in the table instead, NOT_SERVED or MEMORY. What is done once for a model
is done here and not timed: converting it, and in JAX the compilation, which the first call brings.
Model None is the infinitely wide ReLU net with three hidden layers.
"""

import importlib
import time

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap
from torch.utils.data import DataLoader, TensorDataset

NOT_SERVED, MEMORY = "–", "memory"
JACOBIANS = 4e9  # bytes; no more are formed, since most methods hold them twice


def made_of(model, *kinds):
    "Whether all parameters are in layers of these kinds."
    return model is not None and all(
        isinstance(m, kinds) for m in model.modules() if list(m.parameters(recurse=False)))


def jacobian_bytes(model, x1, x2):
    "Of N·O gradients each for x1 and x2."
    numbers = model(x1[:1]).shape[1] * sum(p.numel() for p in model.parameters())
    return 4 * numbers * (len(x1) + (0 if x2 is None else len(x2)))


def in_form(full, outputs):
    "A kernel (N1, N2, O, O) as compute_ntk returns it."
    if outputs == "trace":
        return full.diagonal(dim1=2, dim2=3).sum(2)
    return full[:, :, 0, 0] if full.shape[3] == 1 else full


# The article's loop, and torch.func as in PyTorch's tutorial


def article(model, x, outputs):
    "Seconds for a gradient, seconds for a product, and the kernel of x (N, …)."
    grads, start = [], time.perf_counter()
    for xi in x:
        for out in model(xi[None])[0]:
            model.zero_grad()
            out.backward(retain_graph=True)
            grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    middle = time.perf_counter()
    ntk = torch.empty(len(grads), len(grads))
    for i in range(len(grads)):
        for j in range(i + 1):
            ntk[i, j] = ntk[j, i] = torch.dot(grads[i], grads[j]).item()
    end, pairs = time.perf_counter(), len(grads) * (len(grads) + 1) / 2
    model.zero_grad()
    by_example = ntk.unflatten(1, (len(x), -1)).unflatten(0, (len(x), -1)).transpose(1, 2)
    return (middle - start) / len(grads), (end - middle) / pairs, in_form(by_example, outputs)


def scaled_article(model, x1, x2, outputs, few):
    "Seconds for the whole case, and the kernel of `few` examples."
    size, n1, n2 = model(x1[:1]).shape[1], len(x1), 0 if x2 is None else len(x2)
    y = x1[:few] if x2 is None else x2[:few]
    some = y if x2 is None else torch.cat([x1[:few], y])
    gradient, product, ntk = article(model, some, outputs)
    pairs = (n1 * n2 or n1 * (n1 + 1) / 2) * size ** (1 if outputs == "trace" else 2)
    return gradient * (n1 + n2) * size + product * pairs, ntk[:few, -len(y):]


def functional(model):
    params = {k: p.detach() for k, p in model.named_parameters()}
    return lambda p, xi: functional_call(model, p, (xi[None],))[0], params


def jacobian_contraction(model, x1, x2, outputs):
    f, params = functional(model)
    j1 = vmap(jacrev(f), (None, 0))(params, x1)
    j2 = j1 if x2 is None else vmap(jacrev(f), (None, 0))(params, x2)
    pattern = "Naf,Maf->NM" if outputs == "trace" else "Naf,Mbf->NMab"
    ntk = sum(torch.einsum(pattern, j1[k].flatten(2), j2[k].flatten(2)) for k in params)
    return ntk if outputs == "trace" else in_form(ntk, outputs)


def ntk_vector_products(model, x1, x2, outputs):
    f, params = functional(model)

    def block(a, b):
        out, pullback = vjp(lambda p: f(p, a), params)
        push = lambda v: jvp(lambda p: f(p, b), (params,), pullback(v))[1]
        return vmap(push)(torch.eye(len(out)))

    full = vmap(vmap(block, (None, 0)), (0, None))(x1, x1 if x2 is None else x2)
    return in_form(full, outputs)


# Neural Tangents (Novak et al. 2022); version 0.6.5 works with jax 0.4.25 and numpy 1.26


def to_jax(x):
    import jax.numpy as jnp
    return jnp.asarray(x.detach().numpy())


def applied_in_jax(model):
    "f(params, x) and params in JAX, for a Sequential of some kinds of layers."
    import jax
    layers = [(type(layer), getattr(layer, "stride", 1), getattr(layer, "padding", 0))
              for layer in model]

    def f(params, x):
        for (kind, stride, padding), p in zip(layers, params):
            if kind is nn.Linear:
                x = x @ p[0] + p[1]
            elif kind is nn.Conv2d:
                around = [(places, places) for places in padding]
                x = jax.lax.conv_general_dilated(x, p[0], stride, around) + p[1][:, None, None]
            elif kind is nn.AvgPool2d:
                n, c, h, w = x.shape
                x = x.reshape(n, c, h // stride, stride, w // stride, stride).mean((3, 5))
            else:
                x = jax.nn.relu(x) if kind is nn.ReLU else x.reshape(len(x), -1)
        return x

    # Linear's weights (fan_in, fan_out): no structure is recognised behind a transposition
    return f, [[to_jax(p.T if isinstance(layer, nn.Linear) and p.ndim == 2 else p)
                for p in layer.parameters()] for layer in model]


def neural_tangents(model, x1, x2, outputs, implementation="STRUCTURED_DERIVATIVES"):
    import jax
    import neural_tangents as nt
    jax.config.update("jax_enable_x64", True)  # for the infinite net; others stay in float32
    if model is None:
        return infinite_neural_tangents(x1)
    if not isinstance(model, nn.Sequential):
        return NOT_SERVED
    f, params = applied_in_jax(model)
    traced = outputs == "trace"
    kernel_fn = jax.jit(nt.empirical_ntk_fn(
        f, trace_axes=(-1,) if traced else (), vmap_axes=0,
        implementation=nt.NtkImplementation[implementation]))
    a1, a2 = to_jax(x1), None if x2 is None else to_jax(x2)
    size = model(x1[:1]).shape[1]

    def compute():
        ntk = torch.from_numpy(np.array(kernel_fn(a1, a2, params)))
        return size * ntk if traced else in_form(ntk, outputs)  # nt's trace is a mean

    return compute


def neural_tangents_jacobian(model, x1, x2, outputs):
    if model is None:
        return NOT_SERVED
    if jacobian_bytes(model, x1, x2) > JACOBIANS:
        return MEMORY
    return neural_tangents(model, x1, x2, outputs, "JACOBIAN_CONTRACTION")


def infinite_neural_tangents(x):
    "In float64, as ours."
    import jax
    from neural_tangents import stax
    dense = stax.Dense(1, W_std=2**0.5, b_std=0)
    *_, kernel_fn = stax.serial(*3 * [dense, stax.Relu()], dense)
    kernel_fn, a = jax.jit(kernel_fn, static_argnames="get"), to_jax(x.double())
    return lambda: torch.from_numpy(np.array(kernel_fn(a, None, get="ntk")))


# Libraries for PyTorch


def nngeometry(model, x1, x2, outputs):
    if x2 is not None or not made_of(model, nn.Linear, nn.Conv2d):
        return NOT_SERVED
    from nngeometry.gram import GramMatrix
    loader = DataLoader(TensorDataset(x1), batch_size=len(x1))
    return lambda: in_form(GramMatrix(model, loader).to_torch().permute(1, 3, 0, 2), outputs)


def asdl_hadamard(model, x1, x2, outputs):
    "Of pairs of equal outputs, which is all for one output and for the trace."
    if not made_of(model, nn.Linear, nn.Conv2d):
        return NOT_SERVED
    if outputs == "full" and model(x1[:1]).shape[1] > 1:
        return NOT_SERVED
    from asdl import empirical_class_wise_hadamard_ntk
    return lambda: empirical_class_wise_hadamard_ntk(model, x1, x2).sum(2)


PEERS = {
    "Neural Tangents": ("neural_tangents", neural_tangents),
    "Neural Tangents, J Jᵀ": ("neural_tangents", neural_tangents_jacobian),
    "nngeometry": ("nngeometry", nngeometry),
    "asdl, hadamard": ("asdl", asdl_hadamard),
}


def importable():
    "{column: function} of the peers that are installed and can be imported."
    found = {}
    for column, (package, function) in PEERS.items():
        try:
            importlib.import_module(package)
        except ImportError:
            continue
        found[column] = function
    return found
