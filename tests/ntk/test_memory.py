"How the work is cut to fit into the memory; and what a kernel takes, measured in a process."

import itertools
import re
import resource
import sys
from pathlib import Path

import pytest
import torch
from definitions import Net, data, run_script, two_layers
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk import compute_ntk
from ntk.memory import (
    Plan,
    bytes_returned,
    free_bytes,
    grouped,
    plan,
    require_room,
    with_bytes_saved,
)
from ntk.model import MLP

SCRIPT = Path(__file__).parent / "measure_memory.py"
NAMES = ["first.weight", "first.bias", "last.weight", "last.bias"]  # of Net(two_layers)

# bytes for an example: the inputs of both layers; and the Jacobian of two outputs
GRAPH = (4 + 4) * 8
J = (4 * 4 + 4 + 4 * 2 + 2) * 2 * 8


@pytest.mark.parametrize("most, expected", [
    (100, [["a", "b", "c", "d"]]),
    (10, [["a", "b", "c", "d"]]),
    (9, [["a", "b", "c"], ["d"]]),
    (5, [["a", "b"], ["c", "d"]]),
    (4, [["a"], ["b"], ["c"], ["d"]]),
    (1, [["a"], ["b"], ["c"], ["d"]]),
])
def test_names_are_grouped_until_a_group_is_full(most, expected):
    assert grouped({"a": 3, "b": 2, "c": 4, "d": 1}, most) == expected


@settings(derandomize=True, database=None, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.integers(1, 40))
def test_groups_hold_each_name_once_and_no_more_than_fits(sizes, most):
    sizes = {f"p{i}": size for i, size in enumerate(sizes)}
    groups = grouped(sizes, most)
    assert list(itertools.chain(*groups)) == list(sizes)
    assert all(len(group) == 1 or sum(map(sizes.get, group)) <= most for group in groups)
    for group, after in itertools.pairwise(groups):
        assert sum(map(sizes.get, group)) + sizes[after[0]] > most  # no group too early


def test_bytes_saved_are_those_of_the_graph_without_parameters():
    (outputs, _), saved = with_bytes_saved(Net(two_layers), data(7), "x1")
    assert saved == 7 * GRAPH and outputs.shape == (7, 2)


def test_bytes_returned_are_those_of_every_result_in_the_graph():
    net = Net(lambda net, x: torch.tanh(x @ net.first.weight))
    # the product and its tanh; 4 numbers of 8 bytes each
    assert bytes_returned(net(data(7))) == 7 * 2 * 4 * 8


@pytest.mark.parametrize("method, expected", [
    ("jacobian", 128e6 / J), ("loop", 128e6 / J), ("ntk_vector_products", 128e6),
    ("auto", 128e6 / ((4 + 4 * 2 + 4 + 2 * 2) * 8)),  # A and, for both outputs, D at two layers
])
def test_what_is_kept_fills_half_of_the_budget_and_a_batch_the_other(method, expected):
    model, x = Net(two_layers), data(9)
    found = plan(model, method, NAMES, {"x1": x, "x2": x[:1]})
    assert found == Plan([NAMES], int(expected), int(128e6 / (2 * GRAPH)), 2)


def test_parameters_with_large_gradients_come_by_themselves(monkeypatch):
    monkeypatch.setattr("ntk.memory.MEMORY_BUDGET", 8 * 16 * (4 * 4 + 4 - 1))
    found = plan(Net(two_layers), "jacobian", NAMES, {"x1": data(9)})
    assert found.groups == [NAMES[:1], NAMES[1:]]


def test_memory_that_runs_out_in_the_rehearsal_is_not_tried_again():
    calls = []

    def runs_out(net, x):
        calls.append(len(x))
        raise MemoryError

    with pytest.raises(ValueError) as caught:
        with_bytes_saved(Net(runs_out), data(), "x1")
    assert isinstance(caught.value.__cause__, MemoryError) and len(calls) == 1


@given(st.integers(1, 200), st.integers(1, 200), st.booleans(), st.integers(1, 100))
@settings(derandomize=True, database=None, deadline=None)
def test_chunks_hold_no_more_than_fits_unless_single_examples_do(n1, n2, symmetric, fit):
    n2 = n1 if symmetric else n2
    rows, columns = Plan([], fit, 1, 1).chunks(n1, n2, symmetric)
    everything = n1 if symmetric else n1 + n2
    assert 1 <= rows <= n1 and columns >= 1
    if everything <= fit:
        assert (rows, columns) == (n1, n2)
    else:
        assert rows + columns <= max(2, fit)


@pytest.mark.parametrize("n, expected", [(20, 20), (21, 15)])
def test_two_chunks_are_held_unless_one_is_all(n, expected, monkeypatch):
    monkeypatch.setattr("ntk.memory.MEMORY_BUDGET", 2 * 20 * J)  # for twenty examples
    passes = []
    model = Net(lambda net, x: passes.append(len(x)) or two_layers(net, x))
    compute_ntk(model, data(n), method="jacobian")
    assert max(passes) == expected


# A kernel for which there is no room


@pytest.mark.parametrize("shape, o, says", [
    ((1000, 1000, 100, 100), 100,
     r"takes 80 GB, and 1 GB are free; outputs=\"diagonal\" takes 0.8 GB; outputs=\"trace\" takes "
     r"0.008 GB$"),
    ((5000, 5000, 10, 10), 10, r"takes 20 GB, and 1 GB are free; outputs=\"trace\" takes 0.2 GB$"),
    ((20000, 20000, 1, 1), 1, r"takes 3.2 GB, and 1 GB are free$"),
    ((10**6, 10**7, 1, 1), 1, r"takes 80,000 GB, and 1 GB are free$"),
    ((1000, 1000, 100), 100, None),
])
def test_a_kernel_without_room_is_refused_with_its_size_and_what_fits(shape, o, says, monkeypatch):
    monkeypatch.setattr("ntk.memory.free_bytes", lambda device: 1e9)
    parameter = torch.zeros(1, dtype=torch.float64)
    if says is None:
        return require_room(shape, parameter, o)
    with pytest.raises(ValueError, match=re.escape(str(shape)) + " " + says):
        require_room(shape, parameter, o)


def test_it_is_refused_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr("ntk.memory.free_bytes", lambda device: 3e8)
    passes = []
    model = Net(lambda net, x: passes.append(len(x)) or two_layers(net, x))
    with pytest.raises(ValueError, match=r"0.32 GB, and 0.3 GB are free.*\"trace\" takes 0.08 GB"):
        compute_ntk(model, data(3162), data(3163))
    assert sum(passes) < 20  # a trial and a rehearsal


def test_what_is_free_is_some_of_the_memory():
    assert 0 < free_bytes(torch.device("cpu"))


# What it takes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["convolutions", "jacobian", "tied weight",
                                  "tied weight, ten outputs"])
def test_memory_stays_within_the_budget(name):
    """256 MB beyond the result, a tenth of the Jacobian. Another 64 MB are allowed for what no line
    of Python asks for: buffers of the BLAS and of the convolutions, and pages that the allocator
    keeps."""
    found = run_script(SCRIPT, name)
    assert abs(found["got"] - found["expected"]) < 1e-3 * abs(found["expected"]) + 1e-3
    held = {key: round(found[key] / 1e6) for key in ("extra", "symmetric", "result")}
    print(name, held)
    assert max(held["extra"], held["symmetric"]) <= 256 + held["result"] + 64, held  # MB


def test_nothing_of_a_model_stays_behind():
    "The graph of a rehearsal once held itself, and with it the weights."
    def held():
        return resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[1])

    def once():
        model = MLP(2, 1000, hidden_layers=2).double()  # a matrix of 8 MB
        compute_ntk(model, data(2, 2))

    once()
    before = held()
    for _ in range(20):
        once()
    assert held() - before < 80e6
