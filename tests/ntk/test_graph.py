"How a parameter is used, and whose the rows of a product are: what the graph shows, and what not."

import itertools

import pytest
import torch
import torch.nn.functional as F
from definitions import (
    METHODS,
    Net,
    assert_close,
    data,
    may_decline,
    mlp,
    ntk_by_definition,
    two_layers,
)
from torch import nn
from zoo import CONVOLUTIONS, SURPRISES, bare, example

from ntk import compute_ntk
from ntk.checks import forward
from ntk.graph import (
    EXAMPLES_FIRST,
    PLACES_FIRST,
    consumers_of,
    find_layers,
    gradients_at,
    inputs_at,
    keeps_rows,
    places,
)

# How a parameter is used

PARAMETERS_IN_PRODUCTS = {  # forward → {name: (its factor, its axes in the product)}
    "x @ W": (lambda net, x: x @ net.w, {"w": (1, (0, 1))}),
    "F.linear": (lambda net, x: F.linear(x, net.w, net.b), {"w": (1, (1, 0)), "b": (1, (0,))}),
    "x @ (3 W)": (lambda net, x: x @ (3 * net.w), {"w": (3, (0, 1))}),
    "x @ (W / 4)": (lambda net, x: x @ (net.w / 4), {"w": (0.25, (0, 1))}),
    "x @ (W · tensor)": (lambda net, x: x @ (net.w * torch.tensor(0.5)), {"w": (0.5, (0, 1))}),
    "x @ (2 (−3 W)ᵀ)": (lambda net, x: x @ (2 * (-3 * net.w).T), {"w": (-6, (1, 0))}),
    "addmm": (lambda net, x: torch.addmm(0.3 * net.b, x, net.w, beta=0.5, alpha=2),
              {"w": (2, (0, 1)), "b": (0.15, (0,))}),
    "x @ W + 3 b": (lambda net, x: torch.add(x @ net.w, net.b, alpha=3),
                    {"w": (1, (0, 1)), "b": (3, (0,))}),
    "b + x @ W": (lambda net, x: net.b + x @ net.w, {"w": (1, (0, 1)), "b": (1, (0,))}),
    "x @ (W + W)": (lambda net, x: x @ (net.w + net.w), {}),
    "x @ W @ W": (lambda net, x: x @ net.w @ net.w, {"w": (1, (0, 1))}),
    "x @ -W - b": (lambda net, x: x @ -net.w - net.b, {"w": (-1, (0, 1)), "b": (-1, (0,))}),
    "x @ W + x @ Wᵀ": (lambda net, x: x @ net.w + x @ net.w.T, {}),
    "x @ W²": (lambda net, x: x @ (net.w * net.w), {}),
    "x @ (1 / W)": (lambda net, x: x @ (1 / net.w), {}),
    "x @ (W · b)": (lambda net, x: x @ (net.w * net.b), {"b": (1, (0,))}),  # whose rows are not x's
    "x @ W[:, :2]": (lambda net, x: x @ net.w[:, :2], {}),
}


@pytest.mark.parametrize("name", PARAMETERS_IN_PRODUCTS)
def test_the_graph_tells_how_a_parameter_is_used(name):
    rule, expected = PARAMETERS_IN_PRODUCTS[name]
    model, x = bare(rule, w=(4, 4), b=(4,))(), data()
    layers, others = find_layers(model, model(x), ["w", "b"])
    uses = {name: use for layer in layers for name, use in layer.uses.items()}
    assert {name: use.axes for name, use in uses.items()} == {
        name: axes for name, (_, axes) in expected.items()}
    for name, (factor, _) in expected.items():
        assert uses[name].factor == pytest.approx(factor, rel=1e-12)
    if "w" in uses:
        [nodes] = [layer.nodes for layer in layers if "w" in layer.uses]
        assert uses["w"].role == "matrix" and uses["w"].aligned == (4, 4)
        assert any(torch.equal(inputs_at(node, uses["w"]), x) for node in nodes)
    if "b" in uses:
        assert uses["b"].role == ("bias" if "w" in uses else "scale")
        assert uses["b"].aligned == (4,)
    assert ("w" in others) == ("w" not in uses)


ROLES = {  # a layer, its inputs → {name: (role, aligned)}, or {} where it is not known
    "embedding": (lambda: nn.Embedding(7, 3), (5, 4), {"weight": ("table", (1,))}),
    "bags": (lambda: nn.EmbeddingBag(7, 3, mode="sum"), (5, 4), {"weight": ("table", (4,))}),
    "bags, the maximum": (lambda: nn.EmbeddingBag(7, 3, mode="max"), (5, 4), {}),
    "bags with padding": (lambda: nn.EmbeddingBag(7, 3, padding_idx=0), (5, 4), {}),
    "layer norm": (lambda: nn.LayerNorm(3), (5, 2, 3), {
        "weight": ("scale", (3,)), "bias": ("bias", (3,))}),
    "batch norm": (lambda: nn.BatchNorm2d(3).eval(), (5, 3, 2, 2), {
        "weight": ("scale", (3, 1, 1)), "bias": ("bias", (3, 1, 1))}),
    "group norm": (lambda: nn.GroupNorm(1, 3), (5, 3, 2), {
        "weight": ("scale", (3, 1)), "bias": ("bias", (3, 1))}),
    "convolution": (lambda: nn.Conv1d(3, 2, 2), (5, 3, 4), {
        "weight": ("filter", (2, 3, 2)), "bias": ("bias", (2, 1))}),
    "transposed convolution": (lambda: nn.ConvTranspose1d(3, 2, 2), (5, 3, 4), {
        "bias": ("bias", (2, 1))}),
}


@pytest.mark.parametrize("name", ROLES)
def test_the_graph_tells_the_role_of_a_parameter(name):
    make, shape, expected = ROLES[name]
    module = make()
    table = isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    x = torch.randint(1, 7, shape) if table else torch.randn(shape)
    layers, _ = find_layers(module, module(x), [name for name, _ in module.named_parameters()])
    assert {name: (use.role, use.aligned) for layer in layers
            for name, use in layer.uses.items()} == expected


def test_the_graph_tells_what_flows_where():
    model = Net(lambda net, x: two_layers(net, x) + net.last(x), unused=nn.Linear(2, 2))
    consumers = consumers_of(model(data()))
    assert [len(consumers[p]) for p in model.first.parameters()] == [1, 1]
    assert [len(consumers[p]) for p in model.last.parameters()] == [2, 2]
    assert not any(p in consumers for p in model.unused.parameters())


@pytest.mark.parametrize("name, expected", [("layer never called", []),
                                            ("function with a closure", ["first.weight"])])
def test_what_the_graph_does_not_show_may_be_used_all_the_same(name, expected):
    model, x1, *_ = example(name)
    _, others = find_layers(model, model(x1), [name for name, _ in model.named_parameters()])
    assert [name for name in others if name.endswith("weight")] == expected


# Gradients at the products, and the examples they belong to


def seen_in(model, x):
    "The outputs, where their graph starts, and the layers in it."
    outputs, start = forward(model, x, "x")
    layers, _ = find_layers(model, outputs, [name for name, _ in model.named_parameters()])
    return outputs, start, layers


def by_weight(layers):
    "{a name: the one node that it enters}."
    return {name: layer.nodes[0] for layer in layers for name in layer.uses}


def test_gradients_at_two_layers_are_those_of_the_chain_rule():
    model, x = Net(two_layers), data()
    outputs, start, layers = seen_in(model, x)
    _, by_output = gradients_at(layers, outputs, start)
    nodes, slope = by_weight(layers), 1 - torch.tanh(model.first(x)) ** 2
    for output, found in enumerate(by_output):
        last = torch.zeros(5, 2, dtype=torch.float64)
        last[:, output] = 1
        first = slope * model.last.weight[output]
        assert_close(found[nodes["last.weight"]], last)
        assert_close(found[nodes["first.weight"]], first.detach())


@pytest.mark.parametrize("name, weight, expected", [
    ("residual blocks", "one.weight", EXAMPLES_FIRST),
    ("many places", "layer.weight", EXAMPLES_FIRST),
    ("places, time by time", "layer.weight", PLACES_FIRST),
    ("frames, time by time", "conv.weight", PLACES_FIRST),
    ("frames, example by example", "conv.weight", EXAMPLES_FIRST),
    ("both halves at once", "first.weight", PLACES_FIRST),
    ("flipped inside", "first.weight", None),
    ("sorted inside", "first.weight", None),
    ("routed to experts", "first.weight", None),
    ("square W @ x", "w", None),
])
def test_an_experiment_tells_whose_rows_they_are(name, weight, expected):
    outputs, start, layers = seen_in(*example(name)[:2])
    orders, _ = gradients_at(layers, outputs, start)
    assert orders.get(by_weight(layers).get(weight)) == expected


@pytest.mark.parametrize("expected, make, shape", [
    (True, lambda: mlp(4, 5, 2, hidden_layers=2, activation="relu"), (4,)),
    (True, lambda: mlp(4, 5, 2, hidden_layers=2, activation="tanh"), (4,)),
    (True, lambda: mlp(4, 5, 2, hidden_layers=2, activation="erf"), (4,)),
    (True, lambda: mlp(4, 5, 2, hidden_layers=2, activation="gelu"), (4,)),
    (True, CONVOLUTIONS["conv2d: then average pooling"].make, (2, 3, 3)),
    (False, lambda: mlp(4, 5, 2, activation=lambda z: z.flip(0).tanh().flip(0)), (4,)),
    (False, lambda: Net(lambda net, x: two_layers(net, 2 * x)), (4,)),
    (False, lambda: Net(lambda net, x: two_layers(net, x) + net.last(x)), (4,)),
])
def test_no_experiment_is_needed_for_a_chain_that_keeps_to_the_rows(expected, make, shape):
    outputs, start, layers = seen_in(make(), data(5, *shape))
    assert keeps_rows(outputs.grad_fn, layers, start) is expected


@pytest.mark.parametrize("order", [EXAMPLES_FIRST, PLACES_FIRST])
def test_rows_are_those_of_examples_at_places(order):
    n, t = 5, 3
    rows = torch.full((n * t, 2), -1)
    for example_, place in itertools.product(range(n), range(t)):
        row = example_ * t + place if order == EXAMPLES_FIRST else place * n + example_
        rows[row] = torch.tensor([example_, place])
    expected = [[[i, s] for s in range(t)] for i in range(n)]
    assert places(rows, n, order).tolist() == expected


# What the first examples do not show

BY_LAYERS_OR_SLOWLY = [
    pytest.param(method, marks=[] if method in ("auto", "layerwise") else pytest.mark.slow)
    for method in METHODS]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", BY_LAYERS_OR_SLOWLY)
@pytest.mark.parametrize("name", SURPRISES)
def test_kernel_is_right_where_the_first_examples_are_special(name, method):
    model, x = SURPRISES[name].make(), SURPRISES[name].inputs(12)
    x2 = torch.cat([x[:5], x[-1:]])
    for inputs in (x,), (x, x2):
        expected = ntk_by_definition(model, *inputs)
        for chunk_size in None, 4:
            with may_decline(method):
                got = compute_ntk(model, *inputs, method=method, chunk_size=chunk_size)
                assert_close(got, expected)
