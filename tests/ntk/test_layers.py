"What layer by layer serves, and that what it says is held against an ordinary backward pass."

import copy
import re

import pytest
import torch
from definitions import METHODS, Net, assert_close, data, may_decline, mlp, ntk_by_definition
from definitions import gradients as gradients_by_definition
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import CONVOLUTIONS, TWO_WAYS, ZOO, conv_net, example

import ntk.layers
from ntk import MLP, compute_ntk
from ntk.checks import forward
from ntk.graph import find_layers, inputs_at
from ntk.layers import forms_gradients, held_bytes, patches, prepared
from ntk.shares import sum_of_shares

# The models it serves, which are all but these, and the parameters that keep it from them

REFUSED = {
    # operations for which there is no formula
    "weight norm": ["0.parametrizations.weight.original0", "0.parametrizations.weight.original1"],
    "pruned": ["0.weight_orig"],
    "MLP: PReLU": ["activation.weight"],
    "PReLU, five outputs for five examples": ["activation.weight"],
    "distances to learned centres": ["centres"],
    "MLP: tied, with PReLU": ["activation.weight"],
    "MLP: weight norm": ["lin1.parametrizations.weight.original0",
                         "lin1.parametrizations.weight.original1"],
    "MLP: pruned": ["lin1.weight_orig"],
    "transposed conv": ["2.weight"],
    "transposed conv, as many channels out": ["0.weight"],
    "instance norm": ["1.weight", "1.bias"],
    "instance norm with running statistics": ["1.weight", "1.bias"],
    "attention, other widths": ["attention.bias_k", "attention.bias_v"],
    "embedding bag, maximum": ["0.weight"],
    "weight norm of the whole matrix": ["0.parametrizations.weight.original1",
                                        "0.parametrizations.weight.original0"],
    "spectral norm": ["0.parametrizations.weight.original"],
    "old weight norm": ["0.weight_g", "0.weight_v"],
    "old spectral norm": ["0.weight_orig"],
    "orthogonal": ["0.parametrizations.weight.original"],
    "W @ x": ["w"],
    "square W @ x": ["w"],
    "einsum": ["w"],
    "1 / W": ["w"],
    "learned scalar times W": ["scale"],
    "learned scalar times learned scalar": ["one", "two"],
    "learned scale for each row": ["w", "scale"],
    "W + b": ["w", "b"],
    "W V": ["w", "v"],
    "bilinear": ["layer.weight"],
    "p + p": ["w", "b"],
    "p * p": ["w", "b"],
    "output is the bias, expanded": ["b"],
    # a parameter that is used in two ways
    "MLP: closure over its own weight": ["lin2.weight"],
    "embedding and read-out share a weight": ["lookup.weight"],
    "tied autoencoder": ["w"],
    "weight read inside and outside": ["first.weight"],
    "bias used twice": ["shift"],
    "weight sliced": ["first.weight"],
    # rows that are not those of all examples in order
    "branches on data": ["first.weight", "first.bias", "last.weight", "last.bias"],
    "routed to experts": ["first.weight", "first.bias", "other.weight", "other.bias"],
    "places routed to experts": ["first.weight", "first.bias", "other.weight", "other.bias"],
    "flipped inside": ["first.weight", "first.bias", "last.weight", "last.bias"],
    "sorted inside": ["first.weight", "first.bias", "last.weight", "last.bias"],
    "example by example": ["first.weight", "first.bias", "last.weight", "last.bias"],
    # what the graph does not show
    "function with a closure": ["first.weight"],
    "function with its own weight gradient": ["last.weight", "last.bias"],
    "scripted": ["0.weight", "0.bias", "2.weight", "2.bias"],
}
SERVED = [name for name in ZOO if name not in REFUSED]


@pytest.mark.filterwarnings("ignore")  # torch's own, about an even kernel and nested tensors
@pytest.mark.parametrize("name", SERVED)
def test_layer_by_layer_serves(name):
    model, x1, x2, among_x1, x1_with_x2 = example(name)
    assert_close(compute_ntk(model, x1, method="layerwise"), among_x1)
    assert_close(compute_ntk(model, x1, x2, method="layerwise"), x1_with_x2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_layerwise_is_refused_where_its_formula_does_not_hold(name):
    names = re.escape(", ".join(REFUSED[name]))
    message = f'method="layerwise" cannot serve {names}, .* use method="auto"'
    with pytest.raises(ValueError, match=message):
        compute_ntk(example(name).model, example(name).x1, method="layerwise")


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(depth=st.integers(1, 3), width=st.integers(1, 9), outputs=st.integers(1, 3),
       n1=st.integers(1, 4), n2=st.integers(0, 3),
       activation=st.sampled_from(["relu", "tanh", "erf", "gelu", torch.sin, nn.ELU()]),
       scales=st.sampled_from(
           [{}, {"parametrization": "ntk", "weight_std": 1.2, "bias_std": 0.5}]),
       dtype=st.sampled_from([torch.float32, torch.float64]), seed=st.integers(0, 999))
def test_layerwise_is_the_double_loop_for_any_mlp(
        depth, width, outputs, n1, n2, activation, scales, dtype, seed):
    torch.manual_seed(seed)
    model = MLP(3, width, outputs, hidden_layers=depth, activation=activation, **scales).to(dtype)
    x1 = torch.randn(n1, 3, dtype=dtype)
    x2 = torch.randn(n2, 3, dtype=dtype) if n2 else None
    ntk = compute_ntk(model, x1, x2, method="layerwise")
    exact = copy.deepcopy(model).double(), x1.double(), None if x2 is None else x2.double()
    assert ntk.dtype == dtype
    assert_close(ntk, ntk_by_definition(*exact), 1e-10 if dtype == torch.float64 else 1e-4)


@pytest.mark.slow
@settings(derandomize=True, database=None, deadline=None, max_examples=40)
@given(st.data())
def test_layerwise_is_the_double_loop_for_any_convolution(draws):
    def draw(low, high):
        return draws.draw(st.integers(low, high))

    def pair(low, high):
        return draw(low, high), draw(low, high)

    groups = draw(1, 3)
    kernel, dilation, padding = pair(1, 3), pair(1, 2), pair(0, 2)
    size = [max(1, d * (k - 1) + 1 - 2 * p) + draw(0, 3)
            for k, d, p in zip(kernel, dilation, padding)]
    conv = nn.Conv2d(groups * draw(1, 2), groups * draw(1, 2), kernel, pair(1, 3), padding,
                     dilation, groups, bias=draws.draw(st.booleans()))
    torch.manual_seed(draw(0, 99))
    model = conv_net(conv, outputs=draw(1, 3))
    x1, x2 = (data(draw(1, 4), conv.in_channels, *size) for _ in range(2))
    assert_close(compute_ntk(model, x1, method="layerwise"), ntk_by_definition(model, x1))
    assert_close(compute_ntk(model, x1, x2, method="layerwise"), ntk_by_definition(model, x1, x2))


# Two chunks that use a parameter in two ways


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", TWO_WAYS)
def test_two_chunks_may_use_a_parameter_in_two_ways(name, method):
    model, x = TWO_WAYS[name].make(), TWO_WAYS[name].inputs(8).abs()
    x[4:] *= -1
    expected = ntk_by_definition(model, x)
    with may_decline(method):
        assert_close(compute_ntk(model, x, method=method, chunk_size=4), expected)
    with may_decline(method):
        assert_close(compute_ntk(model, x[:4], x[4:], method=method), expected[:4, 4:])


def names_in(model):
    return [name for name, _ in model.named_parameters()]


def shares_in(model, x, names=None, batch=100, strict=False):
    return prepared(model, x, "x", names or names_in(model), batch, strict)


def labels(model, x):
    return [share.label for share in shares_in(model, x)]


@pytest.mark.parametrize("name", TWO_WAYS)
def test_a_label_tells_how_a_parameter_is_used_and_nothing_else(name):
    "A factor does not count where the gradients are formed, since it is in them."
    model, x = TWO_WAYS[name].make(), TWO_WAYS[name].inputs(8).abs()
    assert labels(model, x[:4]) == labels(model, 2 * x[4:])
    formed = name in ("b or −b", "a filter or its negative")
    assert (labels(model, x) == labels(model, -x)) == formed


@pytest.mark.parametrize("name", TWO_WAYS)
def test_batches_may_use_a_parameter_in_two_ways(name):
    model, x = TWO_WAYS[name].make(), TWO_WAYS[name].inputs(8).abs()
    x[4:] *= -1
    found = shares_in(model, x, batch=4)
    assert_close(sum_of_shares(found, found, "full"), full(model, x))


# A chunk's shares


def full(model, x, names=None):
    "Θ (N, N, O, O) of the parameters named, by loops."
    j = gradients_by_definition(model, x)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    columns = dict(zip(sizes, j.split(list(sizes.values()), 2)))
    j = torch.cat([columns[name] for name in names or sizes], 2)
    return torch.einsum("iap,jbp->ijab", j, j)


def test_shares_add_up_to_the_kernel():
    model, x = mlp(4, 5, 2, hidden_layers=2), data()
    found = shares_in(model, x)
    assert [share.kind for share in found] == ["layer"] * 3
    assert_close(sum_of_shares(found, found, "full"), ntk_by_definition(model, x))


@pytest.mark.parametrize("names", [["lin2.bias"], ["lin1.weight"], ["lin2.weight", "lin3.bias"]])
def test_shares_of_some_parameters_add_up_to_their_kernel(names):
    model, x = mlp(4, 5, 2, hidden_layers=2), data()
    found = shares_in(model, x, names)
    assert {name for share in found for name in share.uses} == set(names)
    assert_close(sum_of_shares(found, found, "full"), full(model, x, names))


@pytest.mark.parametrize("name, kinds", [
    ("few places", {"layer"}), ("many places", {"gradients", "layer"}),
    ("shared module", {"gradients", "layer"}),
    ("x @ W @ W", {"layer"}), ("conv2d: groups", {"gradients", "layer"}),
    ("one filter, applied twice", {"gradients", "layer"}),
    ("embedding with padding", {"table", "layer"}), ("embedding bag, mean", {"table", "layer"}),
    ("one embedding, used twice", {"table", "layer"}), ("layer norm", {"gradients", "layer"}),
    ("x - b", {"gradients"}), ("MLP: PReLU", {"gradients", "layer"}),
])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_examples_may_be_run_in_batches(name, kinds, batch):
    model, x, *_ = example(name)
    at_once, found = shares_in(model, x), shares_in(model, x, batch=batch)
    assert {share.kind for share in found} == kinds
    assert [share.label for share in found] == [share.label for share in at_once]
    assert_close(sum_of_shares(found, found, "full"), full(model, x))
    assert_close(sum_of_shares(found, at_once, "full"), full(model, x))


def test_batches_are_of_equal_sizes():
    """One example by itself, transposed, is contiguous: its layer is one node, with weight and
    bias, and that of several is two. So none is left by itself, where that can be avoided."""
    model, x, *_ = example("places, time by time")
    found = shares_in(model, x, batch=4, strict=True)
    assert_close(sum_of_shares(found, found, "full"), full(model, x))


def test_a_batch_is_no_larger_than_allowed():
    passes = []
    model = Net(lambda net, x: passes.append(len(x)) or net.last(torch.tanh(net.first(x))))
    shares_in(model, data(7), batch=3)
    assert passes[:3] == [3, 2, 2] and max(passes) <= 3


def test_outputs_that_depend_on_no_parameter_have_a_share_without_columns():
    model = Net(lambda net, x: net.last(x).detach())
    [share] = shares_in(model, data())
    assert share.gradients.shape == (5, 1, 2, 0)
    assert sum_of_shares([share], [share], "full").tolist() == torch.zeros(5, 5, 2, 2).tolist()


# What the graph says is not believed


@pytest.mark.parametrize("name, part", [
    ("few places", "inputs_at"), ("one filter, applied twice", "patches"),
    ("layer norm", "parameter_gradient"), ("embedding with padding", "places"),
])
def test_a_share_that_is_wrong_is_replaced_by_a_jacobian(name, part, monkeypatch):
    model, x, *_ = example(name)
    right = getattr(ntk.layers, part)
    monkeypatch.setattr(ntk.layers, part, lambda *args: 2 * right(*args) % 7)
    found = shares_in(model, x)
    assert found[-1].kind == "gradients" and all(use is None for use in found[-1].uses.values())
    assert_close(sum_of_shares(found, found, "full"), full(model, x))
    with pytest.raises(ValueError, match='method="layerwise" cannot serve'):
        shares_in(model, x, strict=True)


# Gradients that are formed


@pytest.mark.parametrize("name, layer, expected", [
    ("few places", "layer.weight", False),  # 2² pairs of 8 + 30 numbers; 9 · 30 in the gradient
    ("few places, two outputs", "layer.weight", False),  # 2² of 20 + 4 · 9; 4 · 21 · 9
    ("many places", "layer.weight", True),  # 9² of 3 + 4 · 2; 4 · 4 · 2
    ("residual blocks", "one.weight", False),
    ("x @ W @ W", "w", False),  # applied twice: 2² of 4 + 4² · 4; 4² · 5 · 4
    ("shared module", "0.weight", True),  # 2² of 4 + 4; 5 · 4
    ("conv2d: groups", "0.weight", True),  # no other formula
    ("layer norm", "1.weight", True),
    ("x - b", "b", True),
    ("embedding with positions", "lookup.weight", False),
])
def test_gradients_are_formed_where_that_is_cheaper(name, layer, expected):
    model, x1, *_ = example(name)
    outputs, _ = forward(model, x1, "x1")
    [[found], _] = find_layers(model, outputs, [layer])
    assert forms_gradients(found, *outputs.shape) is expected


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if name.startswith("conv")])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_a_convolution_is_its_filter_times_its_patches(name):
    model, x1, *_ = example(name)
    filters = [name for name, p in model.named_parameters() if p.ndim > 2]
    layers, _ = find_layers(model, model(x1), filters)
    assert len(layers) >= 1
    for layer in layers:
        [node] = layer.nodes
        w, x = node._saved_weight.detach(), inputs_at(node, None)
        found = patches(node, x)
        r, groups, _, places = found.shape
        assert (r, groups) == (len(x), node._saved_groups)
        convolve = {3: torch.conv1d, 4: torch.conv2d, 5: torch.conv3d}[w.ndim]
        expected = convolve(x, w, None, node._saved_stride, node._saved_padding,
                            node._saved_dilation, groups)
        product = w.reshape(groups, len(w) // groups, -1) @ found
        assert_close(product.reshape(r, len(w), places), expected.flatten(2))


# What it takes


def held_by(model, x, name):
    outputs, _ = forward(model, x, "x")
    [[layer], _] = find_layers(model, outputs, [n for n in names_in(model) if n.startswith(name)])
    return held_bytes(layer, outputs)


def test_bytes_of_inputs_and_gradients_of_a_layer():
    model = mlp(4, 5, 2)
    shares, beside = held_by(model, data(7), "lin1")
    assert sum(shares.values()) == (4 + 5 * 2) * 8  # fan_in + fan_out · O numbers of 8 bytes
    assert shares.keys() == {"lin1.weight", "lin1.bias"} and beside == 0
    shares, _ = held_by(model, data(7), "lin2")
    assert sum(shares.values()) == (5 + 2 * 2) * 8


@pytest.mark.parametrize("name, part", [
    ("few places", "layer"), ("x @ W @ W", "w"), ("embedding with padding", "0"),
    ("one embedding, used twice", "lookup"), ("embedding bag, mean", "0"),
])
def test_bytes_are_those_of_the_share(name, part):
    model, x, *_ = example(name)
    [share] = shares_in(model, x, [n for n in names_in(model) if n.startswith(part)])
    shares, _ = held_by(model, x, part)
    numbers = share.inputs.numel() + share.gradients.numel()
    assert sum(shares.values()) >= 8 * numbers / len(x)


def test_bytes_beside_gradients_that_are_formed_are_those_of_the_patches():
    model, x = conv_net(nn.Conv2d(2, 3, 2)), data(5, 2, 4, 5)
    assert held_by(model, x, "0") == ({}, 3 * 4 * (2 * 2 * 2) * 8)  # places, entries of the filter
