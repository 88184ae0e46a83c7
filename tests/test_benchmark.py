"""The benchmark's table for tiny cases: each method in it computes the kernel that is timed."""

import sys
from types import ModuleType

import benchmark_ntk
import benchmark_peers
import pytest
import torch
from benchmark_ntk import COLUMNS, Case, mlp
from benchmark_peers import NOT_SERVED
from course import ROOT, prose, read
from torch import nn

from ntk import compute_ntk


@pytest.fixture(autouse=True)
def one_turn(monkeypatch):
    monkeypatch.setattr(benchmark_ntk, "TURNS", 1)


def dense(outputs, size, other=None):
    x2 = None if other is None else torch.rand(other, 3)
    return Case(mlp(3, 8, size), torch.rand(4, 3), x2, outputs)


def convolution(outputs):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    return Case(model, torch.rand(4, 1, 4, 4), None, outputs)


@pytest.mark.parametrize("case", [
    dense("full", 1), dense("full", 2), dense("trace", 2), dense("full", 2, other=3),
    convolution("full"), convolution("trace")])
def test_every_method_computes_the_kernel(case):
    _, kernels = benchmark_ntk.measure(benchmark_ntk.runs(case, {}))
    assert list(kernels) == COLUMNS and kernels.pop("floor") is None
    ours = compute_ntk(case.model, case.x1, case.x2, outputs=case.outputs)
    for ntk in kernels.values():
        assert benchmark_ntk.relative_error(ntk, ours) < 1e-4


def test_a_dash_where_there_is_no_forward_mode_and_no_floor():
    cells, _ = benchmark_ntk.row(Case(benchmark_ntk.lstm(), torch.rand(3, 2, 64)), {})
    dashes = [cell == NOT_SERVED for cell in cells]
    assert dashes == [False, False, True, False, True, True, False]


def test_a_peer_has_a_column_if_it_can_be_imported(monkeypatch):
    for package, _ in benchmark_peers.PEERS.values():
        monkeypatch.setitem(sys.modules, package, None)
    assert benchmark_peers.importable() == {}
    monkeypatch.setitem(sys.modules, "asdl", ModuleType("asdl"))
    assert list(benchmark_peers.importable()) == ["asdl, hadamard"]


def test_the_table_tells_of_another_quantity():
    case = dense("full", 1)
    twice = lambda *case: lambda: 2 * compute_ntk(*case[:3])
    head, row, _, note = benchmark_ntk.table({"tiny": lambda: case}, {"peer": twice})
    assert all(line.count("|") == len(COLUMNS) + 5 for line in [*head.splitlines(), row])
    assert note == "tiny: peer differs from ours by 1e+00 of the largest entry."


def test_rows_are_chosen_by_their_names():
    with pytest.raises(SystemExit, match="LeNet"):
        benchmark_ntk.main(["no such model"])


def rows_below(head, text):
    "The table that begins with this line, as a list of lines."
    return text[text.index(head):].partition("\n\n")[0].splitlines()


def test_notebook_16_has_the_table_of_readme():
    head = f"| N, model | {COLUMNS[0]} |"
    readme = rows_below(head, (ROOT / "README.md").read_text(encoding="utf-8"))
    assert rows_below(head, prose(read(ROOT / "notebooks" / "16_fast_ntk.ipynb"))) == readme
    assert len(readme) > 10 and all(line.count("|") == len(COLUMNS) + 2 for line in readme)
