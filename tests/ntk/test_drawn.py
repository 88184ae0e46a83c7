"""compute_ntk of nets that nobody chose: drawn by hypothesis, and one for each function of torch.

A drawn net is a start, a body of layers that keep the shape, and a linear end; some parameters are
frozen, some layers used again. Sizes are small, and as many examples as outputs are among them,
since that is where wrong batching rules hide.
"""

from typing import NamedTuple

import pytest
import torch
from definitions import METHODS, assert_close, data, gradients, may_decline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ntk import compute_ntk


def kernel(model, x):
    "Θ from one gradient for each example and output."
    j = gradients(model, x)
    ntk = torch.einsum("iap,jbp->ijab", j, j)
    return ntk[:, :, 0, 0] if j.shape[1] == 1 else ntk


# Nets drawn by hypothesis


class FirstOf(nn.Module):
    "The outputs at all times of a recurrent layer, without its states; or of attention to itself."

    def __init__(self, layer, inputs=1):
        super().__init__()
        self.layer, self.inputs = layer, inputs

    def forward(self, x):
        return self.layer(*[x] * self.inputs)[0]


class PlusTwice(nn.Module):
    "A residual connection that uses its layer twice."

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return x + torch.tanh(self.layer(torch.tanh(self.layer(x))))


class Meaned(nn.Module):
    def forward(self, x):
        return x.mean(1)


FLAT = {  # (N, 5) → (N, 5)
    "linear": lambda: nn.Linear(5, 5), "no bias": lambda: nn.Linear(5, 5, bias=False),
    "twice": lambda: PlusTwice(nn.Linear(5, 5)), "tanh": nn.Tanh, "relu": nn.ReLU,
    "gelu": nn.GELU, "softplus": nn.Softplus, "softmax": lambda: nn.Softmax(1),
    "prelu": nn.PReLU, "prelu of each": lambda: nn.PReLU(5), "layer norm": lambda: nn.LayerNorm(5),
    "rms norm": lambda: nn.RMSNorm(5), "group norm": lambda: nn.GroupNorm(1, 5),
    "batch norm": lambda: nn.BatchNorm1d(5),
}
IMAGES = {  # (N, 2, 4, 4) → (N, 2, 4, 4)
    "conv": lambda: nn.Conv2d(2, 2, 3, padding=1), "by one": lambda: nn.Conv2d(2, 2, 1),
    "in groups": lambda: nn.Conv2d(2, 2, 3, padding=1, groups=2),
    "dilated": lambda: nn.Conv2d(2, 2, 3, padding=2, dilation=2, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(2, 2, 3, padding=1), "tanh": nn.Tanh,
    "relu": nn.ReLU, "prelu": lambda: nn.PReLU(2), "group norm": lambda: nn.GroupNorm(2, 2),
    "instance norm": lambda: nn.InstanceNorm2d(2, affine=True),
    "batch norm": lambda: nn.BatchNorm2d(2), "largest": lambda: nn.MaxPool2d(3, 1, 1),
    "average": lambda: nn.AvgPool2d(3, 1, 1), "twice": lambda: PlusTwice(
        nn.Conv2d(2, 2, 3, padding=1)),
}
SEQUENCES = {  # (N, 3, 5) → (N, 3, 5)
    "linear": lambda: nn.Linear(5, 5), "layer norm": lambda: nn.LayerNorm(5), "tanh": nn.Tanh,
    "rnn": lambda: FirstOf(nn.RNN(5, 5, batch_first=True)),
    "gru": lambda: FirstOf(nn.GRU(5, 5, batch_first=True)),
    "lstm": lambda: FirstOf(nn.LSTM(5, 5, batch_first=True)),
    "attention": lambda: FirstOf(nn.MultiheadAttention(5, 1, batch_first=True), 3),
    "along time": lambda: nn.Conv1d(3, 3, 3, padding=1),
    "twice": lambda: PlusTwice(nn.Linear(5, 5)),
}


class Start(NamedTuple):
    "inputs(n), a first layer, the layers that may follow, and what leads to (N, width)."

    inputs: object
    first: object
    body: dict
    flat: object
    width: int


def tokens(n):
    return torch.randint(0, 7, (n, 3))


STARTS = {
    "numbers": Start(data, lambda: nn.Linear(4, 5), FLAT, nn.Identity, 5),
    "images": Start(lambda n: data(n, 2, 4, 4), nn.Identity, IMAGES, nn.Flatten, 32),
    "tokens": Start(tokens, lambda: nn.Embedding(7, 5), SEQUENCES, Meaned, 5),
    "padded": Start(tokens, lambda: nn.Embedding(7, 5, padding_idx=0), SEQUENCES, nn.Flatten, 15),
    "bags": Start(tokens, lambda: nn.EmbeddingBag(7, 5), FLAT, nn.Identity, 5),
}


class Drawn(NamedTuple):
    "What hypothesis shows of a net that fails; `again`: the last layer once more, itself."

    start: str
    body: list
    again: bool
    frozen: list
    n: int
    o: int
    seed: int

    def model(self):
        start = STARTS[self.start]
        layers = [start.first(), *[start.body[name]() for name in self.body]]
        layers += layers[-1:] if self.again and self.body else []
        model = nn.Sequential(*layers, start.flat(), nn.Linear(start.width, self.o)).double().eval()
        params = list(model.parameters())
        for i in self.frozen:
            params[i % len(params)].requires_grad_(False)
        params[-1].requires_grad_(True)
        return model


@st.composite
def drawn(draw):
    start = draw(st.sampled_from([*STARTS]))
    body = draw(st.lists(st.sampled_from([*STARTS[start].body]), max_size=4))
    o = draw(st.integers(1, 12))
    n = draw(st.just(o) | st.integers(1, 12))
    return Drawn(start, body, draw(st.booleans()), draw(st.lists(st.integers(0, 20), max_size=3)),
                 n, o, draw(st.integers(0, 999)))


def check_drawn(net, methods):
    torch.manual_seed(net.seed)
    model, x = net.model(), STARTS[net.start].inputs(net.n)
    expected = kernel(model, x)
    for method in methods:
        with may_decline(method):
            assert_close(compute_ntk(model, x, method=method), expected, 1e-9)


@settings(derandomize=True, database=None, deadline=None, max_examples=40)
@given(drawn())
def test_kernel_of_a_drawn_net(net):
    check_drawn(net, ["auto"])


@pytest.mark.slow
@settings(derandomize=True, database=None, deadline=None, max_examples=80)
@given(drawn())
def test_kernel_of_a_drawn_net_by_every_method(net):
    check_drawn(net, METHODS)


# One net for each function of torch: f(z, p) of z (N, 6) and a vector p of six parameters


def pairs(z):
    return z.unflatten(1, (2, 3))


def images(z):
    return z.unflatten(1, (1, 2, 3))


def positive(z):
    return z.square() + 0.1


def inside(z):
    return 0.9 * torch.tanh(z)


def square(z):
    "(N, 2, 2), well conditioned."
    return z[:, :4].unflatten(1, (2, 2)) + 3 * torch.eye(2).to(z)


def symmetric(z):
    return square(z) @ square(z).mT


OF_ONE = """abs acos-inside acosh-large alpha asin-inside asinh atan atanh-inside ceil cos cosh
    deg2rad digamma-positive erf erfc erfinv-inside exp exp2 expm1 floor frac i0 lgamma-positive
    log-positive log10-positive log1p-positive log2-positive logit-unit nan_to_num neg positive
    rad2deg reciprocal-positive round rsqrt-positive sgn sigmoid sign sin sinc sinh sqrt-positive
    square tan-inside tanh trunc logcumsumexp-last cumsum-last cumprod-last cummax-last
    cummin-last sort-last argsort-last msort-turned flip-last roll-shift""".split()
