"""A learner's small changes, one at a time: claims may end, but Run All reaches the last cell."""

import pytest
from course import PATHS, code, read
from refresh_notebooks import client

pytestmark = pytest.mark.slow

# notebook → (text in a cell, what a learner writes in its place)
EDITS = {
    "00": [
        ("seed = 0\n", "seed = 5\n"),
        ("nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 1)",
         "nn.Linear(20, 4), nn.ReLU(), nn.Linear(4, 1)"),
        ("nn.ReLU()", "nn.Tanh()"),
        ("nn.ReLU(),", "nn.ReLU(), nn.Linear(10, 10), nn.ReLU(),"),
        ("eps = 0.001", "eps = 0.1"),
        ("default_rng(0)", "default_rng(7)"),
        ("standard_normal((100, 20))", "standard_normal((40, 20))"),
        ("seeds_agree(4), seeds_agree(4096)", "seeds_agree(2), seeds_agree(512)"),
        ("in (64, 1024)]", "in (16, 256, 1024)]"),
        ("width=16, seed=0", "width=4, seed=3"),
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
        ("default_rng(0)", "default_rng(7)"),
        ("standard_normal((100, 20))", "standard_normal((40, 20))"),
        ("for width in (10, 20, 40, 80)", "for width in (5, 500)"),
        ("for seed in (3, 3, 4)", "for seed in (0, 7, 7)"),
        ("((3, \"#0072B2\", \"o\"), (4,", "((8, \"#0072B2\", \"o\"), (9,"),
        ("width=4, seed=18", "width=64, seed=3"),
        ("in (1, 4, 16)}", "in (2, 8)}"),
        ("in (4, 16, 64, 256, 1024)}", "in (4, 32)}"),
        ("widths = [1, 10, 100, 1000]", "widths = [4, 16, 64]"),
        ("draws=500", "draws=50"),
    ],
    "02": [
        ("torch.manual_seed(0)\nmodel =", "torch.manual_seed(5)\nmodel ="),
        ("model = MLP(20, 10, 1)", "model = MLP(20, 4, 1)"),
        ("model = MLP(20, 10, 1)", 'model = MLP(20, 10, 1, activation="tanh")'),
        ("model = MLP(20, 10, 1)", "model = MLP(20, 10, 1, hidden_layers=2)"),
        ("default_rng(0)", "default_rng(7)"),
        ("standard_normal((100, 20))", "standard_normal((30, 20))"),
        ("epsilon=1e-4", "epsilon=0.1"),
        ("curve_model = MLP(1, 50,", "curve_model = MLP(1, 5,"),
        ("classifier = MLP(20, 10, 3)", "classifier = MLP(20, 10, 5)"),
        ("torch.linspace(-3, 3, 301", "torch.linspace(-2, 2, 101"),
    ],
    "03": [
        ("torch.manual_seed(0)\nmodel =", "torch.manual_seed(5)\nmodel ="),
        ("model = MLP(20, 10)", "model = MLP(20, 4)"),
        ("model = MLP(20, 10)", 'model = MLP(20, 10, activation="tanh")'),
        ("model = MLP(20, 10)", "model = MLP(20, 10, hidden_layers=2)"),
        ("default_rng(0)", "default_rng(7)"),
        ("standard_normal((100, 20))", "standard_normal((40, 20))"),
        ("small = MLP(20, 4)", "small = MLP(20, 8)"),
        ("small = MLP(20, 4)", 'small = MLP(20, 4, activation="tanh")'),
        ("eta = 1e-5", "eta = 0.1"),
        ("widths = [10, 100, 1000, 10000]", "widths = [10, 100, 1000]"),
    ],
    "04": [
        ("def net_of(width, seed=0)", "def net_of(width, seed=5)"),
        ("ntk = ntk_of(x, width=1000)", "ntk = ntk_of(x, width=4)"),
        ("return MLP(20, width)", 'return MLP(20, width, activation="tanh")'),
        ("return MLP(20, width)", "return MLP(20, width, hidden_layers=2)"),
        ("default_rng(0)", "default_rng(7)"),
        ("tensor(rng.standard_normal((100, 20)))", "tensor(rng.standard_normal((80, 20)))"),
        ("noise = 0.8", "noise = 2.0"),
        ("default_rng(2)", "default_rng(7)"),
        ("lognormal(0, 1.1,", "lognormal(0, 0.1,"),
        ("in (4, 64, 1024)}", "in (2, 512)}"),
    ],
}
CASES = [(path, old, new) for path in PATHS for old, new in EDITS.get(path.name[:2], [])]


@pytest.mark.parametrize("path, old, new", CASES,
                         ids=[f"{path.stem}-{new}" for path, _, new in CASES])
def test_a_small_change_stops_no_cell(path, old, new):
    notebook = read(path)
    [cell] = [cell for cell in code(notebook) if old in cell.source]
    cell.source = cell.source.replace(old, new, 1)
    client(notebook).execute()  # raises at the first error
