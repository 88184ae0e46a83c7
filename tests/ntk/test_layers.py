"What layer by layer serves, what a share is, and that it is multiplied by its like alone."

import copy
import itertools
import re

import pytest
import torch
from definitions import METHODS, assert_close, data, gradients, may_decline, mlp, ntk_by_definition
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import CONVOLUTIONS, MODELS, TWO_WAYS, conv_net, example

from ntk import MLP, compute_ntk
from ntk.checks import forward
from ntk.graph import find_layers, gradients_at
from ntk.layers import Share, forms_gradients, gradient_share, held_bytes, shares, sum_of_shares

# The models it serves

SERVED = [
    *(name for name in CONVOLUTIONS if name.startswith("conv")), "frames, example by example",
    "frames, time by time", "squeeze and excitation", "few places", "few places, two outputs",
    "many places", "many places, no bias", "many places, frozen weight", "places, time by time",
    "places, time by time, contiguous", "places in a grid", "weight read outside its layer",
    "layer never called", "without grad", "x @ W + b", "b + x @ W", "x @ W at places",
    "addmm with factors", "addmm with a scaled weight", "add with a factor",
    "own NTK parametrization", "W / tensor", "low rank", "residual blocks", "gating",
    "both halves at once", "frozen first layer", "frozen biases", "frozen weights",
    "one bias, one output", "parallel towers of one layer",
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", SERVED)
def test_layer_by_layer_serves(name):
    model, x1, x2, among_x1, x1_with_x2 = example(name)
    assert_close(compute_ntk(model, x1, method="layerwise"), among_x1)
    assert_close(compute_ntk(model, x1, x2, method="layerwise"), x1_with_x2)


@pytest.mark.parametrize("name, parameter", [
    ("lstm", "lstm.weight_hh_l0"), ("MLP: tied", "lin1.weight"),
    ("MLP: PReLU", "activation.weight"), ("MLP: subclass", "lin1.weight"),
    ("weight norm", "0.parametrizations.weight.original0"), ("layer norm", "1.weight"),
])
def test_layerwise_is_refused_where_its_formula_does_not_hold(name, parameter):
    message = f'method="layerwise" cannot serve .*{re.escape(parameter)}.* use method="auto"'
    with pytest.raises(ValueError, match=message):
        compute_ntk(MODELS[name](), data(), method="layerwise")


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


def labels(model, x):
    outputs, start = forward(model, x, "x")
    return [share.label for share in shares(model, x, outputs, start, names_in(model))]


def names_in(model):
    return [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("name", TWO_WAYS)
def test_a_label_tells_how_a_parameter_is_used_and_nothing_else(name):
    model, x = TWO_WAYS[name].make(), TWO_WAYS[name].inputs(8).abs()
    assert labels(model, x[:4]) == labels(model, 2 * x[4:])
    assert labels(model, x) != labels(model, -x)


# Shares


def random_share(n, places, fan_in, outputs, fan_out):
    return Share(("any",), data(n, places, fan_in), data(n, places, outputs, fan_out), 0.3, 0.7)


def test_a_product_of_shares_is_a_sum_over_pairs_of_places():
    one, two = random_share(3, 2, 4, 2, 5), random_share(2, 2, 4, 2, 5)
    expected = torch.zeros(3, 2, 2, 2, dtype=torch.float64)
    for i, j, a, b, s, t in itertools.product(*map(range, (3, 2, 2, 2, 2, 2))):
        inputs = 0.3 * one.inputs[i, s] @ two.inputs[j, t] + 0.7
        expected[i, j, a, b] += inputs * (one.gradients[i, s, a] @ two.gradients[j, t, b])
    assert_close(sum_of_shares([one], [two]), expected)
    assert_close(sum_of_shares([one, one], [two, two]), 2 * expected)
    assert_close(sum_of_shares([one.rows(1)], [two.rows(0, 1)]), expected[1:, :1])


def test_a_product_of_gradients_is_their_gram_matrix():
    j1, j2 = data(3, 2, 7), data(4, 2, 7)
    got = sum_of_shares([gradient_share((), j1)], [gradient_share((), j2)])
    assert_close(got, torch.einsum("iap,jbp->ijab", j1, j2))


def test_shares_add_up_to_the_kernel():
    model, x = mlp(4, 5, 2, hidden_layers=2), data()
    outputs, start = forward(model, x, "x")
    found = shares(model, x, outputs, start, names_in(model))
    assert len(found) == 3  # layers
    assert_close(sum_of_shares(found, found), ntk_by_definition(model, x))
    by_bias = shares(model, x, outputs, start, ["lin2.bias"])
    j = gradients(model, x)[:, :, 25 + 25:25 + 25 + 5]
    assert_close(sum_of_shares(by_bias, by_bias), torch.einsum("iap,jbp->ijab", j, j))


@pytest.mark.parametrize("name, layer, expected", [
    ("few places", "layer.weight", False),  # 2² pairs of 8 + 30 numbers; 9 · 30 in the gradient
    ("few places, two outputs", "layer.weight", False),  # 2² of 20 + 4 · 9; 4 · 21 · 9
    ("many places", "layer.weight", True),  # 9² of 3 + 4 · 2; 4 · 4 · 2
    ("residual blocks", "one.weight", False),
    ("conv2d: groups", "0.weight", True),
])
def test_gradients_are_formed_where_that_is_cheaper(name, layer, expected):
    model, x1, *_ = example(name)
    outputs, _ = forward(model, x1, "x1")
    [(node, uses)] = find_layers(model, outputs, [layer])[0].items()
    assert forms_gradients(node, uses, *outputs.shape) is expected


def test_bytes_of_the_gradients_at_the_layers():
    model = mlp(4, 5, 2)
    outputs, start = forward(model, data(7), "x")
    layers, _ = find_layers(model, outputs, names_in(model))
    orders, _ = gradients_at(layers, outputs, start)
    held = held_bytes(layers, orders, outputs)
    assert held["lin1.weight"] + held["lin1.bias"] == 5 * 2 * 8  # fan_out · O numbers of 8 bytes
    assert held["lin2.weight"] + held["lin2.bias"] == 2 * 2 * 8
