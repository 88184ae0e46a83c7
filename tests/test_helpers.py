"""Tests of ntk_helpers, each against something independent: a formula written out here, a double loop over
torch.autograd.grad, NumPy, or the numbers of Neural Tangents in data/. No function is compared with itself."""

import base64
import copy
import html.parser
import io
import math
import pickle
import random
import re
import string
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import ipywidgets as widgets
import joblib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.figure import Figure
from PIL import Image
from torch import nn
from torch.nn.utils import parametrizations, prune

import ntk_helpers
from ntk_helpers import (
    MLP,
    Explorer,
    alignment,
    ask,
    check,
    compute_ntk,
    cosine,
    get_grads,
    plot_kernel,
    score,
    set_style,
    show,
    spectrum,
)

DATA = Path(__file__).parent / "data"
METHODS = ["auto", "layerwise", "jacobian", "ntk_vector_products", "loop"]
GENERAL = ["auto", "jacobian", "ntk_vector_products", "loop"]


@pytest.fixture(autouse=True)
def same_start():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sizes are tiny: on a busy machine more threads only wait for each other
    yield
    torch.set_num_threads(threads)
    plt.close("all")


def gradients(model, x):
    "(N, O, P) by the definition: one example and one output at a time."
    params = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for xi in x:
        row = []
        for out in model(xi[None].clone())[0]:
            grads = [None] * len(params)
            if out.requires_grad:
                grads = torch.autograd.grad(out, params, retain_graph=True, allow_unused=True)
            row.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(grads, params)]))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def ntk_by_definition(model, x1, x2=None):
    "The double loop over pairs of examples and of outputs: (N1, N2), or (N1, N2, O, O) for several outputs."
    j1, j2 = gradients(model, x1), gradients(model, x1 if x2 is None else x2)
    ntk = torch.empty(len(j1), len(j2), j1.shape[1], j2.shape[1], dtype=j1.dtype)
    for i, j, a, b in np.ndindex(*ntk.shape):
        ntk[i, j, a, b] = torch.dot(j1[i, a], j2[j, b])
    return ntk[:, :, 0, 0] if j1.shape[1] == 1 else ntk


def assert_close(got, expected, tolerance=1e-10):
    "Equal shapes, and entries that differ by less than `tolerance` of the largest."
    assert tuple(got.shape) == tuple(expected.shape)
    assert np.abs(np.asarray(got) - np.asarray(expected)).max() <= tolerance * np.abs(np.asarray(expected)).max()


def mlp(*args, **kwargs):
    return MLP(*args, **kwargs).double()


def data(n=5, *shape):
    return torch.randn(n, *(shape or (4,)), dtype=torch.float64)


class Net(nn.Module):
    "Two layers, 4 → 4 → 2, and any forward(net, x): for models that no library class stands for."

    def __init__(self, forward, outputs=2, **attributes):
        super().__init__()
        self.first, self.last, self.rule = nn.Linear(4, 4), nn.Linear(4, outputs), forward
        for name, value in attributes.items():
            setattr(self, name, value)
        self.double()

    def forward(self, x):
        return self.rule(self, x)


def two_layers(net, x):
    return net.last(torch.tanh(net.first(x)))


# 01 · The model ------------------------------------------------------------------------------------------------------


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
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), article.parameters(), strict=True))
    x = torch.randn(100, 20)
    assert torch.equal(model(x), article(x))


@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
def test_parameters_are_weight_bias_weight_bias(parametrization):
    model = MLP(5, 7, 3, hidden_layers=11, parametrization=parametrization)  # more than nine: lin10 after lin9
    shapes = [(7, 5), (7,), *[(7, 7), (7,)] * 10, (3, 7), (3,)]
    assert [tuple(p.shape) for p in model.parameters()] == shapes
    assert list(model.state_dict()) == [f"lin{i}.{kind}" for i in range(1, 13) for kind in ("weight", "bias")]


def test_output_dim_is_one_by_default():
    assert MLP(5, 7)(torch.randn(3, 5)).shape == (3, 1)


FORMULAS = {
    "relu": lambda z: np.maximum(z, 0),
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf),
    "gelu": lambda z: z * (1 + np.vectorize(math.erf)(z / 2**0.5)) / 2,
}


@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
@pytest.mark.parametrize("hidden_layers", [1, 3])
@pytest.mark.parametrize("activation", [*FORMULAS, "callable", "module"])
def test_mlp_follows_the_formula(activation, hidden_layers, parametrization):
    given_as = {"callable": torch.sin, "module": nn.Softplus()}.get(activation, activation)
    formula = {"callable": np.sin, "module": lambda z: np.log1p(np.exp(z)), **FORMULAS}[activation]
    scales = {"weight_std": 1.3, "bias_std": 0.4} if parametrization == "ntk" else {}
    model = mlp(5, 7, 3, hidden_layers=hidden_layers, activation=given_as, parametrization=parametrization, **scales)
    x = data(6, 5)
    state = {name: p.detach().numpy() for name, p in model.named_parameters()}
    a = x.numpy()
    for layer in range(1, hidden_layers + 2):
        w, b = state[f"lin{layer}.weight"], state[f"lin{layer}.bias"]
        z = 1.3 / w.shape[1] ** 0.5 * a @ w.T + 0.4 * b if scales else a @ w.T + b
        a = formula(z)
    assert_close(model(x).detach(), z, 1e-14)


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


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_mlp_can_be_copied_and_pickled(twin):
    model, x = MLP(4, 5, activation="gelu", parametrization="ntk"), torch.randn(3, 4)
    assert torch.equal(twin(model)(x), model(x))


@pytest.mark.parametrize("argument", ["input_dim", "hidden_dim", "output_dim", "hidden_layers"])
@pytest.mark.parametrize("value, error", [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError),
                                          ("3", TypeError), (None, TypeError)])
def test_sizes_must_be_positive_integers(argument, value, error):
    with pytest.raises(error, match=re.escape(f"{argument} must be a positive integer, got {value!r}")):
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


# Neural Tangents' numbers --------------------------------------------------------------------------------------------


def reference(name):
    "The model that Neural Tangents had, and the file with what it computed."
    file = np.load(DATA / f"finite_width_{name}.npz")
    arrays = {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype == np.float64}
    layers = sum(key.startswith("weight_") and key != "weight_std" for key in arrays)
    model = mlp(5, 2, hidden_layers=layers - 1, activation=str(file["activation"]), parametrization="ntk",
                weight_std=float(file["weight_std"]), bias_std=float(file["bias_std"]))
    for i in range(layers):  # the widths differ, so the parameters are replaced, not copied into
        layer = getattr(model, f"lin{i + 1}")
        layer.weight, layer.bias = nn.Parameter(arrays[f"weight_{i}"]), nn.Parameter(arrays[f"bias_{i}"])
    return model, arrays


@pytest.mark.parametrize("name", ["erf", "relu"])
def test_output_is_that_of_neural_tangents(name):
    model, arrays = reference(name)
    assert_close(model(arrays["x1"]).detach(), arrays["output"], 1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["erf", "relu"])
def test_kernel_is_that_of_neural_tangents(name, method):
    model, arrays = reference(name)
    expected = arrays["ntk"][:, :, 0, 0] if name == "erf" else arrays["ntk"]
    assert_close(compute_ntk(model, arrays["x1"], arrays["x2"], method=method), expected)


# 02 · Gradients, one per example -------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs, shape", [(1, (5, 31)), (3, (5, 3, 43))])
def test_gradients_are_finite_differences_of_the_outputs(outputs, shape):
    model, x, step = mlp(4, 5, outputs, activation="tanh"), data(), 1e-5
    theta = nn.utils.parameters_to_vector(model.parameters()).detach()
    columns = []
    for k in range(len(theta)):
        ends = []
        for sign in (1, -1):
            moved = theta.clone()
            moved[k] += sign * step
            nn.utils.vector_to_parameters(moved, model.parameters())
            ends.append(model(x).detach())
        columns.append((ends[0] - ends[1]) / (2 * step))
    nn.utils.vector_to_parameters(theta, model.parameters())
    assert_close(get_grads(model, x), torch.stack(columns, -1).squeeze(1), 1e-8)
    assert get_grads(model, x).shape == shape


def test_gradients_of_a_linear_model_are_its_inputs():
    model, x = nn.Linear(4, 1).double(), data()
    assert_close(get_grads(model, x), torch.cat([x, torch.ones(5, 1)], 1), 1e-14)


def test_gradients_take_no_part_in_a_graph():
    assert not get_grads(mlp(4, 5), data().requires_grad_()).requires_grad


# 03 · The kernel: an MLP ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("two", [False, True], ids=["x2 None", "x2 given"])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
def test_kernel_is_the_double_loop_over_gradients(parametrization, outputs, two, method):
    scales = {"weight_std": 1.2, "bias_std": 0.3} if parametrization == "ntk" else {}
    model = mlp(4, 6, outputs, hidden_layers=2, activation="gelu", parametrization=parametrization, **scales)
    x1, x2 = data(5), data(3) if two else None
    ntk = compute_ntk(model, x1, x2, method=method)
    assert_close(ntk, ntk_by_definition(model, x1, x2))
    assert ntk.dtype == torch.float64 and not ntk.requires_grad
    if not two:
        assert torch.equal(ntk, ntk.T if outputs == 1 else ntk.permute(1, 0, 3, 2))


@pytest.mark.parametrize("method", METHODS)
def test_float32_kernel_is_float32_right_and_exactly_symmetric(method):
    model, x = MLP(20, 50, hidden_layers=2), torch.randn(12, 20)
    ntk = compute_ntk(model, x, method=method)
    assert ntk.dtype == torch.float32 and torch.equal(ntk, ntk.T)
    assert_close(ntk, ntk_by_definition(copy.deepcopy(model).double(), x.double()), 1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("frozen", ["lin1", "lin2", "lin3", "lin1.weight", "lin2.bias"])
def test_only_trainable_parameters_count(frozen, method):
    model, x = mlp(4, 6, 2, hidden_layers=2), data()
    model.get_parameter(frozen).requires_grad_(False) if "." in frozen else model.get_submodule(
        frozen).requires_grad_(False)
    assert_close(compute_ntk(model, x, method=method), ntk_by_definition(model, x))


@pytest.mark.parametrize("method", METHODS)
def test_smallest_sizes(method):
    model, x = mlp(1, 1), data(1, 1)
    assert_close(compute_ntk(model, x, method=method), ntk_by_definition(model, x))
    x2 = data(3, 1)
    assert_close(compute_ntk(model, x, x2, method=method), ntk_by_definition(model, x, x2))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunk_size", [1, 3, 100])
@pytest.mark.parametrize("two", [False, True], ids=["x2 None", "x2 given"])
def test_chunks_give_the_same_kernel(two, chunk_size, method):
    model, x1, x2 = mlp(4, 5, 2), data(7), data(4) if two else None
    ntk = compute_ntk(model, x1, x2, method=method, chunk_size=chunk_size)
    assert_close(ntk, ntk_by_definition(model, x1, x2))
    assert two or torch.equal(ntk, ntk.permute(1, 0, 3, 2))


def test_two_processes_give_the_same_kernel():
    model, x = mlp(4, 5, 2), data(7)
    ntk = compute_ntk(model, x, n_jobs=2)
    assert_close(ntk, ntk_by_definition(model, x))
    assert torch.equal(ntk, ntk.permute(1, 0, 3, 2))


def test_two_processes_serve_a_model_defined_on_the_spot():
    model, x1, x2 = Net(lambda net, x: net.last(torch.sin(net.first(x)))), data(5), data(3)
    assert_close(compute_ntk(model, x1, x2, n_jobs=2, chunk_size=2), ntk_by_definition(model, x1, x2))


@pytest.mark.parametrize("method", GENERAL)
@pytest.mark.parametrize("norm", [nn.Identity, lambda: nn.LayerNorm(4)], ids=["one way", "two ways in one model"])
def test_threads_that_share_a_model_do_not_disturb_each_other(norm, method):
    def slow(net, x):
        time.sleep(0.003)  # so that threads meet inside the model
        return net.last(torch.tanh(net.norm(net.first(x))))

    class SlowToTell(Net):
        def named_parameters(self, *args, **kwargs):
            time.sleep(0.005 * random.random())
            return super().named_parameters(*args, **kwargs)

    model, x = SlowToTell(slow, norm=norm()), data(6)
    before, expected = list(model.parameters()), ntk_by_definition(model, x)
    with joblib.parallel_config(backend="threading"):
        ntk = compute_ntk(model, x, method=method, n_jobs=4, chunk_size=1)
    assert all(p is q for p, q in zip(before, model.parameters()))
    assert_close(ntk, expected)


def test_progress_shows_a_bar_only_when_asked(capsys):
    model, x = mlp(4, 5), data(6)
    assert_close(compute_ntk(model, x, chunk_size=2, progress=True), ntk_by_definition(model, x))
    assert "100%" in capsys.readouterr().err
    compute_ntk(model, x, chunk_size=2)
    out, err = capsys.readouterr()
    assert not out and not err


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_kernel_and_gradients_do_not_need_grad_mode(mode, method):
    model, x = mlp(4, 5), data()
    expected, grads = ntk_by_definition(model, x), gradients(model, x)
    with mode():
        made_here = x * 1  # an inference tensor in one of the modes
        assert_close(compute_ntk(model, made_here, method=method), expected)
        assert_close(get_grads(model, made_here), grads.squeeze(1))
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("method", METHODS)
def test_default_dtype_may_be_float64(method):
    torch.set_default_dtype(torch.float64)
    try:
        model, x = MLP(4, 5, parametrization="ntk"), torch.randn(5, 4)
        assert_close(compute_ntk(model, x, method=method), ntk_by_definition(model, x))
    finally:
        torch.set_default_dtype(torch.float32)


def test_inputs_are_left_alone():
    x1, x2 = data(5).requires_grad_(), data(3)
    copies = x1.detach().clone(), x2.clone()
    ntk = compute_ntk(mlp(4, 5), x1, x2)
    assert x1.grad is None and not ntk.requires_grad
    assert torch.equal(x1.detach(), copies[0]) and torch.equal(x2, copies[1])


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(depth=st.integers(1, 3), width=st.integers(1, 9), outputs=st.integers(1, 3), n1=st.integers(1, 4),
       n2=st.integers(0, 3), activation=st.sampled_from([*FORMULAS, torch.sin, nn.ELU()]),
       scales=st.sampled_from([{}, {"parametrization": "ntk", "weight_std": 1.2, "bias_std": 0.5}]),
       dtype=st.sampled_from([torch.float32, torch.float64]), seed=st.integers(0, 999))
def test_layerwise_is_the_double_loop_for_any_mlp(depth, width, outputs, n1, n2, activation, scales, dtype, seed):
    torch.manual_seed(seed)
    model = MLP(3, width, outputs, hidden_layers=depth, activation=activation, **scales).to(dtype)
    x1, x2 = torch.randn(n1, 3, dtype=dtype), torch.randn(n2, 3, dtype=dtype) if n2 else None
    ntk = compute_ntk(model, x1, x2, method="layerwise")
    exact = copy.deepcopy(model).double(), x1.double(), None if x2 is None else x2.double()
    assert ntk.dtype == dtype
    assert_close(ntk, ntk_by_definition(*exact), 1e-10 if dtype == torch.float64 else 1e-4)


# 03 · The kernel: any model ------------------------------------------------------------------------------------------


class LastState(nn.Module):
    "An LSTM, which vmap does not serve."

    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(1, 3, batch_first=True), nn.Linear(3, 2)
        self.double()

    def forward(self, x):
        return self.out(self.lstm(x[..., None])[0][:, -1])


class StraightThrough(torch.autograd.Function):
    "The sign, with the gradient of the identity: not what finite differences or forward mode would give."

    @staticmethod
    def forward(ctx, z):
        return z.sign()

    @staticmethod
    def backward(ctx, grad):
        return grad


def batch_norm():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)).double()
    model(3 * data(20) + 1)  # running statistics other than 0 and 1
    return model.eval()


def tied():
    model = Net(lambda net, x: net.last(torch.tanh(net.second(torch.tanh(net.first(x))))), second=nn.Linear(4, 4))
    model.second.weight = model.first.weight
    return model


def shared_module():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, 1)).double()


def partly_without_grad(net, x):
    with torch.no_grad():
        constant = torch.tanh(net.first(x))
    return net.last(constant + torch.sin(net.first(x)))


def kept_in_a_list():
    model = Net(lambda net, x: net.last(torch.tanh(F.linear(x, net.weights[0]))))
    model.weights = [model.first.weight]
    return model


def input_changed_in_place(net, x):
    x -= 0.5
    return two_layers(net, x)


def mlp_with(change, **kwargs):
    model = mlp(4, 4, 2, hidden_layers=2, **kwargs)
    change(model)
    return model


def tie(model):
    model.lin2.weight = model.lin1.weight


def closure_over_its_own_weight():
    model = mlp(4, 4, hidden_layers=2, activation=lambda z: torch.tanh(z) * model.lin2.weight.sum())
    return model


class Doubled(MLP):
    def forward(self, x):
        return super().forward(x) + super().forward(2 * x)


def set_activation(activation):
    return lambda model: setattr(model, "activation", activation(model))


LIBRARY = {
    "conv": lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.Tanh(), nn.MaxPool2d(2),
                                  nn.Flatten(), nn.Linear(3, 2)).double(),
    "lstm": LastState,
    "layer norm": lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 1)).double(),
    "batch norm in eval": batch_norm,
    "dropout in eval": lambda: nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 2)).double().eval(),
    "no bias": lambda: nn.Linear(4, 2, bias=False).double(),
    "transformer": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.TransformerEncoderLayer(2, 1, 4, batch_first=True),
                                         nn.Flatten(), nn.Linear(4, 1)).double().eval(),
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)), nn.Tanh(),
                                         nn.Linear(3, 1)).double(),
    "pruned": lambda: nn.Sequential(prune.random_unstructured(nn.Linear(4, 3), "weight", 0.5), nn.Tanh(),
                                    nn.Linear(3, 1)).double(),
}
UNUSUAL = {
    "scalar parameter": lambda: Net(lambda net, x: net.gain * two_layers(net, x), gain=nn.Parameter(torch.tensor(2.0))),
    "empty parameter": lambda: Net(two_layers, nothing=nn.Parameter(torch.zeros(0, 3))),
    "unused parameter": lambda: Net(lambda net, x: net.last(x)),
    "tied weights": tied,
    "shared module": shared_module,
    "weight read from a list": kept_in_a_list,
    "detached path": lambda: Net(lambda net, x: net.last(torch.tanh(net.first(x)).detach() + net.first(x))),
    "output detached": lambda: Net(lambda net, x: two_layers(net, x).detach()),
    "one output detached": lambda: Net(lambda net, x: torch.stack([z.detach() if i else z for i, z in enumerate(
        two_layers(net, x).T)], 1)),
    "partly without grad": lambda: Net(partly_without_grad),
    "own backward": lambda: Net(lambda net, x: net.last(StraightThrough.apply(net.first(x)))),
    "branches on data": lambda: Net(lambda net, x: torch.cat(
        [two_layers(net, xi[None]) if xi[0] > 0 else net.last(xi[None]) for xi in x])),
    "input changed in place": lambda: Net(input_changed_in_place),
}
MLPS = {
    "PReLU": lambda: mlp(4, 5, 2, activation=nn.PReLU()),
    "tied": lambda: mlp_with(tie),
    "tied, with PReLU": lambda: mlp_with(tie, activation=nn.PReLU()),
    "shared layer": lambda: mlp_with(lambda model: setattr(model, "lin2", model.lin1)),
    "own layer as activation": lambda: mlp_with(set_activation(lambda model: model.lin2)),
    "closure over its own weight": closure_over_its_own_weight,
    "forward hook": lambda: mlp_with(lambda model: model.lin1.register_forward_hook(lambda m, x, z: z**2)),
    "forward pre-hook": lambda: mlp_with(lambda model: model.register_forward_pre_hook(lambda m, x: 2 * x[0])),
    "forward replaced": lambda: mlp_with(lambda m: setattr(m, "forward", lambda x: m.lin3(m.lin2(m.lin1(x))))),
    "layer replaced": lambda: mlp_with(lambda model: setattr(model, "lin2", nn.Sequential(nn.Linear(4, 4)).double())),
    "subclass": lambda: Doubled(4, 5).double(),
    "weight norm": lambda: mlp_with(lambda model: parametrizations.weight_norm(model.lin1)),
    "pruned": lambda: mlp_with(lambda model: prune.random_unstructured(model.lin1, "weight", 0.5)),
    "relu in place": lambda: mlp(4, 5, 2, hidden_layers=2, activation=nn.ReLU(inplace=True)),
    "relu_, NTK parametrization": lambda: mlp(4, 5, 2, activation=torch.relu_, parametrization="ntk", bias_std=0.2),
    "activation mixing units": lambda: mlp(4, 5, 2, hidden_layers=2, activation=lambda z: z.softmax(1)),
    "activation for the hidden width only": lambda: mlp(4, 5, 2, activation=nn.LayerNorm(5, elementwise_affine=False)),
    "activation with its own backward": lambda: mlp(4, 5, 2, activation=StraightThrough.apply),
    "step activation before a frozen layer": lambda: mlp_with(
        lambda model: (model.lin2.requires_grad_(False), model.lin3.requires_grad_(False)),
        activation=lambda z: (z > 0).to(z.dtype)),
}
MODELS = LIBRARY | UNUSUAL | {f"MLP: {name}": make for name, make in MLPS.items()}


@pytest.mark.filterwarnings("ignore")  # torch's own, about nested tensors and forward mode
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_kernel_of_any_model_is_right_or_declined(name, method):
    """"auto", "jacobian" and "loop" serve every model; the others may decline with a ValueError that says so, but must
    never answer wrongly."""
    model, x1, x2 = MODELS[name](), data(5), data(3)
    expected = ntk_by_definition(model, x1), ntk_by_definition(model, x1, x2)
    try:
        got = compute_ntk(model, x1, method=method), compute_ntk(model, x1, x2, method=method)
    except ValueError as error:
        assert method in ("layerwise", "ntk_vector_products") and f'method="{method}"' in str(error)
        return
    for ntk, right in zip(got, expected):
        assert_close(ntk, right)
        assert not ntk.requires_grad


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_any_model_follow_its_parameters(name):
    model, x = MODELS[name](), data(4)
    assert_close(get_grads(model, x), gradients(model, x).squeeze(1))


@pytest.mark.parametrize("method", GENERAL)
def test_inputs_may_be_integers(method):
    model = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Tanh(), nn.Linear(9, 2)).double()
    x1, x2 = torch.randint(0, 7, (5, 3)), torch.randint(0, 7, (2, 3))
    assert_close(compute_ntk(model, x1, x2, method=method), ntk_by_definition(model, x1, x2))


@pytest.mark.parametrize("method", GENERAL)
@pytest.mark.parametrize("name", ["conv", "lstm", "tied weights"])
def test_chunks_give_the_same_kernel_for_any_model(name, method):
    model, x = MODELS[name](), data(5)
    if (name, method) == ("lstm", "ntk_vector_products"):
        pytest.skip("forward mode does not serve an LSTM")
    assert_close(compute_ntk(model, x, method=method, chunk_size=2), ntk_by_definition(model, x))


def test_a_factor_may_differ_between_chunks():
    "A weight times a number that the model chooses for each example, without mixing them."
    def branching(net, x):
        double = (x[:, :1] > 0).double()
        if double.all() or not double.any():  # then one number serves the whole chunk
            return net.last(torch.tanh(x @ ((2.0 if double.all() else 0.5) * net.first.weight)))
        return torch.cat([branching(net, xi[None]) for xi in x])

    model, x = Net(branching), data(10)
    x[:5, 0], x[5:, 0] = x[:5, 0].abs(), -x[5:, 0].abs()
    assert_close(compute_ntk(model, x, chunk_size=5), ntk_by_definition(model, x))
    assert_close(compute_ntk(model, x[:5], x[5:]), ntk_by_definition(model, x[:5], x[5:]))


def test_sparse_gradients_are_gradients():
    model = nn.Sequential(nn.Embedding(7, 3, sparse=True), nn.Flatten(), nn.Linear(6, 2)).double()
    x = torch.randint(0, 7, (4, 2))
    dense = copy.deepcopy(model)
    dense[0].sparse = False
    assert_close(compute_ntk(model, x), ntk_by_definition(dense, x))


@pytest.mark.parametrize("n1, n2", [(1, 300), (300, 1)])
def test_one_input_against_many_is_one_pass_and_not_many(n1, n2):
    passes = []

    def counted(net, x):
        passes.append(1)
        return two_layers(net, x)

    compute_ntk(Net(counted), data(n1), data(n2))
    assert len(passes) < 20


# 03 · The model is left as it was ------------------------------------------------------------------------------------


def anatomy(model):
    "Every object that a module holds, by name: parameters, buffers, hooks, flags, plain attributes."
    parts = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            value = value if isinstance(value, (dict, list)) else [value]
            items = value.items() if isinstance(value, dict) else enumerate(value)
            parts |= {(name, key, inner): thing for inner, thing in items}
    return parts


def contents(parts):
    "The values of all tensors, and of their .grad."
    tensors = {key: thing for key, thing in parts.items() if isinstance(thing, torch.Tensor)}
    as_bytes = lambda t: None if t is None else t.detach().numpy().tobytes()
    return {key: (as_bytes(t), t.requires_grad, t.is_leaf and as_bytes(t.grad)) for key, t in tensors.items()}


class assert_untouched:
    "with assert_untouched(model): nothing in the model changes, nor the random state, nor what cuDNN may do."

    def __init__(self, model):
        self.model = model

    def __enter__(self):
        self.parts, self.rng, self.cudnn = anatomy(self.model), torch.get_rng_state(), cudnn_settings()
        self.grads = {key: t.grad for key, t in self.parts.items() if isinstance(t, nn.Parameter)}
        self.contents = contents(self.parts)

    def __exit__(self, error, *_):
        if error:
            return
        parts = anatomy(self.model)
        assert parts.keys() == self.parts.keys()
        changed = [key for key in parts if parts[key] is not self.parts[key]]
        plain = (key for key in changed if type(parts[key]) is torch.Tensor)  # may be another one with the same content
        assert set(changed) == set(plain)
        assert [key for key, grad in self.grads.items() if parts[key].grad is not grad] == []
        assert contents(parts) == self.contents
        assert torch.equal(torch.get_rng_state(), self.rng)
        assert cudnn_settings() == self.cudnn


def cudnn_settings():
    return torch.backends.cudnn.enabled, torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.allow_tf32


class Busy(Net):
    "Counts its calls in buffers, one in place and one anew, draws a random number, and keeps what it computed."

    def __init__(self):
        super().__init__(two_layers)
        self.register_buffer("calls", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("again", torch.zeros(()))
        self.kept = torch.zeros(2)

    def forward(self, x):
        self.calls += torch.rand(2)
        self.again = self.again + 1
        self.kept = self.first(x)
        return super().forward(x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", [*GENERAL, "get_grads"])
@pytest.mark.parametrize("name", ["busy", "shared module", "tied weights", "pruned", "lstm", "batch norm in eval",
                                  "MLP: forward hook", "MLP: PReLU"])
def test_model_is_left_as_it_was(name, method):
    model, x = {"busy": Busy, **MODELS}[name](), data()
    next(model.parameters()).requires_grad_(False)
    *_, with_grad = model.parameters()  # one parameter has a gradient from before, the others have none
    with_grad.grad = torch.full_like(with_grad, 7.0)
    with assert_untouched(model):
        try:
            get_grads(model, x) if method == "get_grads" else compute_ntk(model, x, method=method)
        except ValueError:
            assert method == "ntk_vector_products"  # declined; and an exception changes nothing either


def test_training_flags_are_left_as_they_were():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2)).double().train()
    model[1].eval(), model[2].eval()  # the rest stays in training mode, which is fine
    x = data()
    with assert_untouched(model):
        ntk = compute_ntk(model, x)
    assert [module.training for module in model] == [True, False, False, True] and ntk.shape == (5, 5, 2, 2)


@pytest.mark.parametrize("method", METHODS)
def test_mlp_is_left_as_it_was(method):
    model = mlp(4, 5)
    model.lin1.bias.requires_grad_(False)
    model.lin2.weight.grad = torch.ones(1, 5, dtype=torch.float64)
    x1, x2 = data(), data(3)
    with assert_untouched(model):
        compute_ntk(model, x1, x2, method=method, chunk_size=2)


def test_hooks_can_still_be_removed():
    model, x, calls = mlp(4, 5), data(), []
    handle = model.lin1.register_forward_hook(lambda *_: calls.append(1))
    compute_ntk(model, x)
    handle.remove()
    calls.clear()
    model(x)
    assert not calls


class Fails(Busy):
    "Fails when it sees a single example, after it has changed its buffers and drawn a random number."

    def forward(self, x):
        out = super().forward(x)
        if len(x) == 1:
            raise KeyError("no single examples")
        return out


@pytest.mark.parametrize("function", [compute_ntk, get_grads])
def test_model_is_left_as_it_was_after_an_exception(function):
    model, x = Fails(), data()
    with assert_untouched(model), pytest.raises((KeyError, ValueError)):
        function(model, x)


@pytest.mark.parametrize("refused", [{"x2": data(3, 3)}, {"x2": data(3) * math.nan}])
def test_model_is_left_as_it_was_after_a_refusal(refused):
    model, x = Busy(), data()
    with assert_untouched(model), pytest.raises(ValueError):
        compute_ntk(model, x, **refused)


def test_kernel_does_not_spoil_a_backward_pass_under_way():
    model, x = batch_norm(), data()
    loss = model(x).square().sum()
    compute_ntk(model, x)
    loss.backward()  # autograd complains if a tensor it saved, such as a running mean, was written to meanwhile
    assert model[0].weight.grad.isfinite().all()


def test_weights_may_change_between_calls():
    model, x = mlp(4, 5), data()
    before = compute_ntk(model, x)
    with torch.no_grad():
        model.lin1.weight += 1
    after = compute_ntk(model, x)
    assert_close(after, ntk_by_definition(model, x))
    assert not torch.allclose(before, after)


# 03 · What is refused ------------------------------------------------------------------------------------------------

CALLS = {  # the name an input has in the message → a call where it is the bad one
    "x1": lambda model, bad, good: compute_ntk(model, bad),
    "x2": lambda model, bad, good: compute_ntk(model, good, bad),
    "x": lambda model, bad, good: get_grads(model, bad),
}


def with_entry(value):
    x = data()
    x[2, 1] = value
    return x


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("bad, error, message", [
    (np.zeros((5, 4)), TypeError, r"NAME must be a torch.Tensor of shape \(N, …\), got ndarray"),
    ([[0.0] * 4] * 5, TypeError, r"NAME must be a torch.Tensor of shape \(N, …\), got list"),
    (data()[:0], ValueError, r"NAME must hold at least one example.*got shape \(0, 4\)"),
    (data()[:, :0], ValueError, r"NAME must hold.*got shape \(5, 0\)"),
    (data()[0, 0], ValueError, r"NAME must hold at least one example.*got shape \(\)"),
    (data(5, 3), ValueError, r"cannot take NAME of shape \(5, 3\)"),
    (data()[0], ValueError, r"(cannot take NAME|got \(1,\) for NAME) of shape \(4,\)"),
    (data(5, 4, 4), ValueError, r"\(N, O\) = \(5, O\), got \(5, 4, 1\) for NAME of shape \(5, 4, 4\)"),
    (data().float(), TypeError, r"NAME must have the model's dtype torch.float64, got torch.float32"),
    (data().half(), TypeError, r"NAME must have the model's dtype torch.float64, got torch.float16"),
    (data().long(), (TypeError, ValueError), r"NAME .*torch.int64"),
    (data().to(torch.complex128), (TypeError, ValueError), r"NAME .*torch.complex128"),
    (data().to("meta"), ValueError, r"NAME must be on the model's device cpu, got meta"),
    (with_entry(math.nan), ValueError, r"NAME must be finite, got NaN or infinity"),
    (with_entry(-math.inf), ValueError, r"NAME must be finite, got NaN or infinity"),
], ids=lambda part: part if isinstance(part, str) else None)
def test_bad_inputs_are_refused_by_name(name, bad, error, message):
    with pytest.raises(error, match=message.replace("NAME", rf"\b{name}\b")):
        CALLS[name](mlp(4, 5), bad, data())


def test_x1_may_not_be_none():
    with pytest.raises(TypeError, match="x1 must be a torch.Tensor.*got NoneType"):
        compute_ntk(mlp(4, 5), None)


@pytest.mark.parametrize("name", CALLS)
def test_shape_that_the_model_itself_asserts_is_refused_by_name(name):
    def picky(net, x):
        assert x.shape[1] == 4
        return two_layers(net, x)

    with pytest.raises(ValueError, match=rf"cannot take {name} of shape \(5, 3\)"):
        CALLS[name](Net(picky), data(5, 3), data())


def with_weight(value):
    model = mlp(4, 5)
    with torch.no_grad():
        model.lin2.weight[0, 3] = value
    return model


def training(module, name):
    model = nn.Sequential()
    for key, layer in {"first": nn.Linear(4, 3), name: module, "last": nn.Linear(3, 2)}.items():
        model.add_module(key, layer)
    return model.double().train()


def returns(function):
    return Net(lambda net, x: function(two_layers(net, x)))


class Renormed(nn.Linear):
    "Like nn.Embedding with max_norm: the forward pass rescales the weight."

    def __init__(self):
        super().__init__(4, 2)

    def forward(self, x):
        with torch.no_grad():
            self.weight /= self.weight.norm()
        return super().forward(x)


MIXES = "depends on the others.*or on chance"
REFUSED_MODELS = {
    "function": (lambda x: x, TypeError, "model must be a torch.nn.Module, got function"),
    "class": (MLP, TypeError, "model must be a torch.nn.Module, got type"),
    "no parameters": (nn.ReLU(), ValueError, "no trainable parameter.*requires_grad=True"),
    "frozen": (mlp(4, 5).requires_grad_(False), ValueError, "no trainable parameter.*requires_grad=True"),
    "NaN weight": (with_weight(math.nan), ValueError, "weights must be finite.*lin2.weight"),
    "infinite weight": (with_weight(math.inf), ValueError, "weights must be finite.*lin2.weight"),
    "NaN output": (returns(lambda z: (z - 1e9).log()), ValueError, "outputs must be finite"),
    "output (N,)": (returns(lambda z: z[:, 0]), ValueError, r"\(N, O\) = \(5, O\), got \(5,\)"),
    "output (N, O, 1)": (returns(lambda z: z[..., None]), ValueError, r"\(N, O\) = \(5, O\), got \(5, 2, 1\)"),
    "output (N, 0)": (returns(lambda z: z[:, :0]), ValueError, r"\(N, O\) = \(5, O\), got \(5, 0\)"),
    "output (O, N)": (returns(lambda z: z.T), ValueError, r"\(N, O\) = \(5, O\), got \(2, 5\)"),
    "output ()": (returns(lambda z: z.sum()), ValueError, r"\(N, O\) = \(5, O\), got \(\)"),
    "tuple": (returns(lambda z: (z, z)), TypeError, r"one tensor \(N, O\), got tuple"),
    "dict": (returns(lambda z: {"out": z}), TypeError, r"one tensor \(N, O\), got dict"),
    "integer output": (returns(lambda z: z.round().long()), (TypeError, ValueError), "output.*(int64|integer)"),
    "batch norm": (training(nn.BatchNorm1d(3), "norm"), ValueError,
                   r"BatchNorm1d 'norm' is in training mode.*model.eval\(\)"),
    "dropout": (training(nn.Dropout(0.2), "drop"), ValueError, r"Dropout 'drop' is in training mode.*model.eval\(\)"),
    "batch norm deep inside": (nn.Sequential(training(nn.BatchNorm1d(3), "norm")), ValueError, "BatchNorm1d '0.norm'"),
    "batch norm that always mixes": (training(nn.BatchNorm1d(3, track_running_stats=False), "norm").eval(), ValueError,
                                     MIXES),
    "functional dropout": (returns(lambda z: F.dropout(z, 0.5)), ValueError, MIXES),
    "softmax over the batch": (returns(lambda z: z.softmax(0)), ValueError, MIXES),
    "batch mean": (returns(lambda z: z - z.mean(0)), ValueError, MIXES),
    "sum over the rows above": (returns(lambda z: z.cumsum(0)), ValueError, MIXES),
    "difference from the first row": (Net(lambda net, x: two_layers(net, x - x[:1])), ValueError, MIXES),
    "weights that the model changes": (nn.Sequential(nn.Linear(4, 4), Renormed()).double(), ValueError,
                                       "changes its own weights"),
    "difference from the last row": (Net(lambda net, x: two_layers(net, x - x[-1:])), ValueError, MIXES),
}


@pytest.mark.parametrize("function", [compute_ntk, get_grads])
@pytest.mark.parametrize("model, error, message", REFUSED_MODELS.values(), ids=REFUSED_MODELS)
def test_models_without_a_kernel_are_refused(model, error, message, function):
    with pytest.raises(error, match=message):
        function(model, data())


def test_functional_dropout_is_found_though_it_rarely_strikes():
    model, x = mlp(4, 10, activation=lambda z: F.dropout(torch.tanh(z), 0.1)), data(20)
    for _ in range(10):
        with pytest.raises(ValueError, match=MIXES):
            compute_ntk(model, x)


def test_mixing_that_only_late_examples_feel_is_found():
    "A mixture of experts that drops what exceeds its capacity."
    def forward(net, x):
        kept = torch.arange(len(x)) < 6
        return two_layers(net, x) * kept[:, None]

    with pytest.raises(ValueError, match=MIXES):
        compute_ntk(Net(forward), data(12))


@pytest.mark.parametrize("model", [training(nn.Dropout(0.0), "drop"), training(nn.GroupNorm(1, 3), "norm")])
def test_what_only_looks_like_mixing_is_served(model):
    x = data()
    assert_close(compute_ntk(model, x), ntk_by_definition(model, x))


@pytest.mark.parametrize("method", GENERAL)
def test_kernel_is_never_nan(method):
    model = Net(lambda net, x: (net.last(x) - net.last(x).detach()).square().sqrt())  # d√z/dz at z = 0
    with pytest.raises(ValueError, match="finite"):
        compute_ntk(model, data(), method=method)


@pytest.mark.parametrize("method", METHODS)
def test_kernel_is_never_infinite(method):
    model = MLP(4, 5)
    with torch.no_grad():
        model.lin2.weight *= 1e30  # the outputs are finite in float32, the kernel is not
    with pytest.raises(ValueError, match="finite"):
        compute_ntk(model, torch.randn(5, 4), method=method)


@pytest.mark.parametrize("arguments, error, message", [
    ({"method": "fast"}, ValueError, "method must be one of .*layerwise.*got 'fast'"),
    ({"method": None}, ValueError, "method must be one of .*got None"),
    ({"chunk_size": 0}, ValueError, "chunk_size must be a positive integer, got 0"),
    ({"chunk_size": -2}, ValueError, "chunk_size must be a positive integer, got -2"),
    ({"chunk_size": 2.0}, TypeError, "chunk_size must be a positive integer, got 2.0"),
    ({"chunk_size": True}, TypeError, "chunk_size must be a positive integer, got True"),
    ({"n_jobs": 0}, ValueError, "n_jobs must be None or an integer other than 0, got 0"),
    ({"n_jobs": 1.5}, (ValueError, TypeError), "n_jobs must be None or an integer other than 0, got 1.5"),
    ({"n_jobs": True}, (ValueError, TypeError), "n_jobs must be None or an integer other than 0, got True"),
])
def test_bad_arguments_are_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        compute_ntk(mlp(4, 5), data(), **arguments)


@pytest.mark.parametrize("name, parameter", [
    ("lstm", "lstm.weight_hh_l0"), ("MLP: tied", "lin1.weight"), ("MLP: PReLU", "activation.weight"),
    ("MLP: subclass", "lin1.weight"), ("weight norm", "0.parametrizations.weight.original0"), ("layer norm", "1.weight")])
def test_layerwise_is_refused_where_its_formula_does_not_hold(name, parameter):
    message = f'method="layerwise" cannot serve .*{re.escape(parameter)}.* use method="auto"'
    with pytest.raises(ValueError, match=message):
        compute_ntk(MODELS[name](), data(), method="layerwise")


# 04 · Reading a kernel -----------------------------------------------------------------------------------------------


def psd(n=6, rank=9):
    factor = np.random.default_rng(0).normal(size=(n, rank))
    return torch.from_numpy(factor @ factor.T)


READERS = {"cosine": cosine, "alignment": lambda kernel: alignment(kernel, [0, 1] * 3), "spectrum": spectrum}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("kernel, message", [
    (psd()[:, :5], r"kernel must be square, got shape \(6, 5\)"),
    (psd() + torch.triu(torch.ones(6, 6)), "kernel must be symmetric"),
    (psd() * math.nan, "kernel must be finite"),
    (psd() / 0, "kernel must be finite"),
    (psd()[0], r"kernel must have two axes.*got shape \(6,\)"),
    (psd()[:0, :0], r"kernel must have two axes.*got shape \(0, 0\)"),
    (psd()[:, :, None, None], r"kernel must have two axes.*got shape \(6, 6, 1, 1\); choose .*kernel\[:, :, a, b\]"),
])
def test_a_kernel_must_be_square_symmetric_and_finite(kernel, message, reader):
    with pytest.raises(ValueError, match=message):
        reader(kernel)


@pytest.mark.parametrize("given_as", [lambda k: k, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.float,
                                      lambda k: k.clone().requires_grad_()])
def test_a_kernel_may_be_a_tensor_an_array_or_a_list(given_as):
    kernel = psd()
    assert_close(cosine(given_as(kernel)), cosine_by_numpy(kernel), 1e-6)
    assert_close(spectrum(given_as(kernel)).eigenvalues, np.linalg.eigvalsh(kernel)[::-1], 1e-6)
    assert alignment(given_as(kernel), [0, 1] * 3) == pytest.approx(alignment_by_formula(kernel, [0, 1] * 3), abs=1e-6)


def cosine_by_numpy(kernel):
    kernel = np.asarray(kernel)
    norms = np.sqrt(np.diag(kernel))
    return kernel / np.outer(norms, norms)


def test_cosine_is_that_of_the_gradients():
    model, x = mlp(4, 5), data()
    grads = gradients(model, x).squeeze(1)
    expected = F.cosine_similarity(grads[:, None], grads[None], dim=2)
    assert_close(cosine(compute_ntk(model, x)), expected, 1e-12)


def test_cosine_has_a_diagonal_of_ones_and_forgets_norms():
    kernel, lengths = psd(), torch.tensor([1, 10, 0.1, 2, 3, 1e-3], dtype=torch.float64)
    assert_close(cosine(kernel).diagonal(), torch.ones(6), 1e-14)
    assert_close(cosine(kernel * lengths[:, None] * lengths), cosine_by_numpy(kernel), 1e-12)


def test_cosine_of_a_gradient_of_length_zero_is_zero():
    got = cosine(torch.tensor([[4.0, 0, 6], [0, 0, 0], [6, 0, 16]]))
    assert got.tolist() == [[1, 0, 0.75], [0, 0, 0], [0.75, 0, 1]]


def test_cosine_refuses_a_negative_diagonal():
    with pytest.raises(ValueError, match="negative diagonal entry, got -1"):
        cosine(torch.diag(torch.tensor([1.0, -1.0])))


def alignment_by_formula(kernel, labels):
    "Cortes et al. 2012, definition 4, with the centring matrix H = I − 11ᵀ/n."
    kernel, labels = np.asarray(kernel), np.asarray(labels)
    n = len(kernel)
    target = labels @ labels.T if labels.ndim == 2 else np.equal.outer(labels, labels).astype(float)
    h = np.eye(n) - np.ones((n, n)) / n
    k, t = h @ kernel @ h, h @ target @ h
    return np.trace(k.T @ t) / (np.linalg.norm(k) * np.linalg.norm(t))


@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1, 2], [5, 5, -3, 5, -3, 7], [True, False, True, True, False, False]])
@pytest.mark.parametrize("given_as", [list, tuple, np.array, torch.tensor])
def test_alignment_with_classes_follows_the_formula(labels, given_as):
    assert alignment(psd(), given_as(labels)) == pytest.approx(alignment_by_formula(psd(), labels), abs=1e-12)


def test_alignment_with_targets_follows_the_formula():
    targets = np.random.default_rng(1).normal(size=(6, 2))
    assert alignment(psd(), targets) == pytest.approx(alignment_by_formula(psd(), targets), abs=1e-12)
    one = targets[:, :1]
    expected = alignment_by_formula(psd(), one)
    assert alignment(psd(), one) == pytest.approx(expected, abs=1e-12)
    assert alignment(psd(), one[:, 0]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("labels", [[0, 1, 1, 0, 1, 1], [False, True, True, False, True, True], [0.0, 1, 1, 0, 1, 1]])
def test_alignment_with_two_classes_is_that_with_plus_and_minus_one(labels):
    signs = np.array([[-1.0], [1], [1], [-1], [1], [1]])
    assert alignment(psd(), labels) == pytest.approx(alignment_by_formula(psd(), signs), abs=1e-12)


def test_alignment_is_one_for_the_labels_own_kernel():
    y = torch.tensor([1.0, -1, -1, 1, 1])
    assert alignment(torch.outer(y, y), y) == pytest.approx(1)
    assert alignment(-torch.outer(y, y), y) == pytest.approx(-1)


@pytest.mark.parametrize("change", [lambda k: k + 100, lambda k: 1e-3 * k, lambda k: 7 * k - 3])
def test_alignment_ignores_offset_and_scale(change):
    labels = [0, 1, 1, 0, 2, 2]
    assert alignment(change(psd()), labels) == pytest.approx(alignment_by_formula(psd(), labels), abs=1e-10)


def test_alignment_ignores_the_order_of_examples():
    labels, order = np.array([0, 1, 1, 0, 2, 2]), [3, 1, 5, 0, 2, 4]
    expected = alignment_by_formula(psd(), labels)
    assert alignment(psd()[order][:, order], labels[order]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kernel, labels, message", [
    (psd(), [0, 1, 0], r"labels must have shape \(6,\).*got \(3,\)"),
    (psd(), 1, r"labels must have shape \(6,\).*got \(\)"),
    (psd(), [[0, 1]] * 6, r"labels must have shape \(6,\), one per row of the kernel, got \(6, 2\)"),
    (psd(), np.zeros((6, 1, 1)), r"labels must have shape \(6,\).*got \(6, 1, 1\)"),
    (psd(), [0.0, 1, 2, 3, 4, math.nan], "labels must be finite"),
    (psd(), [1] * 6, "labels must not be constant"),
    (psd(), [0.1] * 6, "labels must not be constant"),
    (torch.full((6, 6), 0.1), [0, 1] * 3, "kernel must not be constant"),
    (torch.zeros(6, 6), [0, 1] * 3, "kernel must not be constant"),
])
def test_alignment_says_what_is_wrong(kernel, labels, message):
    with pytest.raises(ValueError, match=message):
        alignment(kernel, labels)


def test_spectrum_is_numpys_from_the_largest_down():
    kernel = psd()
    values, vectors = spectrum(kernel)
    assert_close(values, np.linalg.eigvalsh(kernel)[::-1], 1e-12)
    assert (values.diff() <= 0).all()
    assert_close(kernel @ vectors, vectors * values, 1e-12)  # K v = λ v, column by column
    assert_close(vectors.T @ vectors, torch.eye(6), 1e-12)
    assert_close(vectors @ torch.diag(values) @ vectors.T, kernel, 1e-12)


def test_spectrum_has_names_and_fixed_signs():
    result = spectrum(psd())
    assert result.eigenvalues is result[0] and result.eigenvectors is result[1]
    largest = result.eigenvectors.abs().argmax(0)
    assert (result.eigenvectors[largest, torch.arange(6)] > 0).all()


def test_spectrum_of_a_float32_kernel_is_computed_in_float64():
    kernel = psd().float()
    assert spectrum(kernel).eigenvalues.dtype == torch.float64
    assert_close(spectrum(kernel).eigenvalues, np.linalg.eigvalsh(kernel.double())[::-1], 1e-12)


@pytest.mark.parametrize("activation, rank", [("tanh", 89), ("relu", 85)])
def test_rank_is_at_most_the_number_of_parameters(activation, rank):
    # relu has four fewer: scaling a unit's incoming weights up and its outgoing weight down changes nothing, one
    # direction for each of its four units to which every gradient is orthogonal
    model = mlp(20, 4, activation=activation)
    assert sum(p.numel() for p in model.parameters()) == 89
    values = spectrum(compute_ntk(model, data(100, 20))).eigenvalues
    assert (values > 1e-12 * values[0]).sum() == rank


# Pictures ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def plain_rc():
    with matplotlib.rc_context():
        yield


def image(ax):
    return np.asarray(ax.images[0].get_array())


def test_plot_kernel_draws_the_kernel_with_title_labels_and_colour_bar():
    ax = plot_kernel(psd(), title="six inputs")
    assert np.allclose(image(ax), psd())
    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == (
        "six inputs", "example x′, 0 to 5", "example x, 0 to 5")
    assert len(ax.figure.axes) == 2 and ax.images[0].colorbar.ax is ax.figure.axes[1]
    assert ax.images[0].colorbar.ax.get_xlabel()


def test_plot_kernel_takes_an_array_and_leaves_it_alone():
    kernel = psd().numpy()
    before = kernel.copy()
    assert np.allclose(image(plot_kernel(kernel, order=[5, 4, 3, 2, 1, 0])), before[::-1, ::-1])
    assert np.array_equal(kernel, before)


@pytest.mark.parametrize("given_as", [list, np.array, torch.tensor, lambda order: np.array(order, dtype=np.int32)])
def test_plot_kernel_orders_rows_and_columns(given_as):
    order = [3, 1, 5, 0, 2, 4]
    expected = psd().numpy()[np.ix_(order, order)]
    assert np.allclose(image(plot_kernel(psd(), order=given_as(order))), expected)


def test_plot_kernel_updates_the_picture_that_is_there():
    ax = plot_kernel(torch.eye(3), title="first")
    drawn, figure = ax.images[0], ax.figure
    for kernel, title in [(2 * psd(8), "second"), (torch.ones(2, 5), "third"), (torch.ones(9, 2), "")]:
        assert plot_kernel(kernel, ax=ax, title=title) is ax
        assert ax.images[0] is drawn and len(ax.images) == 1 and len(figure.axes) == 2
        assert np.allclose(image(ax), kernel) and ax.get_title() == title
        rows, columns = kernel.shape
        assert ax.get_xlim() == (-0.5, columns - 0.5) and ax.get_ylim() == (rows - 0.5, -0.5)  # all of it, row 0 on top
        assert drawn.get_clim()[0] <= kernel.min() and drawn.get_clim()[1] == pytest.approx(float(kernel.abs().max()))
        assert drawn.colorbar.mappable is drawn and drawn.colorbar.vmax == pytest.approx(float(kernel.abs().max()))


def test_plot_kernel_draws_on_the_axes_it_is_given():
    figure, (left, right) = plt.subplots(1, 2)
    assert plot_kernel(psd(), ax=right) is right
    assert not left.images and plt.get_fignums() == [figure.number]


def test_colours_run_from_zero_up():
    shown = plot_kernel(psd().abs() + 5).images[0]
    assert shown.get_clim() == pytest.approx((0, float(psd().abs().max() + 5)))
    assert shown.get_cmap().name == "viridis"


def test_a_slightly_negative_entry_only_lowers_the_scale():
    shown = plot_kernel(torch.tensor([[4.0, -0.5], [-0.5, 4.0]])).images[0]
    assert shown.get_clim() == (-0.5, 4) and shown.get_cmap().name == "viridis"


def test_signed_kernels_are_centred_on_a_neutral_zero():
    ax = plot_kernel(psd().abs())
    plot_kernel(torch.tensor([[1.0, -2.0], [-2.0, 3.0]]), ax=ax)
    shown = ax.images[0]
    assert shown.get_clim() == (-3, 3)
    red, green, blue, _ = shown.to_rgba(0.0)
    assert min(red, green, blue) > 0.9  # zero is nearly white, and the ends are different hues
    assert shown.to_rgba(3.0)[0] > shown.to_rgba(3.0)[2] and shown.to_rgba(-3.0)[0] < shown.to_rgba(-3.0)[2]
    plot_kernel(psd().abs(), ax=ax)
    assert shown.get_cmap().name == "viridis" and shown.get_clim()[0] == 0


@pytest.mark.parametrize("kernel", [torch.zeros(3, 3), torch.ones(1, 1), torch.eye(3, dtype=torch.int64),
                                    torch.eye(3).bool(), torch.eye(3).requires_grad_()])
def test_plot_kernel_draws_unusual_kernels(kernel):
    ax = plot_kernel(kernel)
    ax.figure.canvas.draw()
    assert np.allclose(image(ax), kernel.detach())


@pytest.mark.parametrize("size", [1e-60, 1e60])
def test_plot_kernel_draws_any_float64_that_is_finite(size):
    ax = plot_kernel(size * psd().abs())
    ax.figure.canvas.draw()
    assert ax.images[0].get_clim() == pytest.approx((0, float(size * psd().abs().max())))


@pytest.mark.parametrize("kernel, order, message", [
    (psd()[0], None, r"kernel must have two axes.*got shape \(6,\)"),
    (psd()[..., None, None], None, r"kernel\[:, :, a, b\]"),
    (psd()[:0], None, r"kernel must have two axes.*got shape \(0, 6\)"),
    (psd() * math.nan, None, "kernel must be finite"),
    (psd(), [0, 1, 2], "order must be a permutation of 0 … 5"),
    (psd(), [0, 1, 2, 3, 4, 4], "order must be a permutation of 0 … 5"),
    (psd(), [1, 2, 3, 4, 5, 6], "order must be a permutation of 0 … 5"),
    (psd(), [-1, 0, 1, 2, 3, 4], "order must be a permutation of 0 … 5"),
    (psd(), [0.0, 1, 2, 3, 4, 5], "order must be a permutation of 0 … 5"),
    (psd(), 3, "order must be a permutation of 0 … 5"),
    (psd()[:, :5], [0, 1, 2, 3, 4, 5], r"order must be a permutation.*square.*\(6, 5\)"),
])
def test_plot_kernel_says_what_is_wrong(kernel, order, message):
    with pytest.raises(ValueError, match=message):
        plot_kernel(kernel, order=order)
    assert not plt.get_fignums()


def test_set_style_tells_lines_apart_by_colour_and_by_style(plain_rc):
    set_style()
    cycle = plt.rcParams["axes.prop_cycle"].by_key()
    pairs = list(zip(cycle["color"], cycle["linestyle"]))
    assert len(set(pairs)) == len(pairs) == len(set(cycle["color"]))
    assert len(set(cycle["linestyle"][:4])) == 4
    assert plt.rcParams["image.cmap"] in ("viridis", "magma")  # perceptually uniform


def test_set_style_can_be_set_again_and_drawn_with(plain_rc):
    set_style()
    before = dict(plt.rcParams)
    set_style()
    assert dict(plt.rcParams) == before
    plot_kernel(psd(), title="Θ(x, x′)").figure.canvas.draw()


@pytest.fixture
def displayed(monkeypatch):
    "What reaches the front end: IPython's display publisher is replaced by a list."
    messages = []
    publisher = SimpleNamespace(publish=lambda **message: messages.append(message))
    plt.close(plt.figure())  # pyplot's first figure asks the shell for more than this one has
    monkeypatch.setattr(InteractiveShell, "initialized", staticmethod(lambda: True))
    monkeypatch.setattr(InteractiveShell, "instance", staticmethod(lambda: SimpleNamespace(display_pub=publisher)))
    return messages


@pytest.mark.parametrize("given_as", [lambda ax: ax, lambda ax: ax.figure], ids=["axes", "figure"])
def test_show_displays_the_figure_once_with_its_text_and_closes_it(given_as, displayed, capsys):
    ax = plt.subplots(figsize=(3, 2), dpi=100, facecolor="red")[1]
    show(given_as(ax), "A red card.")
    message, words = displayed
    assert message["data"]["text/plain"] == words["data"]["text/plain"] == "A red card."
    assert words["data"]["text/html"].endswith("</summary>A red card.</details>")  # for those who get no alt
    assert message["metadata"]["image/png"] == {"alt": "A red card.", "width": 300, "height": 200}
    picture = Image.open(io.BytesIO(base64.b64decode(message["data"]["image/png"]))).convert("RGB")
    assert picture.size == (600, 400)  # two pixels for one, for sharp screens
    assert picture.getpixel((1, 1)) == (255, 0, 0)
    assert not plt.get_fignums()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("wrong", [None, "figure", psd()])
def test_show_refuses_what_is_no_figure(wrong, displayed):
    with pytest.raises(TypeError, match=f"expected a Matplotlib figure or axes, got {type(wrong).__name__}"):
        show(wrong, "nothing")
    assert not displayed


# Sliders above a picture ---------------------------------------------------------------------------------------------


class Tag(html.parser.HTMLParser):
    "The first element of some HTML: its name, its attributes (unescaped) and all text."

    def __init__(self, source):
        super().__init__()
        self.name, self.attributes, self.text = None, {}, ""
        self.feed(source)

    def handle_starttag(self, name, attributes):
        if self.name is None:
            self.name, self.attributes = name, dict(attributes)

    def handle_data(self, text):
        self.text += text


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def shown(explorer):
    "The picture in the browser: its pixels and its alternative text."
    tag = Tag(explorer.picture.value)
    assert tag.name == "img"
    kind, encoded = tag.attributes["src"].split(",")
    assert kind == "data:image/png;base64"
    return pixels(base64.b64decode(encoded)), tag.attributes["alt"]


@pytest.fixture
def draw():
    figure, ax = plt.subplots(figsize=(2, 1.5), dpi=60)

    def draw(width=4, seed=0):
        if width == 13:
            raise ValueError("13 is <unlucky>")
        figure.set_facecolor((width / 255, seed / 255, 0))  # the corner's colour tells which picture it is
        ax.set_title(f"{width} wide")
        draw.calls += 1
        return figure

    draw.figure, draw.calls = figure, 0
    return draw


@pytest.fixture
def explorer(draw):
    return Explorer(draw, "A net {width} wide, seed {seed}: {title}.", width=[1, 4, 13, 16], seed=(0, 9))


def test_explorer_starts_at_the_defaults_of_draw(explorer):
    picture, alt = shown(explorer)
    assert picture.shape == (90, 120, 3) and tuple(picture[0, 0]) == (4, 0, 0)
    assert alt == explorer.alt == "A net 4 wide, seed 0: 4 wide."
    assert explorer.values == {"width": 4, "seed": 0}


def test_moving_a_slider_changes_picture_and_text(explorer):
    explorer.controls["width"].value = 16
    assert tuple(shown(explorer)[0][0, 0]) == (16, 0, 0)
    explorer.controls["seed"].value = 9
    picture, alt = shown(explorer)
    assert tuple(picture[0, 0]) == (16, 9, 0) and alt == "A net 16 wide, seed 9: 16 wide."
    assert np.array_equal(pixels(explorer.png), picture)


def test_the_whole_picture_is_what_the_figure_looks_like(explorer, draw):
    explorer.controls["width"].value = 1
    buffer = io.BytesIO()
    draw.figure.savefig(buffer, format="png")
    assert np.array_equal(shown(explorer)[0], pixels(buffer.getvalue()))


def test_draw_runs_once_for_each_change(explorer, draw):
    assert draw.calls == 1
    explorer.controls["width"].value = 16
    assert draw.calls == 2


def test_an_exception_shows_its_message_and_leaves_the_last_good_picture(explorer):
    explorer.controls["width"].value = 16
    before, png = explorer.picture.value, explorer.png
    explorer.controls["width"].value = 13
    message = Tag(explorer.message.value)
    assert message.attributes["role"] == "alert"  # read out by a screen reader
    assert "ValueError: 13 is <unlucky>" in message.text and "width=13" in message.text
    assert (explorer.picture.value, explorer.png, explorer.alt) == (before, png, "A net 16 wide, seed 0: 16 wide.")
    explorer.controls["width"].value = 1
    assert explorer.message.value == "" and shown(explorer)[1] == "A net 1 wide, seed 0: 1 wide."


def test_an_exception_in_the_first_draw_shows_its_message(draw):
    explorer = Explorer(lambda width: draw(width), "{width}", width=[13, 16])
    assert "13 is <unlucky>" in Tag(explorer.message.value).text and explorer.picture.value == ""
    bundle = explorer._repr_mimebundle_()
    bundle = bundle[0] if isinstance(bundle, tuple) else bundle
    assert bundle["text/plain"] == "Explorer(width=13)" and "image/png" not in bundle


def test_a_draw_that_returns_no_figure_shows_a_message():
    explorer = Explorer(lambda n=1: None, "{n}", n=[1, 2])
    assert "expected a Matplotlib figure or axes, got NoneType" in Tag(explorer.message.value).text


def test_a_text_that_fails_leaves_picture_and_png_as_they_were():
    def draw(n=1):
        return plt.figure(figsize=(1, 1), facecolor=(n / 10, 0, 0))

    explorer = Explorer(draw, "{n:d}", n=[1, 2.5])
    before, png = explorer.picture.value, explorer.png
    explorer.controls["n"].value = 2.5  # has no format d
    assert explorer.message.value and (explorer.picture.value, explorer.png) == (before, png)


def test_explorer_is_short_and_the_same_in_text(explorer):
    assert repr(explorer) == "Explorer(width=4, seed=0)"
    explorer.controls["seed"].value = 7
    assert repr(explorer) == "Explorer(width=4, seed=7)"


def test_mime_bundle_has_the_live_view_the_picture_and_the_text(explorer):
    bundle, metadata = explorer._repr_mimebundle_()
    assert bundle["text/plain"] == repr(explorer)
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == explorer.model_id
    assert np.array_equal(pixels(base64.b64decode(bundle["image/png"])), shown(explorer)[0])
    assert metadata["image/png"]["alt"] == explorer.alt
    assert explorer._repr_mimebundle_(include=None, exclude=None)[0].keys() == bundle.keys()


def test_text_of_an_explorer_with_many_controls_is_not_cut():
    names = [f"control_number_{i}" for i in range(9)]  # a widget's own text ends after 110 characters
    explorer = Explorer(lambda **values: plt.figure(figsize=(1, 1)), "", **{name: [1, 2] for name in names})
    expected = f"Explorer({', '.join(f'{name}=1' for name in names)})"
    assert explorer._repr_mimebundle_()[0]["text/plain"] == repr(explorer) == expected


def test_alternative_text_is_escaped():
    explorer = Explorer(lambda label: plt.figure(figsize=(1, 1)), 'is "{label}" > <b>?', label=['"><script>', "&amp;"])
    assert shown(explorer)[1] == 'is ""><script>" > <b>?' and "<script>" not in explorer.picture.value
    explorer.controls["label"].value = "&amp;"
    assert shown(explorer)[1] == 'is "&amp;" > <b>?'


CONTROLS = {  # what is given → the widget it becomes, and a value that it can take
    "list of numbers": ([1, 4, 16], widgets.SelectionSlider, 16),
    "list of floats": ([0.1, 1.0, 10.0], widgets.SelectionSlider, 10.0),
    "(min, max)": ((0, 9), widgets.IntSlider, 7),
    "(min, max, step)": ((0, 10, 5), widgets.IntSlider, 10),
    "(float, float)": ((0.0, 1.0), widgets.FloatSlider, 0.3),
    "bool": (True, widgets.Checkbox, False),
    "list of strings": (["relu", "tanh"], widgets.SelectionSlider, "tanh"),
    "widget": (widgets.IntSlider(2, 0, 5), widgets.IntSlider, 3),
    "choice widget": (widgets.ToggleButtons(options=["relu", "tanh"]), widgets.ToggleButtons, "tanh"),
}


@pytest.mark.parametrize("spec, kind, value", CONTROLS.values(), ids=CONTROLS)
def test_controls_are_made_from_plain_values(spec, kind, value):
    explorer = Explorer(lambda hidden_width: plt.figure(figsize=(1, 1)), "{hidden_width}", hidden_width=spec)
    control = explorer.controls["hidden_width"]
    assert isinstance(control, kind) and control in explorer.children
    assert control.description == "hidden width" and control.tooltip
    assert getattr(control, "continuous_update", False) is False
    control.value = value
    assert shown(explorer)[1] == str(value)


def test_controls_stand_above_message_and_picture(explorer):
    above = len(explorer.controls) + 2  # below the picture: nothing but a style
    assert list(explorer.children[:above]) == [*explorer.controls.values(), explorer.message, explorer.picture]
    assert explorer.picture.layout.min_height == "90px"


def test_a_widget_keeps_its_own_description():
    spec = widgets.IntSlider(2, 0, 5, description="n", tooltip="units in a layer")
    control = Explorer(lambda n: plt.figure(figsize=(1, 1)), "", n=spec).controls["n"]
    assert (control.description, control.tooltip, control.value) == ("n", "units in a layer", 2)


@pytest.mark.parametrize("default, spec", [(False, True), (0, (0, 9)), (0.25, (0.0, 1.0)), ("tanh", ["relu", "tanh"])])
def test_controls_start_at_the_default_of_draw(default, spec):
    def draw(value=default):
        return plt.figure(figsize=(1, 1))

    assert Explorer(draw, "", value=spec).values == {"value": default}


def test_draw_may_have_arguments_without_a_control():
    explorer = Explorer(lambda n, colour="red": plt.figure(figsize=(1, 1), facecolor=colour), "{n}", n=[1, 2])
    assert tuple(shown(explorer)[0][0, 0]) == (255, 0, 0)


def test_a_control_may_be_called_title():
    explorer = Explorer(lambda title: plt.figure(figsize=(1, 1)), "{title}", title=["a", "b"])
    assert shown(explorer)[1] == "a"


@pytest.mark.parametrize("spec", [None, object(), [], (5, 1), (1,), ("a", "b"), widgets.Label])
def test_controls_that_cannot_be_made_are_refused(spec):
    with pytest.raises((TypeError, ValueError)):
        Explorer(lambda width: plt.figure(figsize=(1, 1)), "", width=spec)


@pytest.mark.parametrize("spec", [[1, 2], (1, 20), ["a", "b"]], ids=str)
def test_a_default_that_its_control_does_not_offer_is_refused(spec):
    with pytest.raises((TypeError, ValueError), match="width.*50"):
        Explorer(lambda width=50: plt.figure(figsize=(1, 1)), "", width=spec)


@pytest.mark.parametrize("function", [lambda width: None, lambda: None, lambda width, depth, seed: None])
def test_draw_must_take_the_controls(function):
    with pytest.raises(TypeError, match=r"draw must take the controls \['width', 'depth'\]"):
        Explorer(function, "", width=[1, 2], depth=[1, 2])


@pytest.mark.parametrize("alt", ["{depth}", "{width} {}", "{width", "{width.size}"])
def test_text_may_name_only_the_controls_and_title(alt):
    with pytest.raises(ValueError):
        Explorer(lambda width: plt.figure(figsize=(1, 1)), alt, width=[1, 2])


def test_text_that_names_an_unknown_field_is_refused_by_name():
    with pytest.raises(ValueError, match=r"alt may name the controls \['width'\] and title, got {depth}"):
        Explorer(lambda width: plt.figure(figsize=(1, 1)), "{depth}", width=[1, 2])


def test_no_figure_stays_open(explorer):
    assert not plt.get_fignums()  # or the inline backend would show it a second time
    explorer.controls["width"].value = 16
    assert not plt.get_fignums()


def test_no_figure_stays_open_when_draw_makes_a_new_one_each_time():
    explorer = Explorer(lambda n=1: plt.subplots(figsize=(1, 1))[1], "{n}", n=[1, 2, 3])
    for n in (2, 3, 1):
        explorer.controls["n"].value = n
        assert not plt.get_fignums()


def test_no_figure_stays_open_when_draw_fails_after_making_one():
    def draw(n=1):
        figure = plt.figure(figsize=(1, 1))
        if n == 2:
            raise ValueError("too late")
        return figure

    mine = plt.figure()  # somebody else's: stays
    explorer = Explorer(draw, "{n}", n=[1, 2])
    explorer.controls["n"].value = 2
    assert "too late" in explorer.message.value and plt.get_fignums() == [mine.number]


@pytest.mark.parametrize("layout", [None, "tight", "constrained", "compressed"])
def test_figures_of_any_layout_are_shown(layout):
    ax = plt.subplots(layout=layout)[1]
    explorer = Explorer(lambda n=4: plot_kernel(torch.eye(n), ax=ax), "{n}", n=[4, 400])
    assert explorer.message.value == "" and explorer.png
    explorer.controls["n"].value = 400
    assert explorer.message.value == "" and image(ax).shape == (400, 400)


CHANGES = {
    "data": lambda figure, ax, n: ax.lines[0].set_ydata([n, 1 - n]),
    "title": lambda figure, ax, n: ax.set_title(f"at {n}"),
    "title of the figure": lambda figure, ax, n: figure.suptitle(f"at {n}"),
    "limits": lambda figure, ax, n: ax.set_xlim(-1 - 3 * n, 2),
    "scale": lambda figure, ax, n: ax.set_xscale(["linear", "symlog"][n]),
    "label": lambda figure, ax, n: ax.set_ylabel(f"height {n}"),
    "label's colour": lambda figure, ax, n: ax.yaxis.label.set_color(["k", "r"][n]),
    "ticks": lambda figure, ax, n: ax.set_xticks([0, 1 - n / 2]),
    "a tick's text": lambda figure, ax, n: ax.get_xticklabels()[1].set_color(["k", "r"][n]),
    "grid": lambda figure, ax, n: ax.grid(bool(n)),
    "spines": lambda figure, ax, n: ax.spines[:].set_visible(bool(n)),
    "background": lambda figure, ax, n: ax.set_facecolor(["w", "y"][n]),
    "margin": lambda figure, ax, n: figure.set_facecolor(["w", "y"][n]),
    "size": lambda figure, ax, n: figure.set_size_inches(3 + n, 2),
    "place": lambda figure, ax, n: ax.set_position([0.15, 0.3, 0.1 + 0.1 * n, 0.5]),
    "frame": lambda figure, ax, n: ax.set_axis_on() if n else ax.set_axis_off(),
    "axes": lambda figure, ax, n: ax.set_visible(bool(n)),
    "legend": lambda figure, ax, n: ax.legend(loc=["upper left", "lower right"][n]),
    "a word of the legend": lambda figure, ax, n: ax.get_legend().get_texts()[0].set_text(f"line {n}"),
    "a new line": lambda figure, ax, n: ax.axhline(n / 2),
    "everything": lambda figure, ax, n: (ax.clear(), ax.plot([n, 1])),
    "colour bar": lambda figure, ax, n: plot_kernel((1 + 99 * n) * torch.eye(3), ax=figure.axes[1]),
    "colours": lambda figure, ax, n: plot_kernel(torch.eye(3) - n, ax=figure.axes[1]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_picture_is_that_of_the_whole_figure_whatever_changes(change):
    figure, axes = plt.subplots(1, 2, figsize=(3, 2), layout="constrained")
    axes[0].plot([0, 1], label="line")
    axes[0].set_ylabel("height")
    axes[0].legend(frameon=False, loc="lower right")
    plot_kernel(torch.eye(3), ax=axes[1])

    def draw(n=0):
        change(figure, axes[0], n)
        return figure

    explorer, pictures = Explorer(draw, "{n}", n=[0, 1]), []
    for n in (0, 1, 0):
        explorer.controls["n"].value = n
        assert explorer.message.value == ""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        picture, whole = (pixels(png)[..., :3].astype(int) for png in (explorer.png, buffer.getvalue()))
        assert picture.shape == whole.shape
        assert (abs(picture - whole).max(axis=2) > 50).mean() < 0.0005  # two artists may lie the other way round
        pictures.append(picture)
    assert pictures[0].shape != pictures[1].shape or (pictures[0] != pictures[1]).any()


def test_axes_stay_in_place_while_a_slider_moves():
    ax = plt.subplots(layout="constrained")[1]
    explorer = Explorer(lambda n=4: plot_kernel(1e3 * n * torch.eye(n), ax=ax), "{n}", n=[4, 400])
    before = ax.get_position().bounds
    explorer.controls["n"].value = 400  # longer tick labels
    assert ax.get_position().bounds == pytest.approx(before)


# An exercise's self-check --------------------------------------------------------------------------------------------


def verdict(answer, expected, capsys):
    "What check prints: its verdict on stdout, and nothing else anywhere."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check(answer, expected) is None
    out, err = capsys.readouterr()
    assert out.endswith("\n") and not err
    return out.strip()


def test_whole_numbers_too_large_for_a_float_are_told_apart(capsys):
    assert verdict(2**53, 2**53, capsys) == "Right."
    assert verdict(2**53 + 1, 2**53, capsys).startswith("Not yet")


grid = torch.arange(6.0).reshape(2, 3)
square = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


@pytest.mark.parametrize("expected", [3, 2.5, "relu", (2, 3), grid, True])
@pytest.mark.parametrize("answer", [..., None])
def test_check_knows_what_was_not_attempted(answer, expected, capsys):
    assert verdict(answer, expected, capsys).startswith("Not attempted yet")


@pytest.mark.parametrize("answer, expected", [
    (3, 3), (3.0, 3), (np.int64(3), 3), (torch.tensor(3), 3), (True, True), (np.True_, True),
    (1 / 3, 0.3333333), (0.3335, 1 / 3), (torch.tensor(0.5, requires_grad=True), 0.5), (0, 0.0),
    ("relu", "relu"), (" ReLU ", "relu"),
    (torch.Size([2, 3]), (2, 3)), ((2, 3), torch.Size([2, 3])), ([2, 3], (2, 3)),
    (grid, grid), (grid.numpy(), grid), (grid.tolist(), grid), (grid.double() * 1.0005, grid), (grid + 1e-6, grid),
    ([True, False], [True, False]), ([], []), (math.nextafter(2.5, 3), 2.5),
])
def test_check_says_right(answer, expected, capsys):
    assert verdict(answer, expected, capsys) == "Right."


@pytest.mark.parametrize("answer, expected, message", [
    (grid.flatten(), grid, r"expected shape \(2, 3\), got \(6,\) \(the right number of entries"),
    (grid[0], grid, r"expected shape \(2, 3\), got \(3,\)\."),
    (3.0, grid, r"expected shape \(2, 3\), got \(\)"),
    (grid.T, grid, r"expected shape \(2, 3\), got \(3, 2\) \(transposed\?\)"),
    (square.T, square, "transpose"),
    (-grid, grid, "sign"),
    (-2.5, 2.5, "sign"),
    (-3, 3, "sign"),
    (2 * grid, grid, "too large by a factor 2"),
    (grid / 5, grid, "too small by a factor 5"),
    (10, 5, "too large by a factor 2"),
    (0.5, 2.0, "too small by a factor 4"),
    ([[0, 1, 2], [3, 13, 5]], grid, r"1 of 6 entries differ, first \[1, 1\]: expected 4, got 13"),
    ([1.0, 2, 7, 9], [1.0, 2, 3, 4], r"2 of 4 entries differ, first \[2\]: expected 3, got 7"),
    ([5, 2], [5, 3], r"first \[1\]: got 2"),
    (torch.zeros(3), torch.ones(3), r"3 of 3 entries differ, first \[0\]: expected 1, got 0"),
    ([True, False], [True, True], r"1 of 2 entries differ, first \[1\]"),
    (0.2, 0.0, "0.2 is too large"),
    (-0.2, 0.0, "-0.2 is too small"),
    (-1.0, 2.0, "-1.0 is too small"),
    (1.0, -2.0, "1.0 is too large"),
    (math.nan, 1.0, "1 of 1 entries are NaN or infinite"),
    (grid / 0, grid, "6 of 6 entries are NaN or infinite"),
    ("3", 3, "expected numbers, got str"),
    ("tanh", "relu", "'tanh' is not it"),
    (3, "relu", "3 is not it"),
    (grid, "relu", "is not it"),
    (3.0001, 3, r"3\.0001 is too large"),  # whole numbers must be exact, and a factor of 1 is no hint
    (2.9999, 3, r"2\.9999 is too small"),
    ([1e300, 1.0], [1.0, 2.0], r"2 of 2 entries differ, first \[0\]"),
    (grid.sum(dim=0), grid, r"got \(3,\) \(the sum over the examples"),
    (grid * 1.0 - 0.25, grid, r"off by the same -0\.25\. A bias left out"),
])
def test_check_says_what_differs(answer, expected, message, capsys):
    assert re.search(f"^Not yet: .*{message}", verdict(answer, expected, capsys), re.DOTALL)


@pytest.mark.parametrize("answer", [True, False])
def test_check_of_true_or_false_gives_no_size(answer, capsys):
    text = verdict(answer, not answer, capsys)
    assert text.startswith("Not yet") and not re.search("large|small|factor|sign", text)


@pytest.mark.parametrize("error, verdict_starts", [(0.0009, "Right"), (0.002, "Not yet")])
def test_check_allows_a_tenth_of_a_percent(error, verdict_starts, capsys):
    assert verdict(7.0 * (1 + error), 7.0, capsys).startswith(verdict_starts)


@pytest.mark.parametrize("error, verdict_starts", [(0.9e-5, "Right"), (2e-5, "Not yet")])
def test_check_allows_a_small_error_next_to_large_entries(error, verdict_starts, capsys):
    assert verdict([100.0, 100 * error], [100.0, 0.0], capsys).startswith(verdict_starts)


class Rude:
    def __array__(self, *args, **kwargs):
        raise ArithmeticError("no")


JUNK = [
    "", b"x", 1j, 10**400, float("nan"), range(0), ["a", "b"], {"a": 1}, {1, 2}, [[]], [[1], [1, 2]], [1, None],
    [grid, 3], len, lambda: 0, (n for n in range(3)), object(), [object()], nn.Linear, nn.Linear(2, 2), Figure(),
    string, NotImplemented, torch.zeros(0), torch.ones(2, 2).to_sparse(), np.array("x"),
    np.datetime64("2020-01-01"), Rude(),
]


@pytest.mark.parametrize("expected", [1.5, 3, "relu", (2, 3), grid, True, [True, False], torch.eye(2)],
                         ids=["float", "int", "str", "shape", "array", "bool", "bools", "square"])
@pytest.mark.parametrize("answer", JUNK, ids=lambda answer: type(answer).__name__)
def test_check_never_raises(answer, expected, capsys):
    assert verdict(answer, expected, capsys).startswith("Not yet")


DOUBLES = [((2.0,), 4.0), ((torch.tensor([1.0, 3.0]),), torch.tensor([2.0, 6.0]))]


@pytest.mark.parametrize("answer, expected, message", [
    (lambda a: 2 * a, DOUBLES, r"Right\.$"),
    (lambda a: ..., DOUBLES, "Not attempted yet"),
    (lambda a: None, DOUBLES, "Not attempted yet"),
    (..., DOUBLES, "Not attempted yet"),
    (lambda a: a + 2, DOUBLES, r"Not yet: 2 of 2 .* expected 2, got 3\. Tried: <lambda>\(\[1\.0, 3\.0\]\)"),
    (lambda a: 4.0, DOUBLES, r"Not yet: expected shape \(2,\), got \(\)\. Tried: "),
    (lambda a: a / 0, DOUBLES, r"Not yet: <lambda>\(2\.0\) raises ZeroDivisionError"),
    (lambda: 4.0, DOUBLES, r"Not yet: <lambda>\(2\.0\) raises TypeError"),
    (4.0, DOUBLES, "Not yet: expected a function, got float"),
    (lambda a: a.sum(), [((grid,), grid.sum())], r"Right\.$"),
    (lambda a: a, [((grid,), grid.T)], r"transposed.*Tried: <lambda>\(tensor of shape \(2, 3\)\)"),
])
def test_check_tries_a_function_on_every_case(answer, expected, message, capsys):
    assert re.search(message, verdict(answer, expected, capsys), re.DOTALL)


def test_check_lends_copies_to_the_function(capsys):
    lent = torch.ones(3)
    assert verdict(lambda a: a.mul_(2), [((lent,), 2 * torch.ones(3))], capsys) == "Right."
    assert lent.tolist() == [1, 1, 1]


OPTIONS = {"it halves": "Nobody divides here.", "it doubles <b>": "Twice the terms & no mean."}


@pytest.fixture
def fresh_score(monkeypatch):
    monkeypatch.setattr(ntk_helpers, "_passed", {})
    monkeypatch.setattr(ntk_helpers, "_answered", {})


def test_a_question_says_why_an_option_is_right_or_wrong(fresh_score, capsys):
    question = ask("What does a <sum> do?", OPTIONS, right="it doubles <b>")
    assert repr(question) == "What does a <sum> do?\n  ○ it halves\n  ○ it doubles <b>"
    assert "&lt;sum&gt;" in question.children[0].value and question.reason.value == ""
    wrong, right = question.buttons
    wrong.click()
    assert "Not so." in question.reason.value and "Nobody divides" in question.reason.value and wrong.icon == "times"
    score()
    right.click()
    assert "doubles &lt;b&gt;: Right." in question.reason.value and "terms &amp; no" in question.reason.value
    assert (wrong.icon, right.icon) == ("", "check")
    score()
    assert re.findall(r"(\d of \d) questions", capsys.readouterr().out) == ["0 of 1", "1 of 1"]


def test_a_question_is_text_for_readers_without_a_kernel():
    bundle = ask("Which?", OPTIONS, right="it halves")._repr_mimebundle_()
    assert bundle["text/plain"] == "Which?\n  ○ it halves\n  ○ it doubles <b>"
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_a_question_refuses_a_right_option_that_is_not_there():
    with pytest.raises(ValueError, match="right must be one of the options"):
        ask("Which?", OPTIONS, right="neither")


def test_score_counts_an_exercise_once_however_often_it_is_tried(fresh_score, capsys):
    for answer in (..., 3, 2, 3):
        check(answer, 2 + 1)
    check(1, 2)
    capsys.readouterr()
    score()
    assert capsys.readouterr().out == "Since the last restart: 1 of 2 exercises passed, 0 of 0 questions answered right.\n"


# The module ----------------------------------------------------------------------------------------------------------


def test_every_public_name_exists_and_is_described():
    public = {name: value for name, value in vars(ntk_helpers).items()
              if getattr(value, "__module__", None) == "ntk_helpers" and not name.startswith("_")}
    assert set(public) == {"MLP", "get_grads", "compute_ntk", "cosine", "alignment", "spectrum", "Spectrum", "plot_kernel",
                           "set_style", "show", "Explorer", "check", "ask", "score", "infinite_width_ntk", "Kernels", "train",
                           "History", "linearize", "gradient_flow"}
    assert all(value.__doc__ for value in public.values())
