"""compute_ntk of nets that nobody chose: drawn by hypothesis, and one for each function of torch.

A drawn net is a start, a body of layers that keep the shape, and a linear end; some parameters are
frozen, some layers used again. Sizes are small, and as many examples as outputs are among them,
since that is where wrong batching rules hide.
"""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from definitions import METHODS, assert_close, data, gradients, may_decline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import Own, weight

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


def of_z(function, before=lambda z: z):
    return lambda z, p: function(before(z))


def along(function, take=lambda found: found):
    "The function along the last axis, and what to take of its result."
    return lambda z, p: take(function(z, 1))


def named(module, names, make, *args):
    "{name: make(function of this name, …)}"
    return {name: make(getattr(module, name), *args) for name in names.split()}


def values(found):
    return found.values


ENTRYWISE = (
    named(torch, "abs asinh atan ceil cos cosh deg2rad erf erfc exp exp2 expm1 floor frac"
          " nan_to_num neg rad2deg round sgn sigmoid sign sin sinc sinh square tanh trunc", of_z)
    | named(torch, "digamma i0 lgamma log log10 log1p log2 reciprocal rsqrt sqrt", of_z, positive)
    | named(torch, "acos asin atanh erfinv tan", of_z, inside)
    | named(F, "celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish"
            " relu relu6 selu silu softplus softshrink softsign tanhshrink", of_z))
ALONG_AN_AXIS = (
    named(torch, "amax amin cumprod cumsum log_softmax logcumsumexp logsumexp mean nansum prod"
          " softmax std sum var", along)
    | named(torch, "cummax cummin max median min mode nanmedian sort", along, values))
WITH_PARAMETERS = {
    "add": lambda z, p: z + p,
    "sub": lambda z, p: p - z,
    "mul": lambda z, p: z * p,
    "div": lambda z, p: z / positive(p),
    "pow": lambda z, p: positive(z) ** p,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "atan2": torch.atan2,
    "hypot": torch.hypot,
    "logaddexp": torch.logaddexp,
    "copysign": torch.copysign,
    "xlogy": lambda z, p: torch.xlogy(z, positive(p)),
    "lerp": lambda z, p: torch.lerp(z, p, 0.3),
    "lerp by p": lambda z, p: torch.lerp(z, z**2, p),
    "addcmul": lambda z, p: torch.addcmul(z, z, p),
    "where": lambda z, p: torch.where(z > 0, z, p),
    "addcdiv": lambda z, p: torch.addcdiv(z, z, positive(p)),
    "prelu": lambda z, p: F.prelu(z, p),
    "prelu, one": lambda z, p: F.prelu(z, p[:1]),
    "clamp": lambda z, p: z.clamp(min=p),
    "outer": lambda z, p: torch.einsum("ni,j->nij", z, p),
    "einsum": lambda z, p: torch.einsum("ni,nj,j->ni", z, z, p),
    "mv": lambda z, p: (z @ p)[:, None],
    "layer_norm": lambda z, p: F.layer_norm(z, (6,), p, p),
    "rms_norm": lambda z, p: F.rms_norm(z, (6,), p),
    "group_norm": lambda z, p: F.group_norm(z, 2, p, p),
    "batch_norm": lambda z, p: F.batch_norm(z, torch.zeros(6).to(z), torch.ones(6).to(z), p, p),
    "instance_norm": lambda z, p: F.instance_norm(pairs(z), weight=p[:2], bias=p[2:4]),
    "linear": lambda z, p: F.linear(z, p.view(1, 6)),
    "conv1d": lambda z, p: F.conv1d(pairs(z), p.view(1, 2, 3), padding=1),
    "conv2d": lambda z, p: F.conv2d(images(z), p[:4].view(1, 1, 2, 2)),
    "conv_transpose1d": lambda z, p: F.conv_transpose1d(pairs(z), p.view(2, 1, 3)),
    "bilinear": lambda z, p: F.bilinear(z[:, :2], z[:, 3:], p.view(1, 2, 3)),
    "cdist": lambda z, p: torch.cdist(pairs(z), p.view(2, 3)),
    "cdist, flat": lambda z, p: torch.cdist(z[:, :3], p.view(2, 3)),
    "cdist, p = 1": lambda z, p: torch.cdist(z[:, :3], p.view(2, 3), p=1.0),
    "cosine_similarity": lambda z, p: F.cosine_similarity(z, p[None])[:, None],
    "pairwise_distance": lambda z, p: F.pairwise_distance(z, p[None])[:, None],
    "embedding": lambda z, p: F.embedding((z > 0).long(), p.view(2, 3)) * z[..., None],
    "embedding_bag": lambda z, p: F.embedding_bag((z > 0).long(), p.view(2, 3)) * z[:, :3],
    "index_select": lambda z, p: z * p.index_select(0, torch.tensor([5, 0, 0, 1, 2, 3])),
    "gather of p": lambda z, p: z * p.expand(len(z), 6).gather(1, z.argsort(1)),
    "take": lambda z, p: z * p.take((z > 0).long()),
    "p by mask": lambda z, p: z * p[(z > 0).long()],
    "attention": lambda z, p: F.scaled_dot_product_attention(pairs(z), pairs(z * p), pairs(z)),
    "baddbmm": lambda z, p: torch.baddbmm(square(z), square(z), square(z * p)),
    "kron": lambda z, p: torch.einsum("ni,j->nij", z, p[:2]).flatten(1),
    "cross": lambda z, p: torch.linalg.cross(z[:, :3], p[None, :3]),
    "tensordot": lambda z, p: torch.tensordot(pairs(z), p.view(2, 3), dims=([2], [1])),
    "solve": lambda z, p: torch.linalg.solve(square(z), p[:2]),
    "polynomial": lambda z, p: (z[..., None] ** torch.arange(6)) @ p,
    "cat": lambda z, p: torch.cat([z, p.expand(len(z), 6)], 1),
    "stack": lambda z, p: torch.stack([z, z * p], 2),
    "scatter of p": lambda z, p: z.scatter(1, z.argsort(1)[:, :2], p[:2].expand(len(z), 2)),
    "dist of rows": lambda z, p: (z - p).norm(dim=1, keepdim=True),
    "fft times p": lambda z, p: torch.fft.irfft(torch.fft.rfft(z) * p[:4], n=6),
    "ifft of polar": lambda z, p: torch.polar(positive(z), z * p).real,
}
LAYERS = {
    "max_pool1d": lambda z, p: F.max_pool1d(pairs(z), 2),
    "avg_pool1d": lambda z, p: F.avg_pool1d(pairs(z), 2),
    "lp_pool1d": lambda z, p: F.lp_pool1d(positive(pairs(z)), 2.0, 2),
    "max_pool2d": lambda z, p: F.max_pool2d(images(z), 2, 1, 1),
    "avg_pool2d": lambda z, p: F.avg_pool2d(images(z), 2, 1, 1),
    "adaptive_max_pool1d": lambda z, p: F.adaptive_max_pool1d(pairs(z), 2),
    "adaptive_avg_pool2d": lambda z, p: F.adaptive_avg_pool2d(images(z), (1, 2)),
    "glu": lambda z, p: F.glu(z),
    "normalize": lambda z, p: F.normalize(z),
    "softmin": lambda z, p: F.softmin(z, 1),
    "local_response_norm": lambda z, p: F.local_response_norm(pairs(z), 2),
    "pad": lambda z, p: F.pad(z, (1, 2)),
    "pad, reflect": lambda z, p: F.pad(pairs(z), (1, 1), "reflect"),
    "pad, circular": lambda z, p: F.pad(pairs(z), (1, 1), "circular"),
    "pad, replicate": lambda z, p: F.pad(pairs(z), (1, 1), "replicate"),
    "interpolate": lambda z, p: F.interpolate(pairs(z), 5, mode="linear"),
    "interpolate, nearest": lambda z, p: F.interpolate(images(z), scale_factor=2),
    "interpolate, bicubic": lambda z, p: F.interpolate(images(z), (3, 4), mode="bicubic"),
    "unfold": lambda z, p: F.unfold(images(z), 2),
    "Tensor.unfold": lambda z, p: z.unfold(1, 3, 2),
    "fold": lambda z, p: F.fold(z[:, :4, None], (2, 2), 2),
    "pixel_shuffle": lambda z, p: F.pixel_shuffle(z[:, :4, None, None], 2),
    "channel_shuffle": lambda z, p: F.channel_shuffle(z[:, :, None, None], 2),
    "grid_sample": lambda z, p: F.grid_sample(
        images(z), inside(pairs(z)).mT.unsqueeze(1), align_corners=False
    ),
    "affine_grid": lambda z, p: F.affine_grid(pairs(z), (len(z), 1, 2, 2), align_corners=False),
}
SHAPES_AND_MATRICES = {
    "rfft": lambda z, p: torch.fft.rfft(z + 1).abs(),
    "fft": lambda z, p: torch.fft.fft(z).imag,
    "flip": lambda z, p: z.flip(1),
    "roll": lambda z, p: z.roll(2, 1),
    "diff": lambda z, p: z.diff(),
    "gather": lambda z, p: z.gather(1, z.argsort(1)[:, :3]),
    "topk": lambda z, p: z.topk(3, 1).values,
    "kthvalue": lambda z, p: z.kthvalue(2, 1).values[:, None],
    "scatter": lambda z, p: torch.zeros_like(z).scatter(1, z.argsort(1), z**2),
    "scatter_add": lambda z, p: z.scatter_add(1, z.argsort(1) // 2, z),
    "scatter_reduce": lambda z, p: z.scatter_reduce(1, z.argsort(1) // 2, z, "amax"),
    "index_add": lambda z, p: z.index_add(1, torch.tensor([0, 0, 1]), z[:, 3:]),
    "masked_fill": lambda z, p: z.masked_fill(z > 0, 1.0),
    "tril": lambda z, p: pairs(z).tril(),
    "triu": lambda z, p: pairs(z).triu(),
    "diagonal": lambda z, p: square(z).diagonal(dim1=1, dim2=2),
    "diag_embed": lambda z, p: z.diag_embed(),
    "repeat_interleave": lambda z, p: z.repeat_interleave(2, 1),
    "tile": lambda z, p: z.tile(1, 2),
    "trapezoid": lambda z, p: torch.trapezoid(z)[:, None],
    "quantile": lambda z, p: z.quantile(0.3, 1)[:, None],
    "renorm": lambda z, p: z.renorm(2, 0, 0.5),
    "clamp to numbers": lambda z, p: z.clamp(-0.5, 0.5),
    "bmm": lambda z, p: torch.bmm(pairs(z), pairs(z).mT),
    "matrix_exp": lambda z, p: torch.matrix_exp(square(z) / 4),
    "det": lambda z, p: torch.linalg.det(square(z))[:, None],
    "inv": lambda z, p: torch.linalg.inv(square(z)),
    "slogdet": lambda z, p: torch.linalg.slogdet(square(z)).logabsdet[:, None],
    "cholesky": lambda z, p: torch.linalg.cholesky(symmetric(z)),
    "eigvalsh": lambda z, p: torch.linalg.eigvalsh(symmetric(z)),
    "svdvals": lambda z, p: torch.linalg.svdvals(square(z)),
    "qr": lambda z, p: torch.linalg.qr(square(z)).R,
    "matrix_power": lambda z, p: torch.linalg.matrix_power(square(z), 3),
    "vector_norm": lambda z, p: torch.linalg.vector_norm(z, dim=1, keepdim=True),
    "norm, p = 3": lambda z, p: z.norm(3, dim=1, keepdim=True),
    "remainder": lambda z, p: z.remainder(0.7),
    "fmod": lambda z, p: z.fmod(0.7),
    "view_as_complex": lambda z, p: torch.view_as_complex(z.view(-1, 3, 2)).abs(),
}
FUNCTIONS = ENTRYWISE | ALONG_AN_AXIS | WITH_PARAMETERS | LAYERS | SHAPES_AND_MATRICES


def net_with(function, o):
    def features(net, x):
        return function(net.first(x), net.p).reshape(len(x), -1)

    model = Own(lambda net, x: net.last(features(net, x)), first=nn.Linear(4, 6), p=weight(6))
    model.last = nn.Linear(features(model, data(2)).shape[1], o).double()
    return model


def test_the_sweep_is_wide():
    assert len(FUNCTIONS) >= 120


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_kernel_through_a_function_of_torch_is_right_or_declined(name):
    for n, o in (3, 3), (6, 6), (5, 2):
        model, x = net_with(FUNCTIONS[name], o), data(n)
        expected = kernel(model, x)
        for method in METHODS:
            with may_decline(method):
                assert_close(compute_ntk(model, x, method=method), expected, 1e-9)
