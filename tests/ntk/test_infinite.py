"""infinite_width_ntk against Neural Tangents' numbers, formulas in 60 digits, other quadratures,
and finite nets that are wide."""

import itertools
import math

import mpmath as mp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from definitions import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ntk import MLP, compute_ntk, infinite_width_ntk
from ntk.infinite import Kernels, angle_between, relu_dual
from ntk.model import ACTIVATIONS

# Against Neural Tangents

REFERENCE = np.load(DATA / "infinite_width.npz")


@pytest.mark.parametrize("i", range(len(REFERENCE["activation"])))
@pytest.mark.parametrize("by", ["name", "callable"])
def test_equals_neural_tangents(i, by):
    activation = str(REFERENCE["activation"][i])
    kernels = infinite_width_ntk(
        torch.tensor(REFERENCE["x1"]), torch.tensor(REFERENCE["x2"]),
        hidden_layers=int(REFERENCE["hidden_layers"][i]),
        activation=activation if by == "name" else ACTIVATIONS[activation],
        weight_std=float(REFERENCE["weight_std"][i]), bias_std=float(REFERENCE["bias_std"][i]))
    np.testing.assert_allclose(kernels.nngp, REFERENCE["nngp"][i], rtol=1e-11)
    np.testing.assert_allclose(kernels.ntk, REFERENCE["ntk"][i], rtol=1e-11)


# Against formulas in 60 digits, in the covariance [[p, k], [k, q]] where infinite.py has the angle


def hard_inputs(d=5):
    """Norms from 1e-3 to 1e2; identical, opposite and collinear inputs; inputs that are 1e-9 from
    another and from its opposite; zero. (13, d)"""
    rng = np.random.default_rng(0)
    a, b, near, far = F.normalize(torch.tensor(rng.standard_normal((4, d))))
    return torch.stack([1e-3 * a, a, 100 * a, -a, -100 * a, 3 * a, a + 1e-9 * near, -a + 1e-9 * far,
                        1e-3 * b, b, 100 * b, a, 0 * a])


def exact_relu(p, q, k):
    if p * q == 0:
        return mp.mpf(0), mp.mpf(1) / 4
    cosine = max(min(k / mp.sqrt(p * q), mp.mpf(1)), mp.mpf(-1))
    angle = mp.acos(cosine)
    product = mp.sqrt(p * q) / (2 * mp.pi) * (mp.sin(angle) + (mp.pi - angle) * cosine)
    return product, (mp.pi - angle) / (2 * mp.pi)


def exact_erf(p, q, k):
    product = 2 / mp.pi * mp.asin(2 * k / mp.sqrt((1 + 2 * p) * (1 + 2 * q)))
    return product, 4 / mp.pi / mp.sqrt((1 + 2 * p) * (1 + 2 * q) - 4 * k * k)


def exact_gelu(p, q, k):
    """Tsuchida et al. 2021, arXiv:2002.08517, written in k; the second is the derivative of the
    first (Price's theorem)."""
    def product(k):
        squares = (1 + p) * (1 + q)
        root = mp.sqrt(squares - k * k)
        waves = k * k / squares * (1 - p * q) / root + p * q / root
        return (waves + k * (mp.atan2(k, root) + mp.pi / 2)) / (2 * mp.pi)

    return product(k), mp.diff(product, k, h=mp.mpf(10) ** -25)


EXACT = {"relu": exact_relu, "erf": exact_erf, "gelu": exact_gelu}


def exact_kernels(x1, x2, activation, hidden_layers, weight_std, bias_std):
    "K and Θ of two inputs (d,), in as many digits as mpmath is told."
    x1, x2 = ([mp.mpf(float(number)) for number in x] for x in (x1, x2))
    weight, bias = mp.mpf(weight_std) ** 2, mp.mpf(bias_std) ** 2
    p, q, k = (weight * mp.fdot(a, b) / len(a) + bias for a, b in ((x1, x1), (x2, x2), (x1, x2)))
    dual, ntk = EXACT[activation], k
    for _ in range(hidden_layers):
        product, slopes = dual(p, q, k)
        k = weight * product + bias
        ntk = k + weight * slopes * ntk
        p, q = (weight * dual(variance, variance, variance)[0] + bias for variance in (p, q))
    return k, ntk


@pytest.mark.parametrize("d", [1e-7, 1e-3, 0.05, 0.0999, 0.1001, 1.0, math.pi])
def test_relu_keeps_all_digits_between_inputs_that_are_almost_opposite(d):
    "sin d − d cos d, for the angle π − d, is of order d³: its two terms cancel."
    angle = torch.tensor(math.pi - d, dtype=torch.float64)
    one = torch.ones_like(angle)
    product, slopes = relu_dual(one, one, angle)
    with mp.workdps(60):
        d = mp.mpf(math.pi - angle.item())  # as rounded
        expected = float((mp.sin(d) - d * mp.cos(d)) / (2 * mp.pi)), float(d / (2 * mp.pi))
    assert (product.item(), slopes.item()) == pytest.approx(expected, rel=1e-10, abs=0)


def assert_entries_agree(kernels, exact, rtol):
    """Entry by entry. What is left of an entry that is zero but for the rounding of x itself
    (exactly opposite inputs of a ReLU net, say) may be off by 1e-12 of √(Θ(x, x) Θ(x′, x′))."""
    for kernel, expected in zip(kernels, exact, strict=True):
        length = expected.diagonal().sqrt()
        allowed = rtol * expected.abs() + 1e-12 * length[:, None] * length
        assert ((kernel - expected).abs() <= allowed).all()


SCALES = [(2**0.5, 0.0), (1.0, 0.1), (0.5, 0.5), (2.5, 0.3)]
QUICK = [*itertools.product(("relu", "erf"), (1, 2, 5))]
SLOW = [("relu", 20), ("erf", 20), ("gelu", 1), ("gelu", 4)]


@pytest.mark.parametrize("weight_std, bias_std", SCALES)
@pytest.mark.parametrize("activation, hidden_layers", [
    *QUICK, *(pytest.param(*net, marks=pytest.mark.slow) for net in SLOW)])
def test_hard_inputs_against_sixty_digits(activation, hidden_layers, weight_std, bias_std):
    x = hard_inputs()
    net = {"activation": activation, "hidden_layers": hidden_layers, "weight_std": weight_std,
           "bias_std": bias_std}
    exact = torch.empty(2, len(x), len(x), dtype=torch.float64)
    with mp.workdps(60):
        for i, j in itertools.combinations_with_replacement(range(len(x)), 2):
            pair = [float(number) for number in exact_kernels(x[i], x[j], **net)]
            exact[:, i, j] = exact[:, j, i] = torch.tensor(pair, dtype=torch.float64)
    assert_entries_agree(infinite_width_ntk(x, **net), exact, rtol=1e-6)


# Angles of the inputs: by arccos, and exactly for pairs that are nearly parallel or opposite


def pairs_at(angles, d):
    "Unit vectors u and v, each (M, d); u[m] and v[m] are at angles[m], but for rounding."
    u, v = torch.tensor(np.random.default_rng(d).standard_normal((2, len(angles), d)))
    u = F.normalize(u)
    v = F.normalize(v - (u * v).sum(1, keepdim=True) * u)
    return u, F.normalize(angles.cos()[:, None] * u + angles.sin()[:, None] * v)


def exact_angle(u, v):
    "By Gram–Schmidt, which cancels in as many digits as mpmath is told."
    u, v = ([mp.mpf(float(number)) for number in x] for x in (u, v))
    along = mp.fdot(u, v) / mp.fdot(u, u)
    across = [b - along * a for a, b in zip(u, v)]
    return mp.atan2(mp.norm(across), along * mp.norm(u))


@pytest.mark.parametrize("d", [2, 50, 784])
@pytest.mark.parametrize("among", ["others", "themselves"])
def test_angles_are_exact_but_for_rounding(d, among):
    """From 1e-9 to π − 1e-9. Among all pairs of u and v few are nearly parallel, and these are
    picked; of the pairs (m, m) half are, and all pairs are done as if they were."""
    small = torch.cat([10 ** torch.linspace(-9, 0, 28), torch.linspace(0.1, 0.2, 12)]).double()
    angles = torch.cat([small, math.pi - small])
    u, v = pairs_at(angles, d)
    size = len(u)
    if among == "others":
        spread = F.normalize(torch.tensor(np.random.default_rng(0).standard_normal((80, d))))
        u, v = torch.cat([u, spread]), torch.cat([v, spread.flip(0)])
        i, j = torch.cartesian_prod(torch.arange(len(u)), torch.arange(len(v))).T
    else:
        i = j = torch.arange(size)
    cosine = (u @ v.T)[i, j]
    assert (4 * (cosine.abs() > 0.99).sum() > len(i)) == (among == "themselves")
    got = angle_between(u, v, i, j, cosine)[(i == j) & (i < size)]
    with mp.workdps(60):
        exact = [exact_angle(*pair) for pair in zip(u[:size], v[:size])]
        errors = torch.tensor([float(abs(mp.mpf(a.item()) - b)) for a, b in zip(got, exact)])
    exact, eps = torch.tensor([float(angle) for angle in exact]).double(), 2**-52
    # Sums of d squares and of d products round like random walks. Lengths that differ from 1 add
    # to a difference at a right angle; the arccos has the slope 1 / sin.
    walk = (4 + d**0.5) * eps
    steep, gentle = walk * exact + (4 * eps) ** 2 / exact, walk / exact.sin()
    assert (errors <= torch.where(exact.cos().abs() > 0.99, steep, gentle)).all()


class LargestResult(TorchDispatchMode):
    "Keeps the number of entries of the largest tensor that an operation returns."

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.entries = max(self.entries, out.numel())
        return out


@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize("share", [0.15, 1.0])
def test_inputs_that_are_all_nearly_parallel_take_no_more_memory(share, one):
    "Their differences, of all pairs, are 200 times as large as the kernel."
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.standard_normal((500, 200)))
    x[:round(500 * share**0.5)] = torch.tensor(1 + 1e-3 * rng.standard_normal(200))
    x += 1e-6 * torch.tensor(rng.standard_normal(x.shape))
    if share == 1:
        x[::2] *= -1
    with LargestResult() as largest:
        kernels = infinite_width_ntk(x, None if one else x.clone(), hidden_layers=2)
    assert largest.entries <= 2**18 + 500 * 501  # the vectors picked at once; indices of pairs
    pairs = rng.integers(0, 500, (2, 20))
    with mp.workdps(60):
        exact = [exact_kernels(x[i], x[j], "relu", 2, 2**0.5, 0.0) for i, j in pairs.T]
    for kernel, expected in zip(kernels, zip(*exact)):
        expected = torch.tensor([float(number) for number in expected], dtype=torch.float64)
        torch.testing.assert_close(kernel[tuple(pairs)], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n1, n2", [(30, None), (30, 17), (17, 30), (1, 30), (30, 1)])
@pytest.mark.parametrize("at_once", [1, 7, 30, 100])
def test_kernels_do_not_depend_on_how_many_pairs_are_done_at_once(n1, n2, at_once, monkeypatch):
    rng = np.random.default_rng(0)
    x1 = torch.tensor(rng.standard_normal((n1, 2)))
    x2 = None if n2 is None else torch.tensor(rng.standard_normal((n2, 2)))
    expected = infinite_width_ntk(x1, x2, hidden_layers=2, bias_std=0.1)
    monkeypatch.setattr("ntk.infinite.PAIRS", at_once)
    for got, kernel in zip(infinite_width_ntk(x1, x2, hidden_layers=2, bias_std=0.1), expected):
        torch.testing.assert_close(got, kernel, rtol=1e-14, atol=1e-14)


def test_inputs_that_are_compared_with_themselves_cost_each_pair_once():
    calls = []

    def counted(u):
        calls.append(u.shape)
        return u.tanh()

    x = hard_inputs()[:6]
    symmetric = infinite_width_ntk(x, activation=counted)
    once = len(calls)
    both = infinite_width_ntk(x, x.clone(), activation=counted)
    assert once * 36 == (len(calls) - once) * 21
    for got, kernel in zip(symmetric, both):
        torch.testing.assert_close(got, kernel, rtol=1e-12, atol=1e-14)


# Quadrature


@pytest.mark.slow
@pytest.mark.parametrize("weight_std, bias_std", SCALES)
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_quadrature_equals_the_closed_form_on_hard_inputs(activation, weight_std, bias_std):
    scales = {"hidden_layers": 2, "weight_std": weight_std, "bias_std": bias_std}
    everything = hard_inputs()
    for x, rtol in (everything, 1e-6), (everything[everything.norm(dim=1) < 50], 1e-8):
        closed = infinite_width_ntk(x, activation=activation, **scales)
        by_quadrature = infinite_width_ntk(x, activation=ACTIVATIONS[activation], **scales)
        assert_entries_agree(by_quadrature, closed, rtol)


def by_grid(phi, slope, p, q, angle, kinks):
    "E[φ(u) φ(v)] and E[φ′(u) φ′(v)] by Gauss–Legendre between the kinks of φ, in u, then in v."
    nodes, weights = np.polynomial.legendre.leggauss(100)

    def expectation(f, mean, std):
        "E[f(z)] for z from N(mean, std²)."
        edges = [-9, *np.clip([(kink - mean) / std for kink in kinks], -9, 9), 9]
        total = 0
        for low, high in zip(edges, edges[1:]):
            z = (low + high) / 2 + (high - low) / 2 * nodes
            density = np.exp(-z**2 / 2) / math.sqrt(2 * math.pi)
            total += (high - low) / 2 * (weights * density * f(mean + std * z)).sum()
        return total

    def of_product(f):
        def given_u(u):
            return expectation(f, math.cos(angle) * (q / p) ** 0.5 * u, math.sin(angle) * q**0.5)

        return expectation(lambda u: f(u) * np.array([given_u(a) for a in u]), 0, p**0.5)

    return of_product(phi), of_product(slope)


def elu(u):
    return np.where(u > 0, u, np.expm1(np.minimum(u, 0)))


def leaky_relu(u):
    return F.leaky_relu(u, 0.2)


OWN = {  # φ; φ and φ′ in NumPy; where φ is not smooth; errors allowed in K and in Θ
    "tanh": (torch.tanh, np.tanh, lambda u: 1 - np.tanh(u) ** 2, [0.0], (1e-9, 1e-9)),
    "elu": (nn.ELU(), elu, lambda u: np.exp(np.minimum(u, 0)), [0.0], (1e-9, 1e-9)),
    "leaky relu": (leaky_relu, lambda u: np.where(u > 0, u, u / 5),
                   lambda u: np.where(u > 0, 1, 0.2), [0.0], (1e-9, 1e-9)),
    "sin": (torch.sin, np.sin, np.cos, [0.0], (1e-9, 1e-9)),
    "hardtanh": (F.hardtanh, lambda u: np.clip(u, -1, 1), lambda u: 1.0 * (abs(u) < 1),
                 [-1.0, 1.0], (2e-4, 1e-2)),
}


@pytest.mark.parametrize("angle", [0.3, 1.2, 2.9])
@pytest.mark.parametrize("phi, numpy_phi, numpy_slope, kinks, rtol", OWN.values(), ids=OWN)
def test_activations_of_ones_own_against_another_quadrature(phi, numpy_phi, numpy_slope, kinks,
                                                            rtol, angle):
    x1 = torch.tensor([[1.1, 0.0]]).double()
    x2 = (0.8 * torch.tensor([[math.cos(angle), math.sin(angle)]])).double()
    nngp, ntk = infinite_width_ntk(x1, x2, activation=phi, weight_std=1.3, bias_std=0.0)
    p, q = (1.3**2 * float(x.square().sum()) / 2 for x in (x1, x2))
    angle = math.acos(float(x1[0] @ x2[0] / (x1.norm() * x2.norm())))
    product, slopes = by_grid(numpy_phi, numpy_slope, p, q, angle, kinks)
    assert float(nngp) == pytest.approx(1.3**2 * product, rel=rtol[0], abs=1e-12)
    first = math.sqrt(p * q) * math.cos(angle)
    expected = 1.3**2 * slopes * first
    assert float(ntk - nngp) == pytest.approx(expected, rel=rtol[1], abs=1e-12)


@pytest.mark.parametrize("k, rtol", [(1.0, 1e-9), (9.0, 1e-8), (49.0, 2e-4)])
def test_sin_against_its_closed_form(k, rtol):
    "E[sin u sin v] = exp(−K) sinh(K(x, x′)) for Var u = Var v = K, and cosh for the slopes."
    x = [[[1.0, 0.0]], [[math.cos(0.1), math.sin(0.1)]]]
    x1, x2 = k**0.5 * torch.tensor(x, dtype=torch.float64)
    nngp, ntk = infinite_width_ntk(x1, x2, activation=torch.sin, weight_std=2**0.5)
    covariance, scale = float(x1 @ x2.T), math.exp(-k) * math.sinh(k)
    product, slopes = float(nngp / 2), float((ntk - nngp) / 2 / covariance)
    expected = math.exp(-k) * math.sinh(covariance), math.exp(-k) * math.cosh(covariance)
    assert (product, slopes) == pytest.approx(expected, abs=rtol * scale, rel=rtol)


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), torch.relu_,
                                        nn.PReLU(init=0.0).double()])
def test_activations_in_place_or_with_weights(activation):
    x = hard_inputs()[:4]
    pairs = zip(infinite_width_ntk(x, activation=activation), infinite_width_ntk(x))
    for kernel, expected in pairs:
        torch.testing.assert_close(kernel, expected, rtol=1e-8, atol=1e-14)


# Against finite nets, and what is known of the limit


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "erf", "tanh", "gelu", torch.sin])
@pytest.mark.parametrize("hidden_layers", [1, 2])
def test_is_the_limit_of_wide_nets(activation, hidden_layers):
    "Means over 200 nets lie within 5 standard errors; the bias, of order 1/width, is smaller."
    x = torch.tensor(np.random.default_rng(1).standard_normal((4, 3)))
    scales = {"activation": activation, "hidden_layers": hidden_layers, "weight_std": 1.2,
              "bias_std": 0.4}
    nets = [MLP(3, 256, parametrization="ntk", **scales).double() for _ in range(200)]
    outputs = torch.stack([net(x).detach()[:, 0] for net in nets])
    samples = {"nngp": outputs[:, :, None] * outputs[:, None],
               "ntk": torch.stack([compute_ntk(net, x) for net in nets])}
    for name, kernel in infinite_width_ntk(x, **scales)._asdict().items():
        error = samples[name].std(dim=0) / 200**0.5
        assert ((samples[name].mean(dim=0) - kernel).abs() <= 5 * error).all()
        assert (error <= 0.15 * kernel.diagonal().max()).all()  # or the comparison says nothing


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4),
       st.sampled_from(["relu", "erf", "tanh"]), st.integers(0, 99))
def test_shapes_symmetry_and_rows(n1, n2, d, activation, seed):
    x1, x2 = (torch.tensor(np.random.default_rng(seed + i).standard_normal((n, d)))
              for i, n in enumerate((n1, n2)))
    both = infinite_width_ntk(torch.cat([x1, x2]), activation=activation, bias_std=0.1)
    across = infinite_width_ntk(x1, x2, activation=activation, bias_std=0.1)
    for kernel, block in zip(both, across):
        assert kernel.dtype == torch.float64 and torch.equal(kernel, kernel.T)
        assert torch.linalg.eigvalsh(kernel).min() >= -1e-8 * kernel.diagonal().max()
        torch.testing.assert_close(block, kernel[:n1, n1:], rtol=1e-7, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.integers(1, 5))
def test_relu_without_bias_is_homogeneous(a, b, hidden_layers):
    x1, x2 = torch.tensor([[1.0, 2.0, -1.0]]), torch.tensor([[0.5, -1.0, 2.0]])
    scaled_kernels = infinite_width_ntk(a * x1, b * x2, hidden_layers=hidden_layers)
    kernels = infinite_width_ntk(x1, x2, hidden_layers=hidden_layers)
    for scaled, kernel in zip(scaled_kernels, kernels):
        # a · x1 was rounded in float32
        torch.testing.assert_close(scaled, a * b * kernel, rtol=1e-5, atol=0)


def test_default_relu_keeps_the_norm_and_adds_it_once_a_layer():
    "With weight_std = √2 and no bias, K(x, x) stays 2‖x‖²/d and Θ(x, x) = (L + 1) K(x, x)."
    x = torch.tensor([[3.0, 4.0]])
    for hidden_layers in (1, 2, 7):
        nngp, ntk = infinite_width_ntk(x, hidden_layers=hidden_layers)
        assert float(nngp) == pytest.approx(25)
        assert float(ntk) == pytest.approx(25 * (hidden_layers + 1))


@pytest.mark.parametrize("activation, hidden_layers", [
    ("erf", 300), pytest.param("tanh", 60, marks=pytest.mark.slow)])
def test_identical_and_opposite_inputs_stay_so_deep_in_chaos(activation, hidden_layers):
    "There the smallest rounding grows like χ^L: 1e-16 · 1.5³⁰⁰."
    x = torch.tensor([[1.0, 2.0, 0.5], [1.0, 2.0, 0.5], [-1.0, -2.0, -0.5]])
    signs = torch.tensor([[1, 1, -1.0], [1, 1, -1], [-1, -1, 1]]).double()
    for kernel in infinite_width_ntk(x, activation=activation, hidden_layers=hidden_layers,
                                     weight_std=2.5):
        torch.testing.assert_close(kernel / kernel[0, 0], signs)


# What it takes and what it leaves alone


@pytest.mark.parametrize("x", [
    torch.ones(2, 3), torch.ones(2, 3, dtype=torch.float16), torch.ones(2, 3, dtype=torch.int64),
    np.ones((2, 3)), [[1, 1, 1], [1, 1, 1]], torch.ones(2, 3, requires_grad=True),
])
def test_inputs_of_any_kind_give_float64(x):
    kernels = infinite_width_ntk(x)
    assert isinstance(kernels, Kernels) and kernels._fields == ("nngp", "ntk")
    for kernel, value in zip(kernels, (1, 2)):
        assert kernel.dtype == torch.float64 and not kernel.requires_grad
        torch.testing.assert_close(kernel, 2.0 * value * torch.ones(2, 2, dtype=torch.float64))


def test_lists_keep_all_digits():
    x = [[0.1, 0.7], [1.0, -1.0 - 1e-12]]
    assert torch.equal(infinite_width_ntk(x).ntk, infinite_width_ntk(np.array(x)).ntk)


def test_works_without_grad_and_leaves_the_random_state():
    x, state = hard_inputs()[:3], torch.get_rng_state()
    with torch.no_grad():
        kernels = infinite_width_ntk(x, activation="tanh")
    with torch.inference_mode():
        inside = infinite_width_ntk(x.clone(), activation="tanh")
        assert all(torch.equal(a, b) for a, b in zip(kernels, inside))
    assert torch.equal(torch.get_rng_state(), state)
    by_callable = infinite_width_ntk(x, activation=torch.tanh)
    assert all(torch.equal(a, b) for a, b in zip(kernels, by_callable))


X = torch.ones(2, 3)


def returns_three(u):
    return 3


def step(u):
    return (u > 0).double()


def in_float32(u):
    return u.float().tanh()


@pytest.mark.parametrize("arguments, options, error, message", [
    ((X,), {"weight_std": 0}, ValueError, "weight_std must be above zero"),
    ((X,), {"weight_std": -1.0}, ValueError,
     "weight_std must be a finite number, zero or more, got -1.0"),
    ((X,), {"weight_std": math.nan}, ValueError, "weight_std must be"),
    ((X,), {"weight_std": "2"}, ValueError, "weight_std must be"),
    ((X,), {"bias_std": -0.1}, ValueError,
     "bias_std must be a finite number, zero or more, got -0.1"),
    ((X,), {"bias_std": math.inf}, ValueError, "bias_std must be"),
    ((X,), {"hidden_layers": 0}, ValueError, "hidden_layers must be a positive integer, got 0"),
    ((X,), {"hidden_layers": 1.5}, TypeError, "hidden_layers must be a positive integer, got 1.5"),
    ((X,), {"activation": "swish"}, ValueError,
     r"one of \['relu', 'tanh', 'erf', 'gelu'\], got 'swish'"),
    ((X,), {"activation": 3}, ValueError, "activation must be a callable or one of"),
    ((X,), {"activation": torch.sum}, ValueError, "entry by entry"),
    ((X,), {"activation": step}, ValueError, "so that autograd can follow"),
    ((X,), {"activation": np.tanh}, ValueError, "so that autograd can follow"),
    ((X,), {"activation": returns_three}, ValueError, "so that autograd can follow"),
    ((X,), {"activation": nn.PReLU()}, ValueError, "must act on a float64 tensor"),
    ((X,), {"activation": in_float32}, ValueError, "in float64"),
    ((X,), {"activation": nn.Softmax(-1)}, ValueError, "entry by entry"),
    ((X,), {"activation": nn.Softmax(0)}, ValueError, "entry by entry"),
    ((X,), {"activation": nn.Dropout()}, ValueError, "not at random"),
    ((X,), {"activation": ["relu"]}, ValueError, "activation must be a callable or one of"),
    ((X + 1j,), {}, ValueError, "x1 must be real"),
    (([[1j, 0.0]],), {}, ValueError, "x1 must be real"),
    ((None,), {}, TypeError, "x1 must be a tensor, an array or a list of numbers, got NoneType"),
    ((X, [[1.0], [1.0, 2.0]]), {}, ValueError, "x2 must be a tensor, an array or a list"),
    ((None,), {}, TypeError, "numpy.object_"),
    ((X,), {"activation": torch.exp, "hidden_layers": 9}, ValueError, "must be finite"),
    ((X,), {"weight_std": 1e200}, ValueError, "must be finite"),
    ((X, torch.ones(2, 4)), {}, ValueError,
     r"x1 and x2 must have as many features, got \[3, 4\]"),
    ((torch.ones(3),), {}, ValueError, r"x1 must have shape \(N, d\), got \(3,\)"),
    ((X, torch.ones(2, 3, 1)), {}, ValueError, r"x2 must have shape \(N, d\), got \(2, 3, 1\)"),
    ((torch.ones(0, 3),), {}, ValueError, r"x1 must have shape"),
    ((X, torch.tensor([[1.0, math.nan, 0.0]])), {}, ValueError, "x2 must be real and finite"),
    ((X / 0,), {}, ValueError, "x1 must be real and finite"),
    (("words",), {}, TypeError, "numpy.str_"),
])
def test_refuses_what_has_no_kernel(arguments, options, error, message):
    with pytest.raises(error, match=message):
        infinite_width_ntk(*arguments, **options)
