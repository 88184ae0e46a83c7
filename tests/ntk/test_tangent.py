"""linearize against Jacobians and finite differences, gradient_flow against matrix exponentials and
integrated differential equations."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from definitions import Net, assert_close, data, gradients, mlp, two_layers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import nn
from torch.func import jacrev, vmap
from zoo import ZOO, LastState, Own, sequence, tied

from ntk import compute_ntk, get_grads, gradient_flow, linearize, spectrum, train

# Any model

# these have no copy, or one that shares weights with them
NO_COPY = {"pruned", "MLP: pruned", "old weight norm", "MLP: closure over its own weight",
           "MLP: forward replaced", "scripted"}


def test_the_names_of_what_has_no_copy_are_names():
    assert ZOO.keys() >= NO_COPY


def made(name):
    make, inputs = ZOO[name]
    torch.manual_seed(0)
    model, x = make(), inputs(6)
    return model, x


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ZOO)
def test_the_tangent_of_any_model_has_its_outputs_and_slopes_or_is_declined(name):
    model, x = made(name)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    try:
        f_lin = linearize(model)
        grads = get_grads(model, x).reshape(-1, trainable)
        delta = torch.randn(trainable, dtype=torch.float64)
        got = f_lin(x, delta)
    except ValueError as error:
        assert name in NO_COPY and "linearize" in str(error) and "cop" in str(error)
        return
    assert name not in NO_COPY
    expected = model(x.clone()) + (grads @ delta).view_as(got)
    assert torch.allclose(got, expected, rtol=1e-8, atol=1e-9)
    assert torch.equal(got, f_lin(x, delta))  # the first call has left nothing behind


# linearize


@pytest.mark.parametrize("make", [
    lambda: mlp(4, 20, activation="gelu"),
    lambda: mlp(4, 8, 2, parametrization="ntk", activation="tanh"), tied, LastState,
], ids=["gelu", "ntk", "tied", "lstm"])
def test_linearize_is_the_tangent(make):
    x, model = data(6), make()
    grads, f0 = get_grads(model, x), model(x).detach()
    grads = grads.reshape(*f0.shape, -1)
    f_lin = linearize(model)
    rng = np.random.default_rng(0)
    delta = torch.tensor(rng.normal(size=grads.shape[-1]), requires_grad=True)
    out = f_lin(x, delta)
    torch.testing.assert_close(out, f0 + grads @ delta)
    torch.testing.assert_close(f_lin(x, torch.zeros_like(delta)), f0)
    slope, = torch.autograd.grad(out[1, 0], delta)
    torch.testing.assert_close(slope, grads[1, 0])
    at = torch.cat([p.detach().flatten() for p in model.parameters()])
    errors = []
    for h in (1e-2, 1e-3):  # the distance to the model is of second order
        moved = copy.deepcopy(model)
        nn.utils.vector_to_parameters(at + h * delta.detach(), moved.parameters())
        errors.append((moved(x) - f_lin(x, h * delta)).abs().max().item())
    assert errors[1] < errors[0] / 50


def test_linearize_keeps_its_point():
    x, y = data(6), data(6, 1)
    model = mlp(4, 20)
    f_lin, f0 = linearize(model), model(x).detach()
    train(model, x, y, lr=0.05, steps=10)
    torch.testing.assert_close(f_lin(x, torch.zeros(121, dtype=x.dtype)), f0)
    assert not torch.allclose(model(x), f0)


def test_linearize_says_what_is_wrong():
    x = data(6)
    f_lin = linearize(mlp(4, 20))
    with pytest.raises(ValueError, match=r"\(121,\)"):
        f_lin(x, torch.zeros(120, dtype=x.dtype))
    with pytest.raises(TypeError, match="torch.nn.Module"):
        linearize(f_lin)
    with pytest.raises(ValueError, match="trainable"):
        linearize(mlp(4, 20).requires_grad_(False))
    f_lin = linearize(nn.Sequential(nn.Linear(3, 2), nn.Dropout()))
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        f_lin(torch.randn(5, 3), torch.zeros(8))


def tangent_by_definition(model, x, delta):
    return model(x.clone()).detach() + gradients(model, x) @ delta


def random_move(model):
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return torch.randn(size, dtype=torch.float64)


class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()


class InNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.slope = np.cos(x.detach().numpy())
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    def backward(ctx, gradient):
        return torch.from_numpy(gradient.detach().numpy() * ctx.slope)


def with_a_hook(hook):
    "The hook is on a tensor inside the model."
    def hooked(net, x):
        z = torch.tanh(net.first(x))
        if z.requires_grad:
            z.register_hook(hook)
        return net.last(z)

    return Net(hooked)


def bag(mode):
    model = sequence(nn.EmbeddingBag(7, 3, mode=mode), nn.Tanh(), nn.Linear(3, 2))
    return model, torch.randint(0, 7, (5, 4))


def once(net, x):
    return OnceDifferentiable.apply(two_layers(net, x))


def in_numpy(net, x):
    return InNumpy.apply(two_layers(net, x))


def weight_in_a_list():
    model = Own(lambda net, x: x @ net.weights[0].T, last=nn.Linear(4, 2))
    model.weights = [model.last.weight]
    return model


NO_SECOND_DERIVATIVE = {
    "bag of means": lambda: bag("mean"),
    "bag of sums": lambda: bag("sum"),
    "bag of maxima": lambda: bag("max"),
    "differentiable once": lambda: (Net(once), data()),
    "NumPy inside": lambda: (Net(in_numpy), data()),
    "hook": lambda: (with_a_hook(lambda gradient: 2 * gradient), data()),
    "weight read from a list": lambda: (weight_in_a_list(), data()),
}


@pytest.mark.parametrize("name", NO_SECOND_DERIVATIVE)
def test_the_tangent_does_not_need_a_second_derivative(name):
    model, x = NO_SECOND_DERIVATIVE[name]()
    delta = random_move(model).requires_grad_()
    got = linearize(model)(x, delta)
    assert_close(got.detach(), tangent_by_definition(model, x, delta.detach()), 1e-12)
    slope, = torch.autograd.grad(got[1, 0], delta)
    assert_close(slope, gradients(model, x)[1, 0], 1e-12)


def as_array(delta):
    return delta.numpy()


def backwards(delta):
    return delta.flip(0).numpy()[::-1]


@pytest.mark.parametrize("given_as", [torch.clone, as_array, backwards, torch.Tensor.tolist])
def test_a_move_may_be_a_tensor_an_array_or_a_list(given_as):
    model, x = mlp(4, 5, 2), data()
    delta = random_move(model)
    expected = tangent_by_definition(model, x, delta)
    assert_close(linearize(model)(x, given_as(delta)), expected, 1e-12)


@pytest.mark.parametrize("delta, error", [
    (None, TypeError), ("far", TypeError), ({"lin1.weight": 1.0}, TypeError),
    ([None] * 37, TypeError), (0.0, ValueError), ([[0.0] * 37], ValueError),
    ([0j] * 37, ValueError), ([[1], [1, 2]], ValueError),
    (torch.zeros(37, dtype=torch.complex128), ValueError),
], ids=str)
def test_a_refusal_of_a_move_names_it(delta, error):
    with pytest.raises(error, match="Δθ must"):
        linearize(mlp(4, 5, 2))(data(), delta)


def test_inputs_may_require_a_gradient():
    model, x = mlp(4, 5, 2), data()
    delta = random_move(model)
    expected = tangent_by_definition(model, x, delta)
    f_lin = linearize(model)
    for inputs in (x.clone().requires_grad_(), x.clone().requires_grad_() * 1):
        got = f_lin(inputs, delta)
        assert not got.requires_grad
        assert_close(got, expected, 1e-12)


def functional_dropout(net, x):
    return F.dropout(two_layers(net, x), 0.5)


def mixed(net, x):
    return two_layers(net, x - x.mean(0))


REFUSED = {
    "dropout": (lambda: Net(functional_dropout), "depends on the others in the batch or on chance"),
    "noise": (lambda: Net(lambda net, x: two_layers(net, x) + torch.rand(2)), "on chance"),
    "examples that mix": (lambda: Net(mixed), "on the others"),
    "softmax over examples": (lambda: Net(lambda net, x: two_layers(net, x).softmax(0)),
                              "on the others"),
    "batch norm in training": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)).double(),
                               r"call model.eval\(\) first"),
    "a hook that mixes examples": (lambda: with_a_hook(lambda gradient: gradient / gradient.norm()),
                                   "a hook in the model mixes examples"),
    "a gradient of NaN": (lambda: Net(lambda net, x: (0 * two_layers(net, x)).square().sqrt()),
                          "gradients must be finite"),
    "outputs of NaN": (lambda: Net(lambda net, x: two_layers(net, x) / 0), "must be finite"),
}


@pytest.mark.parametrize("make, says", REFUSED.values(), ids=REFUSED)
def test_linearize_refuses_what_compute_ntk_refuses(make, says):
    model, x = make(), data()
    with pytest.raises(ValueError):
        compute_ntk(model, x)
    f_lin = linearize(model)
    for _ in range(2):
        with pytest.raises(ValueError, match=says):
            f_lin(x, torch.zeros_like(random_move(model)))


def test_inputs_that_changed_are_checked_again():
    model, x = mlp(4, 5), data()
    f_lin, delta = linearize(model), random_move(model)
    f_lin(x, delta)
    x[0] = math.nan
    with pytest.raises(ValueError, match="x must be finite"):
        f_lin(x, delta)


def test_a_hook_on_a_parameter_is_refused():
    model = mlp(4, 5)
    model.lin1.weight.register_hook(lambda gradient: 0 * gradient)
    with pytest.raises(ValueError, match="lin1.weight has a hook, which a copy"):
        linearize(model)


def test_the_tangent_can_be_transformed_in_the_move_alone():
    model, x = mlp(4, 5, 2), data()
    moves = torch.stack([random_move(model) for _ in range(3)])
    expected = torch.stack([tangent_by_definition(model, x, move) for move in moves])
    assert_close(vmap(linearize(model), (None, 0))(x, moves), expected, 1e-12)  # its first call
    f_lin = linearize(model)
    assert_close(jacrev(lambda move: f_lin(x, move))(moves[0]), gradients(model, x), 1e-12)
    with pytest.raises(ValueError, match="in Δθ, and not in x"):
        jacrev(lambda inputs: f_lin(inputs, moves[0]))(x)
    with torch.no_grad():
        assert not f_lin(x, moves[0].clone().requires_grad_()).requires_grad


# gradient_flow


def kernel(n=5, seed=0, rank=None):
    a = np.random.default_rng(seed).normal(size=(n, rank or n + 3))
    return torch.tensor(a @ a.T)


def integrated(ntk, ntk_test, targets, initial, initial_test, times):
    "Outputs (T, N, O) and (T, M, O) by an integrator that knows only the differential equation."
    n, columns = targets.shape

    def slope(_, f):
        residual = f[:n * columns].reshape(n, columns) - targets
        return np.concatenate([(-ntk @ residual).ravel(), (-ntk_test @ residual).ravel()])

    start = np.concatenate([initial.ravel(), initial_test.ravel()])
    solution = solve_ivp(slope, (0, max(times)), start, t_eval=sorted(times), rtol=1e-9,
                         atol=1e-11, method="LSODA").y.T
    in_order_of_times = solution[np.argsort(np.argsort(times))]
    seen, unseen = np.split(in_order_of_times, [n * columns], axis=1)
    return seen.reshape(len(times), n, columns), unseen.reshape(len(times), -1, columns)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 6), m=st.integers(1, 4), outputs=st.sampled_from([None, 1, 3]),
       seed=st.integers(0, 10**6))
def test_gradient_flow_solves_its_differential_equation(n, m, outputs, seed):
    rng = np.random.default_rng(seed)
    whole, times = kernel(n + m, seed).numpy(), [0.0, 0.01, 0.5, 0.1]
    ntk, ntk_test = whole[:n, :n], whole[n:, :n]
    targets, initial, initial_test = (rng.normal(size=(k, outputs or 1)) for k in (n, n, m))
    expected = integrated(ntk, ntk_test, targets, initial, initial_test, times)
    if outputs is None:
        targets, initial, initial_test = targets[:, 0], initial[:, 0], initial_test[:, 0]
        expected = [trajectory[:, :, 0] for trajectory in expected]
    got = gradient_flow(ntk, targets, initial, times, ntk_test=ntk_test, initial_test=initial_test)
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == torch.float64 and one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert torch.equal(got[0], gradient_flow(ntk, targets, initial, times))


def test_gradient_flow_is_the_matrix_exponential_and_ends_in_kernel_regression():
    whole = kernel(9)
    ntk, ntk_test = whole[:5, :5], whole[5:, :5]
    rng = np.random.default_rng(1)
    y, f0, f0_test = (torch.tensor(rng.normal(size=n)) for n in (5, 5, 4))
    got, got_test = gradient_flow(ntk, y, f0, [0.2, math.inf], ntk_test=ntk_test,
                                  initial_test=f0_test)
    torch.testing.assert_close(got[0], y + torch.linalg.matrix_exp(-0.2 * ntk) @ (f0 - y))
    torch.testing.assert_close(got[1], y)
    regression = f0_test + ntk_test @ torch.linalg.solve(ntk, y - f0)
    torch.testing.assert_close(got_test[1], regression)


@pytest.mark.slow
def test_gradient_flow_is_the_limit_of_gradient_descent_of_the_linear_model():
    x, y = data(6, 8), data(6, 1)
    model = nn.Linear(8, 1).double()
    ntk, f0 = compute_ntk(model, x), model(x).detach()
    lr = 1e-3 / spectrum(ntk).eigenvalues[0].item()
    history = train(model, x, y, lr=lr, steps=3000, every=1000)
    flow = gradient_flow(ntk, y[:, 0], f0[:, 0], history.times)
    torch.testing.assert_close(history.outputs, flow, rtol=0, atol=2e-3)


def test_a_singular_kernel_is_said_so_and_solved_by_the_pseudoinverse():
    whole = kernel(8, rank=3)
    ntk, ntk_test = whole[:5, :5], whole[5:, :5]
    y, f0, f0_test = torch.arange(5.0), torch.ones(5), torch.zeros(3)
    with pytest.warns(UserWarning, match="2 of 5 eigenvalues") as found:
        got, got_test = gradient_flow(ntk, y, f0, [0.0, 1.0, math.inf], ntk_test=ntk_test,
                                      initial_test=f0_test)
    assert found[0].filename == __file__
    inverse, residual = torch.linalg.pinv(ntk, hermitian=True, rtol=1e-10), (y - f0).double()
    torch.testing.assert_close(got[0], f0.double())
    torch.testing.assert_close(got[1], y - torch.linalg.matrix_exp(-ntk) @ residual)
    torch.testing.assert_close(got[2], f0 + ntk @ inverse @ residual)
    torch.testing.assert_close(got_test[2], f0_test + ntk_test @ inverse @ residual)


def test_a_kernel_may_be_indefinite_by_no_more_than_rounding():
    y, f0 = torch.ones(3), torch.zeros(3)
    with pytest.warns(UserWarning, match="1 of 3"):
        gradient_flow(torch.diag(torch.tensor([1, 1, -1e-14]).double()), y, f0, [1.0])
    with pytest.raises(ValueError, match="semidefinite, got an eigenvalue -1e-12"):
        gradient_flow(torch.diag(torch.tensor([1, 1, -1e-12]).double()), y, f0, [1.0])


def test_a_kernel_of_zeros_moves_nothing():
    with pytest.warns(UserWarning, match="3 of 3"):
        got = gradient_flow(torch.zeros(3, 3), [1, 2, 3], [0, 0, 0], [math.inf])
    assert torch.equal(got, torch.zeros(1, 3).double())


def test_a_float32_kernel_is_singular_to_its_own_precision():
    v = torch.linspace(1, 2, 6)
    with pytest.warns(UserWarning, match="5 of 6"):
        gradient_flow(torch.outer(v, v), v, 0 * v, [math.inf])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gradient_flow(torch.eye(6), v, 0 * v, [1.0]).dtype == torch.float64


FLOW = {"ntk": kernel(), "targets": [1.0] * 5, "initial": [0.0] * 5, "times": [1.0]}
WRONG_FLOWS = {
    "kernel not square": ({"ntk": torch.ones(5, 4)}, "square"),
    "kernel of other size": ({"ntk": kernel(4)}, r"\(4,\)"),
    "kernel with four axes": ({"ntk": torch.ones(5, 5, 2, 2)}, "pair of outputs"),
    "not symmetric": ({"ntk": torch.triu(kernel())}, "symmetric"),
    "negative": ({"ntk": -kernel()}, "semidefinite"),
    "indefinite": ({"ntk": kernel() - 2 * torch.eye(5)}, "semidefinite"),
    "NaN": ({"ntk": kernel() * math.nan}, "finite"),
    "complex": ({"ntk": kernel() + 0j}, "kernel must be real"),
    "complex targets": ({"targets": [1j] * 5}, "targets must be real"),
    "complex initial": ({"initial": [0j] * 5}, "initial must be real"),
    "complex times": ({"times": [1j]}, "times must be real"),
    "complex test kernel": ({"ntk_test": torch.ones(2, 5) + 0j, "initial_test": [0.0] * 2}, "real"),
    "complex initial_test": (
        {"ntk_test": torch.ones(2, 5), "initial_test": [0j] * 2}, "initial_test must be real"),
    "targets of other shape": ({"targets": [[1.0]] * 5}, "targets"),
    "targets NaN": ({"targets": [math.nan] * 5}, "finite"),
    "times negative": ({"times": [-1.0]}, "times"),
    "times NaN": ({"times": [math.nan]}, "times"),
    "one time": ({"times": 1.0}, "times"),
    "half of the test data": ({"ntk_test": torch.ones(2, 5)}, "together"),
    "test kernel transposed": (
        {"ntk_test": torch.ones(5, 2), "initial_test": [0.0] * 2}, "ntk_test"),
    "initial_test of other shape": (
        {"ntk_test": torch.ones(2, 5), "initial_test": [[0.0]] * 2}, "ntk_test"),
    "initial_test NaN": (
        {"ntk_test": torch.ones(2, 5), "initial_test": [math.nan] * 2}, "ntk_test"),
}


@pytest.mark.parametrize(("changes", "says"), WRONG_FLOWS.values(), ids=WRONG_FLOWS)
def test_gradient_flow_refuses(changes, says):
    with pytest.raises(ValueError, match=says):
        gradient_flow(**{**FLOW, **changes})


def test_lists_are_read_in_float64():
    ntk, y, times = [[1 / 3, 0.0], [0.0, 1e-9]], [0.1, 0.7], [0.3, math.inf]
    arrays = [np.array(a) for a in (ntk, y, [0.0, 0.0], times)]
    got = gradient_flow(ntk, y, [0.0, 0.0], times)
    assert torch.equal(got, gradient_flow(*arrays))
    assert got[1].tolist() == y  # the second mode is slow, but in float64 no zero
    pair = gradient_flow(ntk, y, [0.0, 0.0], times, ntk_test=[[0.1, 0.2]], initial_test=[0.3])
    expected = 0.3 + np.array([[0.1, 0.2]]) @ np.linalg.solve(ntk, y)
    assert_close(pair[1][1], expected, 1e-12)
