"""What a kernel takes of memory, in bytes: python measure_memory.py NAME prints it as JSON.

`extra` and `symmetric` are what the process held at most beyond what it held before, during a
kernel of few rows against many, so that all gradients are needed but only once, and during one of
40 examples among themselves. `got` and `expected` are an entry of the first.
"""

import json
import sys

import torch
from torch import nn

from ntk import MLP, compute_ntk


class Tied(nn.Module):
    "The large weight is used twice, which no formula for layers serves."

    def __init__(self, width, outputs=1):
        super().__init__()
        self.first, self.hidden = nn.Linear(16, width), nn.Linear(width, width)
        self.last = nn.Linear(width, outputs)

    def forward(self, x):
        z = torch.tanh(self.hidden(torch.tanh(self.first(x))))
        return self.last(torch.tanh(self.hidden(z)))


def convolutions():
    return nn.Sequential(nn.Conv2d(3, 400, 2), nn.Tanh(), nn.Conv2d(400, 400, 3, padding=1),
                         nn.Tanh(), nn.Flatten(), nn.Linear(1600, 1))


CASES = {  # name → how to make the model, the shape of an example, the method
    "convolutions": (convolutions, (3, 3, 3), "auto"),
    "jacobian": (lambda: MLP(16, 1200, hidden_layers=2, activation="tanh"), (16,), "jacobian"),
    "tied weight": (lambda: Tied(1200), (16,), "auto"),
    "tied weight, ten outputs": (lambda: Tied(375, 10), (16,), "auto"),
}
JACOBIAN = 2.56e9  # bytes, ten times the budget


def main(name):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make, shape, method = CASES[name]
    model = make()
    parameters = list(model.parameters())
    one = 4 * sum(p.numel() for p in parameters) * model(torch.randn(2, *shape)).shape[1]
    x = torch.randn(round(JACOBIAN / one), *shape)
    x1, x2 = x[:10], x[10:]
    compute_ntk(model, x1[:2], x2[:2], method=method)  # so that everything is imported
    compute_ntk(model, x1[:2], method=method)
    before = held("VmRSS")
    ntk = compute_ntk(model, x1, x2, method=method)
    extra = held("VmHWM") - before
    compute_ntk(model, x[:40], method=method)
    symmetric = held("VmHWM") - before
    one, two = (torch.autograd.grad(model(xi[None])[0, 0], parameters) for xi in (x1[3], x2[-1]))
    expected = sum((p * q).sum() for p, q in zip(one, two))
    print(json.dumps({"extra": extra, "symmetric": symmetric, "result": ntk.nbytes,
                      "got": ntk[3, -1].flatten()[0].item(), "expected": expected.item()}))


def held(field):
    "Bytes: VmRSS is what the process holds now, VmHWM the most it has held."
    [line] = [line for line in open("/proc/self/status") if line.startswith(field)]
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main(sys.argv[1])
