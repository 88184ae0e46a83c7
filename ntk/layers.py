"""A chunk's shares of the kernel, layer by layer.

What the graph shows of a layer decides what is kept of it: the inputs A and the gradients D of a
product; or, where that is cheaper or there is no other way, the gradients of its parameters, formed
from A and D. So are those of filters, of scales and of biases by themselves. Parameters that enter
the graph in other ways are left to the Jacobian. All of it is held against an ordinary backward
pass.
"""

import math

import torch
import torch.nn.functional as F

from ntk.checks import check_alone, forward, require
from ntk.gradients import jacobian, refuted
from ntk.graph import find_layers, gradients_at, in_rows, inputs_at, places, shape_of
from ntk.shares import Share, claims_of, jacobian_share, joined


def prepared(model, x, name, names, batch, strict=False):
    """Shares of the examples `x` that add up to Θ over the parameters named: one for each layer
    that has a formula, and one for the Jacobian of the others, which `strict` refuses.

    The examples are run in batches. What is found is held against an ordinary backward pass.
    """
    outputs, batches, others = [], [], {}
    for some in x.tensor_split(math.ceil(len(x) / batch)):  # of equal sizes, so that none is alone
        some_outputs, start = forward(model, some, name)
        found, left = shares_of(model, some_outputs, start, names)
        outputs.append(some_outputs.detach())
        batches.append(found)
        others |= dict.fromkeys(left)
    check_alone(model, x, torch.cat(outputs), name)
    found = joined(batches)
    if found is None:  # the model branches on its inputs
        found, others = [], dict.fromkeys(names)
    wrong = contradicted(model, x, found)
    others |= {name: None for share in found if wrong & {*share.uses} for name in share.uses}
    found = [share for share in found if not wrong & {*share.uses}]
    require(not (strict and others), f'method="layerwise" cannot serve {", ".join(others)}, which '
            "the model uses otherwise than as weights, scales or biases of layers, in one way; "
            'use method="auto"')
    if others:
        found.append(jacobian_share(others, jacobian(model, x, others, batch=batch)))
    # outputs that depend on no parameter have Θ = 0
    return found or [jacobian_share([], outputs[0].new_zeros(len(x), outputs[0].shape[1], 0))]


def contradicted(model, x, found):
    "The parameters whose shares do not have the gradients that a `Witness` has."
    params = dict(model.named_parameters())
    names = [name for share in found for name in share.uses]

    def claims(witness):
        said = {}
        for share in found:
            said |= claims_of(share.rows(witness.rows), witness, params)
        return said

    return {*refuted(model, x, names, claims)} if names else set()


def shares_of(model, outputs, start, names):
    "Shares of the layers that have a formula, and the names of the other parameters that count."
    layers, others = find_layers(model, outputs, names)
    orders, by_output = gradients_at(layers, outputs, start)
    for layer in [layer for layer in layers if not all(node in orders for node in layer.nodes)]:
        layers.remove(layer)
        others += layer.uses
    n, o = outputs.shape
    beside = [inputs_of(layer, orders, n, o) for layer in layers]
    kept = [[] for _ in layers]
    for gradients in by_output:
        for layer, inputs, so_far in zip(layers, beside, kept):
            d = [gradients[node] for node in layer.nodes]
            so_far.append(condensed(layer, inputs, d, orders, n, o))
    found = []
    for layer, inputs, so_far in zip(layers, beside, kept):
        found += layer_shares(layer, inputs, zip(*so_far), n, o)
    return found, others


def inputs_of(layer, orders, n, o):
    """A (N, T, fan_in) of a product with a matrix, the tokens (N, T, …) of a table; or, of what is
    formed, the inputs at each node, those of filters as patches. Biases by themselves have none."""
    uses = [use for use in layer.uses.values() if use.role != "bias"]
    at_nodes = [inputs_at(node, uses[0]) if uses else None for node in layer.nodes]
    if layer.has("filter"):
        return [patches(node, inputs) for node, inputs in zip(layer.nodes, at_nodes)]
    if layer.has("scale"):
        return [in_rows(a, layer) for a in at_nodes]
    if not uses:
        return at_nodes
    by_place = [places(a, n, orders[node]) for node, a in zip(layer.nodes, at_nodes)]
    return by_place[0] if len(by_place) == 1 else torch.cat(by_place, 1)


def condensed(layer, inputs, d, orders, n, o):
    """Of one output, from D at each node: [D (N, T, fan_out)], or where they are formed the
    gradients (N, P) of each parameter."""
    if layer.has("matrix") or layer.has("table"):
        by_place = [places(one, n, orders[node]) for node, one in zip(layer.nodes, d)]
        d_places = by_place[0] if len(by_place) == 1 else torch.cat(by_place, 1)
        if layer.has("table"):
            return [scaled(use.factor, d_places) for use in layer.uses.values()]
        if not forms_gradients(layer, n, o):
            return [d_places]
        return [torch.einsum("itp,itq->ipq", inputs, d_places).flatten(1) if use.role == "matrix"
                else summed_to(d_places.flatten(0, 1), use).view(n, d_places.shape[1], -1).sum(1)
                for use in layer.uses.values()]
    found = []
    for use in layer.uses.values():
        at_nodes = [parameter_gradient(use, a, one) for a, one in zip(inputs, d)]
        by_place = [places(rows, n, orders[node]) for node, rows in zip(layer.nodes, at_nodes)]
        by_place = by_place[0] if len(by_place) == 1 else torch.cat(by_place, 1)
        found.append(by_place.sum(1) if by_place.shape[1] > 1 else by_place[:, 0])
    return found


def layer_shares(layer, inputs, gradients, n, o):
    """The share of a layer from its D (N, T, fan_out) of each output; or of each parameter from
    its (N, P)."""
    if forms_gradients(layer, n, o):
        return [Share("gradients", {name: use._replace(factor=1.0)}, None,
                      [scaled(use.factor, g)[:, None] for g in own])
                for (name, use), own in zip(layer.uses.items(), gradients)]
    return [Share("table" if layer.has("table") else "layer", layer.uses, inputs, *gradients)]


def scaled(factor, gradients):
    return gradients if factor == 1 else factor * gradients  # no copy for nothing


# Gradients of the parameters, where they are formed


def forms_gradients(layer, n, o):
    """Whether gradients are formed: where there is no other formula, and where it is cheaper than
    products for all pairs of places."""
    if layer.has("table"):
        return False
    if not layer.has("matrix") or any(
            use.role == "bias" and use.aligned != shape_of(layer.nodes[0])[-1:]
            for use in layer.uses.values()):
        return True
    [(fan_in, fan_out)] = [use.aligned for use in layer.uses.values() if use.role == "matrix"]
    pairs = number_of_places(layer, n) ** 2
    return pairs * (fan_in + o**2 * fan_out) > o**2 * (fan_in + 1) * fan_out


def number_of_places(layer, n):
    return sum(math.prod(shape_of(node)[:-1]) for node in layer.nodes) // n


def parameter_gradient(use, inputs, d):
    "(R, P) of a filter, a scale or a bias, from R rows of D; its factor left out."
    match use.role:
        case "filter":  # patches (R, groups, K, L)
            by_group = d.flatten(2).unflatten(1, (inputs.shape[1], -1))
            return (by_group @ inputs.mT).flatten(1)
        case "scale":
            return summed_to(d * inputs, use)
        case "bias":
            return summed_to(d, use)


def summed_to(d, use):
    "Rows (R, …) summed over the axes along which a parameter was broadcast: (R, P)."
    aligned = use.aligned[1:] if len(use.aligned) == d.ndim else use.aligned
    shape = len(d), *[1] * (d.ndim - 1 - len(aligned)), *aligned
    return d.sum_to_size(shape).flatten(1)


def patches(node, inputs):
    "What a convolution's filter meets: (R, groups, K, L) for L places and K entries of the filter."
    kernel = node._saved_weight.shape[2:]
    padding = [side for p in reversed(node._saved_padding) for side in (p, p)]
    found = F.pad(inputs, padding)
    for axis, (size, stride, dilation) in enumerate(
            zip(kernel, node._saved_stride, node._saved_dilation), start=2):
        found = found.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    # (R, channels, *places, *kernel)
    r, dims, groups = len(inputs), len(kernel), node._saved_groups
    found = found.unflatten(1, (groups, -1))
    entries = found.permute(0, 1, 2, *range(3 + dims, 3 + 2 * dims), *range(3, 3 + dims))
    return entries.reshape(r, groups, math.prod(entries.shape[2:3 + dims]), -1)


# What it takes


def held_bytes(layer, outputs):
    """For an example: {name: bytes of its share} for a layer whose gradients are not formed, and
    the bytes that are held besides while they are."""
    (n, o), size = outputs.shape, outputs.element_size()
    if forms_gradients(layer, n, o):
        return {}, sum(entries_beside(layer, node) for node in layer.nodes) * size // n
    [width] = [use.aligned[0] for use in layer.uses.values() if use.role in ("matrix", "table")]
    kept = number_of_places(layer, n) * (width + o * shape_of(layer.nodes[0])[-1])
    first, *others = layer.uses
    return {first: size * kept, **dict.fromkeys(others, 0)}, 0


def entries_beside(layer, node):
    "Of the patches that a filter meets, or what a scale is beside."
    after = shape_of(node)
    if layer.has("filter"):
        weight = node._saved_weight
        return after[0] * math.prod(after[2:]) * node._saved_groups * weight.shape[1:].numel()
    return math.prod(after) if layer.has("scale") else 0
