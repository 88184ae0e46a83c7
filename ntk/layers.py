"""A layer's share of the kernel, from the graph that autograd recorded.

With D = ∂f/∂z, a product z = a Wᵀ + b has the gradients ∂f/∂W = D aᵀ and ∂f/∂b = D. Its share of Θ,

    (D Dᵀ) ∘ (A Aᵀ + 1),

takes the inputs A and the gradients D of all examples, and no gradient of W is ever formed (the "structured
derivatives" of Novak et al. 2022, arXiv:2206.08720). A layer that is applied at T places of an example
has this sum over all pairs of places; where forming the gradients is cheaper, they are formed instead.

This is right where the graph shows that W enters this product, as it is or times a number, and nothing
else, and that each row of it belongs to one example. No module is asked. What remains goes to the Jacobian.
"""

import itertools
import math
from typing import NamedTuple

import torch
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge
from torch.func import vmap

from ntk.checks import is_close, require
from ntk.gradients import jacobian

# How autograd's nodes hold what a formula needs: (node, argument that is the parameter) → attributes with
# the inputs it is multiplied by, and with the node's own factor, if it has one.
WEIGHTS = {("AddmmBackward0", 2): ("_saved_mat1", "_saved_alpha"),
           ("MmBackward0", 1): ("_saved_self", None),
           ("ConvolutionBackward0", 1): ("_saved_input", None)}
BIASES = {("AddmmBackward0", 0): "_saved_beta",
          ("AddBackward0", 0): None,
          ("AddBackward0", 1): "_saved_alpha",
          ("ConvolutionBackward0", 2): None}
KEEP_ROWS = {f"{name}Backward0" for name in (
    "Relu", "Tanh", "Erf", "Gelu", "Sigmoid", "Silu", "Elu", "LeakyRelu", "Softplus", "Sin", "Cos",
    "MaxPool2DWithIndices", "AvgPool2D", "View", "UnsafeView", "Clone")}
EXAMPLES_FIRST, PLACES_FIRST = "examples first", "places first"  # rows in the order (N, T), or (T, N)


class Use(NamedTuple):
    """How a parameter enters a product: times `factor`, with its axes in the order `axes`, and multiplied
    by `inputs`. A bias has no inputs."""

    factor: float
    axes: tuple
    inputs: torch.Tensor | None


class Share(NamedTuple):
    """What N examples hold of a summand of Θ: Σ over places of (D Dᵀ) ∘ (weight · A Aᵀ + bias).

    inputs: A (N, T, fan_in); gradients: D (N, T, O, fan_out).
    label: which parameters it is of, and how they were used. A model may branch on its inputs, so that two
        chunks use a parameter in two ways; only shares with equal labels may be multiplied.
    """

    label: tuple
    inputs: torch.Tensor
    gradients: torch.Tensor
    weight: float
    bias: float

    def rows(self, start, stop=None):
        "The share of the examples from `start` to `stop`."
        return self._replace(inputs=self.inputs[start:stop], gradients=self.gradients[start:stop])


def gradient_share(label, gradients):
    "The share of parameters with the gradients (N, O, P): that of a bias of the size P."
    ones = gradients.new_ones(len(gradients), 1, 1)
    return Share(label, ones, gradients[:, None], weight=1.0, bias=0.0)


def sum_of_shares(shares1, shares2):
    "The block Θ (N1, N2, O, O) from the shares of N1 and of N2 examples."
    ntk = shares1[0].gradients.new_zeros(())
    for one, two in zip(shares1, shares2):
        for s, t in itertools.product(range(one.inputs.shape[1]), range(two.inputs.shape[1])):
            inputs = torch.addmm(one.inputs.new_tensor(one.bias), one.inputs[:, s],
                                 two.inputs[:, t].T, alpha=one.weight)
            outputs = torch.einsum("iap,jbp->ijab", one.gradients[:, s], two.gradients[:, t])
            ntk = torch.addcmul(ntk, outputs, inputs[:, :, None, None])
    return ntk


def shares(model, x, outputs, start, names, strict=False):
    """Shares that add up to Θ over the parameters named: one for each layer that has a formula, and one
    for the Jacobian of the others, which `strict` refuses.

    outputs (N, O) with their graph, and the copy of `x` that it starts from, are those of `forward`.
    """
    layers, others = find_layers(model, outputs, names)
    orders, by_output = gradients_at(layers, outputs, start)
    for node in [node for node in layers if node not in orders]:
        others += layers.pop(node)
    require(not (strict and others), f'method="layerwise" cannot serve {", ".join(others)}, which the '
            "model uses otherwise than once, as weight or bias of a linear layer or convolution; "
            'use method="auto"')
    kept = {node: [] for node in layers}
    for gradients in by_output:
        for node, uses in layers.items():
            kept[node].append(condensed(node, uses, gradients[node], orders[node], *outputs.shape))
    found = []
    for node, uses in layers.items():
        by_parameter = [torch.stack(one, dim=-2) for one in zip(*kept[node])]
        found += layer_shares(node, uses, by_parameter, orders[node], outputs.shape)
    if others:
        found.append(gradient_share(("jacobian", *others), jacobian(model, x, others)))
    return found or [gradient_share((), outputs.detach().new_zeros(*outputs.shape, 0))]


def layer_shares(node, uses, gradients, order, shape):
    "The share of a layer from its D (N, T, O, fan_out), or those of its parameters from theirs (N, O, P)."
    if forms_gradients(node, uses, *shape):
        return [gradient_share(("gradient", name, use.axes), use.factor * own)
                for (name, use), own in zip(uses.items(), gradients)]
    [weight] = [use for use in uses.values() if use.inputs is not None]
    bias = sum(use.factor**2 for use in uses.values() if use.inputs is None)
    label = "layer", *((name, use.factor, use.axes) for name, use in uses.items())
    inputs = places(weight.inputs, shape[0], order)
    return [Share(label, inputs, *gradients, weight=weight.factor**2, bias=bias)]


# Reading the graph


def find_layers(model, outputs, names):
    """{node: {name: Use}} for the products in the graph, and a list of the other names that count.

    A parameter that no path leads to has no gradient; but one that a custom autograd.Function uses may
    hide from the graph.
    """
    consumers = consumers_of(outputs)
    hidden = any(isinstance(node, BackwardCFunction) for node in consumers)
    params = dict(model.named_parameters())
    layers, others = {}, []
    for name in names:
        product = product_of(params[name], consumers)
        if product is not None:
            node, use = product
            layers.setdefault(node, {})[name] = use
        elif params[name] in consumers or hidden:
            others.append(name)
    return layers, others


def consumers_of(outputs):
    "{node or parameter: [(a node it flows into, as which argument), …]} for all that `outputs` come from."
    consumers, todo = {outputs.grad_fn: []}, [outputs.grad_fn]
    while todo:
        node = todo.pop()
        for argument, (source, _) in enumerate(getattr(node, "next_functions", ())):
            source = getattr(source, "variable", source)  # the parameter of an AccumulateGrad node
            if source is not None and source not in consumers:
                todo.append(source)
            consumers.setdefault(source, []).append((node, argument))
    return consumers


def product_of(parameter, consumers):
    "(node, Use) of the one product that the parameter enters, as it is, permuted or times a number; or None."
    source, factor, axes = parameter, 1.0, tuple(range(parameter.ndim))
    while len(consumers.get(source, ())) == 1:
        [(node, argument)] = consumers[source]
        role, number = (node.name(), argument), number_beside(node, argument)
        if role in WEIGHTS:
            inputs, own_factor = WEIGHTS[role]
            inputs = getattr(node, inputs).detach()
            fits = parameter.ndim == inputs.ndim and not getattr(node, "_saved_transposed", False)
        elif role in BIASES:
            inputs, own_factor = None, BIASES[role]
            fits = is_convolution(node) or is_row_of(parameter, node)
        elif number is not None:
            factor, source = factor * number, node
            continue
        elif node.name() in ("TBackward0", "PermuteBackward0"):
            order = reversed(range(len(axes))) if node.name() == "TBackward0" else node._saved_dims
            axes, source = tuple(axes[axis] for axis in order), node
            continue
        else:
            return None
        factor *= getattr(node, own_factor) if own_factor else 1.0
        return (node, Use(factor, axes, inputs)) if fits else None
    return None


def number_beside(node, argument):
    "The number by which the node multiplies its argument, or None."
    if node.name() == "MulBackward0":
        other = node._saved_self if argument else node._saved_other
        return other.item() if other.ndim == 0 else None
    if (node.name(), argument) == ("DivBackward0", 0):
        return 1 / node._saved_other.item() if node._saved_other.ndim == 0 else None
    return None


def is_convolution(node):
    return node.name() == "ConvolutionBackward0"


def shape_of(node):
    "The shape of what the node's operation returned."
    return tuple(node._input_metadata[0].shape)


def is_row_of(parameter, node):
    return len(shape_of(node)) > 1 and tuple(parameter.shape) == shape_of(node)[-1:]


# Gradients at the layers, and whose they are


def gradients_at(layers, outputs, start):
    """The order of the rows in each layer, {node: order}, and for each output {node: its gradients D}.

    A row belongs to example i if factors c at the outputs become the factor cᵢ in it. Layers of whose rows
    this is not so have no order.
    """
    n, o = outputs.shape
    by_output = (pulled_back(layers, outputs, v) for v in torch.eye(o).to(outputs))
    if not layers or keeps_rows(outputs.grad_fn, layers, start):
        return dict.fromkeys(layers, EXAMPLES_FIRST), by_output
    c = torch.randn(n, 1).to(outputs)
    v = (torch.randn(o) if o > 1 else torch.ones(1)).to(outputs)
    before, after = pulled_back(layers, outputs, v), pulled_back(layers, outputs, c * v)
    orders = {}
    for node, d in before.items():
        for order in (PLACES_FIRST, EXAMPLES_FIRST):
            if len(d) and len(d) % n == 0 and is_close(
                    places(after[node], n, order), places(d, n, order) * c.view(n, *[1] * d.ndim)):
                orders[node] = order
    return orders, [before] if o == 1 else by_output


def pulled_back(layers, outputs, v):
    """{node: D in rows}, the gradient of Σ v · outputs at what each layer returned. It is the sum over all
    examples, but they do not mix: each row holds the gradient of its own."""
    # not grad_outputs=v, for which torch imports sympy: seconds, once in every process
    edges = [GradientEdge(node, 0) for node in layers]
    grads = torch.autograd.grad((v * outputs).sum(), edges, retain_graph=True, allow_unused=True
                                ) if edges else ()
    found = {}
    for node, d in zip(layers, grads):
        d = outputs.new_zeros(shape_of(node)) if d is None else d
        found[node] = d if is_convolution(node) else d.flatten(0, -2)
    return found


def keeps_rows(node, layers, start):
    """Whether the operations from `start` to the node are a chain, each of which keeps to the rows and has
    only parameters besides: then row i is example i, and no experiment is needed."""
    inputs = start[:0]
    while node is not None and shape_of(node)[:1] == (len(start),):
        uses, argument = layers.get(node, {}), 0
        held = [use.inputs for use in uses.values() if use.inputs is not None]
        if held and len(uses) == len(node.next_functions) - 1:  # all but the inputs are parameters
            [inputs], argument = held, 1 if node.name() == "AddmmBackward0" else 0
        elif node.name() not in KEEP_ROWS:
            return False
        node = node.next_functions[argument][0]
    untouched = start._version == 0 and start.is_contiguous() and inputs.is_contiguous()
    same = inputs.data_ptr() == start.data_ptr() and inputs.numel() == start.numel()
    return node is None and untouched and same


def places(rows, n, order):
    "Rows (N·T, …) of n examples → (N, T, …)."
    if order == EXAMPLES_FIRST:
        return rows.unflatten(0, (n, -1))
    return rows.unflatten(0, (-1, n)).transpose(0, 1)


# Gradients of the parameters, where they are cheaper than all pairs of places


def forms_gradients(node, uses, n, o):
    "Whether a layer's gradients are formed: in a convolution, and where that takes fewer operations."
    fan_in = sum(use.inputs.shape[1] for use in uses.values() if use.inputs is not None)
    if is_convolution(node) or fan_in == 0:
        return True
    *rows, fan_out = shape_of(node)
    pairs = (math.prod(rows) // n) ** 2
    return pairs * (fan_in + o**2 * fan_out) > o**2 * (fan_in + 1) * fan_out


def condensed(node, uses, d, order, n, o):
    "Of one output: [D (N, T, fan_out)], or the gradients (N, P) of each parameter where they are formed."
    if not forms_gradients(node, uses, n, o):
        return [places(d, n, order)]
    return [parameter_gradient(node, use.inputs, d, order, n) for use in uses.values()]


def parameter_gradient(node, inputs, d, order, n):
    "(N, P) of a weight with its inputs or, without, of a bias; its factor left out."
    if is_convolution(node):
        own = d.flatten(2).sum(2) if inputs is None else convolution_gradient(node, inputs, d)
        return places(own, n, order).sum(1)
    if inputs is None:
        return places(d, n, order).sum(1)
    return torch.einsum("itp,itq->ipq", places(d, n, order), places(inputs, n, order)).flatten(1)


def convolution_gradient(node, inputs, d):
    "(R, P) of a convolution's weight from R rows of its inputs and of D, each (R, channels, …)."
    def backward(a, d):
        _, gradient, _ = torch.ops.aten.convolution_backward(
            d[None], a[None], node._saved_weight.detach(), None, node._saved_stride,
            node._saved_padding, node._saved_dilation, False, node._saved_output_padding,
            node._saved_groups, (False, True, False))
        return gradient

    return vmap(backward)(inputs, d).flatten(1)


def held_bytes(layers, orders, outputs):
    "{name: bytes that an example's share takes}, for parameters of layers whose gradients are not formed."
    n, o = outputs.shape
    held = {}
    for node, uses in layers.items():
        if node in orders and not forms_gradients(node, uses, n, o):
            held |= dict.fromkeys(uses, 0)
            held[next(iter(uses))] = math.prod(shape_of(node)) * o * outputs.element_size() // n
    return held
