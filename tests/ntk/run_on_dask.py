"""Three kernels from a dask cluster of two worker processes: python run_on_dask.py LOG.

Prints as JSON what they were: for n_jobs=-1, for None, and when one worker was killed meanwhile.
LOG is a file in which the model writes down where it runs.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import joblib
import torch
from definitions import ntk_by_definition
from distributed import Client, LocalCluster
from torch import nn

from ntk import compute_ntk


class Slow(nn.Module):
    "Takes its time, and writes down which process it is in."

    def __init__(self, log):
        super().__init__()
        self.log, self.first, self.last = log, nn.Linear(4, 3), nn.Linear(3, 2)
        self.double()

    def forward(self, x):
        with open(self.log, "a") as log:
            log.write(f"{os.getpid()} ")
        time.sleep(0.05)
        return self.last(torch.tanh(self.first(x)))


def main(log):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, x = Slow(log), torch.randn(12, 4, dtype=torch.float64)
    expected = ntk_by_definition(model, x)
    found = {}
    with LocalCluster(n_workers=2, processes=True, threads_per_worker=1,
                      dashboard_address=None) as cluster, Client(cluster) as client:
        for n_jobs in -1, None:
            found[str(n_jobs)] = compared(model, x, expected, n_jobs)
        forget(log)
        victim, *_ = client.run(os.getpid).values()
        killer = threading.Thread(target=kill_at_work, args=(log, victim), daemon=True)
        killer.start()
        try:
            found["killed"] = compared(model, x, expected, -1)
        except Exception as error:
            found["killed"] = {"exception": repr(error)}
        found["was killed"] = not killer.is_alive()
    print(json.dumps(found), flush=True)


def compared(model, x, expected, n_jobs):
    forget(model.log)
    with joblib.parallel_config(backend="dask"):
        ntk = compute_ntk(model, x, n_jobs=n_jobs, chunk_size=2)
    elsewhere = {*seen_in(model.log)} - {str(os.getpid())}
    return {"error": ((ntk - expected).abs().max() / expected.abs().max()).item(),
            "processes": len(elsewhere), "shape": list(ntk.shape)}


def forget(log):
    open(log, "w").close()


def seen_in(log):
    return Path(log).read_text().split()


def kill_at_work(log, victim):
    "When it has begun its second task or a later one."
    while seen_in(log).count(str(victim)) < 8:
        time.sleep(0.01)
    os.kill(victim, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])
