"""Many models as one, held against each by itself; and models that are in float64 for a while."""

import copy

import pytest
import torch
from definitions import Net, assert_close, data, gradients, mlp, two_layers
from torch import nn

from ntk.batch import batched, in_float64, pulled_back


def in_turn(models, x):
    return torch.stack([model(x.clone()) for model in models]).detach()


def test_a_batch_has_the_outputs_and_gradients_of_its_models():
    models, x = [mlp(4, 5, 2) for _ in range(3)], data()
    batch = batched(models, x)
    outputs, direction = batch.forward(x), torch.randn(3, 5, 2).double()
    assert_close(outputs.detach(), in_turn(models, x), 1e-14)
    pulled = pulled_back(outputs, direction, list(batch.params.values()))
    for i, model in enumerate(models):
        expected = torch.einsum("no,nop->p", direction[i], gradients(model, x))
        assert_close(torch.cat([g[i].flatten() for g in pulled]), expected, 1e-12)


def test_a_single_model_is_itself():
    model, x = mlp(4, 5), data()
    batch = batched([model], x)
    assert all(p is q for p, q in zip(batch.params.values(), model.parameters(), strict=True))
    assert_close(batch.forward(x).detach(), in_turn([model], x), 1e-15)


def test_parameters_are_written_back():
    models, x = [mlp(4, 5, 2) for _ in range(3)], data()
    batch = batched(models, x)
    with torch.no_grad():
        for p in batch.params.values():
            p += 1
    outputs = batch.forward(x).detach()
    batch.write_back(models)
    assert_close(in_turn(models, x), outputs, 1e-14)


def test_gradients_that_are_other_ones_in_a_batch_are_refused():
    def hooked(net, x):
        z = torch.tanh(net.first(x))
        if z.requires_grad:
            z.register_hook(lambda gradient: 2 * gradient)
        return net.last(z)

    with pytest.raises(ValueError, match="one by one: the gradients of first.bias, first.weight"):
        batched([Net(hooked), Net(two_layers)], data())


def test_a_model_is_in_float64_for_a_while():
    model, x = mlp(4, 5).float(), data().float()
    norm = nn.Sequential(nn.BatchNorm1d(4), model).eval()
    tensors = [*norm.parameters(), *norm.buffers()]
    places = [t.data_ptr() for t in tensors]
    values = [t.detach().clone() for t in tensors]
    twin = copy.deepcopy(norm).double()
    with in_float64([norm], x) as (finer, exact):
        assert exact and finer.dtype == torch.float64
        assert torch.equal(norm(finer), twin(x.double()))
        with torch.no_grad():
            model.lin1.bias += 1e-12
            model.lin1.bias += 1.0
    for t, place, value in zip(tensors, places, values):
        assert t.data_ptr() == place and t.dtype == value.dtype
        assert torch.equal(t, value + 1 if t is model.lin1.bias else value)


def test_a_model_that_knows_one_dtype_stays_in_it():
    model, x = Net(lambda net, x: two_layers(net, x) @ torch.eye(2)).float(), data().float()
    with in_float64([model], x) as (same, exact):
        assert not exact and same is x
        assert all(p.dtype == torch.float32 for p in model.parameters())


def test_an_exception_leaves_the_dtype_as_it_was():
    model, x = mlp(4, 5).float(), data().float()
    with pytest.raises(ZeroDivisionError), in_float64([model], x):
        raise ZeroDivisionError
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_tokens_stay_integers():
    model = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(6, 1))
    with in_float64([model], torch.ones(4, 2, dtype=torch.int64)) as (x, exact):
        assert exact and x.dtype == torch.int64 and model(x).dtype == torch.float64
