"""train against plain loops and optimisers, and in float64 where float32 would lose its digits."""

import copy
import math
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from definitions import ROOT, Net, assert_close, data, two_layers
from torch import nn
from zoo import ZOO

from ntk import MLP, compute_ntk, train
from ntk.training import History


def task(n=6, d=3, outputs=1, seed=0, dtype=torch.float64):
    "Inputs (n, d) and targets (n, outputs)."
    rng = np.random.default_rng(seed)
    y = torch.tensor(rng.normal(size=(n, outputs)), dtype=dtype)
    return torch.tensor(rng.normal(size=(n, d)), dtype=dtype), y


def net(seed=0, *sizes, **kwargs):
    torch.manual_seed(seed)
    return MLP(*(sizes or (3, 20)), **kwargs).double()


def ntk_net(seed=0, *sizes, **kwargs):
    return net(seed, *sizes, parametrization="ntk", activation="tanh", **kwargs)


def over_time(x):
    "Sequences (n, 4, d) in which each x grows."
    return x[:, None].expand(-1, 4, -1) * torch.arange(4)[:, None]


class Recurrent(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, outputs)
        self.double()

    def forward(self, x):
        return self.head(self.lstm(over_time(x))[0][:, -1])


class Tied(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, outputs)
        self.b.weight = self.a.weight
        self.double()

    def forward(self, x):
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))


def frozen(outputs):
    model = net(0, 3, 20, outputs)
    model.lin1.weight.requires_grad_(False)
    return model


def with_batch_norm(outputs):
    layers = nn.Linear(3, 9), nn.ReLU(inplace=True), nn.BatchNorm1d(9), nn.Linear(9, outputs)
    return nn.Sequential(*layers).double().eval()


MODELS = {
    "mlp": lambda outputs: net(0, 3, 20, outputs),
    "deep ntk": lambda outputs: ntk_net(0, 3, 20, outputs, hidden_layers=2),
    "tied": Tied,
    "lstm": Recurrent,
    "frozen": frozen,
    "bare": with_batch_norm,
}


def descend(model, x, y, lr, steps, scale):
    "The definition, with autograd and an optimiser: ½ Σ (f₀ + α (f − f₀) − y)² / α²."
    model = copy.deepcopy(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimiser, f0 = torch.optim.SGD(trainable, lr=lr), model(x).detach()
    losses, outputs = [], []
    for step in range(steps + 1):
        g = f0 + scale * (model(x) - f0)
        loss = ((g - y) ** 2).sum() / 2
        losses.append(loss.item())
        outputs.append(g.detach())
        if step < steps:
            optimiser.zero_grad()
            (loss / scale**2).backward()
            optimiser.step()
    return model, torch.tensor(losses, dtype=torch.float64), torch.stack(outputs)


# train


@pytest.mark.parametrize("scale", [0.3, 1.0, 30.0])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("kind", MODELS)
def test_train_is_gradient_descent(kind, outputs, scale):
    (x, y), model = task(outputs=outputs), MODELS[kind](outputs)
    wanted, losses, trajectory = descend(model, x, y, 0.02, 25, scale)
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    history = train(model, x, y, lr=0.02, steps=25, scale=scale)
    torch.testing.assert_close(history.losses, losses, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(history.outputs, trajectory.squeeze(2), rtol=1e-8, atol=1e-10)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, wanted.get_parameter(name), rtol=1e-9, atol=1e-11)
    after = [p.detach() for p in model.parameters() if p.requires_grad]
    distance = math.sqrt(sum(float(((p - q) ** 2).sum()) for p, q in zip(after, before)))
    assert math.isclose(history.distances[-1], distance, rel_tol=1e-9)
    assert history.distances[0] == 0
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_list_is_trained_as_each_alone(outputs):
    x, y = task(outputs=outputs)
    models = [ntk_net(seed, 3, 12, outputs) for seed in range(5)]
    alone = [copy.deepcopy(model) for model in models]
    schedule = {"lr": 0.05, "steps": 11, "every": 4, "kernel": True, "scale": 2.0}
    histories = [train(model, x, y, **schedule) for model in alone]
    history = train(models, x, y, **schedule)
    assert isinstance(history, History)
    assert history.steps.tolist() == [0, 4, 8, 11]
    torch.testing.assert_close(history.times, 0.05 * history.steps.double())
    for field in ("losses", "outputs", "distances", "kernels"):
        wanted = torch.stack([getattr(h, field) for h in histories], dim=1)
        torch.testing.assert_close(getattr(history, field), wanted, rtol=1e-10, atol=1e-12)
    for model, other in zip(models, alone):
        for p, q in zip(model.parameters(), other.parameters()):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_models_of_a_list_keep_buffers_of_their_own():
    x, y = task()
    models = [with_batch_norm(1), with_batch_norm(1)]
    models[1][2].running_mean.fill_(0.5)
    alone = [copy.deepcopy(model) for model in models]
    expected = [train(model, x, y, lr=0.02, steps=5).outputs for model in alone]
    history = train(models, x, y, lr=0.02, steps=5)
    torch.testing.assert_close(history.outputs, torch.stack(expected, dim=1))
    assert models[1][2].running_mean.eq(0.5).all()


def test_the_kernels_recorded_are_those_of_the_steps():
    x, y = task()
    model = net()
    copies = [copy.deepcopy(model) for _ in range(3)]
    kernels = train(model, x, y, lr=0.02, steps=4, every=2, kernel=True).kernels
    for steps, other, kernel in zip((0, 2, 4), copies, kernels):
        train(other, x, y, lr=0.02, steps=steps)
        torch.testing.assert_close(kernel, compute_ntk(other, x))


def test_no_steps_record_the_start_and_a_list_of_one_keeps_its_axis():
    x, y = task()
    history = train(net(), x, y[:, 0].numpy(), lr=0.01, steps=0)
    assert history.outputs.shape == (1, 6) and history.kernels is None
    for field in ("steps", "times", "losses", "distances"):
        assert getattr(history, field).shape == (1,)
    assert train([net()], x, y, lr=0.01, steps=3).outputs.shape == (4, 1, 6)
    pair = train((net(), net(1)), x, y, lr=0.01, steps=3, every=100)
    assert pair.steps.tolist() == [0, 3]


def test_settings_may_be_numpy_numbers():
    x, y = task()
    history = train(net(), x, y, lr=np.float64(0.02), steps=np.int64(4), every=np.int32(3))
    expected = train(net(), x, y, lr=0.02, steps=4, every=3)
    assert history.steps.tolist() == [0, 3, 4]
    assert torch.equal(history.outputs, expected.outputs)


def test_grad_mode_random_state_and_flags_are_left_alone():
    x, y = task()
    model = net()
    state = torch.random.get_rng_state()
    with torch.no_grad():
        first = train(copy.deepcopy(model), x, y, lr=0.05, steps=5)
    other = copy.deepcopy(model)
    with torch.inference_mode():
        second = train(other, x.clone(), y, lr=0.05, steps=5)
    assert torch.equal(first.losses, train(model, x, y, lr=0.05, steps=5).losses)
    torch.testing.assert_close(first.losses, second.losses.clone())
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
    assert model(x).requires_grad


def test_float32_stays_float32():
    x, y = task(dtype=torch.float32)
    history = train(net().float(), x, y.double(), lr=0.05, steps=3, kernel=True)
    for field in ("outputs", "losses", "kernels"):
        assert getattr(history, field).dtype == torch.float32


def test_a_net_that_is_done_stays():
    x, _ = task()
    model = net()
    history = train(model, x, model(x).detach(), lr=0.01, steps=5)
    assert history.losses.max() == 0 and history.distances.max() == 0


def test_a_net_whose_kernel_is_zero_stays_as_it_is():
    model = net(0, 3, 4)
    for p in model.parameters():
        torch.nn.init.constant_(p, -1.0)
    model.lin2.bias.requires_grad_(False)
    x, y = task()
    outputs = train(model, x.abs(), y, lr=0.1, steps=2).outputs
    assert torch.equal(outputs[0], outputs[2])


def test_progress_shows_a_bar_only_when_asked(capsys):
    x, y = task()
    train(net(), x, y, lr=0.01, steps=3)
    assert capsys.readouterr().err == ""
    train(net(), x, y, lr=0.01, steps=3, progress=True)
    assert "training" in capsys.readouterr().err


def test_targets_in_a_list_are_read_in_float64():
    x, _ = task()
    got = train(net(), x, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], lr=0.01, steps=0).losses
    expected = train(net(), x, np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), lr=0.01, steps=0).losses
    assert torch.equal(got, expected)


def counting(net, x):
    net.calls += 1
    return two_layers(net, x)


@pytest.mark.parametrize("listed", [False, True])
def test_buffers_and_gradients_are_left_alone(listed):
    x, y = data(6), data(6, 2)
    models = [Net(counting) for _ in range(2)]
    for model in models:
        model.register_buffer("calls", torch.zeros(3))
        model.first.weight.grad = torch.ones(4, 4, dtype=torch.float64)
    train(models if listed else models[0], x, y, lr=0.01, steps=3, scale=3.0)
    for model in models:
        assert model.calls.eq(0).all() and model.first.weight.grad.eq(1).all()


# Many digits of few

FLOAT32 = {
    "standard": lambda seed: net(seed, 3, 64, 2).float(),
    "ntk": lambda seed: ntk_net(seed, 3, 64, 2).float(),
    "relu": lambda seed: net(seed, 3, 64, 2, parametrization="ntk").float(),
    "mirrored": lambda seed: mirrored(seed).float(),
    "batch norm": lambda seed: with_batch_norm(2).float(),
}


@pytest.mark.parametrize("scale", [2.0, 1e3, 1e6])
@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize("kind", FLOAT32)
def test_a_large_scale_keeps_the_digits_of_float32(kind, size, scale):
    x, y = task(8, outputs=2, dtype=torch.float32)
    models = [FLOAT32[kind](seed) for seed in range(size or 1)]
    before = [[p, p.data_ptr(), p.detach().clone()] for m in models for p in m.parameters()]
    twins = [copy.deepcopy(model).double() for model in models]
    schedule = {"lr": 0.002, "steps": 40, "every": 8, "scale": scale, "kernel": True}
    history = train(models if size else models[0], x, y, **schedule)
    assert history.outputs.dtype == history.losses.dtype == torch.float32
    assert history.kernels.dtype == history.distances.dtype == torch.float32
    for i, twin in enumerate(twins):
        _, losses, outputs = descend(twin, x.double(), y.double(), 0.002, 40, scale)
        one = (slice(None), i) if size else slice(None)
        assert_close(history.outputs[one], outputs[::8], 1e-5)
        assert ((history.losses[one] - losses[::8]) / losses[::8]).abs().max() < 1e-5
    for p, place, value in before:  # the same memory, and a change that float32 can hold
        assert p.data_ptr() == place and p.dtype == torch.float32
        assert (p - value).abs().max() < 1 / scale


def test_a_model_that_computes_in_float32_alone_is_trained_in_that_and_said_so():
    x, y = task(dtype=torch.float32)
    waves = torch.ones(3, 3)

    class Constant(nn.Sequential):
        def forward(self, x):
            return super().forward(x @ waves)

    with pytest.warns(UserWarning, match="computes in torch.float32 alone.*scale = 100") as found:
        train(Constant(nn.Linear(3, 1)), x, y, lr=0.01, steps=2, scale=100.0)
    assert found[0].filename == __file__
    assert warned_of(lambda: train(Constant(nn.Linear(3, 1)), x, y, lr=0.01, steps=2)) == []


def mirrored(seed):
    "Two halves with opposite signs: zero by construction, but for rounding."
    model = ntk_net(seed, 3, 100, 2)
    with torch.no_grad():
        model.lin1.weight[50:], model.lin1.bias[50:] = model.lin1.weight[:50], model.lin1.bias[:50]
        model.lin2.weight[:, 50:] = -model.lin2.weight[:, :50]
        model.lin2.bias.zero_()
    return model


class Difference(nn.Module):
    "f − f₀."

    def __init__(self, seed):
        super().__init__()
        self.net = net(seed, 3, 50, 2)
        self.start = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, x):
        return self.net(x) - self.start(x)


class Wider(nn.Module):
    "Outputs in float64, whatever the weights are in."

    def __init__(self, seed):
        super().__init__()
        self.net = net(seed, 3, 50, 2)

    def forward(self, x):
        return self.net(x).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("make", [mirrored, Difference, Wider])
def test_outputs_that_cancel_or_are_finer_than_the_weights_are_trained(make, size, dtype):
    x, y = task(8, outputs=2, dtype=dtype)
    models = [make(seed).to(dtype) for seed in range(size)]
    twins = copy.deepcopy(models)
    outputs = train(models, x, y, lr=1e-4, steps=10).outputs
    for i, twin in enumerate(twins):
        expected = descend(twin, x, y, 1e-4, 10, 1.0)[2]
        torch.testing.assert_close(outputs[:, i], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(10))
def test_relu_nets_in_float32_are_one_batch_whatever_their_rounding(seed):
    torch.manual_seed(seed)
    models = [MLP(3, 100, 2, hidden_layers=3) for _ in range(5)]
    train(models, torch.randn(40, 3), torch.randn(40, 2), lr=1e-5, steps=0)


# Hooks


def mask_of(p):
    "Freezes the first half of the rows."
    mask = torch.ones_like(p)
    mask[:len(p) // 2] = 0
    return lambda gradient: gradient * mask


HOOKS = {
    "frozen rows": lambda model: model.lin1.weight.register_hook(mask_of(model.lin1.weight)),
    "clipped": lambda model: model.lin2.bias.register_hook(lambda g: g.clamp(-1e-3, 1e-3)),
    "scaled in a module": lambda model: model.lin1.register_full_backward_pre_hook(
        lambda module, gradients: (2 * gradients[0],)),
    "normalised": lambda model: model.lin1.register_full_backward_pre_hook(
        lambda module, gradients: (gradients[0] / gradients[0].norm(),)),
}


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("scale", [1.0, 20.0])
@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_hooks_act_as_in_any_training(hook, scale):
    (x, y), model, twin = task(), net(), net()
    hook(model)
    hook(twin)
    history = train(model, x, y, lr=0.02, steps=20, scale=scale)
    f0, plain = twin(x).detach(), net()
    for _ in range(20):
        g = f0 + scale * (twin(x) - f0)
        ((g - y).square().sum() / 2 / scale**2).backward()
        with torch.no_grad():
            for p in twin.parameters():
                p -= 0.02 * p.grad
                p.grad = None
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
    without = train(plain, x, y, lr=0.02, steps=20, scale=scale)
    assert not torch.allclose(without.outputs, history.outputs)  # the hook did something


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_hooks_in_a_list_are_refused(hook):
    (x, y), models = task(), [net(0), net(1), net(2)]
    before = [p.detach().clone() for model in models for p in model.parameters()]
    hook(models[1])
    with pytest.raises(ValueError, match="hook.*one by one|one by one.*hook"):
        train(models, x, y, lr=0.02, steps=2)
    after = [p for model in models for p in model.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(after, before))


def test_a_hook_that_waits_for_a_gradient_in_grad_is_refused():
    (x, y), model = task(), net()
    model.lin2.weight.register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(ValueError, match="lin2.weight has a hook that waits for .grad"):
        train(model, x, y, lr=0.02, steps=2)


# What is shared


def shares_a_layer(one, other, third):
    third.lin1 = one.lin1


def shares_a_parameter(one, other, third):
    third.lin2.bias = other.lin2.bias


def shares_memory(one, other, third):
    other.lin2.weight = nn.Parameter(one.lin2.weight.data)


def shares_some_memory(one, other, third):
    flat = data(90).flatten()
    one.lin1.weight = nn.Parameter(flat[:60].view(20, 3))
    other.lin1.weight = nn.Parameter(flat[30:90].view(20, 3))


def has_it_as_a_buffer(one, other, third):
    third.register_buffer("before", other.lin1.weight.data)


def has_it_frozen(one, other, third):
    third.lin1 = one.lin1
    third.lin1.weight = nn.Parameter(other.lin1.weight.data, requires_grad=False)


SHARED = {shares_a_layer: "lin1", shares_a_parameter: "lin2.bias .* of models 1 and 2",
          shares_memory: "lin2.weight and lin2.weight of models 0 and 1",
          shares_some_memory: "lin1.weight and lin1.weight of models 0 and 1",
          has_it_as_a_buffer: "(before and lin1.weight|lin1.weight and before) of models",
          has_it_frozen: "lin1"}


@pytest.mark.parametrize("join, says", SHARED.items(), ids=[join.__name__ for join in SHARED])
def test_models_that_share_what_is_trained_are_refused(join, says):
    (x, y), models = task(), [net(0), net(1), net(2)]
    join(*models)
    with pytest.raises(ValueError, match=f"{says}.*share memory.*copy.deepcopy"):
        train(models, x, y, lr=0.01, steps=2)


def test_a_model_twice_is_refused():
    (x, y), model = task(), net()
    with pytest.raises(ValueError, match="of models 0 and 1 share memory"):
        train([model, model], x, y, lr=0.01, steps=2)


def test_what_is_frozen_may_be_shared_and_memory_may_lie_side_by_side():
    (x, y), models = task(), [net(0), net(1)]
    models[1].lin1 = models[0].lin1.requires_grad_(False)
    flat = data(40).flatten()
    for i, model in enumerate(models):
        model.lin2.weight = nn.Parameter(flat[20 * i:20 * i + 20].view(1, 20))
    twins = [copy.deepcopy(model) for model in models]
    outputs = train(models, x, y, lr=0.01, steps=5).outputs
    for i, twin in enumerate(twins):
        expected = descend(twin, x, y, 0.01, 5, 1.0)[2]
        torch.testing.assert_close(outputs[:, i], expected.squeeze(2))


def test_parameters_of_one_model_that_share_memory_are_refused():
    (x, y), model = task(), net(0, 3, 3, hidden_layers=2)
    model.lin2.weight = nn.Parameter(model.lin1.weight.data)
    with pytest.raises(ValueError, match="lin1.weight and lin2.weight share memory"):
        train(model, x, y, lr=0.01, steps=2)


# Learning rates that are too large


def warned_of(action):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        action()
    return [str(warning.message) for warning in found]


def largest_eigenvalue(model, x, outputs):
    ntk = compute_ntk(model, x).reshape(len(x), len(x), outputs, outputs)
    square = ntk.permute(0, 2, 1, 3).reshape(len(x) * outputs, -1)
    return np.linalg.eigvalsh(square)[-1]


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("seed", range(12))
def test_a_learning_rate_above_the_bound_is_warned_of_before_the_first_step(seed, outputs):
    x, y = task(8, outputs=outputs, seed=seed)
    models = [ntk_net(seed + 10 * i, 3, 16, outputs) for i in range(3)]
    tops = [largest_eigenvalue(model, x, outputs) for model in models]
    assert warned_of(lambda: train(models, x, y, lr=1.95 / max(tops), steps=0)) == []
    [message] = warned_of(lambda: train(models, x, y, lr=2.05 / max(tops), steps=0))
    assert f"2/λmax = {2 / max(tops):.2g}"[:-1] in message
    assert warned_of(lambda: train(models[0], x, y, lr=1.95 / tops[0], steps=0)) == []
    assert len(warned_of(lambda: train(models[0], x, y, lr=2.05 / tops[0], steps=0))) == 1


@pytest.mark.parametrize(("n", "width"), [(1, 5), (3, 1), (40, 2), (200, 30)])
def test_the_bound_is_found_for_many_points_and_for_kernels_of_low_rank(n, width):
    x, y = task(n)
    model = net(0, 3, width)
    top = torch.linalg.eigvalsh(compute_ntk(model, x))[-1].item()
    assert warned_of(lambda: train(model, x, y, lr=1.98 / top, steps=0)) == []
    assert len(warned_of(lambda: train(model, x, y, lr=2.02 / top, steps=0))) == 1


class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()


def once():
    return Net(lambda net, x: OnceDifferentiable.apply(two_layers(net, x))), data(6)


def bag():
    layers = nn.EmbeddingBag(7, 3), nn.Tanh(), nn.Linear(3, 2)
    return nn.Sequential(*layers).double(), torch.randint(0, 7, (6, 4))


def started_at_zero():
    model = Net(once()[0].rule)
    for p in model.parameters():
        nn.init.zeros_(p)
    nn.init.ones_(model.first.bias)  # else all gradients but one are zero
    return model, data(6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [once, bag, started_at_zero])
def test_no_second_derivative_is_needed_to_train_or_to_find_the_bound(make, dtype):
    model, x = make()
    top = largest_eigenvalue(model, x, 2)
    y, model = data(6, 2).to(dtype), model.to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    before = [p.detach().clone() for p in model.parameters()]
    assert warned_of(lambda: train(model, x, y, lr=1.98 / top, steps=0)) == []
    assert len(warned_of(lambda: train(model, x, y, lr=2.02 / top, steps=0))) == 1
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before))
    expected = descend(model, x, y, 0.1 / top, 5, 1.0)[2]
    torch.testing.assert_close(train(model, x, y, lr=0.1 / top, steps=5).outputs, expected)


def linear():
    "f = θ·x, whose kernel never moves: above 2/λmax it must diverge."
    return nn.Linear(2, 1, bias=False).double()


def test_divergence_stops_with_a_clear_error():
    x, y = task(d=2)
    top = torch.linalg.eigvalsh(x @ x.T)[-1].item()
    model = linear()
    with (pytest.warns(UserWarning, match="above 2/λmax") as found,
          pytest.raises(RuntimeError, match=r"diverged at step \d+.*2/λmax")):
        train(model, x, y, lr=2.2 / top, steps=10_000)
    assert found[0].filename == __file__  # where train was called
    assert all(p.isfinite().all() for p in model.parameters())
    train(linear(), x, y, lr=1.9 / top, steps=1000)  # just below it does not
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="diverged"):
        train([linear(), linear()], x, y, lr=1e30, steps=100)
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="diverged"):
        # past the largest float32 at once
        train(linear().float(), x.float(), y.float(), lr=1e30, steps=100)


@pytest.mark.filterwarnings("ignore:lr =")
def test_training_goes_on_until_the_loss_has_grown_a_millionfold():
    x, y = task(d=2)
    lr, model = 2.2 / torch.linalg.eigvalsh(x @ x.T)[-1].item(), linear()
    _, losses, outputs = descend(model, x, y, lr, 200, scale=1.0)
    bound = 1e6 * ((outputs[0] - y).square() + y.square()).sum()
    last = int((losses <= bound).nonzero().max())
    assert train(copy.deepcopy(model), x, y, lr=lr, steps=last).steps[-1] == last
    message = f"diverged at step {last + 1}, with a loss of {losses[last + 1]:.3g};"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        train(model, x, y, lr=lr, steps=200)


# What train refuses, and what it takes up

X, Y = task()
WRONG = {
    "lr zero": ({"lr": 0.0}, "lr"),
    "lr negative": ({"lr": -1.0}, "lr"),
    "lr NaN": ({"lr": math.nan}, "lr"),
    "lr text": ({"lr": "fast"}, "lr"),
    "scale zero": ({"scale": 0}, "scale"),
    "scale infinite": ({"scale": math.inf}, "scale"),
    "steps negative": ({"steps": -1}, "steps"),
    "steps fraction": ({"steps": 1.5}, "steps"),
    "steps text": ({"steps": "5"}, "steps"),
    "every zero": ({"every": 0}, "every"),
    "y too short": ({"y": Y[:-1]}, "y must"),
    "y NaN": ({"y": Y * math.nan}, "y must"),
    "y transposed": ({"y": Y.T}, "y must"),
    "x too wide": ({"x": torch.ones(6, 4).double()}, "cannot take x"),
    "x float32": ({"x": X.float()}, "dtype"),
    "x NaN": ({"x": X * math.nan}, "x must be finite"),
    "y complex": ({"y": [1j] * 6}, "y must be real"),
    "y text": ({"y": ["a"] * 6}, "y must be a tensor, an array or a list of numbers"),
    "no model": ({"model": []}, "model"),
    "no module": ({"model": lambda x: x}, "torch.nn.Module"),
    "a list of others": ({"model": [1]}, "Module"),
    "dropout": ({"model": nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1)).double()}, "eval"),
    "frozen": ({"model": net().requires_grad_(False)}, "trainable"),
    "widths differ": ({"model": [net(0, 3, 4), net(0, 3, 5)]}, "one batch"),
    "classes differ": ({"model": [net(0, 3, 4), nn.Linear(3, 1).double()]}, "one batch"),
    "outputs differ": ({"model": [net(0, 3, 4), net(0, 3, 4, 2)]}, "one batch"),
    "activations differ": ({"model": [net(), net(0, 3, 20, activation="tanh")]}, "weights only"),
}


@pytest.mark.parametrize(("changes", "says"), WRONG.values(), ids=WRONG)
def test_train_refuses(changes, says):
    arguments = {"model": net(), "x": X, "y": Y, "lr": 0.01, "steps": 2, **changes}
    with pytest.raises((TypeError, ValueError), match=says):
        train(arguments.pop("model"), arguments.pop("x"), arguments.pop("y"), **arguments)


def test_the_stability_bound_costs_no_more_than_a_few_steps():
    "No array of (N O)² numbers: with 8,000 outputs one would take 256 MB."
    model, x = MLP(4, 8, 8), torch.randn(1000, 4)
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        train(model, x, torch.zeros(1000, 8), lr=1e-6, steps=1)
    assert max(event.cpu_memory_usage for event in profile.function_events) < 50e6


@pytest.mark.slow
def test_a_long_record_does_not_keep_what_each_step_needed():
    "Small tensors allocated between large ones pinned a gigabyte in 1,000 steps of this net."
    script = """
import resource, torch
from ntk import MLP, train
torch.set_num_threads(1)
torch.manual_seed(0)
model, x = MLP(2, 4096, parametrization="ntk").double(), torch.randn(32, 2).double()
peaks = []
for steps in (20, 400):
    train(model, x, x[:, 0], lr=1e-4, steps=steps)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
assert peaks[1] - peaks[0] < 100, peaks
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True,
                          timeout=600)
    assert done.returncode == 0, done.stderr


# Any model


def made(name):
    "A model, always with the same weights, six inputs and targets."
    make, inputs = ZOO[name]
    torch.manual_seed(0)
    model, x = make(), inputs(6)
    return model, x, torch.randn_like(model(x).detach())


# torch's own, about nested tensors and torch.jit; that a rate is too large
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ZOO)
def test_train_is_gradient_descent_for_any_model(name):
    model, x, y = made(name)
    twin, *_ = made(name)
    before = list(model.parameters())
    outputs = train(model, x, y, lr=1e-3, steps=3).outputs.view(4, *y.shape)
    assert all(p is q for p, q in zip(model.parameters(), before, strict=True))
    for got in outputs:
        out = twin(x.clone())
        assert torch.allclose(got, out, rtol=1e-8, atol=1e-10)
        twin.zero_grad()
        if out.requires_grad:  # else its outputs depend on no parameter
            ((out - y).square().sum() / 2).backward()
        with torch.no_grad():
            for p in twin.parameters():
                if p.grad is not None:
                    p -= 1e-3 * p.grad


