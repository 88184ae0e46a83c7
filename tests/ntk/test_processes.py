"compute_ntk in other processes: joblib's, a dask cluster's, and a fresh one."

import os
from pathlib import Path

import pytest
import torch
from definitions import (
    Busy,
    Net,
    assert_close,
    assert_untouched,
    data,
    mlp,
    ntk_by_definition,
    run_script,
)

from ntk import compute_ntk

pytestmark = pytest.mark.slow

# A fresh process


def test_the_kernel_of_an_mlp_needs_no_sympy(tmp_path):
    "Which torch imports, for seconds, at some calls of torch.autograd.grad."
    script = tmp_path / "script.py"
    script.write_text("""
import json, sys, torch
from ntk import MLP, compute_ntk
assert compute_ntk(MLP(4, 5), torch.randn(6, 4)).shape == (6, 6)
print(json.dumps(sorted({"sympy", "torch._dynamo", "matplotlib", "IPython"} & {*sys.modules})))
""")
    assert run_script(script) == []


# joblib


def test_two_processes_give_the_same_kernel():
    model, x = mlp(4, 5, 2), data(7)
    ntk = compute_ntk(model, x, n_jobs=2)
    assert_close(ntk, ntk_by_definition(model, x))
    assert torch.equal(ntk, ntk.permute(1, 0, 3, 2))


def test_two_processes_serve_a_model_defined_on_the_spot():
    model, x1, x2 = Net(lambda net, x: net.last(torch.sin(net.first(x)))), data(5), data(3)
    ntk = compute_ntk(model, x1, x2, n_jobs=2, chunk_size=2)
    assert_close(ntk, ntk_by_definition(model, x1, x2))


class FailsElsewhere(Busy):
    "Fails in any process but this one."

    def __init__(self):
        super().__init__()
        self.home = os.getpid()

    def forward(self, x):
        out = super().forward(x)
        if os.getpid() != self.home:
            raise KeyError("not here")
        return out


def test_model_is_left_as_it_was_after_an_exception_in_another_process():
    model, x = FailsElsewhere(), data()
    model.last.bias.grad = torch.full_like(model.last.bias, 7.0)
    with assert_untouched(model), pytest.raises(ValueError, match="not here"):
        compute_ntk(model, x, n_jobs=2, chunk_size=1)


# A dask cluster


def test_a_dask_cluster_gives_the_same_kernel_and_survives_a_worker(tmp_path):
    "Two workers, three kernels; one worker is killed during the last, which may then be refused."
    pytest.importorskip("distributed")
    found = run_script(Path(__file__).parent / "run_on_dask.py", tmp_path / "log")
    for n_jobs in "-1", "None":
        assert found[n_jobs]["error"] < 1e-9 and found[n_jobs]["shape"] == [12, 12, 2, 2]
        assert found[n_jobs]["processes"] == 2  # both workers took part
    assert found["was killed"]
    assert "exception" in found["killed"] or found["killed"]["error"] < 1e-9
