"""What the tests compare with, and the small models they share.

The definitions are loops over `torch.autograd.grad` and know nothing of the package: `gradients`
takes one example and one output at a time, `ntk_by_definition` one pair at a time.
`assert_untouched` holds what is in a model against what was there before. The rest is inputs,
models, and a way to run a script by itself.
"""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ntk import MLP

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "data"  # numbers of Neural Tangents
METHODS = ["auto", "layerwise", "jacobian", "ntk_vector_products", "loop"]
GENERAL = ["auto", "jacobian", "ntk_vector_products", "loop"]  # not only for linear layers


# The definitions


def gradients(model, x):
    "(N, O, P) by the definition: one example and one output at a time."
    params = [p for p in model.parameters() if p.requires_grad]

    def gradient(out):
        grads = [None] * len(params)
        if out.requires_grad:
            grads = torch.autograd.grad(out, params, retain_graph=True, allow_unused=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten()
                          for g, p in zip(grads, params)])

    return torch.stack([torch.stack([gradient(out) for out in model(xi[None].clone())[0]])
                        for xi in x])


def ntk_by_definition(model, x1, x2=None):
    "The double loop over pairs of examples and of outputs: (N1, N2), or (N1, N2, O, O)."
    j1, j2 = gradients(model, x1), gradients(model, x1 if x2 is None else x2)
    ntk = torch.empty(len(j1), len(j2), j1.shape[1], j2.shape[1], dtype=j1.dtype)
    for i, j, a, b in np.ndindex(*ntk.shape):
        ntk[i, j, a, b] = torch.dot(j1[i, a], j2[j, b])
    return ntk[:, :, 0, 0] if j1.shape[1] == 1 else ntk


def assert_close(got, expected, tolerance=1e-10):
    "Equal shapes, and entries that differ by less than `tolerance` of the largest."
    assert tuple(got.shape) == tuple(expected.shape)
    error = np.abs(np.asarray(got) - np.asarray(expected)).max()
    assert error <= tolerance * np.abs(np.asarray(expected)).max()


@contextmanager
def may_decline(method):
    """What is asked within is answered rightly, or refused by a ValueError that names the method.

    "auto", "jacobian" and "loop" serve every model and must answer.
    """
    try:
        yield
    except ValueError as error:
        assert method in ("layerwise", "ntk_vector_products") and f'method="{method}"' in str(error)


# A model left as it was


@contextmanager
def assert_untouched(model):
    "Nothing in the model changes within, nor the random state, nor what cuDNN may do."
    parts, rng, cudnn = anatomy(model), torch.get_rng_state(), cudnn_settings()
    grads = {key: part.grad for key, part in parts.items() if isinstance(part, nn.Parameter)}
    values = contents(parts)
    yield
    after = anatomy(model)
    assert after.keys() == parts.keys()
    changed = [key for key in after if after[key] is not parts[key]]
    # a buffer may be another tensor with the same content
    assert [key for key in changed if type(after[key]) is not torch.Tensor] == []
    assert [key for key, grad in grads.items() if after[key].grad is not grad] == []
    assert contents(after) == values
    assert torch.equal(torch.get_rng_state(), rng)
    assert cudnn_settings() == cudnn


def anatomy(model):
    "Every object that a module holds, by name: parameters, buffers, hooks, flags, attributes."
    parts = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            value = value if isinstance(value, (dict, list)) else [value]
            items = value.items() if isinstance(value, dict) else enumerate(value)
            parts |= {(name, key, inner): part for inner, part in items}
    return parts


def contents(parts):
    "The values of all tensors, and of their .grad."
    def as_bytes(tensor):
        return None if tensor is None else tensor.detach().numpy().tobytes()

    tensors = {key: part for key, part in parts.items() if isinstance(part, torch.Tensor)}
    return {key: (as_bytes(tensor), tensor.requires_grad, tensor.is_leaf and as_bytes(tensor.grad))
            for key, tensor in tensors.items()}


def cudnn_settings():
    cudnn = torch.backends.cudnn
    return cudnn.enabled, cudnn.conv.fp32_precision, cudnn.allow_tf32


# Inputs and models


def data(n=5, *shape):
    "n examples of the shape given, or of four numbers."
    return torch.randn(n, *(shape or (4,)), dtype=torch.float64)


def mlp(*args, **kwargs):
    return MLP(*args, **kwargs).double()


class Net(nn.Module):
    "Two layers, 4 → 4 → 2, and any forward(net, x): for models that no library class stands for."

    def __init__(self, forward, outputs=2, **attributes):
        super().__init__()
        self.first, self.last, self.rule = nn.Linear(4, 4), nn.Linear(4, outputs), forward
        for name, value in attributes.items():
            setattr(self, name, value)
        self.double()

    def forward(self, x):
        return self.rule(self, x)


def two_layers(net, x):
    return net.last(torch.tanh(net.first(x)))


class Busy(Net):
    "Counts its calls in two buffers, one of them in place, draws numbers, keeps what it computed."

    def __init__(self):
        super().__init__(two_layers)
        self.register_buffer("calls", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("again", torch.zeros(()))
        self.kept = torch.zeros(2)

    def forward(self, x):
        self.calls += torch.rand(2)
        self.again = self.again + 1
        self.kept = self.first(x)
        return super().forward(x)


def reference(name):
    "The model that Neural Tangents had, and the file with what it computed; `name` is erf or relu."
    file = np.load(DATA / f"finite_width_{name}.npz")
    arrays = {key: torch.from_numpy(file[key]) for key in file.files
              if file[key].dtype == np.float64}
    layers = sum(key.startswith("weight_") and key != "weight_std" for key in arrays)
    model = mlp(5, 2, hidden_layers=layers - 1, activation=str(file["activation"]),
                parametrization="ntk", weight_std=float(file["weight_std"]),
                bias_std=float(file["bias_std"]))
    for i in range(layers):  # the widths differ, so the parameters are replaced, not copied into
        layer = getattr(model, f"lin{i + 1}")
        layer.weight = nn.Parameter(arrays[f"weight_{i}"])
        layer.bias = nn.Parameter(arrays[f"bias_{i}"])
    return model, arrays


# A process of its own


def run_script(path, *args):
    "What the Python script printed last, as JSON. The limit is a guard against hanging, no more."
    env = os.environ | {"OMP_NUM_THREADS": "1",
                        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run([sys.executable, str(path), *map(str, args)], env=env, timeout=600,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
