"What is refused, by which words, and that a model is left as it was, whatever happens meanwhile."

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from definitions import (
    GENERAL,
    METHODS,
    Busy,
    Net,
    assert_close,
    assert_untouched,
    data,
    mlp,
    ntk_by_definition,
    two_layers,
)
from torch import nn
from zoo import MODELS, batch_norm

from ntk import MLP, compute_ntk, get_grads
from ntk.checks import is_close, is_finite

# A model left as it was found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", [*GENERAL, "get_grads"])
@pytest.mark.parametrize("name", ["busy", "shared module", "tied weights", "pruned", "lstm",
                                  "batch norm in eval", "MLP: forward hook", "MLP: PReLU"])
def test_model_is_left_as_it_was(name, method):
    model, x = {"busy": Busy, **MODELS}[name](), data()
    next(model.parameters()).requires_grad_(False)
    *_, with_grad = model.parameters()  # one has a gradient from before, the others have none
    with_grad.grad = torch.full_like(with_grad, 7.0)
    with assert_untouched(model):
        try:
            if method == "get_grads":
                get_grads(model, x)
            else:
                compute_ntk(model, x, method=method)
        except ValueError:
            assert method == "ntk_vector_products"  # declined; that changes nothing either


@pytest.mark.parametrize("method", METHODS)
def test_mlp_is_left_as_it_was(method):
    model = mlp(4, 5)
    model.lin1.bias.requires_grad_(False)
    model.lin2.weight.grad = torch.ones(1, 5, dtype=torch.float64)
    x1, x2 = data(), data(3)
    with assert_untouched(model):
        compute_ntk(model, x1, x2, method=method, chunk_size=2)


def test_training_flags_are_left_as_they_were():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2))
    model.double().train()
    model[1].eval(), model[2].eval()  # the rest stays in training mode, which is fine
    x = data()
    with assert_untouched(model):
        ntk = compute_ntk(model, x)
    assert [module.training for module in model] == [True, False, False, True]
    assert ntk.shape == (5, 5, 2, 2)


def test_hooks_can_still_be_removed():
    model, x, calls = mlp(4, 5), data(), []
    handle = model.lin1.register_forward_hook(lambda *_: calls.append(1))
    compute_ntk(model, x)
    handle.remove()
    calls.clear()
    model(x)
    assert not calls


def test_inputs_are_left_alone():
    x1, x2 = data(5).requires_grad_(), data(3)
    copies = x1.detach().clone(), x2.clone()
    ntk = compute_ntk(mlp(4, 5), x1, x2)
    assert x1.grad is None and not ntk.requires_grad
    assert torch.equal(x1.detach(), copies[0]) and torch.equal(x2, copies[1])


def test_kernel_does_not_spoil_a_backward_pass_under_way():
    model, x = batch_norm(), data()
    loss = model(x).square().sum()
    compute_ntk(model, x)
    loss.backward()  # autograd complains if a tensor it saved was written to meanwhile
    assert model[0].weight.grad.isfinite().all()


class Fails(Busy):
    "At a single example, after it has changed its buffers and drawn a random number."

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


class Interrupted(Busy):
    "By `error` in call number `when`, after it has changed its buffers and drawn a random number."

    def __init__(self, error, when):
        super().__init__()
        self.error, self.when, self.ticks = error, when, itertools.count(1)

    def forward(self, x):
        out = super().forward(x)
        if next(self.ticks) == self.when:
            raise self.error
        return out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("when", [1, 2, 3, 4, 5, 7, 9, 12])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_model_is_left_as_it_was_after_an_interruption(error, when, method):
    model, x = Interrupted(error, when), data()
    model.first.train(), model.last.eval()
    model.first.bias.requires_grad_(False)
    model.last.bias.grad = torch.full_like(model.last.bias, 7.0)
    with assert_untouched(model), pytest.raises((error, ValueError)) as caught:
        compute_ntk(model, x, method=method, chunk_size=1)
    refusal = f'method="{method}"'
    declined = method == "ntk_vector_products" and refusal in str(caught.value)  # before that call
    assert error is MemoryError or caught.type is KeyboardInterrupt or declined


class OutOfMemory(torch.autograd.Function):
    "As on a GPU that cannot hold the gradients."

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError("all of it is in use")


@pytest.mark.parametrize("method", ["auto", "jacobian", "loop"])
def test_a_device_without_memory_is_no_fault_of_the_model(method):
    model, x = Net(lambda net, x: net.last(OutOfMemory.apply(net.first(x)))), data()
    with assert_untouched(model), pytest.raises(torch.OutOfMemoryError, match="in use"):
        compute_ntk(model, x, method=method)


# Inputs that are refused


class Refusal(NamedTuple):
    "What is refused, made anew for each test, and how; NAME in the message is the argument's."

    make: Callable
    error: type | tuple
    message: str


def with_entry(value):
    x = data()
    x[2, 1] = value
    return x


INPUTS = {
    "array": Refusal(lambda: np.zeros((5, 4)), TypeError,
                     r"NAME must be a torch.Tensor of shape \(N, …\), got ndarray"),
    "list": Refusal(lambda: [[0.0] * 4] * 5, TypeError,
                    r"NAME must be a torch.Tensor of shape \(N, …\), got list"),
    "no examples": Refusal(lambda: data()[:0], ValueError,
                           r"NAME must hold at least one example.*got shape \(0, 4\)"),
    "no numbers": Refusal(lambda: data()[:, :0], ValueError,
                          r"NAME must hold.*got shape \(5, 0\)"),
    "one number": Refusal(lambda: data()[0, 0], ValueError,
                          r"NAME must hold at least one example.*got shape \(\)"),
    "too few columns": Refusal(lambda: data(5, 3), ValueError,
                               r"cannot take NAME of shape \(5, 3\)"),
    "no axis for examples": Refusal(
        lambda: data()[0], ValueError,
        r"(cannot take NAME|got \(1,\) for NAME) of shape \(4,\)"),
    "an axis too many": Refusal(
        lambda: data(5, 4, 4), ValueError,
        r"\(N, O\) = \(5, O\), got \(5, 4, 1\) for NAME of shape \(5, 4, 4\)"),
    "float32": Refusal(lambda: data().float(), TypeError,
                       r"NAME must have the model's dtype torch.float64, got torch.float32"),
    "float16": Refusal(lambda: data().half(), TypeError,
                       r"NAME must have the model's dtype torch.float64, got torch.float16"),
    "int64": Refusal(lambda: data().long(), (TypeError, ValueError), r"NAME .*torch.int64"),
    "complex": Refusal(lambda: data().to(torch.complex128), (TypeError, ValueError),
                       r"NAME .*torch.complex128"),
    "another device": Refusal(lambda: data().to("meta"), ValueError,
                              r"NAME must be on the model's device cpu, got meta"),
    "NaN": Refusal(lambda: with_entry(math.nan), ValueError,
                   r"NAME must be finite, got NaN or infinity"),
    "infinity": Refusal(lambda: with_entry(-math.inf), ValueError,
                        r"NAME must be finite, got NaN or infinity"),
}
CALLS = {  # the name an input has in the message → a call where it is the bad one
    "x1": lambda model, bad, good: compute_ntk(model, bad),
    "x2": lambda model, bad, good: compute_ntk(model, good, bad),
    "x": lambda model, bad, good: get_grads(model, bad),
}


@pytest.mark.parametrize("argument", CALLS)
@pytest.mark.parametrize("name", INPUTS)
def test_bad_inputs_are_refused_by_name(name, argument):
    make, error, message = INPUTS[name]
    with pytest.raises(error, match=message.replace("NAME", rf"\b{argument}\b")):
        CALLS[argument](mlp(4, 5), make(), data())


def test_x1_may_not_be_none():
    with pytest.raises(TypeError, match="x1 must be a torch.Tensor.*got NoneType"):
        compute_ntk(mlp(4, 5), None)


@pytest.mark.parametrize("argument", CALLS)
def test_shape_that_the_model_itself_asserts_is_refused_by_name(argument):
    def picky(net, x):
        assert x.shape[1] == 4
        return two_layers(net, x)

    with pytest.raises(ValueError, match=rf"cannot take {argument} of shape \(5, 3\)"):
        CALLS[argument](Net(picky), data(5, 3), data())


# Models that are refused


def with_weight(value):
    def make():
        model = mlp(4, 5)
        with torch.no_grad():
            model.lin2.weight[0, 3] = value
        return model

    return make


def training(module, name):
    "A net of linear layers with the module between them, all in training mode."
    model = nn.Sequential()
    for key, layer in {"first": nn.Linear(4, 3), name: module, "last": nn.Linear(3, 2)}.items():
        model.add_module(key, layer)
    return model.double().train()


def returns(function):
    return lambda: Net(lambda net, x: function(two_layers(net, x)))


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
    "function": Refusal(lambda: two_layers, TypeError,
                        "model must be a torch.nn.Module, got function"),
    "class": Refusal(lambda: MLP, TypeError, "model must be a torch.nn.Module, got type"),
    "no parameters": Refusal(nn.ReLU, ValueError, "no trainable parameter.*requires_grad=True"),
    "frozen": Refusal(lambda: mlp(4, 5).requires_grad_(False), ValueError,
                      "no trainable parameter.*requires_grad=True"),
    "NaN weight": Refusal(with_weight(math.nan), ValueError,
                          "weights must be finite.*lin2.weight"),
    "infinite weight": Refusal(with_weight(math.inf), ValueError,
                               "weights must be finite.*lin2.weight"),
    # an output that is not (N, O), of numbers
    "NaN output": Refusal(returns(lambda z: (z - 1e9).log()), ValueError,
                          "outputs must be finite"),
    "output (N,)": Refusal(returns(lambda z: z[:, 0]), ValueError,
                           r"\(N, O\) = \(5, O\), got \(5,\)"),
    "output (N, O, 1)": Refusal(returns(lambda z: z[..., None]), ValueError,
                                r"\(N, O\) = \(5, O\), got \(5, 2, 1\)"),
    "output (N, 0)": Refusal(returns(lambda z: z[:, :0]), ValueError,
                             r"\(N, O\) = \(5, O\), got \(5, 0\)"),
    "output (O, N)": Refusal(returns(lambda z: z.T), ValueError,
                             r"\(N, O\) = \(5, O\), got \(2, 5\)"),
    "output ()": Refusal(returns(lambda z: z.sum()), ValueError,
                         r"\(N, O\) = \(5, O\), got \(\)"),
    "tuple": Refusal(returns(lambda z: (z, z)), TypeError, r"one tensor \(N, O\), got tuple"),
    "dict": Refusal(returns(lambda z: {"out": z}), TypeError, r"one tensor \(N, O\), got dict"),
    "integer output": Refusal(returns(lambda z: z.round().long()), (TypeError, ValueError),
                              "output.*(int64|integer)"),
    # examples that are not independent
    "batch norm": Refusal(lambda: training(nn.BatchNorm1d(3), "norm"), ValueError,
                          r"BatchNorm1d 'norm' is in training mode.*model.eval\(\)"),
    "dropout": Refusal(lambda: training(nn.Dropout(0.2), "drop"), ValueError,
                       r"Dropout 'drop' is in training mode.*model.eval\(\)"),
    "batch norm deep inside": Refusal(
        lambda: nn.Sequential(training(nn.BatchNorm1d(3), "norm")), ValueError,
        "BatchNorm1d '0.norm'"),
    "batch norm that always mixes": Refusal(
        lambda: training(nn.BatchNorm1d(3, track_running_stats=False), "norm").eval(), ValueError,
        MIXES),
    "functional dropout": Refusal(returns(lambda z: F.dropout(z, 0.5)), ValueError, MIXES),
    "softmax over the batch": Refusal(returns(lambda z: z.softmax(0)), ValueError, MIXES),
    "batch mean": Refusal(returns(lambda z: z - z.mean(0)), ValueError, MIXES),
    "sum over the rows above": Refusal(returns(lambda z: z.cumsum(0)), ValueError, MIXES),
    "difference from the first row": Refusal(
        lambda: Net(lambda net, x: two_layers(net, x - x[:1])), ValueError, MIXES),
    "difference from the last row": Refusal(
        lambda: Net(lambda net, x: two_layers(net, x - x[-1:])), ValueError, MIXES),
    "weights that the model changes": Refusal(
        lambda: nn.Sequential(nn.Linear(4, 4), Renormed()).double(), ValueError,
        "changes its own weights"),
}


@pytest.mark.parametrize("function", [compute_ntk, get_grads])
@pytest.mark.parametrize("name", REFUSED_MODELS)
def test_models_without_a_kernel_are_refused(name, function):
    make, error, message = REFUSED_MODELS[name]
    with pytest.raises(error, match=message):
        function(make(), data())


def test_functional_dropout_is_found_though_it_rarely_strikes():
    model = mlp(4, 10, activation=lambda z: F.dropout(torch.tanh(z), 0.1))
    x = data(20)
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


@pytest.mark.parametrize("module", [nn.Dropout(0.0), nn.GroupNorm(1, 3)])
def test_what_only_looks_like_mixing_is_served(module):
    model, x = training(module, "between"), data()
    assert_close(compute_ntk(model, x), ntk_by_definition(model, x))


# Numbers


@pytest.mark.parametrize("finite, tensor", [
    (True, torch.tensor([1e300, -1e300], dtype=torch.float64)),
    (False, torch.tensor([0.0, math.nan])),
    (False, torch.tensor([math.inf, 0.0])),
    (False, torch.tensor([0.0, -math.inf])),
    (True, torch.zeros(0)),
    (True, torch.tensor([1, 2])),
])
def test_whether_numbers_are_finite(finite, tensor):
    assert is_finite(tensor) is finite


@pytest.mark.parametrize("dtype, error", [(torch.float32, 3.4e-4), (torch.float64, 1.4e-8)])
def test_close_means_half_of_the_digits_next_to_the_largest_entry(dtype, error):
    expected = torch.tensor([0.0, -100.0], dtype=dtype)  # `error` is a little less than √ε
    assert is_close(expected + 100 * error, expected)
    assert not is_close(expected + 110 * error, expected)
