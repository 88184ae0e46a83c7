"""compute_ntk: every method against the double loop over gradients, for MLPs and for the zoo.

Then chunks, some outputs and some parameters, threads and progress; and the strips and tiles.
"""

import copy
import itertools
import random
import threading
import time
import warnings
from types import SimpleNamespace

import joblib
import pytest
import torch
from definitions import (
    GENERAL,
    METHODS,
    Net,
    assert_close,
    assert_untouched,
    data,
    may_decline,
    mlp,
    ntk_by_definition,
    reference,
    two_layers,
)
from torch import nn
from torch.utils.checkpoint import checkpoint
from zoo import ZOO, example, tied

from ntk import MLP, compute_ntk
from ntk.kernel import Chunk, Tile, added_up, slabs
from ntk.shares import jacobian_share


def is_symmetric(ntk):
    "To the last bit: Θ(x′, x) = Θ(x, x′)ᵀ."
    return torch.equal(ntk, ntk.T if ntk.ndim == 2 else ntk.permute(1, 0, 3, 2))


# An MLP


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["erf", "relu"])
def test_kernel_is_that_of_neural_tangents(name, method):
    model, arrays = reference(name)
    expected = arrays["ntk"][:, :, 0, 0] if name == "erf" else arrays["ntk"]
    assert_close(compute_ntk(model, arrays["x1"], arrays["x2"], method=method), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("two", [False, True], ids=["x2 None", "x2 given"])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
def test_kernel_is_the_double_loop_over_gradients(parametrization, outputs, two, method):
    scales = {"weight_std": 1.2, "bias_std": 0.3} if parametrization == "ntk" else {}
    model = mlp(4, 6, outputs, hidden_layers=2, activation="gelu",
                parametrization=parametrization, **scales)
    x1, x2 = data(5), data(3) if two else None
    ntk = compute_ntk(model, x1, x2, method=method)
    assert_close(ntk, ntk_by_definition(model, x1, x2))
    assert ntk.dtype == torch.float64 and not ntk.requires_grad
    assert two or is_symmetric(ntk)


@pytest.mark.parametrize("method", METHODS)
def test_float32_kernel_is_float32_right_and_exactly_symmetric(method):
    model, x = MLP(20, 50, hidden_layers=2), torch.randn(12, 20)
    ntk = compute_ntk(model, x, method=method)
    assert ntk.dtype == torch.float32 and is_symmetric(ntk)
    assert_close(ntk, ntk_by_definition(copy.deepcopy(model).double(), x.double()), 1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("frozen", ["lin1", "lin2", "lin3", "lin1.weight", "lin2.bias"])
def test_only_trainable_parameters_count(frozen, method):
    model, x = mlp(4, 6, 2, hidden_layers=2), data()
    part = model.get_parameter(frozen) if "." in frozen else model.get_submodule(frozen)
    part.requires_grad_(False)
    assert_close(compute_ntk(model, x, method=method), ntk_by_definition(model, x))


@pytest.mark.parametrize("method", METHODS)
def test_smallest_sizes(method):
    model, x1, x2 = mlp(1, 1), data(1, 1), data(3, 1)
    assert_close(compute_ntk(model, x1, method=method), ntk_by_definition(model, x1))
    assert_close(compute_ntk(model, x1, x2, method=method), ntk_by_definition(model, x1, x2))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_kernel_does_not_need_grad_mode(mode, method):
    model, x = mlp(4, 5), data()
    expected = ntk_by_definition(model, x)
    with mode():
        made_here = x * 1  # an inference tensor in one of the modes
        assert_close(compute_ntk(model, made_here, method=method), expected)
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


def test_weights_may_change_between_calls():
    model, x = mlp(4, 5), data()
    before = compute_ntk(model, x)
    with torch.no_grad():
        model.lin1.weight += 1
    after = compute_ntk(model, x)
    assert_close(after, ntk_by_definition(model, x))
    assert not torch.allclose(before, after)


# Any model

HANDFUL = ["conv", "lstm", "layer norm", "tied weights", "own backward", "MLP: PReLU",
           "places, time by time", "transformer, norm first", "embedding bag",
           "own NTK parametrization", "routed to experts", "distances to learned centres",
           "PReLU, five outputs for five examples"]


def marks(name, method):
    if method != "auto" and name not in HANDFUL:
        yield pytest.mark.slow


EVERY_METHOD = [pytest.param(name, method, id=f"{name}-{method}", marks=[*marks(name, method)])
                for name, method in itertools.product(ZOO, METHODS)]


@pytest.mark.filterwarnings("ignore")  # torch's own, about nested tensors and torch.jit
@pytest.mark.parametrize("name, method", EVERY_METHOD)
def test_kernel_of_any_model_is_right_or_declined(name, method):
    model, x1, x2, among_x1, x1_with_x2 = example(name)
    once = method == "loop" and name not in HANDFUL  # slow, and chunks are the same for all models
    for chunk_size in (None,) if once else (None, 2):
        with may_decline(method):
            ntk = compute_ntk(model, x1, method=method, chunk_size=chunk_size)
            assert_close(ntk, among_x1)
            assert is_symmetric(ntk) and not ntk.requires_grad
        with may_decline(method):
            ntk = compute_ntk(model, x1, x2, method=method, chunk_size=chunk_size)
            assert_close(ntk, x1_with_x2)


@pytest.mark.parametrize("method", GENERAL)
def test_inputs_may_be_integers(method):
    model = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Tanh(), nn.Linear(9, 2)).double()
    x1, x2 = torch.randint(0, 7, (5, 3)), torch.randint(0, 7, (2, 3))
    assert_close(compute_ntk(model, x1, x2, method=method), ntk_by_definition(model, x1, x2))


def test_sparse_gradients_are_gradients():
    model = nn.Sequential(nn.Embedding(7, 3, sparse=True), nn.Flatten(), nn.Linear(6, 2)).double()
    x, dense = torch.randint(0, 7, (4, 2)), copy.deepcopy(model)
    dense[0].sparse = False
    assert_close(compute_ntk(model, x), ntk_by_definition(dense, x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
def test_reentrant_checkpoint_is_right_or_refused(method):
    "With it torch.autograd.grad fails, so that the kernel expected is that without it."
    def checkpointed(net, x):
        hidden = lambda z: torch.tanh(net.second(z))
        z = checkpoint(hidden, torch.tanh(net.first(x)), use_reentrant=True)
        return net.last(z)

    plain = Net(lambda net, x: net.last(torch.tanh(net.second(torch.tanh(net.first(x))))),
                second=nn.Linear(4, 4))
    model, x = Net(checkpointed, second=nn.Linear(4, 4)), data()
    model.load_state_dict(plain.state_dict())
    with assert_untouched(model):
        try:
            got = compute_ntk(model, x, method=method)
        except ValueError:
            return
    assert_close(got, ntk_by_definition(plain, x))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["LSTM, both ways", "two transformer layers"])
def test_torch_has_nothing_to_warn_of(name, method):
    model, x1, _, among_x1, _ = example(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with may_decline(method):
            assert_close(compute_ntk(model, x1, method=method), among_x1)


# What is refused


@pytest.mark.parametrize("arguments, error, message", [
    ({"method": "fast"}, ValueError, "method must be one of .*layerwise.*got 'fast'"),
    ({"method": None}, ValueError, "method must be one of .*got None"),
    ({"chunk_size": 0}, ValueError, "chunk_size must be a positive integer, got 0"),
    ({"chunk_size": -2}, ValueError, "chunk_size must be a positive integer, got -2"),
    ({"chunk_size": 2.0}, TypeError, "chunk_size must be a positive integer, got 2.0"),
    ({"chunk_size": True}, TypeError, "chunk_size must be a positive integer, got True"),
    ({"n_jobs": 0}, ValueError, "n_jobs must be None or an integer other than 0, got 0"),
    ({"n_jobs": 1.5}, (ValueError, TypeError),
     "n_jobs must be None or an integer other than 0, got 1.5"),
    ({"n_jobs": True}, (ValueError, TypeError),
     "n_jobs must be None or an integer other than 0, got True"),
])
def test_bad_arguments_are_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        compute_ntk(mlp(4, 5), data(), **arguments)


@pytest.mark.parametrize("method", GENERAL)
def test_kernel_is_never_nan(method):
    def root_at_zero(net, x):  # where its slope is infinite
        return (net.last(x) - net.last(x).detach()).square().sqrt()

    with pytest.raises(ValueError, match="finite"):
        compute_ntk(Net(root_at_zero), data(), method=method)


@pytest.mark.parametrize("method", METHODS)
def test_kernel_is_never_infinite(method):
    model = MLP(4, 5)
    with torch.no_grad():
        model.lin2.weight *= 1e30  # the outputs are finite in float32, the kernel is not
    with pytest.raises(ValueError, match="finite"):
        compute_ntk(model, torch.randn(5, 4), method=method)


# Chunks


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunk_size", [1, 3, 100])
@pytest.mark.parametrize("two", [False, True], ids=["x2 None", "x2 given"])
def test_chunks_give_the_same_kernel(two, chunk_size, method):
    model, x1, x2 = mlp(4, 5, 2), data(7), data(4) if two else None
    ntk = compute_ntk(model, x1, x2, method=method, chunk_size=chunk_size)
    assert_close(ntk, ntk_by_definition(model, x1, x2))
    assert two or is_symmetric(ntk)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bytes_to_hold", [1, 3e3])
def test_a_small_budget_gives_the_same_kernel(bytes_to_hold, method, monkeypatch):
    "By groups of few parameters, single examples and single rows."
    for module in "memory", "kernel", "products":
        monkeypatch.setattr(f"ntk.{module}.MEMORY_BUDGET", bytes_to_hold)
    model, x1, x2 = mlp(4, 5, 2), data(5), data(2)
    ntk = compute_ntk(model, x1, method=method)
    assert_close(ntk, ntk_by_definition(model, x1))
    assert is_symmetric(ntk)
    assert_close(compute_ntk(model, x1, x2, method=method), ntk_by_definition(model, x1, x2))


def counted():
    "A net, and a list that gets the number of examples of each of its passes."
    passes = []

    def forward(net, x):
        passes.append(len(x))
        return two_layers(net, x)

    return Net(forward), passes


@pytest.mark.parametrize("n1, n2", [(1, 300), (300, 1)])
def test_one_input_against_many_is_one_pass_and_not_many(n1, n2):
    model, passes = counted()
    compute_ntk(model, data(n1), data(n2))
    assert len(passes) < 20


def test_no_pass_has_more_examples_than_a_chunk():
    model, passes = counted()
    compute_ntk(model, data(20), chunk_size=3)
    assert max(passes[2:]) == 3  # after those that look at the model, with five examples


def test_frozen_weights_do_not_make_the_chunks_smaller():
    "They are no graph of an example: with them counted, 200 inputs took forty passes."
    model = nn.Sequential(nn.Linear(4, 1500), nn.ReLU(),
                          nn.Linear(1500, 1500).requires_grad_(False), nn.ReLU(),
                          nn.Linear(1500, 1))
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    compute_ntk(model, torch.randn(200, 4))
    assert len(calls) < 10


# Some pairs of outputs, some parameters

FEWER_OUTPUTS = {
    "diagonal": lambda full: torch.einsum("ijaa->ija", full),
    "trace": lambda full: torch.einsum("ijaa->ij", full),
    "sum": lambda full: full.sum((2, 3)),
}


def full_kernel(model, x1, x2=None):
    "(N1, N2, O, O) by the definition, for one output too."
    ntk = ntk_by_definition(model, x1, x2)
    return ntk if ntk.ndim == 4 else ntk[:, :, None, None]


def several_kinds(outputs=3):
    "A filter, a scale, products and a PReLU: shares of all kinds, and a Jacobian."
    return nn.Sequential(
        nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 2), nn.Flatten(), nn.LayerNorm(6), nn.Tanh(),
        nn.Linear(6, 4), nn.PReLU(), nn.Linear(4, outputs)).double()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("two", [False, True], ids=["x2 None", "x2 given"])
@pytest.mark.parametrize("outputs", FEWER_OUTPUTS)
def test_fewer_outputs_are_parts_of_the_full_kernel(outputs, two, method):
    for model in several_kinds(), mlp(4, 5, 3), mlp(4, 5, 1):
        x1, x2 = data(5), data(3) if two else None
        expected = FEWER_OUTPUTS[outputs](full_kernel(model, x1, x2))
        for chunk_size in None, 2:
            with may_decline(method):
                ntk = compute_ntk(model, x1, x2, outputs=outputs, method=method,
                                  chunk_size=chunk_size)
                assert_close(ntk.view(expected.shape), expected)
                assert two or torch.equal(ntk, ntk.transpose(0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("outputs", FEWER_OUTPUTS)
def test_fewer_outputs_by_two_processes(outputs):
    model, x1, x2 = several_kinds(), data(5), data(3)
    for other in None, x2:
        ntk = compute_ntk(model, x1, other, outputs=outputs, n_jobs=2, chunk_size=2)
        assert_close(ntk, FEWER_OUTPUTS[outputs](full_kernel(model, x1, other)))


@pytest.mark.parametrize("outputs", ["all", None, "Trace", 3])
def test_other_outputs_are_refused(outputs):
    with pytest.raises(ValueError, match="outputs must be one of .*trace.*got " + repr(outputs)):
        compute_ntk(mlp(4, 5), data(), outputs=outputs)


def kernel_of_some(model, x, names):
    "The double loop, where only the parameters named are trainable."
    model = copy.deepcopy(model)
    for name, p in model.named_parameters():
        p.requires_grad_(name in names)
    return ntk_by_definition(model, x)


@pytest.mark.parametrize("method", METHODS)
def test_kernels_of_disjoint_parameters_add_up(method):
    model, x = several_kinds(), data()
    names = [name for name, _ in model.named_parameters()]
    with may_decline(method):
        parts = [compute_ntk(model, x, params=some, method=method)
                 for some in (names[::2], names[1::2])]
        assert_close(parts[0], kernel_of_some(model, x, names[::2]))
        assert_close(sum(parts), ntk_by_definition(model, x))


@pytest.mark.parametrize("method", METHODS)
def test_parameters_of_an_adapter(method):
    "Two matrices of low rank beside one that stays, as in LoRA."
    model = Net(lambda net, x: net.last(torch.tanh(net.first(x) + x @ net.down.T @ net.up.T)),
                down=nn.Parameter(torch.randn(2, 4)), up=nn.Parameter(torch.randn(4, 2)))
    x = data()
    with may_decline(method):
        ntk = compute_ntk(model, x, params=["up", "down"], method=method)
        assert_close(ntk, kernel_of_some(model, x, {"up", "down"}))


@pytest.mark.parametrize("method", GENERAL)
@pytest.mark.parametrize("name", ["first.weight", "second.weight"])
def test_a_shared_parameter_has_either_name(name, method):
    model, x = tied(), data()
    ntk = compute_ntk(model, x, params=[name], method=method)
    assert_close(ntk, kernel_of_some(model, x, {"first.weight"}))


def test_names_may_come_from_a_generator_in_any_order_and_twice():
    model, x = mlp(4, 5), data()
    names = ["lin2.bias", "lin1.weight", "lin2.bias"]
    ntk = compute_ntk(model, x, params=(name for name in names))
    assert_close(ntk, kernel_of_some(model, x, names))


@pytest.mark.parametrize("params, error, message", [
    ("lin1.weight", TypeError, r"params must be a list of names, got one: \['lin1.weight'\]"),
    ([], ValueError, "params must name at least one parameter"),
    (["lin1.bias"], ValueError, "trainable parameters.*got 'lin1.bias'; it has lin1.weight, lin2"),
    (["lin1.weight", "lin9"], ValueError, "trainable parameters.*got 'lin9'"),
    ([None], ValueError, "trainable parameters.*got None"),
])
def test_parameters_that_are_none_are_refused(params, error, message):
    model = mlp(4, 5)
    model.lin1.bias.requires_grad_(False)
    with pytest.raises(error, match=message):
        compute_ntk(model, data(), params=params)


# Threads and progress


@pytest.mark.parametrize("method", [
    "auto", "jacobian", "loop", pytest.param("ntk_vector_products", marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", [nn.Identity, lambda: nn.LayerNorm(4)],
                         ids=["one way", "two ways in one model"])
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


class FailsInAThread(Net):
    def __init__(self):
        super().__init__(two_layers)
        self.home, self.ticks = threading.get_ident(), itertools.count(1)

    def forward(self, x):
        time.sleep(0.01)
        if threading.get_ident() != self.home and next(self.ticks) == 5:
            raise KeyError("not here")
        return super().forward(x)


@pytest.mark.parametrize("method", ["auto", "jacobian"])
def test_model_is_left_as_it_was_after_an_exception_in_a_thread(method):
    model, x = FailsInAThread(), data(8)
    try:
        with (assert_untouched(model), joblib.parallel_config(backend="threading"),
              pytest.raises((KeyError, ValueError))):
            compute_ntk(model, x, n_jobs=2, chunk_size=1, method=method)
    finally:
        wait_until_it_rests(model)


def wait_until_it_rests(model):
    "Until no thread calls it any more, so that the next test has the random numbers for itself."
    before = -2
    while (now := next(model.ticks)) > before + 1:
        before = now
        time.sleep(0.2)


def test_progress_shows_a_bar_only_when_asked(capsys):
    model, x = mlp(4, 5), data(6)
    assert_close(compute_ntk(model, x, chunk_size=2, progress=True), ntk_by_definition(model, x))
    assert "100%" in capsys.readouterr().err
    compute_ntk(model, x, chunk_size=2)
    out, err = capsys.readouterr()
    assert not out and not err


# Strips and tiles


@pytest.mark.parametrize("rows, columns, outputs, height", [
    (10, 10, 1, 256),     # all at once
    (300, 10, 1, 256),
    (300, 10, 10, 64),
    (3200, 10, 1, 400),   # an eighth
    (300, 40_000, 1, 50),  # 2 million entries
    (300, 400, 10, 50),
    (3, 4_000_000, 1, 1),
])
def test_slabs_are_all_rows_in_order_and_products_with_them_small(rows, columns, outputs, height):
    x, gradients = torch.arange(rows), torch.arange(rows).view(rows, 1, 1)
    chunk, others = Chunk(x, [jacobian_share([], gradients)]), Chunk(torch.empty(columns, 0), [])
    found = list(slabs(chunk, others, outputs**2))
    assert [start for _, start in found] == list(range(0, rows, height))
    assert torch.equal(torch.cat([slab.x for slab, _ in found]), x)
    assert torch.equal(torch.cat([slab.shares[0].gradients for slab, _ in found]).flatten(), x)


def test_tiles_of_a_symmetric_kernel_are_mirrored():
    j = data(5, 2, 9)
    ntk = torch.einsum("iap,jbp->ijab", j, j)
    on_and_right_of_the_diagonal = [
        Tile(0, 0, ntk[:2, :3]), Tile(0, 3, ntk[:2, 3:]),
        Tile(2, 2, ntk[2:4, 2:]), Tile(4, 4, ntk[4:, 4:])]
    entries = []
    bar = SimpleNamespace(update=entries.append)
    assert_close(added_up(on_and_right_of_the_diagonal, (5, 5, 2, 2), symmetric=True, bar=bar), ntk)
    assert sum(entries) == 25


def test_tiles_of_several_groups_add_up():
    ntk, entries = data(4, 3, 2, 2), []
    tiles = [Tile(0, 0, ntk[:3]), Tile(3, 0, ntk[3:, :2]), Tile(3, 2, ntk[3:, 2:])]
    bar = SimpleNamespace(update=entries.append)
    assert_close(added_up(tiles * 3, (4, 3, 2, 2), symmetric=False, bar=bar), 3 * ntk)
    assert sum(entries) == 3 * 12
