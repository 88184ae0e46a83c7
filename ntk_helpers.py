"""The helper module of the neural tangent kernel course, in the order of the notebooks.

Each function is built by hand in the notebook that teaches it and called from here ever after.
Notation: inputs N, outputs O, parameters P, width n, the Jacobian J (N·O × P), and
Θ(x, x′) = ⟨∇θ f(x; θ), ∇θ f(x′; θ)⟩, the neural tangent kernel (NTK; Jacot et al. 2018, arXiv:1806.07572).
"""

import base64
import copy
import html
import inspect
import io
import math
import threading
import warnings
from collections import namedtuple
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain, zip_longest
from numbers import Real

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import display
from joblib import Parallel, delayed, effective_n_jobs
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from torch import nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge
from torch.func import functional_call, jacrev, jvp, stack_module_state, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm
from traitlets import TraitError

# 01 · The model ------------------------------------------------------------------------------------------------------

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "erf": torch.erf, "gelu": F.gelu}


class MLP(nn.Module):
    """Fully connected net (N, input_dim) → (N, output_dim) with `hidden_layers` layers of `hidden_dim` units.

    parametrization: "standard" is PyTorch's `nn.Linear` with its default initialisation; `weight_std` and `bias_std` keep
        their defaults. "ntk" is z = weight_std / √fan_in · W a + bias_std · b with all entries of W and b from N(0, 1)
        (Jacot et al. 2018, arXiv:1806.07572, section 2; scales as in Lee et al. 2019, arXiv:1902.06720, eq. 1).
    activation: "relu", "tanh", "erf", "gelu", or a callable applied to each hidden layer.

    The layers are `lin1`, `lin2`, …, so `parameters()` yields weight (fan_out, fan_in), bias (fan_out,), weight, bias, …
    Raises TypeError for sizes that are not integers, ValueError for values out of range or unknown names.
    """

    def __init__(self, input_dim, hidden_dim, output_dim=1, *, hidden_layers=1, activation="relu",
                 parametrization="standard", weight_std=2**0.5, bias_std=0.0):
        super().__init__()
        _require_positive_ints(input_dim=input_dim, hidden_dim=hidden_dim, output_dim=output_dim, hidden_layers=hidden_layers)
        _require(parametrization in ("standard", "ntk"),
                 f'parametrization must be "standard" or "ntk", got {parametrization!r}')
        _require_scales(weight_std=weight_std, bias_std=bias_std)
        _require(parametrization == "ntk" or (weight_std, bias_std) == (2**0.5, 0.0),
                 'weight_std and bias_std need parametrization="ntk": the standard one has no such scales')

        self.hidden_layers, self.parametrization = hidden_layers, parametrization
        self.weight_std, self.bias_std = weight_std, bias_std
        self.activation = _activation(activation)
        widths = [input_dim, *[hidden_dim] * hidden_layers, output_dim]
        for i, (fan_in, fan_out) in enumerate(zip(widths, widths[1:]), start=1):
            setattr(self, f"lin{i}", nn.Linear(fan_in, fan_out))
        if parametrization == "ntk":
            for p in self.parameters():
                nn.init.normal_(p)

    @property
    def layers(self):
        "The layers `lin1`, `lin2`, … in order."
        return [getattr(self, f"lin{i}") for i in range(1, self.hidden_layers + 2)]

    def scales(self, layer):
        "The factors before W a and b in `layer`: (1, 1) in the standard parametrization."
        if self.parametrization == "standard":
            return 1.0, 1.0
        return self.weight_std / layer.weight.shape[1] ** 0.5, self.bias_std

    def preactivation(self, layer, a):
        "What `layer` makes of its inputs `a` (N, fan_in), before the activation: (N, fan_out)."
        if self.parametrization == "standard":
            return layer(a)
        weight_scale, bias_scale = self.scales(layer)
        return F.linear(weight_scale * a, layer.weight, bias_scale * layer.bias)

    def forward(self, x):
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(self.preactivation(layer, x))
        return self.preactivation(last, x)


def _require(holds, message, error=ValueError):
    if not holds:
        raise error(message)


def _activation(choice):
    _require(callable(choice) or isinstance(choice, str) and choice in ACTIVATIONS,
             f"activation must be a callable or one of {list(ACTIVATIONS)}, got {choice!r}")
    return choice if callable(choice) else ACTIVATIONS[choice]


def _require_scales(**scales):
    for name, std in scales.items():
        _require(isinstance(std, Real) and 0 <= std < math.inf, f"{name} must be a finite number, zero or more, got {std!r}")


def _require_positive_ints(**values):
    for name, value in values.items():
        integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        _require(integer, f"{name} must be a positive integer, got {value!r}", TypeError)
        _require(value >= 1, f"{name} must be a positive integer, got {value}")


# 02 · Gradients, one per example -------------------------------------------------------------------------------------


def get_grads(model, x):
    """The Jacobian J of the outputs with respect to the trainable parameters: one gradient per example.

    x (N, …) → (N, P) for a model with one output, (N, O, P) for several. The columns follow `model.parameters()`,
    a shared parameter counts once, and `.grad` is not touched. Refuses what `compute_ntk` refuses, with its errors.
    """
    with _undisturbed(model, x) as (x,):
        _check(model, x, "x")
        _forward(model, x, "x")
        return _jacobian(model, x).squeeze(1)


def _jacobian(model, x, names=None):
    "(N, O, P) by `vmap`, or where the model does not allow it (an LSTM, say) by a loop; of the parameters named, or all."
    f, params = _functional(model, names)
    with suppress(RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on what is slow under vmap
        if not f(params, x[0]).requires_grad:  # else it reads a parameter behind the back of functional_call
            blocks = vmap(jacrev(f), (None, 0))(params, x)
            return torch.cat([blocks[name].reshape(*blocks[name].shape[:2], -1) for name in params], dim=2)
    return _jacobian_by_loop(model, x, names)


def _jacobian_by_loop(model, x, names=None):
    params = [p for name, p in model.named_parameters() if p.requires_grad and (names is None or name in names)]

    def gradient(output):
        if not output.requires_grad:  # every path to a parameter is detached
            return output.new_zeros(sum(p.numel() for p in params))
        grads = torch.autograd.grad(output, params, retain_graph=True, materialize_grads=True)
        return torch.cat([g.to_dense().flatten() for g in grads])  # an embedding's may be sparse

    return torch.stack([torch.stack([gradient(output) for output in model(xi[None].clone())[0]]) for xi in x]).detach()


def _functional(model, names=None):
    "f(params, xi) → (O,), the model as a function of the parameters named, or all, and one example; and these parameters."
    call, params = _stateless(model), {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    f = lambda some, xi: call({**params, **some}, xi[None])[0]
    return f, {name: p for name, p in params.items() if names is None or name in names}


def _stateless(model):
    """The model as a function of parameters and buffers, by name, and inputs. Each is exchanged once, in the module that holds
    it: where a module has two names, functional_call by itself exchanges it twice, and cannot give it back."""
    tensors = lambda module, **options: chain(module.named_parameters(**options), module.named_buffers(**options))
    first = {t: name for name, t in tensors(model)}
    slots = {f"{place}.{name}".strip("."): first[t] for place, module in model.named_modules()
             for name, t in tensors(module, recurse=False, remove_duplicate=False)}
    return lambda state, x: functional_call(model, {slot: state[name] for slot, name in slots.items() if name in state},
                                            (x.clone(),), tie_weights=False)


# 03 · The kernel -----------------------------------------------------------------------------------------------------

_Share = namedtuple("_Share", "key inputs gradients factor constant")  # A (N, T, fan_in) and D (N, T, O, fan_out) of a layer
MEMORY_BUDGET = 256e6  # bytes that compute_ntk may hold besides the inputs, the parameters and the kernel
LOCK = threading.RLock()  # functional_call exchanges the model's own parameters while it runs


def compute_ntk(model, x1, x2=None, *, method="auto", chunk_size=None, n_jobs=None, progress=False):
    """The empirical NTK: Θ[i, j, a, b] = ⟨∇θ f_a(x1[i]), ∇θ f_b(x2[j])⟩ over the trainable parameters θ.

    x1 (N1, …), x2 (N2, …) or None for x2 = x1 → (N1, N2) for a model with one output, (N1, N2, O, O) for several, with the
    model's dtype, on its device; exactly symmetric if x2 is None. The model is left as it was, and no other thread may use it
    meanwhile.

    method
        "auto": "layerwise" for every parameter it serves, "jacobian" for the others of the same model.
        "layerwise": Σ over layers of (D Dᵀ) ∘ (A Aᵀ + 1), from a layer's inputs A and the gradients D at its outputs, for
            weights and biases of linear layers and convolutions that enter the graph once. Where a layer is applied at many
            places, its gradients are formed instead, layer by layer.
        "jacobian": J Jᵀ. Cost N·O backward passes and N²O²P (Novak et al. 2022, arXiv:2206.08720, section 3.2).
        "ntk_vector_products": Θ v by one backward and one forward-mode pass per pair and output (same paper, section 3.3).
        "loop": the definition, one pair of gradients at a time. Slow; to learn from and to test against.
    chunk_size: examples in a chunk; two are held, and gradients computed anew for each pair of chunks. None: as many as
        fit into 256 MB for each process, and one if none does.
    n_jobs: processes that share the rows, as in `joblib.Parallel`. None: one, or what `joblib.parallel_config` says.
    progress: show a bar.

    Raises TypeError or ValueError for a model that is not an `nn.Module`, has no trainable parameter, or whose output is not
    (N, O), or for one example depends on the others or on chance (call `model.eval()`); for inputs that are no tensors, empty,
    or not of the model's shape, dtype and device; for NaN or infinity anywhere; and for a method that cannot serve the model.
    """
    _require(method in [*_METHODS], f"method must be one of {(*_METHODS,)}, got {method!r}")
    if chunk_size is not None:
        _require_positive_ints(chunk_size=chunk_size)
    _require(n_jobs is None or type(n_jobs) is int and n_jobs != 0,
             f"n_jobs must be None or an integer other than 0, got {n_jobs!r}")
    with _undisturbed(model, x1, x2) as (x1, x2):
        xs = {"x1": x1} if x2 is None else {"x1": x1, "x2": x2}
        for name, x in xs.items():
            _check(model, x, name)
        groups, fit = _plan(model, method, xs)
        n1, n2, jobs = len(x1), len(x1 if x2 is None else x2), effective_n_jobs(n_jobs)
        size = chunk_size or max(1, fit if max(n1, n2) <= fit else fit // 2)  # two chunks are held, unless one is all
        step = min(size, math.ceil(n1 / jobs / min(jobs, 2)))  # two strips for each process: they are of unequal length
        work = _blocks if jobs == 1 else lambda *strip: [*_blocks(*strip)]  # another process cannot yield
        strips = Parallel(n_jobs, return_as="generator_unordered")(
            delayed(work)(model, method, group, x1, x2, start, start + step, size)
            for group in groups for start in range(0, n1, step))
        ntk = None
        with tqdm(total=n1 * n2 * len(groups), desc="NTK", unit=" entries", unit_scale=True, disable=not progress) as bar:
            for i, j, block in chain.from_iterable(strips):
                _require(_finite(block), "the kernel must be finite, got NaN or infinity: a gradient is not, or is too long")
                ntk = block.new_zeros(n1, n2, *block.shape[2:]) if ntk is None else ntk
                right = len(block) if i == j else 0
                mirrored = [(i, j, block)] + [(j + right, i, block[:, right:].permute(1, 0, 3, 2))] * (x2 is None)
                for i, j, block in mirrored:
                    ntk[i:i + len(block), j:j + block.shape[1]] += block
                    bar.update(block.shape[0] * block.shape[1])
    return ntk[:, :, 0, 0] if ntk.shape[2] == 1 else ntk


def _blocks(model, method, names, x1, x2, start, stop, size):
    """Yield (i, j, Θ[i:…, j:…]) of the parameters named, for the rows from `start` to `stop`, the columns in chunks of `size`.
    With x2 None only what is on the diagonal or right of it: Θ(x′, x) = Θ(x, x′)ᵀ is the rest."""
    prepare, multiply = _METHODS[method]

    def prepared(x, name):
        with LOCK:  # another thread may be at work on the same model
            return prepare(model, x, *_forward(model, x, name), names)

    columns, name, first = (x1, "x1", min(stop, len(x1))) if x2 is None else (x2, "x2", 0)
    rows = prepared(x1[start:stop], "x1")
    for j in [start] * (x2 is None) + [*range(first, len(columns), size)]:
        diagonal, one, two = j < first, rows, None  # the last chunk goes before the next one comes
        two = rows if diagonal else prepared(columns[j:j + size], name)
        if [s.key for s in one] != [s.key for s in two]:  # the model branches on its inputs
            with LOCK:
                one, two = ([_whole(_jacobian(model, x, names))] for x in (x1[start:stop], columns[j:j + size]))
        height, (width, _, outputs, _) = len(one[0].inputs), two[0].gradients.shape
        slab = min(max(64, math.ceil(height / 8)), max(1, int(MEMORY_BUDGET / 128 / (width * outputs**2))))
        for i in range(0, height, slab):
            left = i if diagonal else 0
            block = multiply(model, [s._replace(inputs=s.inputs[i:i + slab], gradients=s.gradients[i:i + slab]) for s in one],
                             [s._replace(inputs=s.inputs[left:], gradients=s.gradients[left:]) for s in two])
            if diagonal:
                square = block[:, :len(block)]
                square.copy_((square + square.permute(1, 0, 3, 2)) / 2)
            yield start + i, j + left, block


def _sum_of_shares(model, shares1, shares2):
    "Over layers, and over the T places at which each is applied to an example: (D Dᵀ) ∘ (factor · A Aᵀ + constant)."
    ntk = shares1[0].gradients.new_zeros(())
    for (_, a1, d1, factor, constant), (_, a2, d2, *_) in zip(shares1, shares2):
        for s, t in np.ndindex(a1.shape[1], a2.shape[1]):
            inputs = torch.addmm(a1.new_tensor(constant), a1[:, s], a2[:, t].T, alpha=factor)[:, :, None, None]
            ntk = torch.addcmul(ntk, torch.einsum("iap,jbp->ijab", d1[:, s], d2[:, t]), inputs)
    return ntk


# Layer by layer. A product z = a Wᵀ + b in the graph that autograd recorded has ∂f/∂W = Dᵀ a and ∂f/∂b = D, where
# D = ∂f/∂z. No module is asked: what counts is which products a parameter enters, and that it enters nothing else.

PRODUCTS = {  # (node, place of the parameter): attributes of the node that hold a factor, and the inputs a; None for a bias
    ("AddmmBackward0", 2): ("_saved_alpha", "_saved_mat1"), ("AddmmBackward0", 0): ("_saved_beta", None),
    ("MmBackward0", 1): ("", "_saved_self"), ("AddBackward0", 0): ("", None), ("AddBackward0", 1): ("_saved_alpha", None),
    ("ConvolutionBackward0", 1): ("", "_saved_input"), ("ConvolutionBackward0", 2): ("", None)}
KEEP_ROWS = [f"{name}Backward0" for name in (
    "Relu", "Tanh", "Erf", "Gelu", "Sigmoid", "Silu", "Elu", "LeakyRelu", "Softplus", "Sin", "Cos", "MaxPool2DWithIndices",
    "AvgPool2D", "View", "UnsafeView", "Clone")]


def _shares(model, x, out, start, names, strict=False):
    "Shares that add up to Θ: one for each layer that has a formula, and the Jacobian of the other parameters."
    layers, others = _layers(model, out, names)
    layouts, by_output = _layouts(out, layers, start)
    for node in [node for node in layers if node not in layouts]:
        others += layers.pop(node)
    _require(not (strict and others), f'method="layerwise" cannot serve {", ".join(others)}, which the model uses otherwise '
             'than once, as weight or bias of a linear layer or convolution; use method="auto"')
    shares = []
    rows = zip(*([_reduced(node, layers[node], d[node], layouts[node], *out.shape) for node in layers] for d in by_output))
    for (node, uses), outputs in zip(layers.items(), rows):
        reduced = [torch.stack(d, -2) if len(d) > 1 else d[0].unsqueeze(-2) for d in zip(*outputs)]
        if reduced[0].ndim == 3:
            shares += [_whole(factor * d if factor != 1 else d, (name, axes))
                       for d, (name, (factor, _, axes)) in zip(reduced, uses.items())]
        else:
            [(factor, a)] = [(factor, a) for factor, a, _ in uses.values() if a is not None]
            bias = sum(factor**2 for factor, a, _ in uses.values() if a is None)
            # all of it may differ between chunks, if the model branches on its inputs
            key = ("layer", *((name, factor, axes) for name, (factor, _, axes) in uses.items()))
            shares.append(_Share(key, _places(a, len(x), layouts[node]), *reduced, factor**2, bias))
    if others:
        shares.append(_whole(_jacobian(model, x, others), *others))
    return shares or [_whole(out.detach()[:, :, None][..., :0])]  # an output that depends on no parameter has Θ = 0


def _whole(gradients, *key):
    "The share of parameters with the gradients (N, O, P): that of a layer at one place with input 1."
    return _Share(key, gradients.new_ones(len(gradients), 1, 1), gradients[:, None], 1.0, 0.0)


def _layers(model, out, names):
    "{node: {parameter's name: (factor, inputs, axes)}} for the products in the graph, and the names of all others that count."
    graph, todo = {out.grad_fn: []}, [out.grad_fn]  # {node or parameter: [(a node it flows into, in which place), …]}
    while todo:
        node = todo.pop()
        for place, (source, _) in enumerate(getattr(node, "next_functions", ())):
            source = getattr(source, "variable", source)  # of an AccumulateGrad node
            todo += [source] * (source is not None and source not in graph)
            graph.setdefault(source, []).append((node, place))
    hidden = any(isinstance(node, BackwardCFunction) for node in graph)  # it may use parameters that no edge leads to
    layers, others = {}, []
    params = dict(model.named_parameters())
    for name in names:
        node, *use = _use(params[name], graph)
        if node:
            layers.setdefault(node, {})[name] = use
        elif params[name] in graph or hidden:
            others.append(name)
    return layers, others


def _use(p, graph):
    "(node, factor, inputs, order of the axes) of the one product that the parameter enters, perhaps times a number; else (None,)."
    node, factor, axes = p, 1.0, (*range(p.ndim),)
    while len(graph.get(node, ())) == 1:
        [(node, place)] = graph[node]
        name, shape = node.name(), node._input_metadata[0].shape
        if (name, place) in PRODUCTS:
            scale, kept = PRODUCTS[name, place]
            a = getattr(node, kept).detach() if kept else None
            bias = name == "ConvolutionBackward0" or len(shape) > 1 and [*p.shape] == [*shape[-1:]]
            fits = (p.ndim == a.ndim if kept else bias) and not getattr(node, "_saved_transposed", False)
            return (node, factor * getattr(node, scale, 1.0), a, axes) if fits else (None,)
        if (name, place) in [("MulBackward0", 0), ("MulBackward0", 1), ("DivBackward0", 0)]:
            number = node._saved_self if place else node._saved_other
            if number.ndim:
                break
            factor = factor * number.item() if name == "MulBackward0" else factor / number.item()
        elif name in ("TBackward0", "PermuteBackward0"):
            axes = tuple(axes[d] for d in (node._saved_dims if name == "PermuteBackward0" else range(p.ndim)[::-1]))
        else:
            break
    return (None,)


def _layouts(out, layers, start):
    """{node: whether what it returned goes example by example, or else place by place}; for each output {node: gradients}.
    Row r belongs to example i if factors c_i at the outputs become a factor c_i in row r. Nodes with others are left out."""
    def pull(v):  # the gradient of the sum over examples: they do not mix, so it holds each one's own
        edges = [GradientEdge(node, 0) for node in layers]
        # (v * out).sum(), since torch imports sympy, for seconds, as soon as it is given grad_outputs
        grads = torch.autograd.grad((v * out).sum(), edges, retain_graph=True, allow_unused=True) if edges else ()
        grads = [out.new_zeros(node._input_metadata[0].shape) if d is None else d for node, d in zip(layers, grads)]
        return {node: d if node.name() == "ConvolutionBackward0" else d.flatten(0, -2) for node, d in zip(layers, grads)}

    (n, o), by_output = out.shape, map(pull, torch.eye(out.shape[1]).to(out))
    if not layers or _keeps_rows(out.grad_fn, layers, start):
        return dict.fromkeys(layers, True), by_output
    c, w, layouts = torch.randn(n, 1).to(out), (torch.randn(o) if o > 1 else torch.ones(1)).to(out), {}
    before, after = pull(w), pull(c * w)
    for node, d in before.items():
        for layout in (False, True) if len(d) and len(d) % n == 0 else ():
            if _close(_places(after[node], n, layout), _places(d, n, layout) * c.view(n, *[1] * d.ndim)):
                layouts[node] = layout
    return layouts, [before] if o == 1 else by_output


def _keeps_rows(node, layers, start):
    "Whether all operations from `start` to the node keep to the rows, the products among them being with parameters."
    a = start[:0]
    while node is not None and [*node._input_metadata[0].shape[:1]] == [len(start)]:
        uses, place = layers.get(node, {}), 0
        inputs = [a for _, a, _ in uses.values() if a is not None]
        if inputs and len(uses) == len(node.next_functions) - 1:  # all but the inputs are parameters
            [a], place = inputs, int(node.name() == "AddmmBackward0")
        elif node.name() not in KEEP_ROWS:
            return False
        node = node.next_functions[place][0]
    kept = node is None and start._version == 0 and a.data_ptr() == start.data_ptr() and a.numel() == start.numel()
    return kept and a.is_contiguous() and start.is_contiguous()


def _places(rows, n, examples_first):
    "(N·T, …) → (N, T, …)"
    return rows.unflatten(0, (n, -1)) if examples_first else rows.unflatten(0, (-1, n)).transpose(0, 1)


def _reduced(node, uses, d, layout, n, o):
    """[D (N, T, fan_out)] for one output at a linear layer; or, where that makes for fewer operations, and for a convolution,
    the gradients (N, P) of its weight and bias."""
    inputs = [a for _, a, _ in uses.values()]
    if node.name() == "ConvolutionBackward0":
        gradients = [_places(d.flatten(2).sum(2) if a is None else _convolution(node, a, d), n, layout) for a in inputs]
        return [g.sum(1) if g.shape[1] > 1 else g[:, 0] for g in gradients]
    d = _places(d, n, layout)
    fan_in, places, fan_out = sum(a.shape[1] for a in inputs if a is not None), *d.shape[1:]
    if fan_in and places**2 * (fan_in + o**2 * fan_out) <= o**2 * (fan_in + 1) * fan_out:
        return [d]
    return [d.sum(1) if a is None else torch.einsum("itp,itq->ipq", d, _places(a, n, layout)).flatten(1) for a in inputs]


def _convolution(node, a, d):
    "Gradients (R, P) of a convolution's weight from its inputs and the gradients at its outputs, each (R, channels, …)."
    backward = lambda a, d: torch.ops.aten.convolution_backward(
        d[None], a[None], node._saved_weight.detach(), None, node._saved_stride, node._saved_padding, node._saved_dilation,
        False, node._saved_output_padding, node._saved_groups, (False, True, False))[1]
    return vmap(backward)(a, d).flatten(1)


def _plan(model, method, xs):
    """Groups of parameters, of which an example's gradients fit into an eighth of the budget, and how many examples fit into
    the budget with their graph; from a rehearsal with a few of the larger examples."""
    name, x = max(xs.items(), key=lambda item: item[1][0].numel())
    saved = {}  # what autograd keeps
    note = lambda t: saved.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}) or t
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out, start = _forward(model, x[:5], name, check=False)
    (n, o), params = out.shape, {name: p for name, p in model.named_parameters() if p.requires_grad}
    held = {name: p.nbytes * o * (method != "ntk_vector_products") for name, p in params.items()}  # bytes for an example
    layers, _ = _layers(model, out, params if method in ("auto", "layerwise") else {})
    layouts, by_output = _layouts(out, layers, start)
    for node, d in next(iter(by_output)).items():
        if node in layouts:
            sizes = [d.nbytes * o / n for d in _reduced(node, layers[node], d, layouts[node], n, o)]
            held |= dict(zip_longest(layers[node], sizes, fillvalue=0))
    for p in model.parameters():
        saved.pop(p.untyped_storage().data_ptr(), None)
    groups = [[]]
    for name in held:
        if groups[-1] and sum(map(held.get, [*groups[-1], name])) > MEMORY_BUDGET / 8:
            groups.append([])
        groups[-1].append(name)
    largest = max(sum(map(held.get, group)) for group in groups)
    return groups, int(MEMORY_BUDGET / 2 / max(1, sum(saved.values()) / n + largest))


def _loop(model, shares1, shares2):
    [(_, _, j1, *_)], [(_, _, j2, *_)] = shares1, shares2
    return torch.stack([torch.stack([one[0] @ two[0].T for two in j2]) for one in j1])


def _ntk_vector_products(model, shares1, shares2):
    def block(xi, xj):
        out, pullback = vjp(lambda p: f(p, xj), params)  # v ↦ J(xj)ᵀ v
        push = lambda v: jvp(lambda p: f(p, xi), (params,), pullback(v))[1]  # v ↦ J(xi) J(xj)ᵀ v
        return vmap(push, out_dims=1)(torch.eye(len(out), dtype=out.dtype, device=out.device))

    [(_, x1, *_)], [(_, x2, out, *_)] = shares1, shares2
    refusal = f'method="ntk_vector_products" cannot serve this {type(model).__name__}; use method="jacobian"'
    try:
        with LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            f, params = _functional(model)
            chunk = max(1, int(MEMORY_BUDGET / 4 / max(1, out.shape[2] * sum(p.nbytes for p in params.values()))))
            ntk = torch.stack([vmap(block, (None, 0), chunk_size=chunk)(xi, x2) for xi in x1])
            first = torch.einsum("iap,jbp->ijab", _jacobian_by_loop(model, x1[:1]), _jacobian_by_loop(model, x2[:1]))
    except RuntimeError as error:
        raise ValueError(f"{refusal}: {error}") from error
    _require(_close(ntk[:1, :1], first), f"{refusal}: forward and backward mode disagree")  # torch.no_grad inside, say
    return ntk


_METHODS = {  # how to prepare a chunk of examples, and how to multiply two such to a block of Θ
    "auto": (_shares, _sum_of_shares), "layerwise": (partial(_shares, strict=True), _sum_of_shares),
    "jacobian": (lambda model, x, out, _, names: [_whole(_jacobian(model, x, names))], _sum_of_shares),
    "ntk_vector_products": (lambda model, x, out, *_: [_Share((), x, out.detach()[:, None, :, None], 1, 0)],
                            _ntk_vector_products),
    "loop": (lambda model, x, out, _, names: [_whole(_jacobian_by_loop(model, x, names))], _loop)}


@contextmanager
def _undisturbed(model, *inputs):
    "Give detached `inputs` that autograd can use; afterwards the random state and the buffers are as before."
    _require(isinstance(model, nn.Module), f"model must be a torch.nn.Module, got {type(model).__name__}", TypeError)
    with torch.inference_mode(False), torch.enable_grad(), _exact_cudnn(model):
        state = [(store, dict(store)) for m in model.modules() for store in (vars(m), m._parameters, m._buffers)]
        buffers = [(b, b.clone(), b._version) for b in model.buffers()]
        inputs = [(x.clone() if x.is_inference() else x).detach() if isinstance(x, torch.Tensor) else x for x in inputs]
        try:
            with torch.random.fork_rng(devices=[x.device for x in inputs if isinstance(x, torch.Tensor) and x.is_cuda][:1]):
                yield inputs
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(f"PyTorch cannot differentiate this {type(model).__name__}: {error}") from error
        finally:
            with torch.no_grad():
                for store, before in state:
                    if [*map(id, store.values())] != [*map(id, before.values())]:
                        store.clear()
                        store.update(before)
                for buffer, before, version in buffers:
                    if buffer._version != version:
                        buffer.copy_(before)


@contextmanager
def _exact_cudnn(model):
    "On a GPU: convolutions without TF32, which keeps ten bits, and no cuDNN for recurrent nets, which it cannot differentiate."
    cudnn, recurrent = torch.backends.cudnn, any(isinstance(m, nn.RNNBase) for m in model.modules())
    before = cudnn.enabled, cudnn.conv.fp32_precision
    try:
        cudnn.enabled, cudnn.conv.fp32_precision = before[0] and not recurrent, "ieee"
        yield
    finally:
        cudnn.enabled, cudnn.conv.fp32_precision = before


def _check(model, x, name):
    "Refuse what has no kernel, before the model is run."
    params = dict(model.named_parameters())
    _require(any(p.requires_grad for p in params.values()), "model has no trainable parameter, one with requires_grad=True")
    _require(isinstance(x, torch.Tensor), f"{name} must be a torch.Tensor of shape (N, …), got {type(x).__name__}", TypeError)
    _require(x.ndim > 0 and x.numel() > 0, f"{name} must hold at least one example, in rows, got shape {tuple(x.shape)}")
    dtypes, devices = {p.dtype for p in params.values()}, {p.device for p in params.values()}
    _require(not x.is_floating_point() or x.dtype in dtypes,
             f"{name} must have the model's dtype {' or '.join(map(str, dtypes))}, got {x.dtype}", TypeError)
    _require(x.device in devices, f"{name} must be on the model's device {' or '.join(map(str, devices))}, got {x.device}")
    _require(_finite(x), f"{name} must be finite, got NaN or infinity")
    for where, p in params.items():
        _require(_finite(p), f"the model's weights must be finite, got NaN or infinity in {where}")
    for where, module in model.named_modules():
        norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        active = norm or isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        what = f"{type(module).__name__} {where!r}"
        _require(not (active and module.training), f"{what} is in training mode: an example's output then depends on the "
                 "others or on chance; call model.eval() first")
        _require(not (norm and module.running_mean is None), f"{what} has no running statistics: an example's output then "
                 "depends on the others or on chance, also after model.eval()")


def _forward(model, x, name, check=True):
    "The outputs (N, O) with their graph, and the copy of `x` at its start. Refuse what has no kernel, or only a wrong one."
    some = [*range(1, min(5, len(x))), -1]
    parts, again = ([x[:1], x[some]], [0, *some]) if len(x) > 1 else ([torch.cat([x, x])], [0, 0])
    versions = [p._version for p in model.parameters()]
    try:
        out = model(start := x.clone())
        with torch.no_grad():
            alone = [model(part.clone()) for part in parts] if check else ()
    except Exception as error:
        raise ValueError(f"the model cannot take {name} of shape {tuple(x.shape)} and dtype {x.dtype}: {error}") from error
    _require(isinstance(out, torch.Tensor), f"the output must be one tensor (N, O), got {type(out).__name__}", TypeError)
    _require(out.ndim == 2 and len(out) == len(x) and out.shape[1] > 0, "the model's output must have shape (N, O) = "
             f"({len(x)}, O), got {tuple(out.shape)} for {name} of shape {tuple(x.shape)}")
    _require(out.is_floating_point(), f"the model's output must be of a floating dtype, got {out.dtype}", TypeError)
    _require(_finite(out), f"the model's outputs must be finite, got NaN or infinity for {name}")
    _require(versions == [p._version for p in model.parameters()], "the model changes its own weights when it is called")
    _require(not check or _close(torch.cat(alone), out[again]), "the model's output for one example depends on the others in "
             "the batch or on chance; call model.eval(), or write the model so that examples do not mix")
    return out, start


def _finite(tensor):
    return not (tensor.is_floating_point() and tensor.numel()) or all(map(math.isfinite, tensor.detach().aminmax()))  # one pass


def _close(got, expected):
    return not (got - expected).abs().max() > torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().max()


# 04 · Reading a kernel -----------------------------------------------------------------------------------------------

Spectrum = namedtuple("Spectrum", "eigenvalues eigenvectors")


def cosine(kernel):
    """The cosine of the angle between two gradients: kernel[i, j] / √(kernel[i, i] kernel[j, j]), with ones on the diagonal.

    kernel (N, N), a tensor or array → (N, N). A row whose diagonal is zero (a gradient of length zero) becomes zero.
    Raises ValueError if the kernel is not square, symmetric and finite, or has a negative diagonal.
    """
    kernel = _square(kernel)
    norms = kernel.diagonal().sqrt()
    _require(not norms.isnan().any(), f"kernel must have no negative diagonal entry, got {kernel.diagonal().min():.3g}")
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
    kernel, labels = _square(kernel).double(), torch.as_tensor(labels)
    classes = not labels.is_floating_point()
    _require(labels.ndim in ((1,) if classes else (1, 2)) and len(labels) == len(kernel),
             f"labels must have shape ({len(kernel)},), one per row of the kernel, got {tuple(labels.shape)}")
    _require(labels.isfinite().all(), "labels must be finite, got NaN or infinity")
    targets = (F.one_hot(labels.unique(return_inverse=True)[1]) if classes else labels.reshape(len(labels), -1)).to(kernel)
    pair = {"kernel": kernel, "labels": targets @ targets.T}
    centred = {name: k - k.mean(0) - k.mean(1, keepdim=True) + k.mean() for name, k in pair.items()}
    for name, k in centred.items():
        _require(k.norm() > 1e-10 * pair[name].norm(), f"{name} must not be constant: centring leaves nothing to compare")
    k, target = centred.values()
    return float((k * target).sum() / (k.norm() * target.norm()))


def spectrum(kernel):
    """Eigenvalues (N,) from the largest down, and eigenvectors (N, N) in columns, of a symmetric kernel (N, N).

    Computed in float64, whatever the kernel's dtype. The sign of each eigenvector is fixed: its largest entry is positive.
    Raises ValueError if the kernel is not square, symmetric and finite.
    """
    eigenvalues, vectors = torch.linalg.eigh(_square(kernel).double())
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    return Spectrum(eigenvalues.flip(0), (vectors * signs).flip(1))


def _square(kernel):
    kernel = _matrix(kernel)
    _require(kernel.shape[0] == kernel.shape[1], f"kernel must be square, got shape {tuple(kernel.shape)}")
    _require((kernel - kernel.T).abs().max() <= (1e-8 if kernel.dtype == torch.float64 else 1e-4) * kernel.abs().max(),
             "kernel must be symmetric; for the kernel between two sets of inputs this has no meaning")
    return kernel


def _matrix(kernel):
    kernel = torch.as_tensor(kernel).detach()
    hint = "; choose a pair of outputs, kernel[:, :, a, b]" if kernel.ndim == 4 else ""
    _require(kernel.ndim == 2 and kernel.numel(), f"kernel must have two axes, (N, N), got shape {tuple(kernel.shape)}{hint}")
    kernel = kernel if kernel.is_floating_point() else kernel.double()
    _require(kernel.isfinite().all(), "kernel must be finite, got NaN or infinity")
    return kernel


# 05 · Infinite width -------------------------------------------------------------------------------------------------

Kernels = namedtuple("Kernels", "nngp ntk")


def infinite_width_ntk(x1, x2=None, *, hidden_layers=1, activation="relu", weight_std=2**0.5, bias_std=0.0):
    """NNGP kernel K and NTK Θ of an infinitely wide `MLP(…, parametrization="ntk")`, whatever its seed.

    x1 (N1, d), x2 (N2, d) or None for x2 = x1 → Kernels(nngp, ntk), each (N1, N2), in float64. With (u, v) Gaussian with
    mean 0 and the covariance K of a layer, the next has (Lee et al. 2019, arXiv:1902.06720, appendix E)

        K′ = weight_std² E[φ(u) φ(v)] + bias_std²        Θ′ = K′ + weight_std² E[φ′(u) φ′(v)] Θ

    and the first K = Θ = weight_std² x·x′/d + bias_std². Every layer, the last included, has the same scales.

    activation: "relu" (Cho & Saul 2009) and "erf" (Williams 1997) in closed form; "tanh", "gelu" and any callable that
        acts entry by entry by quadrature, at about a millisecond for a pair of inputs and layer. Its relative error is below
        1e-8 for these while K stays below 50, 1e-6 for K to 2e4. A kink elsewhere than at 0 costs more (hardtanh: 3e-4 in K,
        2e-2 in Θ), and so do fast waves (sin: 1e-4 at K = 50) and φ that grow like exp. In chaos rounding grows with each
        layer: at 20 layers inputs that are 1e-9 apart keep six digits up to weight_std = 2.5.

    Raises TypeError or ValueError for inputs that are not (N, d) and finite, scales out of range, and kernels that overflow.
    """
    _require_positive_ints(hidden_layers=hidden_layers)
    by_quadrature = partial(_dual_by_quadrature, _activation(activation))
    dual = by_quadrature if callable(activation) else {"relu": _relu_dual, "erf": _erf_dual}.get(activation, by_quadrature)
    _require_scales(weight_std=weight_std, bias_std=bias_std)
    _require(weight_std > 0, "weight_std must be above zero: without weights no kernel knows its inputs")
    xs = [x if isinstance(x, torch.Tensor) else torch.as_tensor(np.array(x)) for x in (x1, x1 if x2 is None else x2)]
    for name, x in zip(("x1", "x2"), xs):
        _require(x.ndim == 2 and x.numel() > 0, f"{name} must have shape (N, d), got {tuple(x.shape)}")
        _require(not x.is_complex() and x.isfinite().all(), f"{name} must be real and finite, got {x.dtype}, NaN or infinity")
    _require(xs[0].shape[1] == xs[1].shape[1], f"x1 and x2 must have as many features, got {[x.shape[1] for x in xs]}")
    weight, bias = torch.tensor([weight_std, bias_std], dtype=torch.float64, device=xs[0].device).square()
    u, v = (F.pad(x.detach().double() * (weight / x.shape[1]).sqrt(), (0, 1), value=float(bias_std)) for x in xs)
    p, q = (a.square().sum(1) for a in (u, v))  # K(x, x) and K(x′, x′)
    nngp = ntk = u @ v.T
    u, v = (F.normalize(a, eps=1e-300) for a in (u, v))
    distance = partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")
    angle = 2 * torch.atan2(distance(u, v), distance(u, -v))  # keeps all digits near 0 and π; acos loses half of them
    for _ in range(hidden_layers):
        product, slopes = dual(p[:, None], q, angle)
        nngp = weight * product + bias
        ntk = nngp + weight * slopes * ntk
        p, q = (weight * dual(k, k, torch.zeros_like(k))[0] + bias for k in (p, q))
        c = (nngp / (p[:, None].sqrt() * q.sqrt())).nan_to_num(0)
        angle = torch.where(1 - c.abs() < 1e-15, c.sign(), c).acos()  # or rounding makes two of one input, deep in chaos
    _require(ntk.isfinite().all(), "the kernel must be finite: weight_std or the activation lets it grow past all bounds")
    return Kernels(*((k + k.T) / 2 if x2 is None else k for k in (nngp, ntk)))


def _relu_dual(p, q, angle):
    "E[φ(u) φ(v)] and E[φ′(u) φ′(v)] for Var u = p, Var v = q and the angle arccos of their correlation."
    d = math.pi - angle
    arc = torch.where(d < 0.1, d**3 / 3 - d**5 / 30 + d**7 / 840, d.sin() - d * d.cos())  # the latter cancels for small d
    return p.sqrt() * q.sqrt() * arc / (2 * math.pi), d / (2 * math.pi)


def _erf_dual(p, q, angle):
    k = p.sqrt() * q.sqrt() * angle.cos()
    return (2 / math.pi * (2 * k / ((1 + 2 * p) * (1 + 2 * q)).sqrt()).asin(),
            4 / math.pi / (1 + 2 * p + 2 * q + 4 * p * q * angle.sin() ** 2).sqrt())


def _dual_by_quadrature(activation, p, q, angle):
    """The same for any φ, in polar coordinates: u = √p r cos t and v = √q r cos(t − angle), with density r exp(−r²/2) / 2π.

    The lines u = 0 and v = 0, where activations bend, cut the plane into sectors, in which the double-exponential rule
    (Takahasi & Mori 1974) is dense at the edges and at r = 0. Gauss–Hermite, 64 × 64, misses 4 % of E[φ′φ′] for ReLU."""
    s = torch.linspace(-3, 3, 91, dtype=torch.float64, device=angle.device)
    t = (math.pi * s.sinh()).sigmoid()  # nodes in (0, 1)
    t_weights = (s[1] - s[0]) * math.pi * s.cosh() * t * t.flip(0)
    s = torch.linspace(-3, 2.3, 71, dtype=torch.float64, device=angle.device)
    r = (s - (-s).exp()).exp()
    r_weights = (s[1] - s[0]) * (1 + (-s).exp()) * r**2 * (-(r**2) / 2).exp() / (2 * math.pi)
    r, r_weights = torch.cat([r, -r]), torch.cat([r_weights, r_weights])  # a sector and the one across

    def expectations(p, q, angle):
        total = 0
        for sector, sign in ((math.pi - angle, 1), (angle, -1)):  # u and v of one sign, and of two
            with torch.inference_mode(False), torch.enable_grad():
                u = (sign * p.sqrt() * (sector * t.flip(0)).sin()[:, None] * r).requires_grad_()
                v = (q.sqrt() * (sector * t).sin()[:, None] * r).requires_grad_()
                try:
                    values = activation(u.clone()), activation(v.clone())
                    slopes = [torch.autograd.grad(value.sum(), a)[0] for value, a in zip(values, (u, v))]
                    few = activation(u[::7, ::7].clone())
                except (RuntimeError, AttributeError) as error:
                    raise ValueError(f"activation must act on a float64 tensor so that autograd can follow: {error}") from error
                _require(values[0].shape == u.shape and few.dtype == u.dtype and _close(few, values[0][::7, ::7]),
                         "activation must act entry by entry, in float64 and not at random")
            total += sector * torch.stack([t_weights @ (a * b) @ r_weights for a, b in (values, slopes)]).detach()
        return total

    pairs = torch.broadcast_tensors(p, q, angle)
    duals = torch.stack([expectations(*pair) for pair in zip(*(a.flatten() for a in pairs))])
    return duals.T.reshape(2, *angle.shape)


# 07 · Training, predicted --------------------------------------------------------------------------------------------

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
    _require(isinstance(model, nn.Module) or isinstance(model, (list, tuple)) and model,
             f"model must be a torch.nn.Module or a list of them, got {model!r}", TypeError)
    models = [model] if isinstance(model, nn.Module) else [*model]
    _require(isinstance(steps, (int, np.integer)) and steps >= 0, f"steps must be an integer, zero or more, got {steps!r}")
    _require_positive_ints(every=every)
    for name, value in {"lr": lr, "scale": scale}.items():
        _require(isinstance(value, Real) and 0 < value < math.inf, f"{name} must be a finite number above zero, got {value!r}")
    alone = []
    for each in models:
        with _undisturbed(each, x) as (x,):
            _check(each, x, "x")
            alone.append(_forward(each, x, "x")[0].detach())
    y, shape = torch.as_tensor(y).detach().to(alone[0]), tuple(alone[0].shape)
    y = y[:, None] if shape[1] == y.ndim == 1 else y
    _require(y.shape == shape and _finite(y), f"y must be finite, a target for each output {shape}, got shape {tuple(y.shape)}")
    with torch.inference_mode(False), torch.no_grad(), _exact_cudnn(models[0]), sdpa_kernel(SDPBackend.MATH):
        f, params, top = _batch(models, x)
        first, kernels = {name: p.clone() for name, p in params.items()}, []
        recorded = torch.tensor(sorted({*range(0, steps + 1, every), steps}))
        losses, distances = (alone[0].new_empty(len(recorded), len(models)) for _ in range(2))  # else each would pin `out`
        outputs = alone[0].new_empty(len(recorded), len(models), *shape)
        try:
            for step in tqdm(range(steps + 1), desc="training", unit=" steps", disable=not progress):
                out, pullback = vjp(f, params)  # pullback: v ↦ Jᵀ v
                if step == 0:
                    f0, bound = out, 1e6 * ((out - y).square() + y.square()).sum((1, 2))
                    _require(_close(out, torch.stack(alone)), "the models of a list must differ in their weights only")
                    if lr * top > 2:
                        warnings.warn(f"lr = {lr:.3g} is above 2/λmax = {2 / top:.3g}: training will not converge as predicted",
                                      stacklevel=2)
                g = torch.lerp(f0, out, scale)
                loss = (g - y).square().sum((1, 2)) / 2
                _require((loss <= bound).all(), f"training diverged at step {step}, with a loss of {loss.max():.3g}; "
                         f"lr = {lr:.3g}, and 2/λmax was {2 / top:.3g} at the start", RuntimeError)
                if step % every == 0 or step == steps:
                    row = math.ceil(step / every)
                    losses[row], outputs[row] = loss, g
                    distances[row] = sum((p - first[k]).square().reshape(len(p), -1).sum(1) for k, p in params.items()).sqrt()
                    if kernel:
                        _write_back(models, params)
                        kernels.append(torch.stack([compute_ntk(each, x) for each in models]))
                if step < steps:
                    for p, gradient in zip(params.values(), pullback((g - y) / scale)[0].values()):
                        p -= lr * gradient
        finally:
            _write_back(models, params)
    one = 0 if models[0] is model else slice(None)  # a model by itself has no axis S
    kernels = torch.stack(kernels)[:, one] if kernel else None
    return History(recorded, lr * recorded.double(), losses[:, one], outputs.squeeze(3)[:, one], distances[:, one], kernels)


def _batch(models, x):
    "The outputs (S, N, O) of all models at x as a function of their parameters; these, stacked along a first axis; and λmax."
    call = _stateless(models[0])
    try:
        stacked, buffers = stack_module_state(models)
        params = {name: p.detach() for name, p in stacked.items() if p.requires_grad}
        f = lambda params: vmap(lambda state: call(state, x))({**buffers, **stacked, **params})
        if len(models) == 1:  # a single one needs no vmap, which some do not allow
            f = lambda params: call({name: t[0] for name, t in {**buffers, **stacked, **params}.items()}, x)[None]
        with torch.enable_grad():
            out, pullback = vjp(f, params)
        _require(not out.requires_grad, BEHIND)
        return f, params, _largest_eigenvalue(pullback, out)
    except (RuntimeError, ValueError, KeyError) as error:
        what = "train cannot serve this model" if len(models) == 1 else "these models are not one batch, train them one by one"
        raise ValueError(f"{what}: {error}") from error


def _write_back(models, params):
    for i, model in enumerate(models):
        for name, p in params.items():
            model.get_parameter(name).copy_(p[i])


def _largest_eigenvalue(pullback, out):
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
    _require(isinstance(model, nn.Module), f"model must be a torch.nn.Module, got {type(model).__name__}", TypeError)
    frozen = copy.deepcopy(model)
    params = {name: p.detach() for name, p in frozen.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in params.values()]
    _require(sizes, "model has no trainable parameter")

    def f_lin(x, delta):
        _require(delta.shape == (sum(sizes),), f"Δθ must have shape ({sum(sizes)},), got {tuple(delta.shape)}")
        moves = {name: d.view_as(p) for d, (name, p) in zip(delta.split(sizes), params.items())}
        _check(frozen, x, "x")
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            out, pullback = vjp(lambda params: functional_call(frozen, params, (x.clone(),)), params)
        _require(not out.requires_grad, f"linearize cannot serve this model: {BEHIND}")
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
    ntk = _square(ntk)
    eigenvalues, modes = spectrum(ntk)
    zero = eigenvalues.abs().max() * max(10, len(ntk)) * torch.finfo(ntk.dtype).eps
    _require(eigenvalues.min() >= -10 * zero, "ntk must be positive semidefinite, got an eigenvalue "
             f"{eigenvalues.min():.3g}, with the largest {eigenvalues.max():.3g}")
    moving = eigenvalues > zero
    if not moving.all():
        warnings.warn(f"the kernel is singular: {(~moving).sum()} of {len(ntk)} eigenvalues are zero to its precision, below "
                      f"{zero:.2g}. What lies along their eigenvectors is never learned.", stacklevel=2)
    float64 = lambda a: torch.as_tensor(a).detach().to(modes)
    targets, initial, times = float64(targets), float64(initial), float64(times)
    _require(targets.ndim in (1, 2) and len(targets) == len(ntk) and targets.shape == initial.shape,
             f"targets and initial must both have shape ({len(ntk)},) or ({len(ntk)}, O), "
             f"got {tuple(targets.shape)} and {tuple(initial.shape)}")
    _require(times.ndim == 1 and (times >= 0).all(), f"times must be a list of numbers, zero or more, got {times.tolist()}")
    _require((targets.isfinite() & initial.isfinite()).all(), "targets and initial must be finite, got NaN or infinity")
    _require((ntk_test is None) == (initial_test is None), "ntk_test and initial_test belong together: give both or none")
    λ, modes = eigenvalues[moving], modes[:, moving]
    learned = -torch.expm1(-λ * times[:, None])  # (T, modes): the part of each mode that is learned by then
    along = torch.einsum("nk,n...->k...", modes, targets - initial)
    moved = lambda waves, share: torch.einsum("mk,tk...->tm...", waves, torch.einsum("tk,k...->tk...", share, along))
    outputs = initial + moved(modes, learned)
    if ntk_test is None:
        return outputs
    ntk_test, initial_test = _matrix(ntk_test).to(modes), float64(initial_test)
    _require(ntk_test.shape == (len(initial_test), len(ntk)) and initial_test.shape[1:] == initial.shape[1:]
             and _finite(initial_test), f"ntk_test must have shape (M, {len(ntk)}) and initial_test (M, …) as initial, finite, "
             f"got {tuple(ntk_test.shape)} and {tuple(initial_test.shape)}")
    return outputs, initial_test + moved(ntk_test @ modes, learned / λ)


# Pictures ------------------------------------------------------------------------------------------------------------


def set_style():
    "One look for every figure of the course: sizes, fonts, colours told apart by everyone, and line styles besides."
    colors = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe & Ito 2008
    styles = ["-", "--", "-.", ":", "-", "--", "-."]
    plt.rcParams.update({
        "figure.figsize": (6, 4), "figure.dpi": 100, "figure.constrained_layout.use": True, "image.cmap": "viridis",
        "font.size": 11, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False,
        "axes.prop_cycle": plt.cycler(color=colors, linestyle=styles), "lines.linewidth": 1.8, "legend.frameon": False,
    })


def plot_kernel(kernel, *, ax=None, order=None, title=""):
    """Heatmap of a kernel (N1, N2), with a colour bar. Returns the axes.

    Colours run from 0 or the lowest entry up (`viridis`); they are symmetric about 0 (`RdBu_r`) once a negative entry is
    more than a quarter as large as the largest. `order` is a permutation of the rows and columns of a square kernel, say
    `labels.argsort()`. Called again with an `ax` it has drawn on, it updates the picture there: faster than drawing anew.
    Raises ValueError if the kernel is not a finite matrix, or `order` not a permutation of its rows.
    """
    kernel = _matrix(kernel).double().cpu()
    if order is not None:
        order = torch.as_tensor(order).cpu()
        permutes = not order.is_floating_point() and torch.equal(order.sort()[0], torch.arange(len(kernel)))
        _require(permutes and kernel.shape[0] == kernel.shape[1], f"order must be a permutation of 0 … {len(kernel) - 1} for "
                 f"a square kernel, got a kernel of shape {tuple(kernel.shape)} and order of shape {tuple(order.shape)}")
        kernel = kernel[order][:, order]
    ax = plt.subplots(figsize=(5, 4.2))[1] if ax is None else ax
    image = next((image for image in ax.images if image.get_label() == "kernel"), None)
    if image is None:
        image = ax.imshow(kernel.numpy(), label="kernel", interpolation="nearest")
        bar = ax.figure.colorbar(image, ax=ax)
        bar.ax.set_xlabel("kernel", labelpad=7)  # below: above it, a long title would run into it
        bar.ax.locator_params(nbins=3)
        ax.set(xticks=[], yticks=[])  # they would take a third of the time of a redraw
        ax.spines[:].set_visible(False)
    rows, columns = kernel.shape
    ax.set(xlabel=f"example x′, 0 to {columns - 1}", ylabel=f"example x, 0 to {rows - 1}")
    low, top = min(0.0, float(kernel.min())), float(kernel.abs().max()) or 1.0
    signed = low < -top / 4
    image.set(data=kernel.numpy(), extent=(-0.5, columns - 0.5, rows - 0.5, -0.5), clim=(-top if signed else low, top))
    if image.get_cmap().name != ("RdBu_r" if signed else "viridis"):  # setting it draws the colour bar anew
        image.set_cmap("RdBu_r" if signed else "viridis")
    ax.set_title(title, y=1)  # finding the best height takes as long as the picture
    return ax


def show(figure, alt):
    """Show a figure (or the figure of some axes) once, with a text for those who do not see it, and close it.

    The text is stored with the picture and is what a reader without images, and the comparison in CI, gets. As neither
    JupyterLab nor nbconvert hands it on, it also stands folded below the picture.
    """
    figure, buffer = _figure(figure), io.BytesIO()
    figure.savefig(buffer, format="png", dpi=2 * figure.dpi)  # sharp on any screen
    width, height = (figure.get_size_inches() * figure.dpi).round().astype(int).tolist()
    data = {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": alt}
    display(data, raw=True, metadata={"image/png": {"alt": alt, "width": width, "height": height}})
    _show_words(alt)
    plt.close(figure)


def _show_words(alt):
    words = f'<details class="ntk-words"><summary>The picture in words</summary>{html.escape(alt)}</details>'
    display({"text/html": words, "text/plain": alt}, raw=True)


def _figure(figure):
    figure = getattr(figure, "figure", figure)
    _require(isinstance(figure, plt.Figure), f"expected a Matplotlib figure or axes, got {type(figure).__name__}", TypeError)
    return figure


# Sliders above a picture ---------------------------------------------------------------------------------------------

# ipywidgets lets people type beside a slider over a list, but takes no notice; the live picture has its own words;
# when the kernel is busy, the picture comes later than one expects; and when it is gone, sliders move, but the picture does not
_EXPLORER_STYLE = """<style>
.ntk-list .widget-readout {pointer-events: none; -webkit-user-modify: read-only}
.jp-OutputArea:has(.ntk-explorer) .ntk-words {display: none}
.ntk-explorer {position: relative}
.jp-NotebookPanel:has(.jp-Notebook-ExecutionIndicator[data-status="busy"]) .ntk-explorer::before {
    content: "Python is busy: the picture follows."; position: absolute; right: 0; bottom: 0; padding: 0.3em;
    background: #fff3c4; color: black; animation: ntk-late 0.3s step-end}
@keyframes ntk-late {from {visibility: hidden}}
.ntk-explorer.jupyter-widgets-disconnected img {opacity: 0.2}
.ntk-explorer.jupyter-widgets-disconnected::after {content: "The kernel was restarted: run this cell again."; font-weight: bold}
</style>"""


class Explorer(widgets.VBox):
    """Controls above one picture: `Explorer(draw, "Kernel of a net of width {width}: {title}", width=[1, 4, 16], seed=(0, 9))`.

    draw(**values) returns a figure or axes, best the same one each time with its artists updated.
    alt: the picture's alternative text, a format string filled with the values and the figure's `title`.
    controls: a list (a slider over its entries), a tuple (min, max[, step]), a bool, or a widget;
        each starts at the default that `draw` gives its argument, if any. `controls["width"].value = 64` moves one.

    If `draw` raises, its message stands under the controls and the last good picture stays. Raises TypeError or ValueError
    for controls that it cannot make or `draw` does not take, and for an `alt` that names others.
    """

    def __init__(self, draw, alt, **controls):
        signature = inspect.signature(draw)
        try:
            signature.bind(**controls)
        except TypeError as error:
            raise TypeError(f"draw must take the controls {list(controls)}: {error}") from None
        defaults = {name: p.default for name, p in signature.parameters.items() if p.default is not p.empty}
        self.controls = {name: _control(name, spec, defaults.get(name)) for name, spec in controls.items()}
        self._draw, self._alt = draw, alt
        try:
            alt.format(**{"title": "", **self.values})
        except (KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"alt may name the controls {list(controls)} and title, got {{{error.args[0]}}}") from None
        self.message, self.picture, self.png, self.alt = widgets.HTML(), widgets.HTML(), b"", ""
        super().__init__([*self.controls.values(), self.message, self.picture, widgets.HTML(_EXPLORER_STYLE)])
        self.add_class("ntk-explorer")
        for control in self.controls.values():
            control.observe(self._update, names="value")
        self._update()

    @property
    def values(self):
        "The controls' values, by name."
        return {name: control.value for name, control in self.controls.items()}

    def _update(self, change=None):
        values, others = self.values, plt.get_fignums()
        try:
            figure = _figure(self._draw(**values))
            plt.close(figure)  # or the inline backend shows it a second time
            title = figure.axes[0].get_title() if figure.axes else ""
            self.png, self.alt = _png(figure), self._alt.format(**{"title": title, **values})
        except Exception as error:
            for number in {*plt.get_fignums()} - {*others}:
                plt.close(number)
            text = html.escape(f"{type(error).__name__}: {error}")
            self.message.value = f'<p role="alert"><b>No picture for {html.escape(repr(self))}.</b> {text}</p>'
            return
        self.message.value = ""
        width, height = figure.get_size_inches() * figure.dpi
        self.picture.layout.min_height = f"{height:.0f}px"  # so that nothing jumps while a picture loads
        self.picture.value = (f'<img alt="{html.escape(self.alt)}" width="{width:.0f}" style="max-width: 100%" '
                              f'src="data:image/png;base64,{base64.b64encode(self.png).decode()}">')

    def __repr__(self):
        return f"Explorer({', '.join(f'{name}={value!r}' for name, value in self.values.items())})"

    def _ipython_display_(self):
        data, metadata = self._repr_mimebundle_()
        display(data, raw=True, metadata=metadata)
        _show_words(self.alt)

    def _repr_mimebundle_(self, **kwargs):
        "The live view and, for readers without a kernel, the picture with its text."
        bundle = super()._repr_mimebundle_(**kwargs)
        bundle["text/plain"] = repr(self)
        if self.png:
            bundle["image/png"] = base64.b64encode(self.png).decode()
        return bundle, {"image/png": {"alt": self.alt}}


def _png(figure):
    "As fast as it goes: axes and legends, half of the work, are drawn anew only once they changed; light compression."
    canvas = figure.canvas if isinstance(figure.canvas, FigureCanvasAgg) else FigureCanvasAgg(figure)
    axes = [ax for ax in figure.axes if ax.get_visible()]
    frame = [*{*figure.get_children()} - {*figure.axes}, *(part for ax in axes for part in (ax.patch, ax.xaxis, ax.yaxis)),
             *(legend for ax in axes if (legend := ax.get_legend()) and not legend.get_frame_on())]
    content = [artist for ax in axes for artist in sorted(ax.get_children(), key=lambda child: child.zorder)
               if artist not in frame and (ax.axison or artist not in ax.spines.values())]
    places = lambda: [(ax, ax.axison, ax.bbox.bounds) for ax in axes]
    parts = lambda: [part for each in frame for part in each.findobj()]
    if places() != getattr(canvas, "ntk_places", None) or any(part.stale for part in parts()):
        plt.setp(content, animated=True)  # so that draw leaves it out
        if figure.get_constrained_layout():
            figure.get_layout_engine().set(rect=(0, 0, 0.95, 1))  # room for longer tick labels later
        canvas.draw()
        figure.set_layout_engine("none")
        for part in parts():
            part.stale = False  # also what is not drawn
        canvas.ntk_places, canvas.ntk_frame = places(), canvas.copy_from_bbox(figure.bbox)
    canvas.restore_region(canvas.ntk_frame)
    for artist in content:
        artist.draw(canvas.get_renderer())
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(buffer, "png", compress_level=1, compress_type=3)
    return buffer.getvalue()


def _control(name, spec, default):
    if isinstance(spec, list) and spec:
        control = widgets.SelectionSlider(options=spec)
        control.add_class("ntk-list")
    else:
        control = widgets.interactive.widget_from_abbrev(spec)
    _require(isinstance(control, widgets.ValueWidget) and spec != [],
             f"{name} must be a list, a tuple (min, max[, step]), a bool or a widget, got {spec!r}", TypeError)
    if default is not None:
        with suppress(TraitError):
            control.value = default
        _require(control.value == default, f"{name} must offer draw's default, {default!r}, got {spec!r}")
    control.description = control.description or name.replace("_", " ")
    control.tooltip = control.tooltip or f"{control.description}: use the arrow keys, or drag"
    control.style.description_width, control.layout.width = "8em", "min(36em, 95%)"
    if hasattr(control, "continuous_update"):
        control.continuous_update = False
    return control


# Exercises and questions ---------------------------------------------------------------------------------------------

_passed, _answered = {}, {}  # of this kernel: exercise or question → right or not


def check(answer, expected):
    """Print whether an exercise's answer is right and, if not, what differs. Stops nothing and returns nothing.

    answer: a number, string, shape, tensor or array, or a function; `...` or None counts as not attempted yet.
    expected: what it should be. Whole numbers must agree exactly, others to 0.1 % (arrays: plus 0.001 % of the largest).
        For a function, a list of pairs ((argument, …), result): all are tried, the first that differs is shown.
    """
    verdict = _verdict(answer, expected)
    caller = inspect.getframeinfo(inspect.currentframe().f_back)  # its line stays, whatever stands above it
    _passed["".join(caller.code_context or [repr(expected)]).strip()] = verdict == "Right."
    print(verdict)


def ask(question, options, right):
    """A multiple-choice question as a widget, for a cell's last line: one click shows whether an option is right, and why.

    options: a dict {option: the reason why it is right or wrong}, in the order shown; right: the right option.
    """
    _require(right in options, f"right must be one of the options {list(options)}, got {right!r}")
    return _Question(question, options, right)


def score():
    "Print how many exercises were passed and how many questions answered right, of those that were run in this kernel."
    print(f"Since the last restart: {sum(_passed.values())} of {len(_passed)} exercises passed, "
          f"{sum(_answered.values())} of {len(_answered)} questions answered right.")


class _Question(widgets.VBox):
    def __init__(self, question, options, right):
        self.question, self.options, self.right = question, options, right
        _answered.setdefault(question, False)
        self.buttons = [widgets.Button(description=option, layout={"width": "auto", "height": "auto"}) for option in options]
        self.reason = widgets.HTML()
        style = widgets.HTML("<style>.ntk-question .jupyter-button {text-align: left; white-space: normal}</style>")
        super().__init__([widgets.HTML(f"<b>{html.escape(question)}</b>"), *self.buttons, self.reason, style])
        self.add_class("ntk-question")
        for button in self.buttons:
            button.on_click(self._choose)

    def _choose(self, chosen):
        _answered[self.question] = chosen.description == self.right
        for button in self.buttons:
            button.icon = ("check" if _answered[self.question] else "times") if button is chosen else ""
        verdict = "Right." if _answered[self.question] else "Not so."
        reason = html.escape(self.options[chosen.description])
        self.reason.value = f'<p role="alert"><b>{html.escape(chosen.description)}: {verdict}</b> {reason}</p>'

    def __repr__(self):
        return "\n".join([self.question, *(f"  ○ {option}" for option in self.options)])

    def _repr_mimebundle_(self, **kwargs):
        return {**super()._repr_mimebundle_(**kwargs), "text/plain": repr(self)}


def _verdict(answer, expected):
    if answer is ... or answer is None:
        return "Not attempted yet: put your answer in place of the … and run the cell again."
    if isinstance(expected, list) and expected and isinstance(expected[0], tuple) and isinstance(expected[0][0], tuple):
        return _verdict_on_calls(answer, expected)
    if isinstance(expected, (str, bool)):
        same = str(answer).strip().casefold() == str(expected).strip().casefold()
        return "Right." if same else f"Not yet: {answer!r} is not it."
    try:
        got, want = _numbers(answer), _numbers(expected)
    except Exception:
        return f"Not yet: expected numbers, got {type(answer).__name__}."
    if got.shape != want.shape:
        hint = " (the right number of entries, in another arrangement)" if got.size == want.size else ""
        hint = " (transposed?)" if got.shape == want.shape[::-1] else hint
        if want.ndim and got.shape == want.shape[1:] and _agrees(got, want.sum(axis=0)).all():
            hint = " (the sum over the examples: one row for each was asked for)"
        elif got.ndim == want.ndim == 2 and len(got) == len(want) and got.size < want.size:
            hint = " (columns are missing: all parameters in it, biases, too?)"
        return f"Not yet: expected shape {want.shape}, got {got.shape}{hint}."
    if not np.isfinite(got).all():
        return f"Not yet: {np.sum(~np.isfinite(got))} of {got.size} entries are NaN or infinite."
    exact, scale = want.dtype.kind in "iub", np.abs(want).max(initial=0)
    if _agrees(got, want).all():
        return "Right."
    got = got.astype(float)
    if _agrees(-got, want).all():
        return "Not yet: the sign is wrong."
    if got.ndim == 2 and got.shape[0] == got.shape[1] and _agrees(got.T, want).all():
        return "Not yet: this is the transpose of it."
    if got.ndim and not exact and np.ptp(want - got) < 1e-3 * np.abs(want - got).max() and np.ptp(want) > 0:
        return f"Not yet: every entry is off by the same {(got - want).mean():.3g}. A bias left out, or added?"
    with np.errstate(all="ignore"):
        factor = np.vdot(got, got) / np.vdot(got, want)
        proportional = np.allclose(got, factor * want, rtol=1e-3, atol=1e-5 * factor * scale)
    if proportional and 0 < factor < np.inf and abs(factor - 1) > 0.01 and (not exact or max(factor, 1 / factor) in (2, 10)):
        return f"Not yet: too {'large' if factor > 1 else 'small'} by a factor {max(factor, 1 / factor):.3g}."
    if got.ndim == 0:
        return f"Not yet: {answer} is too {'large' if got > want else 'small'}."
    wrong = np.argwhere(~_agrees(got, want)).tolist()
    first = tuple(wrong[0])
    wanted = "" if exact and want.size < 10 else f"expected {want[first]:.4g}, "  # or it would give counts and rows away
    return f"Not yet: {len(wrong)} of {got.size} entries differ, first {wrong[0]}: {wanted}got {got[first]:.4g}."


def _verdict_on_calls(function, cases):
    if not callable(function):
        return f"Not yet: expected a function, got {type(function).__name__}."
    for arguments, wanted in cases:
        call = f"{getattr(function, '__name__', 'your function')}({', '.join(map(_brief, arguments))})"
        try:
            verdict = _verdict(function(*copy.deepcopy(arguments)), wanted)
        except Exception as error:
            return f"Not yet: {call} raises {type(error).__name__}: {error}"
        if verdict != "Right.":
            return f"{verdict} Tried: {call}" if verdict.startswith("Not yet") else verdict
    return "Right."


def _brief(value):
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"tensor of shape {tuple(value.shape)}" if math.prod(value.shape) > 4 else str(value.tolist())
    return f"{type(value).__name__}(…)" if isinstance(value, nn.Module) else repr(value)


def _agrees(got, want):
    if want.dtype.kind in "iub":
        return got == want  # exact beyond 2⁵³, too
    return np.isclose(got, want, rtol=1e-3, atol=1e-5 * np.abs(want).max(initial=0))


def _numbers(value):
    value = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    _require(value.dtype.kind in "iubf", f"expected numbers, got {value.dtype}", TypeError)
    return value
