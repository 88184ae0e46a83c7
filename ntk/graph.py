"""Reading autograd's graph: which parameter enters which product, and whose its rows are.

No module is asked, since a model may do anything with its modules' parameters. What counts is that
a parameter enters one product z = a Wᵀ + b, as it is or times a number, and nothing else; and that
each row of z belongs to one example, whatever the shapes say.
"""

from typing import NamedTuple

import torch
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge

from ntk.checks import is_close

# How nodes hold what a formula needs: (node, argument that is the parameter) → attributes with the
# inputs that it is multiplied by, and with the node's own factor, if it has one.
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
EXAMPLES_FIRST, PLACES_FIRST = "examples first", "places first"  # (N, T) or (T, N)


class Use(NamedTuple):
    """How a parameter enters a product: times `factor`, with its axes in the order `axes`, and
    multiplied by `inputs`. A bias has no inputs."""

    factor: float
    axes: tuple
    inputs: torch.Tensor | None


def find_layers(model, outputs, names):
    """{node: {name: Use}} for the products in the graph, and a list of the other names that count.

    A parameter to which no path leads has no gradient, but an autograd.Function of the model's own
    may use one that the graph does not show.
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


def product_of(parameter, consumers):
    "The one product that the parameter enters and its Use; or None."
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


def is_row_of(parameter, node):
    return len(shape_of(node)) > 1 and tuple(parameter.shape) == shape_of(node)[-1:]


def shape_of(node):
    "The shape of what the node's operation returned."
    return tuple(node._input_metadata[0].shape)


# Gradients at the products, and the examples they belong to


def gradients_at(layers, outputs, start):
    """{node: the order of its rows}, and for each output {node: D}.

    A row belongs to example i if factors c at the outputs become the factor cᵢ in it. A layer with
    other rows has no order.
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
    """{node: D in rows}, the gradient of Σ v · outputs at what each layer returned. It is that of a
    sum over examples, but they do not mix: a row holds the gradient of its own."""
    if not layers:
        return {}
    edges = [GradientEdge(node, 0) for node in layers]
    # not grad_outputs=v, for which torch imports sympy: seconds, once in every process
    grads = torch.autograd.grad((v * outputs).sum(), edges, retain_graph=True, allow_unused=True)
    found = {}
    for node, d in zip(layers, grads):
        d = outputs.new_zeros(shape_of(node)) if d is None else d
        found[node] = d if is_convolution(node) else d.flatten(0, -2)
    return found


def keeps_rows(node, layers, start):
    """Whether the operations from `start` to the node are a chain, each of which keeps to the rows
    and takes only parameters besides. Then row i is example i, and no experiment is needed."""
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
