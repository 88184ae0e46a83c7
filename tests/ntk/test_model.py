"""MLP against the net of PyTorch's tutorial, formulas written out in NumPy, and Neural Tangents."""

import copy
import math
import pickle
import re

import numpy as np
import pytest
import torch
from definitions import assert_close, data, mlp, reference
from torch import nn

from ntk import MLP


class ArticleNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin1 = nn.Linear(20, 10)
        self.lin2 = nn.Linear(10, 1)

    def forward(self, x):
        return self.lin2(torch.relu(self.lin1(x)))


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_mlp_is_the_articles_net_bit_for_bit(seed):
    torch.manual_seed(seed)
    article = ArticleNet()
    after_article = torch.get_rng_state()
    torch.manual_seed(seed)
    model = MLP(20, 10, 1)
    assert torch.equal(torch.get_rng_state(), after_article)  # data drawn next are the same too
    assert list(model.state_dict()) == list(article.state_dict())
    for p, q in zip(model.parameters(), article.parameters(), strict=True):
        assert torch.equal(p, q)
    x = torch.randn(100, 20)
    assert torch.equal(model(x), article(x))


@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
def test_parameters_are_weight_bias_weight_bias(parametrization):
    # more than nine layers: lin10 after lin9
    model = MLP(5, 7, 3, hidden_layers=11, parametrization=parametrization)
    shapes = [(7, 5), (7,), *[(7, 7), (7,)] * 10, (3, 7), (3,)]
    assert [tuple(p.shape) for p in model.parameters()] == shapes
    names = [f"lin{i}.{kind}" for i in range(1, 13) for kind in ("weight", "bias")]
    assert list(model.state_dict()) == names


def test_output_dim_is_one_by_default():
    assert MLP(5, 7)(torch.randn(3, 5)).shape == (3, 1)


ACTIVATIONS = {  # given as, and its formula
    "relu": ("relu", lambda z: np.maximum(z, 0)),
    "tanh": ("tanh", np.tanh),
    "erf": ("erf", np.vectorize(math.erf)),
    "gelu": ("gelu", lambda z: z * (1 + np.vectorize(math.erf)(z / 2**0.5)) / 2),
    "callable": (torch.sin, np.sin),
    "module": (nn.Softplus(), lambda z: np.log1p(np.exp(z))),
}


@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
@pytest.mark.parametrize("hidden_layers", [1, 3])
@pytest.mark.parametrize("activation, formula", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_mlp_follows_the_formula(activation, formula, hidden_layers, parametrization):
    scales = {"weight_std": 1.3, "bias_std": 0.4} if parametrization == "ntk" else {}
    model = mlp(5, 7, 3, hidden_layers=hidden_layers, activation=activation,
                parametrization=parametrization, **scales)
    x = data(6, 5)
    state = {name: p.detach().numpy() for name, p in model.named_parameters()}
    a = x.numpy()
    for layer in range(1, hidden_layers + 2):
        w, b = state[f"lin{layer}.weight"], state[f"lin{layer}.bias"]
        z = 1.3 / w.shape[1] ** 0.5 * a @ w.T + 0.4 * b if scales else a @ w.T + b
        a = formula(z)
    assert_close(model(x).detach(), z, 1e-14)


@pytest.mark.parametrize("name", ["erf", "relu"])
def test_output_is_that_of_neural_tangents(name):
    model, arrays = reference(name)
    assert_close(model(arrays["x1"]).detach(), arrays["output"], 1e-12)


def test_layers_scales_and_preactivations_are_the_parts_of_the_formula():
    standard = mlp(5, 7, 2, hidden_layers=2)
    assert standard.layers == [standard.lin1, standard.lin2, standard.lin3]
    assert standard.scales(standard.lin1) == (1, 1)

    model = mlp(5, 7, 2, parametrization="ntk", weight_std=1.3, bias_std=0.4)
    assert model.scales(model.lin1) == pytest.approx((1.3 / 5**0.5, 0.4))
    assert model.scales(model.lin2) == pytest.approx((1.3 / 7**0.5, 0.4))
    x, (w, b) = data(3, 5), (p.detach() for p in model.lin1.parameters())
    expected = 1.3 / 5**0.5 * x @ w.T + 0.4 * b
    assert_close(model.preactivation(model.lin1, x).detach(), expected, 1e-14)


def test_ntk_parametrization_draws_everything_from_the_standard_normal():
    model = MLP(200, 300, 200, parametrization="ntk", bias_std=0.1)
    for p in model.parameters():
        spread = 5 / p.numel() ** 0.5  # five standard errors
        assert abs(p.mean()) < spread and abs(p.std() - 1) < spread


def test_default_scales_of_the_ntk_parametrization_are_sqrt_2_and_0():
    model = mlp(5, 7, parametrization="ntk")
    x, (w1, _, w2, _) = data(3, 5), model.parameters()
    expected = (2 / 7) ** 0.5 * torch.relu((2 / 5) ** 0.5 * x @ w1.T) @ w2.T
    assert_close(model(x).detach(), expected.detach(), 1e-14)


def test_a_layer_that_is_used_twice_is_used_twice():
    model = mlp(4, 4, hidden_layers=2)
    model.lin2 = model.lin1
    x = data()
    expected = model.lin3(torch.relu(model.lin1(torch.relu(model.lin1(x)))))
    assert_close(model(x).detach(), expected.detach(), 1e-14)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("twin", [copy.deepcopy, pickled])
def test_mlp_can_be_copied_and_pickled(twin):
    model, x = MLP(4, 5, activation="gelu", parametrization="ntk"), torch.randn(3, 4)
    assert torch.equal(twin(model)(x), model(x))


@pytest.mark.parametrize("argument", ["input_dim", "hidden_dim", "output_dim", "hidden_layers"])
@pytest.mark.parametrize("value, error", [
    (0, ValueError), (-1, ValueError),
    (2.0, TypeError), (True, TypeError), ("3", TypeError), (None, TypeError),
])
def test_sizes_must_be_positive_integers(argument, value, error):
    message = re.escape(f"{argument} must be a positive integer, got {value!r}")
    with pytest.raises(error, match=message):
        MLP(**{"input_dim": 2, "hidden_dim": 3, argument: value})


def test_sizes_may_be_numpy_integers():
    assert MLP(np.int64(2), np.int32(3))(torch.randn(4, 2)).shape == (4, 1)


@pytest.mark.parametrize("arguments, message", [
    ({"activation": "swish"}, "activation must be a callable or one of .*relu.*got 'swish'"),
    ({"activation": None}, "activation must be a callable or one of .*got None"),
    ({"activation": ["relu"]}, "activation must be a callable or one of .*got .*relu"),
    ({"parametrization": "mup"}, 'parametrization must be "standard" or "ntk", got \'mup\''),
    ({"parametrization": "ntk", "weight_std": -1.0}, "weight_std must be .*got -1.0"),
    ({"parametrization": "ntk", "weight_std": math.nan}, "weight_std must be .*got nan"),
    ({"parametrization": "ntk", "bias_std": math.inf}, "bias_std must be .*got inf"),
    ({"parametrization": "ntk", "bias_std": "0"}, "bias_std must be .*got '0'"),
    ({"weight_std": 1.0}, 'weight_std.*parametrization="ntk"'),
    ({"bias_std": 0.1}, 'bias_std.*parametrization="ntk"'),
])
def test_mlp_says_which_argument_is_wrong(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        MLP(2, 3, **arguments)
