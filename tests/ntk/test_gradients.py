"The Jacobian: of small nets, of every model of the zoo, and the model as a function of its state."

import copy
import functools

import pytest
import torch
from definitions import Net, assert_close, data, gradients, mlp, two_layers
from torch import nn
from zoo import ZOO, example, shared_module, tied

from ntk import get_grads
from ntk.gradients import functional, jacobian, jacobian_by_loop, stateless

# get_grads


@pytest.mark.parametrize("outputs, shape", [(1, (5, 31)), (3, (5, 3, 43))])
def test_gradients_are_finite_differences_of_the_outputs(outputs, shape):
    model, x, step = mlp(4, 5, outputs, activation="tanh"), data(), 1e-5
    theta = nn.utils.parameters_to_vector(model.parameters()).detach()

    def outputs_at(k, change):
        moved = theta.clone()
        moved[k] += change
        nn.utils.vector_to_parameters(moved, model.parameters())
        return model(x).detach()

    columns = [(outputs_at(k, step) - outputs_at(k, -step)) / (2 * step)
               for k in range(len(theta))]
    nn.utils.vector_to_parameters(theta, model.parameters())
    assert_close(get_grads(model, x), torch.stack(columns, -1).squeeze(1), 1e-8)
    assert get_grads(model, x).shape == shape


def test_gradients_of_a_linear_model_are_its_inputs():
    model, x = nn.Linear(4, 1).double(), data()
    assert_close(get_grads(model, x), torch.cat([x, torch.ones(5, 1)], 1), 1e-14)


@pytest.mark.filterwarnings("ignore")  # torch's own, about nested tensors and torch.jit
@pytest.mark.parametrize("name", ZOO)
def test_gradients_of_any_model_follow_its_parameters(name):
    model, x = example(name).model, example(name).x1
    assert_close(get_grads(model, x), gradients(model, x).squeeze(1))


def test_gradients_take_no_part_in_a_graph():
    assert not get_grads(mlp(4, 5), data().requires_grad_()).requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_do_not_need_grad_mode(mode):
    model, x = mlp(4, 5), data()
    expected = gradients(model, x).squeeze(1)
    with mode():
        made_here = x * 1  # an inference tensor in one of the modes
        assert_close(get_grads(model, made_here), expected)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


# The Jacobian, by vmap and by a loop

BY_VMAP_AND_BY_LOOP = [jacobian, jacobian_by_loop]


@pytest.mark.parametrize("function", BY_VMAP_AND_BY_LOOP)
@pytest.mark.parametrize("names, columns", [
    (None, slice(0, 43)),
    (["lin1.weight"], slice(0, 20)),
    (["lin2.weight", "lin2.bias"], slice(25, 43)),
])
def test_only_the_columns_of_the_parameters_named(names, columns, function):
    model, x = mlp(4, 5, 3), data()
    assert_close(function(model, x, names), gradients(model, x)[:, :, columns])


@pytest.mark.parametrize("function", BY_VMAP_AND_BY_LOOP)
def test_a_frozen_parameter_has_no_columns(function):
    model, x = mlp(4, 5), data()
    model.lin1.requires_grad_(False)
    assert function(model, x).shape == (5, 1, 6)
    assert_close(function(model, x), gradients(model, x))


@pytest.mark.parametrize("function", BY_VMAP_AND_BY_LOOP)
def test_sparse_gradients_become_dense(function):
    model = nn.Sequential(nn.Embedding(7, 3, sparse=True), nn.Flatten(), nn.Linear(6, 2)).double()
    x, dense = torch.randint(0, 7, (4, 2)), copy.deepcopy(model)
    dense[0].sparse = False
    assert_close(function(model, x), gradients(dense, x))


def test_a_loop_serves_what_vmap_does_not():
    calls = []

    def not_under_vmap(net, x):
        calls.append(1)
        return two_layers(net, x) * (1.0 if x.sum() > 0 else 2.0)  # a branch on data

    model, x = Net(not_under_vmap), data()
    expected = gradients(model, x)
    calls.clear()
    assert_close(jacobian(model, x), expected)
    assert len(calls) >= 5  # once for each example, at least


# The model as a function


def doubled(model):
    "{name: value} with every parameter twice as large, and a model that has these."
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p *= 2
    return {name: p.detach() for name, p in other.named_parameters()}, other


@pytest.mark.parametrize("make", [functools.partial(mlp, 4, 5), tied, shared_module])
def test_a_model_without_its_state_takes_another(make):
    model, x = make(), data()
    own = list(model.parameters())
    state, other = doubled(model)
    assert torch.equal(stateless(model)(state, x), other(x))
    assert all(p is q for p, q in zip(own, model.parameters(), strict=True))


def test_a_state_may_hold_buffers():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double().eval(), data()
    mean, before = torch.ones(3, dtype=torch.float64), model(x).detach()
    got = stateless(model)({"1.running_mean": mean}, x)
    assert_close(got.detach(), before - 1 / (1 + 1e-5) ** 0.5, 1e-12)  # variance 1, weight 1
    assert torch.equal(model[1].running_mean, torch.zeros(3))


def test_what_is_not_in_the_function_stays_as_it_is():
    model, x = mlp(4, 5), data()
    model.lin2.bias.requires_grad_(False)
    f, params = functional(model, ["lin1.bias"])
    assert list(params) == ["lin1.bias"]
    _, everything = functional(model)
    assert list(everything) == ["lin1.weight", "lin1.bias", "lin2.weight"]
    other = copy.deepcopy(model)
    nn.init.ones_(other.lin1.bias)
    got = f({"lin1.bias": torch.ones(5, dtype=torch.float64)}, x[0])
    assert_close(got.detach(), other(x[:1])[0].detach(), 1e-14)


def test_inputs_changed_in_place_are_copies():
    def change_inputs(net, x):
        x *= 2
        return two_layers(net, x)

    model, x = Net(change_inputs), data()
    before = x.clone()
    get_grads(model, x)
    assert torch.equal(x, before)
