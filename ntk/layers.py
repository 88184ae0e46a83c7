"""A layer's share of the kernel, without the gradients of its weights.

With D = ∂f/∂z, a product z = a Wᵀ + b has the gradients ∂f/∂W = D aᵀ and ∂f/∂b = D. Its share of Θ,

    (D Dᵀ) ∘ (A Aᵀ + 1),

takes the inputs A and the gradients D of all examples, and no gradient of W is ever formed (the
"structured derivatives" of Novak et al. 2022, arXiv:2206.08720). A layer that is applied at T
places of an example has this summed over all pairs of places; where forming its gradients is
cheaper, they are formed instead. Parameters that enter no such product are left to the Jacobian.
"""

import itertools
import math
from typing import NamedTuple

import torch
from torch.func import vmap

from ntk.checks import require
from ntk.gradients import jacobian
from ntk.graph import find_layers, gradients_at, is_convolution, places, shape_of


class Share(NamedTuple):
    """What N examples hold of a summand of Θ: Σ over places of (D Dᵀ) ∘ (weight · A Aᵀ + bias).

    inputs: A (N, T, fan_in); gradients: D (N, T, O, fan_out).
    label: whose share it is, and how each parameter was used. A model may branch on its inputs, so
        that two chunks use a parameter in two ways: only shares with equal labels may be
        multiplied.
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
    """Shares that add up to Θ over the parameters named: one for each layer that has a formula, and
    one for the Jacobian of the others, which `strict` refuses.

    outputs (N, O), with their graph, and `start`, where it starts, are what `forward` returned.
    """
    layers, others = find_layers(model, outputs, names)
    orders, by_output = gradients_at(layers, outputs, start)
    for node in [node for node in layers if node not in orders]:
        others += layers.pop(node)
    require(not (strict and others), f'method="layerwise" cannot serve {", ".join(others)}, which '
            "the model uses otherwise than once, as weight or bias of a linear layer or convolution"
            '; use method="auto"')
    kept = {node: [] for node in layers}
    for gradients in by_output:
        for node, uses in layers.items():
            kept[node].append(condensed(node, uses, gradients[node], orders[node], *outputs.shape))
    found = []
    for node, uses in layers.items():
        gradients = [stacked(by_output) for by_output in zip(*kept[node])]
        found += layer_shares(node, uses, gradients, orders[node], outputs.shape)
    if others:
        found.append(gradient_share(("jacobian", *others), jacobian(model, x, others)))
    return found or [gradient_share((), outputs.detach().new_zeros(*outputs.shape, 0))]


def stacked(by_output):
    "A new axis for the outputs, the last but one. What one output has by itself is not copied."
    return torch.stack(by_output, -2) if len(by_output) > 1 else by_output[0].unsqueeze(-2)


def scaled(factor, gradients):
    return gradients if factor == 1 else factor * gradients  # no copy for nothing


def layer_shares(node, uses, gradients, order, shape):
    "The share of a layer, from [D (N, T, O, fan_out)]; or of each parameter, from its (N, O, P)."
    if forms_gradients(node, uses, *shape):
        return [gradient_share(("gradient", name, use.axes), scaled(use.factor, own))
                for (name, use), own in zip(uses.items(), gradients)]
    [weight] = [use for use in uses.values() if use.inputs is not None]
    bias = sum(use.factor**2 for use in uses.values() if use.inputs is None)
    label = "layer", *((name, use.factor, use.axes) for name, use in uses.items())
    inputs = places(weight.inputs, shape[0], order)
    return [Share(label, inputs, *gradients, weight=weight.factor**2, bias=bias)]


# Gradients of the parameters, where they are cheaper than all pairs of places


def forms_gradients(node, uses, n, o):
    "Whether a layer's gradients are formed: a convolution's, and where it is cheaper."
    fan_in = sum(use.inputs.shape[1] for use in uses.values() if use.inputs is not None)
    if is_convolution(node) or fan_in == 0:
        return True
    *rows, fan_out = shape_of(node)
    pairs = (math.prod(rows) // n) ** 2
    return pairs * (fan_in + o**2 * fan_out) > o**2 * (fan_in + 1) * fan_out


def condensed(node, uses, d, order, n, o):
    "Of one output: [D (N, T, fan_out)], or, if formed, each parameter's gradients (N, P)."
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
    "{name: bytes of D for an example}, of parameters in layers whose gradients are not formed."
    n, o = outputs.shape
    held = {}
    for node, uses in layers.items():
        if node in orders and not forms_gradients(node, uses, n, o):
            held |= dict.fromkeys(uses, 0)
            held[next(iter(uses))] = math.prod(shape_of(node)) * o * outputs.element_size() // n
    return held
