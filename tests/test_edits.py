"""A learner's small changes, one at a time: claims may end, but Run All reaches the last cell.

A notebook's cells run once, up to the last that a learner changes. Before each of these the process
splits (`os.fork`): a copy makes the change and runs all cells that are left, and ends.
"""

import os
import signal
import sys
import traceback

import matplotlib
import pytest
import torch
from course import PATHS, ROOT, code, read
from IPython.core.interactiveshell import InteractiveShell
from ipywidgets import Widget
from processes import HANG

pytestmark = pytest.mark.slow

# notebook → (text in a cell, what a learner writes in its place)
EDITS = {
    "00": [
        ("torch.manual_seed(0)\nmodel =", "torch.manual_seed(5)\nmodel ="),
        ("model = MLP(64, 1024,", "model = MLP(64, 4,"),
        ("model = MLP(64, 1024,", 'model = MLP(64, 1024, activation="tanh",'),
        ("model = MLP(64, 1024,", "model = MLP(64, 1024, hidden_layers=2,"),
        ("epsilon = model(x).detach()[:, 0], 0.001", "epsilon = model(x).detach()[:, 0], 0.1"),
        ("default_rng(0).standard_normal", "default_rng(7).standard_normal"),
        ("standard_normal((100, 20))", "standard_normal((40, 20))"),
        ("small = MLP(20, 10)", "small = MLP(20, 4)"),
        ("MLP(64, width,", "MLP(64, width, hidden_layers=3,"),
        ("width=1024, seed=0", "width=4, seed=3"),
    ],
    "01": [
        ("torch.manual_seed(0)\nnet =", "torch.manual_seed(5)\nnet ="),
        ("net = TwoLayerNet(20, 10, 1)", "net = TwoLayerNet(20, 4, 1)"),
        ("torch.relu(self.lin1(x))", "torch.tanh(self.lin1(x))"),
        ("""nn.Linear(hidden_dim, output_dim)

    def forward(self, x):
        return self.lin2(torch.relu(self.lin1(x)))
""", """nn.Linear(hidden_dim, hidden_dim)
        self.lin3 = nn.Linear(hidden_dim, output_dim)

    def forward(self, x):
        return self.lin3(torch.relu(self.lin2(torch.relu(self.lin1(x)))))
"""),
        ("default_rng(0).standard_normal((100", "default_rng(7).standard_normal((100"),
        ("standard_normal((100, 20))", "standard_normal((40, 20))"),
        ("for width in (10, 20, 40, 80)", "for width in (5, 500)"),
        ("for seed in (9, 9, 12)", "for seed in (0, 7, 7)"),
        ("((9, \"#0072B2\", \"o\"), (12,", "((8, \"#0072B2\", \"o\"), (7,"),
        ("width=4, seed=18", "width=64, seed=3"),
        ("in (1, 4, 16)}", "in (2, 8)}"),
        ("in (4, 16, 64, 256, 1024)}", "in (4, 32)}"),
        ("widths = [1, 10, 100, 1000]", "widths = [4, 16, 64]"),
        ("draws=500", "draws=50"),
    ],
    "02": [
        ("torch.manual_seed(0)\nsmall =", "torch.manual_seed(5)\nsmall ="),
        ("small = MLP(20, 10)", "small = MLP(20, 4)"),
        ("small = MLP(20, 10)", 'small = MLP(20, 10, activation="tanh")'),
        ("small = MLP(20, 10)", "small = MLP(20, 10, hidden_layers=2)"),
        ("default_rng(0)", "default_rng(7)"),
        ("standard_normal((100, 20))", "standard_normal((30, 20))"),
        ("three = x[33]", "three = x[70]"),
        ("torch.manual_seed(0)\nmodel =", "torch.manual_seed(5)\nmodel ="),
        ("MLP(64, 100, 10)", "MLP(64, 100, 3)"),
        ("0.0003 *", "0.1 *"),
    ],
    "03": [
        ("torch.manual_seed(0)\nmodel =", "torch.manual_seed(5)\nmodel ="),
        ("model = MLP(64, 1024)", "model = MLP(64, 4)"),
        ("model = MLP(64, 1024)", 'model = MLP(64, 1024, activation="tanh")'),
        ("model = MLP(64, 1024)", "model = MLP(64, 1024, hidden_layers=2)"),
        ("[:10] for c", "[:4] for c"),
        ("article_net = MLP(20, 10)", "article_net = MLP(20, 3)"),
        ("default_rng(0)", "default_rng(7)"),
        ("standard_normal((100, 20))", "standard_normal((40, 20))"),
        ("small = MLP(20, 4)", "small = MLP(20, 8)"),
        ("small = MLP(20, 4)", 'small = MLP(20, 4, activation="tanh")'),
        ("eta = 1e-4", "eta = 0.1"),
        ("in (1e-5, 1e-4, 1e-3, 1e-2)", "in (1e-3, 1.0)"),
    ],
    "04": [
        ("def net_of(width=1024, seed=0)", "def net_of(width=1024, seed=5)"),
        ("def net_of(width=1024, seed=0)", "def net_of(width=4, seed=0)"),
        ('width, parametrization="ntk")', 'width, parametrization="ntk", activation="tanh")'),
        ('width, parametrization="ntk")', 'width, parametrization="ntk", hidden_layers=2)'),
        ('width, parametrization="ntk")', "width)"),
        ("default_rng(0)", "default_rng(7)"),
        ("standard_normal((100, 20))", "standard_normal((80, 20))"),
        ("x_long[33] *= 10", "x_long[60] *= 0"),
        ("default_rng(2)", "default_rng(7)"),
        ("tensor(5 **", "tensor(1.1 **"),
        ("labels % 2", "labels > 4"),
        ("matrix_power(step, 10)", "matrix_power(step, 100)"),
    ],
    "05": [
        ("def net_of(width, seed=0,", "def net_of(width, seed=5,"),
        ("return MLP(64, width, **options)", 'return MLP(64, width, activation="tanh", **options)'),
    ],
    "06": [
        ("manual_seed(seed)\n    net =", "manual_seed(seed + 5)\n    net ="),
        ('output_dim=1, activation="relu"', 'output_dim=1, activation="tanh"'),
    ],
    "07": [
        ('"large weights": 2.5', '"large weights": 1.0'),
        ("on_circle(24), [1, 2, 4, 8, 16, 32, 64]", "on_circle(7), [1, 3, 5, 8, 16, 32, 64]"),
    ],
    "08": [
        ("default_rng(seed), [64", "default_rng(seed + 7), [64"),
        ("sizes = (20, 8), (20, 16), (40, 8), (40, 16)", "sizes = (9, 2), (9, 4), (5, 2), (5, 4)"),
    ],
    "09": [
        ("y = (labels == 3)", "y = (labels > 4)"),
        ('width, seed=0, activation="relu")', 'width, seed=7, activation="tanh")'),
    ],
    "10": [
        ("angles = around(32)", "angles = around(16)"),
        ("history = train(net_of(512, seed=0)", "history = train(net_of(8, seed=3)"),
    ],
    "11": [
        ("seed=1, activation=\"tanh\")", "seed=7, activation=\"relu\")"),
        ("widths = [256, 1024, 4096]", "widths = [8, 32]"),
    ],
    "12": [
        ("torch.manual_seed(0)\nstudent =", "torch.manual_seed(5)\nstudent ="),
        ("student = MLP(2, 100,", 'student = MLP(2, 100, activation="tanh",'),
    ],
    "13": [
        ("(digits.target % 2 * 2.0 - 1)", "((digits.target > 4) * 2.0 - 1)"),
        ("small = MLP(8, 10,", "small = MLP(8, 4,"),
    ],
    "14": [
        ("def net_of(width=256, seed=0,", "def net_of(width=8, seed=5,"),
        ("y = (labels == 3)", "y = (labels > 4)"),
    ],
    "15": [
        ('{"activation": "erf", "weight_std": 2.0', '{"activation": "relu", "weight_std": 1.5'),
        ("[1, -0.5], [2.5, 1]]", "[1, -0.5], [1.2, 3], [2.5, 1]]"),
        ("nets = hundred_nets(512)\nuntrained", "nets = hundred_nets(8)\nuntrained"),
        ("τ = 0.5\ntorch", "τ = 2.0\ntorch"),
    ],
    "16": [
        ("model = MLP(64, 32, 3, hidden_layers=2)", 'model = MLP(64, 8, 1, activation="tanh")'),
        ("nn.PReLU(), nn.Linear(16, 10)", "nn.PReLU(), nn.Linear(16, 9)"),
    ],
    "17": [
        ("default_rng(0).permutation(1797)", "default_rng(7).permutation(1797)"),
        ("net = MLP(64, 128, 10, hidden_layers=2)", 'net = MLP(64, 16, 10, activation="tanh")'),
    ],
    "18": [
        ("SIGMAS = [1, 2, 4, 8, 16]", "SIGMAS = [3, 32]"),
        ('activation="tanh"', 'activation="relu"'),
        ("net = MLP(x.shape[1], 256,", "net = MLP(x.shape[1], 16,"),
        ("def fresh(seed=0):", "def fresh(seed=3):"),
    ],
}


@pytest.mark.parametrize("name", EDITS)
def test_small_changes_stop_no_cell(name, shell):
    [path] = [path for path in PATHS if path.name.startswith(name)]
    sources, stopped = [cell.source for cell in code(read(path))], []
    changes = sorted((place_of(old, sources), old, new) for old, new in EDITS[name])
    done = 0
    for place, old, new in changes:
        run(shell, sources[done:place])
        done = place
        changed = sources[place].replace(old, new, 1)
        error = error_in_a_copy(run, shell, [changed, *sources[place + 1:]])
        if error:
            stopped.append(f"{old!r} → {new!r}:\n{error}")
    assert not stopped, "\n".join(stopped)


def place_of(old, sources):
    [place] = [i for i, source in enumerate(sources) if old in source]
    return place


def run(shell, sources):
    for source in sources:
        shell.run_cell(source).raise_error()


def error_in_a_copy(work, *arguments):
    "What `work(*arguments)` raises in a copy of this process, as text; empty if it ends well."
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(HANG)  # the process ends
        error = "ended without a word"
        try:
            work(*arguments)
            error = ""
        except BaseException:
            error = traceback.format_exc()
        finally:
            with os.fdopen(write_end, "w") as pipe:
                pipe.write(error)
            os._exit(0)  # without what pytest would do at its end
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        error = pipe.read()
    _, status = os.waitpid(child, 0)
    return error or (f"the process ended with {status}" if status else "")


@pytest.fixture
def shell(monkeypatch):
    """IPython's, which runs and displays what a kernel would, in the notebooks' folder; without
    a kernel's start and a new import of PyTorch, which take longer than the cells."""
    monkeypatch.chdir(ROOT / "notebooks")
    monkeypatch.setattr(sys, "path", [*sys.path])
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    shell = InteractiveShell.instance()
    try:
        with matplotlib.rc_context():
            yield shell
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        Widget.close_all()  # the registry of widgets would keep all that explorers draw with,
        shell.user_ns.clear()  # and IPython's list of what to do at exit each shell
        InteractiveShell.clear_instance()
