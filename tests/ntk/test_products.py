"Θ v without Θ: against the full kernel by its definition, and what SciPy's solvers make of it."

import numpy as np
import pytest
import torch
from definitions import Net, assert_untouched, data, mlp, ntk_by_definition, two_layers
from scipy.sparse.linalg import cg, eigsh
from torch import nn
from zoo import example

from ntk import ntk_operator
from ntk.products import pushed


def matrix(model, x):
    "The kernel by its definition as a matrix (N·O, N·O), an example's outputs side by side."
    ntk = ntk_by_definition(model, x)
    ntk = torch.as_tensor(ntk)
    if ntk.ndim == 2:
        return ntk.numpy()
    n, _, o, _ = ntk.shape
    return ntk.permute(0, 2, 1, 3).reshape(n * o, n * o).numpy()


MODELS = ["batch norm in eval", "conv", "tied weights", "layer norm", "lstm", "residual blocks",
          "embedding with padding", "frozen first layer", "one output constant"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_a_product_is_that_with_the_kernel(name):
    model, x, *_ = example(name)
    theta = matrix(model, x)
    with assert_untouched(model):
        operator = ntk_operator(model, x)
        v = np.random.default_rng(0).standard_normal(len(theta))
        got = operator @ v
    assert operator.shape == theta.shape and operator.dtype == theta.dtype == got.dtype
    np.testing.assert_allclose(got, theta @ v, rtol=0, atol=1e-10 * abs(theta @ v).max())
    np.testing.assert_allclose(operator.T @ v, got, rtol=0, atol=1e-12 * abs(got).max())
    both = np.stack([v, v[::-1]], axis=1)
    np.testing.assert_allclose(operator @ both, theta @ both, atol=1e-10 * abs(theta @ v).max())


@pytest.mark.parametrize("outputs", [1, 3])
def test_batches_of_examples_give_the_same_product(outputs, monkeypatch):
    model, x = mlp(4, 5, outputs), data(7)
    v = np.random.default_rng(0).standard_normal(7 * outputs)
    monkeypatch.setattr("ntk.memory.MEMORY_BUDGET", 1)  # a batch is one example
    np.testing.assert_allclose(ntk_operator(model, x) @ v, matrix(model, x) @ v, rtol=1e-10)


def test_the_largest_eigenvalues_are_those_of_the_kernel():
    model, x = mlp(4, 20, 2), data(12)
    expected = np.linalg.eigvalsh(matrix(model, x))[-4:]
    found = eigsh(ntk_operator(model, x), k=4, return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(found), expected, rtol=1e-9)


def test_conjugate_gradients_solve_a_regression():
    model, x = mlp(4, 200, activation="tanh"), data(8)
    theta, y = matrix(model, x), np.random.default_rng(0).standard_normal(8)
    found, status = cg(ntk_operator(model, x), y, rtol=1e-12, maxiter=1000)
    assert status == 0
    np.testing.assert_allclose(theta @ found, y, atol=1e-9)


def test_float32_stays_float32_and_keeps_six_digits():
    model, x = mlp(4, 50, 2), data(6)
    theta, v = matrix(model, x), np.random.default_rng(0).standard_normal(12)
    operator = ntk_operator(model.float(), x.float())
    got = operator @ v.astype(np.float32)
    assert operator.dtype == got.dtype == np.float32
    np.testing.assert_allclose(got, theta @ v, atol=1e-5 * abs(theta @ v).max())


class OnlyBackward(torch.autograd.Function):
    "x²: a derivative, and one of that; no forward mode."

    @staticmethod
    def forward(x):
        return x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        [x] = ctx.saved_tensors
        return 2 * x * grad


def test_what_has_no_forward_mode_is_pushed_by_the_transpose_of_backward():
    w, move = data(4)[0], data(4)[1]
    got = pushed(lambda p: OnlyBackward.apply(p["w"]), {"w": w}, {"w": move})
    torch.testing.assert_close(got, 2 * w * move)
    model, x = Net(lambda net, x: net.last(OnlyBackward.apply(net.first(x)))), data()
    v = np.random.default_rng(0).standard_normal(10)
    np.testing.assert_allclose(ntk_operator(model, x) @ v, matrix(model, x) @ v, rtol=1e-10)


def hooked(net, x):
    z = net.first(x)
    if z.requires_grad:
        z.register_hook(lambda gradient: 2 * gradient)
    return net.last(torch.tanh(z))


@pytest.mark.parametrize("model, x, message", [
    (Net(hooked), data(5), "forward and backward mode disagree"),
    (Net(lambda net, x: two_layers(net, x - x.mean(0))), data(5), "depends on the others"),
    (nn.Sequential(nn.Linear(4, 2), nn.Dropout()).double(), data(5), "training mode"),
    (Net(two_layers), data(5, 3), "cannot take x"),
])
def test_what_compute_ntk_refuses_is_refused(model, x, message):
    with pytest.raises(ValueError, match=message):
        ntk_operator(model, x)
