"""Reading autograd's graph: which parameter enters which operation, and whose its rows are.

No module is asked, since a model may do anything with its modules' parameters. What counts is how a
parameter enters the graph: as the matrix, filter or table of a product, as a scale or a bias, as it
is or times a number; that it enters in no other way; and that each row of what comes out belongs to
one example, whatever the shapes say.
"""

from typing import NamedTuple

import torch
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge

from ntk.checks import is_close

KEEP_ROWS = {f"{name}Backward0" for name in (
    "Relu", "Tanh", "Erf", "Gelu", "Sigmoid", "Silu", "Elu", "LeakyRelu", "Softplus", "Sin", "Cos",
    "MaxPool2DWithIndices", "AvgPool2D", "View", "UnsafeView", "Clone")}
EXAMPLES_FIRST, PLACES_FIRST = "examples first", "places first"  # rows in the order (N, T), (T, N)


class Use(NamedTuple):
    """How a parameter enters an operation.

    role: "matrix", "filter", "table" (of an embedding), "scale" or "bias"
    factor, axes: times which number, and with its axes in which order
    aligned: the shape in which it is broadcast to the result's; of a table, (tokens in a row,)
    argument: as the operation's first, or second, …
    """

    role: str
    factor: float
    axes: tuple
    aligned: tuple
    argument: int


class Layer(NamedTuple):
    """Operations that the same parameters enter in the same ways, {name: Use}: one, or several if
    the layer is used again and again, as in a recurrent net."""

    nodes: tuple
    uses: dict

    def has(self, role):
        return any(use.role == role for use in self.uses.values())


def find_layers(model, outputs, names):
    """The layers in the graph, and a list of the other names that count.

    A parameter to which no path leads has no gradient, but an autograd.Function of the model's own
    may use one that the graph does not show.
    """
    consumers = consumers_of(outputs)
    hidden = any(isinstance(node, BackwardCFunction) for node in consumers)
    params = dict(model.named_parameters())
    found, others = {}, []
    for name in names:
        nodes, use = uses_of(params[name], consumers)
        if nodes:
            found.setdefault(nodes, {})[name] = use
        elif params[name] in consumers or hidden:
            others.append(name)
    return [Layer(nodes, uses) for nodes, uses in found.items()], others


def consumers_of(outputs):
    "{node or parameter: [(a node that it flows into, as which argument), …]} for all in the graph."
    consumers, todo = {outputs.grad_fn: []}, [outputs.grad_fn]
    while todo:
        node = todo.pop()
        for argument, (source, _) in enumerate(getattr(node, "next_functions", ())):
            source = getattr(source, "variable", source)  # the parameter of an AccumulateGrad node
            if source is not None and source not in consumers:
                todo.append(source)
            consumers.setdefault(source, []).append((node, argument))
    return consumers


def uses_of(parameter, consumers):
    "All nodes that the parameter enters and its Use, where that is known and one; else no nodes."
    nodes, uses, todo = [], set(), [(parameter, 1.0, tuple(range(parameter.ndim)))]
    while todo:
        source, factor, axes = todo.pop()
        for node, argument in consumers.get(source, ()):
            number = number_beside(node, argument)
            if number is not None:
                todo.append((node, factor * number, axes))
            elif node.name() == "TBackward0":
                todo.append((node, factor, axes[::-1]))
            elif node.name() == "PermuteBackward0":
                todo.append((node, factor, tuple(axes[axis] for axis in node._saved_dims)))
            else:
                shape = tuple(parameter.shape[axis] for axis in axes)
                nodes.append(node)
                uses.add(use_at(node, argument, shape, factor, axes))
    known = len(uses) == 1 and len(set(nodes)) == len(nodes)
    [use] = uses if known else [None]
    return (tuple(nodes), use) if use else ((), None)


def number_beside(node, argument):
    "The number by which the node multiplies its argument, or None."
    if node.name() == "MulBackward0":
        other = node._saved_self if argument else node._saved_other
        return other.item() if other.ndim == 0 else None
    if node.name() == "NegBackward0":
        return -1.0
    if (node.name(), argument) == ("DivBackward0", 0):
        return 1 / node._saved_other.item() if node._saved_other.ndim == 0 else None
    return None


def use_at(node, argument, shape, factor, axes):
    "The Use of a parameter that arrives in this shape as this argument of the node; or None."
    after, role = shape_of(node), "bias"
    match node.name(), argument:
        case ("AddmmBackward0", 2):
            role, factor = "matrix", factor * node._saved_alpha
        case ("MmBackward0", 1):
            role = "matrix"
        case ("ConvolutionBackward0", 1) if not node._saved_transposed:
            role = "filter"
        case ("EmbeddingBackward0", 0) if axes == (0, 1) and not node._saved_scale_grad_by_freq:
            role, shape = "table", (1,)
        case ("EmbeddingBagBackward0", 0) if axes == (0, 1) and tokens_in_bag(node):
            role, shape = "table", (tokens_in_bag(node),)
            factor = factor / shape[0] if node._saved_mode else factor  # mode 1 is the mean
        case ("MulBackward0", _) | ("NativeLayerNormBackward0", 1):
            role = "scale"
        case ("NativeBatchNormBackward0" | "NativeGroupNormBackward0", 1):
            role, shape = "scale", channels(shape, after)
        case ("ConvolutionBackward0" | "NativeBatchNormBackward0" | "NativeGroupNormBackward0", 2):
            shape = channels(shape, after)
        case ("AddmmBackward0", 0):
            factor *= node._saved_beta
        case ("AddBackward0", 1):
            factor *= node._saved_alpha
        case ("SubBackward0", 1):
            factor *= -node._saved_alpha
        case ("AddBackward0" | "SubBackward0", 0) | ("NativeLayerNormBackward0", 2):
            pass
        case _:
            return None
    one_for_all = len(shape) < len(after) or shape[:1] == (1,)
    is_complex = node._input_metadata[0].dtype.is_complex
    if is_complex or role in ("scale", "bias") and not one_for_all:
        return None
    return Use(role, factor, axes, shape, argument)


def channels(shape, after):
    "(C,) as it is broadcast to (N, C, …)."
    return (*shape, *[1] * (len(after) - 2))


def tokens_in_bag(node):
    "How many tokens an EmbeddingBag adds up or averages in every one of its bags; else 0."
    bags, tokens = shape_of(node)[0], node._saved_indices.numel()
    each = tokens // max(1, bags)
    equal = each * bags == tokens and torch.equal(
        node._saved_offsets, each * torch.arange(bags).to(node._saved_offsets))
    plain = (node._saved_mode in (0, 1) and node._saved_per_sample_weights is None
             and not node._saved_scale_grad_by_freq and node._saved_padding_idx >= 2**63)
    return each if equal and plain else 0


def inputs_at(node, use):
    """What a matrix, filter or scale is multiplied by in the node, in rows; the tokens of a table,
    −1 where it has no gradient."""
    match node.name():
        case "AddmmBackward0":
            return node._saved_mat1.detach()
        case "MmBackward0":
            return node._saved_self.detach()
        case "ConvolutionBackward0":
            return node._saved_input.detach()
        case "EmbeddingBackward0":
            tokens, padding = node._saved_indices.reshape(-1, 1), node._saved_padding_idx
            return tokens.masked_fill(tokens == padding, -1) if padding < 2**63 else tokens
        case "EmbeddingBagBackward0":
            return node._saved_indices.reshape(shape_of(node)[0], -1)
        case "NativeLayerNormBackward0":
            return ((node._saved_input - node._saved_result1) * node._saved_result2).detach()
        case "NativeGroupNormBackward0":
            groups = node._saved_input.flatten(1).unflatten(1, (node._saved_group, -1))
            normal = (groups - node._saved_result1[:, :, None]) * node._saved_result2[:, :, None]
            return normal.view(node._saved_input.shape).detach()
        case "NativeBatchNormBackward0":
            mean, var = node._saved_running_mean, node._saved_running_var
            shape = channels(mean.shape, shape_of(node))
            centred = node._saved_input - mean.view(shape)
            return (centred / (var + node._saved_eps).sqrt().view(shape)).detach()
        case "MulBackward0":
            other = node._saved_self if use.argument else node._saved_other
            return other.detach().expand(shape_of(node))


def shape_of(node):
    "The shape of what the node's operation returned."
    return tuple(node._input_metadata[0].shape)


# Gradients at the layers, and the examples they belong to


def gradients_at(layers, outputs, start):
    """{node: the order of its rows}, and for each output {node: D in rows}.

    A row belongs to example i if factors c at the outputs become the factor cᵢ in it. A node with
    other rows has no order.
    """
    n, o = outputs.shape
    by_output = (pulled_back(layers, outputs, v) for v in torch.eye(o).to(outputs))
    if not layers or keeps_rows(outputs.grad_fn, layers, start):
        return {node: EXAMPLES_FIRST for layer in layers for node in layer.nodes}, by_output
    c = torch.randn(n, 1).to(outputs)
    v = (torch.randn(o) if o > 1 else torch.ones(1)).to(outputs)
    before, after = pulled_back(layers, outputs, v), pulled_back(layers, outputs, c * v)
    orders = {}
    for node, d in before.items():
        for order in (EXAMPLES_FIRST, PLACES_FIRST):
            if len(d) and len(d) % n == 0 and is_close(
                    places(after[node], n, order), places(d, n, order) * c.view(n, *[1] * d.ndim)):
                orders[node] = order
                break
    return orders, [before] if o == 1 else by_output


def pulled_back(layers, outputs, v):
    """{node: D in rows}, the gradient of Σ v · outputs at what each node returned. It is that of a
    sum over examples, but they do not mix: a row holds the gradient of its own."""
    if not layers:
        return {}
    nodes = [(node, layer) for layer in layers for node in layer.nodes]
    edges = [GradientEdge(node, 0) for node, _ in nodes]
    # not grad_outputs=v, for which torch imports sympy: seconds, once in every process
    grads = torch.autograd.grad((v * outputs).sum(), edges, retain_graph=True, allow_unused=True)
    found = {}
    for (node, layer), d in zip(nodes, grads):
        d = outputs.new_zeros(shape_of(node)) if d is None else d
        found[node] = in_rows(d, layer)
    return found


def in_rows(d, layer):
    "(R, …), a row for each place; or, where parameters touch more than the last axis, as it is."
    last_axis = all(use.role in ("matrix", "table")
                    or use.role in ("scale", "bias") and len(use.aligned) == 1
                    for use in layer.uses.values())
    return d.flatten(0, -2) if last_axis else d


def keeps_rows(node, layers, start):
    """Whether the operations from `start` to the node are a chain, each of which keeps to the rows
    and takes only parameters besides. Then row i is example i, and no experiment is needed."""
    layer_at = {node: layer for layer in layers for node in layer.nodes}
    inputs = start[:0]
    while node is not None and shape_of(node)[:1] == (len(start),):
        layer, argument = layer_at.get(node), 0
        product = layer and (layer.has("matrix") or layer.has("filter"))
        if product and len(layer.uses) == len(node.next_functions) - 1:  # all others are parameters
            inputs, argument = inputs_at(node, None), 1 if node.name() == "AddmmBackward0" else 0
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
