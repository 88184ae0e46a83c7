"""How long the NTK takes: `python tests/benchmark_ntk.py` prints one table, from one run of less
than six minutes on two cores; with arguments (`… lenet resnet`), only the rows that have one of
them in their name.

The article's loop: one backward pass for each example and output, then a dot product for each pair.
torch.func, Jacobian and torch.func, products: the functions of PyTorch's tutorial "Neural Tangent
Kernels", but with one Jacobian, not two, where x2 = x1. compute_ntk: ours, for an infinitely wide
net `infinite_width_ntk`. Libraries of benchmark_peers.py that can be imported have columns too.

Floor: what nobody avoids, and nothing else. A forward pass, a backward pass for each output, and
the products of Gram matrices, half of them where x2 = x1. Of linear layers the inputs and the
gradients at the outputs are multiplied; for convolutions and embeddings the gradients of each
example are formed first, for embeddings over the tokens that occur. The few parameters of
BatchNorm are left out. Models with other layers have no floor.

Methods take turns within a case, after one turn that is not counted. The median of five turns is
shown, or of as many as begin within four seconds. A number after ~ was measured on a few examples
or pairs and scaled up with N or N²; "memory" stands where Jacobians would take more than 4 GB, and
a dash where a method does not serve the case, as PyTorch's forward mode does not the transformer
and the LSTM. Each kernel is compared with ours, and a relative error above 1e-4 is told below the
table, so that nobody compares times of different quantities.
"""

import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import benchmark_peers as others  # noqa: E402
from benchmark_peers import JACOBIANS, MEMORY, NOT_SERVED, jacobian_bytes  # noqa: E402

from ntk import compute_ntk, infinite_width_ntk  # noqa: E402

TORCH_FUNC = "torch.func, Jacobian", "torch.func, products"
COLUMNS = ["the article's loop", *TORCH_FUNC, "compute_ntk", "floor"]
FLOORED = nn.Linear, nn.Conv2d, nn.Embedding, nn.BatchNorm2d  # other layers have no floor
TURNS, PATIENCE = 5, 4  # seconds for all turns of a method in a case


# Models


def mlp(*sizes):
    layers = [[nn.Linear(*pair), nn.ReLU()] for pair in zip(sizes, sizes[1:])]
    return nn.Sequential(*sum(layers, [])[:-1])


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))


def tutorial_cnn():
    "Three 3×3 convolutions of 32 channels on 3×32×32 images, 10 outputs: 235,722 parameters."
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(),
                         nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(21632, 10))


class Then(nn.Module):
    "A part, what becomes of its outputs, and a linear layer."

    def __init__(self, part, rule, head):
        super().__init__()
        self.part, self.rule, self.head = part, rule, head

    def forward(self, x):
        return self.head(self.rule(self.part(x)))


class Block(nn.Module):
    "Two convolutions, and around them one of 1×1, or nothing where the shape stays."

    def __init__(self, before, after, stride):
        super().__init__()
        self.inside = nn.Sequential(*normed(before, after, 3, stride), nn.ReLU(),
                                    *normed(after, after, 3, 1))
        self.around = nn.Sequential(*normed(before, after, 1, stride) if stride > 1 else [])

    def forward(self, x):
        return F.relu(self.inside(x) + self.around(x))


def normed(before, after, size, stride):
    return nn.Conv2d(before, after, size, stride, size // 2, bias=False), nn.BatchNorm2d(after)


def resnet8():
    part = nn.Sequential(*normed(3, 16, 3, 1), nn.ReLU(),
                         Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
    return Then(part, lambda a: a.mean((2, 3)), nn.Linear(64, 10))


def transformer():
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    return Then(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
                lambda a: a.mean(1), nn.Linear(64, 1))


def lstm():
    return Then(nn.LSTM(64, 64, batch_first=True), lambda a: a[0][:, -1], nn.Linear(64, 1))


def embedding():
    return Then(nn.Embedding(20_000, 64), lambda a: a.mean(1), nn.Linear(64, 2))


# Cases


class Case(NamedTuple):
    "What compute_ntk is called with; model None is the infinitely wide net."

    model: nn.Module | None
    x1: torch.Tensor
    x2: torch.Tensor | None = None
    outputs: str = "full"


def case(model, *shape, outputs="full"):
    return Case(model.eval(), torch.rand(*shape), None, outputs)


CASES = {
    "100, 20-10-1": lambda: case(mlp(20, 10, 1), 100, 20),
    "300, 784-512-512-1": lambda: case(mlp(784, 512, 512, 1), 300, 784),
    "200, 784-512-512-10, full": lambda: case(mlp(784, 512, 512, 10), 200, 784),
    "200, 784-512-512-10, trace": lambda: case(mlp(784, 512, 512, 10), 200, 784, outputs="trace"),
    "1000, 64-512-512-1": lambda: case(mlp(64, 512, 512, 1), 1000, 64),
    "1797, 64-4096-4096-1": lambda: case(mlp(64, 4096, 4096, 1), 1797, 64),
    "100, LeNet 28×28, O 10, full": lambda: case(lenet(), 100, 1, 28, 28),
    "100, LeNet 28×28, O 10, trace": lambda: case(lenet(), 100, 1, 28, 28, outputs="trace"),
    "40, ResNet-8, O 10": lambda: case(resnet8(), 40, 3, 32, 32),
    "20×5, the tutorial's CNN":
        lambda: Case(tutorial_cnn(), *torch.rand(25, 3, 32, 32).split([20, 5])),
    "50, transformer d 64, 2 layers, seq 16": lambda: case(transformer(), 50, 16, 64),
    "50, LSTM 64, seq 16": lambda: case(lstm(), 50, 16, 64),
    "64, embedding 20,000 × 64, seq 16, O 2":
        lambda: Case(embedding(), torch.randint(0, 20_000, (64, 16))),
    "2000, infinite ReLU net, 3 hidden layers, d 784": lambda: Case(None, torch.rand(2000, 784)),
}


# The floor


def floor(model, x1, x2, outputs):
    "The work that the docstring of the file lists."
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.Embedding))]
    sides = [passes(model, layers, x) for x in ((x1,) if x2 is None else (x1, x2))]
    rows = 1 if outputs == "trace" else 2  # are examples, or examples with outputs
    for layer, (a1, d1), (a2, d2) in zip(layers, sides[0], sides[-1]):
        if isinstance(layer, nn.Linear):
            multiply(a1, a2, half=x2 is None)
        g1 = gradients(layer, a1, d1)
        g2 = g1 if x2 is None else gradients(layer, a2, d2)
        multiply(*(g.flatten(rows).flatten(0, rows - 1) for g in (g1, g2)), half=x2 is None)


def passes(model, layers, x):
    "For each layer its inputs and the gradients (N, O, …) at its outputs."
    seen = {}
    note = lambda layer, inputs, z: seen.update({layer: (inputs[0].detach(), z)})
    hooks = [layer.register_forward_hook(note) for layer in layers]
    out = model(x)
    for hook in hooks:
        hook.remove()
    inputs, ends = zip(*(seen[layer] for layer in layers))
    grads = [torch.autograd.grad(out, ends, v.expand_as(out), retain_graph=True)
             for v in torch.eye(out.shape[1])]
    return list(zip(inputs, (torch.stack(d, 1) for d in zip(*grads))))


def gradients(layer, a, d):
    "Of each example and output, (N, O, …); of a linear layer only those at its outputs."
    if isinstance(layer, nn.Linear):
        return d
    if isinstance(layer, nn.Embedding):
        tokens, places = a.unique(return_inverse=True)
        met, d = F.one_hot(places, len(tokens)).float(), d.mT
    else:
        met = F.unfold(a, layer.kernel_size, padding=layer.padding, stride=layer.stride).mT
        d = d.flatten(3)
    return (d.flatten(1, 2) @ met).unflatten(1, d.shape[1:3])


def multiply(a, b, half):
    "a bᵀ, or the half of it that is enough where b is a."
    step = max(64, math.ceil(len(a) / 8)) if half else len(a)
    for i in range(0, len(a), step):
        a[i:i + step] @ b[i if half else 0:].T


# Measuring


class Run(NamedTuple):
    "function() → seconds for the whole case, scaled up or not, and a kernel to compare or None."

    function: Callable
    scaled: bool = False


def timed(function, *arguments, scale=1):
    def run():
        start = time.perf_counter()
        ntk = function(*arguments)
        return scale * (time.perf_counter() - start), ntk

    return Run(run, scale > 1)


def runs(case, peers):
    "{column: Run, or what stands in the table instead}."
    model, x1, x2, outputs = case
    more = {column: peer(*case) for column, peer in peers.items()}
    more = {column: timed(f) if callable(f) else f for column, f in more.items()}
    if model is None:
        ours = timed(lambda: infinite_width_ntk(x1, hidden_layers=3).ntk)
        return dict.fromkeys(COLUMNS, NOT_SERVED) | {"compute_ntk": ours} | more
    y, size = x1 if x2 is None else x2, jacobian_bytes(model, x1[:1], None)
    few = max(1, min(len(x1), 50 // model(x1[:1]).shape[1], int(2e8 / size)))
    pair = x1[:min(few, 5)], y[:min(few, 5)]
    jacobian = timed(others.jacobian_contraction, *case)
    return dict(zip(COLUMNS, [
        Run(lambda: others.scaled_article(*case, few), scaled=True),
        jacobian if jacobian_bytes(model, x1, x2) < JACOBIANS else MEMORY,
        timed(others.ntk_vector_products, model, *pair, outputs,
              scale=len(x1) * len(y) / len(pair[0]) / len(pair[1])),
        timed(lambda: compute_ntk(model, x1, x2, outputs=outputs)),
        timed(floor, *case) if others.made_of(model, *FLOORED) else NOT_SERVED])) | more


def measure(runs):
    "{column: median of seconds} and {column: kernel or None}, without those that PyTorch refuses."
    kernels = {}
    for column, run in runs.items():
        with suppress(NotImplementedError):
            kernels[column] = run.function()[1]
    turns, spent = {column: [] for column in kernels}, dict.fromkeys(kernels, 0)
    for _ in range(TURNS):
        for column in kernels:
            if spent[column] < PATIENCE:
                start = time.perf_counter()
                turns[column].append(runs[column].function()[0])
                spent[column] += time.perf_counter() - start
    return {column: statistics.median(t) for column, t in turns.items()}, kernels


def relative_error(ntk, ours):
    "Of a kernel, or of its first rows and columns."
    ours = ours[:len(ntk), :ntk.shape[1]]
    assert ntk.shape == ours.shape
    return ((ntk - ours).abs().max() / ours.abs().max()).item()


# The table


def cell(seconds, scaled):
    value, unit = (seconds, "s") if seconds >= 1 else (1e3 * seconds, "ms")
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{'~ ' if scaled else ''}{value:,.{digits}f} {unit}"


def row(case, peers):
    "The cells of a case, and {column: error} of the kernels that are not ours."
    todo = runs(case, peers)
    seconds, kernels = measure({c: run for c, run in todo.items() if isinstance(run, Run)})
    cells = [cell(seconds[c], run.scaled) if c in seconds
             else NOT_SERVED if isinstance(run, Run) else run for c, run in todo.items()]
    best = min((seconds[c] for c in TORCH_FUNC if c in seconds), default=None)
    ours, floor = seconds["compute_ntk"], seconds.get("floor")
    ratios = [f"{ours / floor:.2f}" if floor else NOT_SERVED,
              f"{best / ours:,.3g}" if best else NOT_SERVED]
    errors = {c: relative_error(ntk, kernels["compute_ntk"])
              for c, ntk in kernels.items() if ntk is not None}
    return (cells[:len(COLUMNS)] + ratios + cells[len(COLUMNS):],
            {c: error for c, error in errors.items() if error > 1e-4})


def table(cases, peers):
    "The lines of the table, each as soon as it is known, and the footnotes."
    columns = [*COLUMNS, "ours / floor", "best torch.func / ours", *peers]
    yield f"| N, model | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}"
    notes = []
    for name, make in cases.items():
        torch.manual_seed(0)
        cells, errors = row(make(), peers)
        yield f"| {name} | {' | '.join(cells)} |"
        notes += [f"{name}: {column} differs from ours by {error:.0e} of the largest entry."
                  for column, error in errors.items()]
    yield from ["", *notes] if notes else []


def main(words):
    wanted = {name: make for name, make in CASES.items()
              if any(word.lower() in name.lower() for word in words or [""])}
    if not wanted:
        raise SystemExit("no such row; there are\n" + "\n".join(CASES))
    warnings.simplefilter("ignore")  # of what is slow, or deprecated, in others
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32\n")
    for line in table(wanted, others.importable()):
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
