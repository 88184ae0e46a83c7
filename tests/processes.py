"""Processes that tests start: commands, and a Python from which Jupyter and Matplotlib are hidden.

A process that only computes kernels needs neither Jupyter nor Matplotlib. To be sure, it runs with
a `sitecustomize.py` on its path, which Python imports before anything else: an import of what is
hidden then fails as if it were not installed, in the processes that this one starts, too.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HANG = 600  # seconds: what takes longer hangs, on however busy a machine
HIDDEN = ["IPython", "PIL", "anywidget", "ipykernel", "ipywidgets", "jupyter_client",
          "jupyter_core", "matplotlib", "sklearn", "traitlets"]
HIDE = f"""
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HIDDEN}:
            raise ModuleNotFoundError(f"No module named {{name!r}}: hidden by a test", name=name)

sys.meta_path.insert(0, Hidden())
"""

# a kernel from the package `ntk` against the Gram matrix of gradients from autograd, one by one
COMPUTE_A_KERNEL = """
import torch
from ntk import MLP, compute_ntk

torch.manual_seed(0)
model, x = MLP(3, 5).double(), torch.randn(4, 3, dtype=torch.float64)
outputs = [model(xi[None])[0, 0] for xi in x]
gradients = [torch.autograd.grad(output, [*model.parameters()]) for output in outputs]
J = torch.stack([torch.cat([piece.flatten() for piece in pieces]) for pieces in gradients])
assert (compute_ntk(model, x) - J @ J.T).abs().max() < 1e-10
"""


def run(*command, **options):
    "What a command printed and how it ended."
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG, **options)


def python(*arguments, **options):
    "The standard output of a Python process that must not fail."
    done = run(sys.executable, *arguments, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def without_jupyter(folder, *paths):
    "The environment of a Python that finds `paths`, but not Jupyter, by a file in `folder`."
    hide = folder / "hide"
    hide.mkdir()
    (hide / "sitecustomize.py").write_text(HIDE)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [hide, *paths]))}
