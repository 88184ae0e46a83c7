"""The package on a cluster whose machines have PyTorch and dask, but no course and no Jupyter.

A scheduler and two workers are processes of their own, and get the package as notebook 16 says: as
an archive. What a cluster does when one of its workers dies is in test_processes.py.
"""

import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import joblib
import pytest
from definitions import assert_close, data, ntk_by_definition
from distributed import Client
from processes import HANG, HIDDEN, ROOT, without_jupyter
from torch import nn

from ntk import compute_ntk

pytestmark = pytest.mark.slow


@pytest.fixture
def client(tmp_path):
    "Of a scheduler that leaves a task with the worker it gave it to, so that both take part."
    settings = {"DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING": "False",
                "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": f"{HANG}s", "OMP_NUM_THREADS": "1"}
    environment = without_jupyter(tmp_path) | settings
    here = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", "scheduler.json"]
    scheduler, worker = ["scheduler", "--port", "0"], ["worker", "--nthreads", "1", "--no-nanny"]
    with ExitStack() as stack:
        for command in scheduler, worker, worker:
            stack.enter_context(process(["-m", "dask", *command, *here], tmp_path, environment))
        client = stack.enter_context(
            Client(scheduler_file=str(tmp_path / "scheduler.json"), timeout=HANG))
        client.wait_for_workers(2, timeout=HANG)
        yield client


@contextmanager
def process(arguments, folder, environment):
    running = subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment,
                               stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        running.kill()
        running.wait()


def test_the_package_travels_as_an_archive(client, tmp_path):
    def can_import(name):
        try:
            __import__(name)
        except ModuleNotFoundError:
            return False
        return True

    def tasks_done(dask_worker):
        return dask_worker.state.executed_count

    def loaded():
        return set(sys.modules)

    assert [*client.run(can_import, "ntk").values()] == [False, False]
    assert [*client.run(tasks_done).values()] == [0, 0]
    client.upload_file(shutil.make_archive(str(tmp_path / "ntk"), "zip", ROOT, "ntk"))

    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x = data(12)
    with joblib.parallel_config(backend="dask"):
        kernel = compute_ntk(model, x, n_jobs=-1, chunk_size=2)
    assert_close(kernel, ntk_by_definition(model, x), 1e-9)
    assert all(done > 0 for done in client.run(tasks_done).values())
    for modules in client.run(loaded).values():
        assert "ntk.kernel" in modules and not set(HIDDEN) & modules
