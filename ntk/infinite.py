"""The kernels of an infinitely wide net, layer by layer, without any net.

At infinite width the preactivations of a layer are Gaussian over the random weights. Their
covariance K, the NNGP kernel, and the NTK Θ of each layer follow from those of the layer before,
by two expectations over a pair of Gaussians (u, v), the preactivations at two inputs: E[φ(u) φ(v)]
and E[φ′(u) φ′(v)], the *duals* of the activation φ and of its slope. They depend on three numbers
alone: the standard deviations √K(x, x) of u and √K(x′, x′) of v, and the angle, whose cosine is
the correlation of u and v. So each pair of inputs goes its own way through the layers.

`infinite_width_ntk` lays the pairs out in a row, `kernels_of_pairs` is the recursion. Below them
stand the angles, the duals in closed form, and for any other φ the duals by quadrature.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ntk.checks import is_close, is_finite, require, require_positive_ints, require_scales
from ntk.model import activation_function
from ntk.reading import real_numbers

PAIRS = 2**20  # that go through the layers at once, in arrays of 8 MB


class Kernels(NamedTuple):
    "Of an infinitely wide net, each (N1, N2) in float64: the NNGP kernel K and the NTK Θ."

    nngp: torch.Tensor
    ntk: torch.Tensor


def infinite_width_ntk(x1, x2=None, *, hidden_layers=1, activation="relu", weight_std=2**0.5,
                       bias_std=0.0):
    """NNGP kernel K and NTK Θ of an infinitely wide `MLP(…, parametrization="ntk")`.

    x1 (N1, d), x2 (N2, d) or None for x2 = x1 → Kernels(nngp, ntk), each (N1, N2), in float64, the
    same for every seed. With (u, v) Gaussian with mean 0 and the covariance K of a layer, the next
    has (Lee et al. 2019, arXiv:1902.06720, appendix E)

        K′ = weight_std² E[φ(u) φ(v)] + bias_std²
        Θ′ = K′ + weight_std² E[φ′(u) φ′(v)] Θ

    and the first K = Θ = weight_std² x·x′/d + bias_std². Every layer, the last included, has the
    same scales.

    activation: "relu" (Cho & Saul 2009) and "erf" (Williams 1997) in closed form; "tanh", "gelu"
        and any callable that acts entry by entry by quadrature, at about a millisecond for a pair
        of inputs and layer. Its relative error is below 1e-8 for these while K stays below 50,
        1e-6 for K to 2e4. A kink elsewhere than at 0 costs more (hardtanh: 3e-4 in K, 2e-2 in Θ),
        and so do fast waves (sin: 1e-4 at K = 50) and φ that grow like exp. In chaos rounding
        grows with each layer: at 20 layers inputs that are 1e-9 apart keep six digits up to
        weight_std = 2.5.

    Raises TypeError or ValueError for inputs that are not (N, d) and finite, scales out of range,
    and kernels that overflow.
    """
    require_positive_ints(hidden_layers=hidden_layers)
    dual = dual_of(activation)
    require_scales(weight_std=weight_std, bias_std=bias_std)
    require(weight_std > 0,
            "weight_std must be above zero: without weights no kernel knows its inputs")
    symmetric = x2 is None
    x1, x2 = checked_inputs(x1, x1 if symmetric else x2)

    scales = torch.tensor([weight_std, bias_std], dtype=torch.float64, device=x1.device)
    net = Net(dual, hidden_layers, *scales.square())
    one = geometry(x1, net)
    two = one if symmetric else geometry(x2, net)
    cosines = one.directions @ two.directions.T
    nngp, ntk = torch.empty_like(cosines), torch.empty_like(cosines)
    # i ≤ j is enough for x2 = x1, since K and Θ are symmetric; from diagonal −N1 on, all pairs
    rows, columns = torch.triu_indices(*cosines.shape, offset=0 if symmetric else -len(x1),
                                       device=x1.device)
    for i, j in zip(rows.split(PAIRS), columns.split(PAIRS)):
        kernels = kernels_of_pairs(i, j, one, two, cosines[i, j], net)
        nngp[i, j], ntk[i, j] = kernels
        if symmetric:
            nngp[j, i], ntk[j, i] = kernels

    require(is_finite(ntk), "the kernel must be finite: weight_std or the activation lets it "
            "grow past all bounds")
    return Kernels(nngp, ntk)


def dual_of(activation):
    "The function (std_u, std_v, angle) → E[φ(u) φ(v)], E[φ′(u) φ′(v)] for a name or a callable."
    phi = activation_function(activation)
    match activation:
        case "relu":
            return relu_dual
        case "erf":
            return erf_dual
        case _:
            return partial(dual_by_quadrature, phi)


def checked_inputs(x1, x2):
    "Both as tensors (N, d) in float64."
    inputs = {"x1": real_numbers(x1, "x1"), "x2": real_numbers(x2, "x2")}
    for name, x in inputs.items():
        require(x.ndim == 2 and x.numel() > 0,
                f"{name} must have shape (N, d), got {tuple(x.shape)}")
        require(x.isfinite().all(),
                f"{name} must be real and finite, got NaN or infinity")
    features = [x.shape[1] for x in inputs.values()]
    require(features[0] == features[1], f"x1 and x2 must have as many features, got {features}")
    return [x.double() for x in inputs.values()]


# The recursion


class Net(NamedTuple):
    "What the kernels know of an infinitely wide net; `weight` and `bias` are squares of the stds."

    dual: Callable
    hidden_layers: int
    weight: torch.Tensor
    bias: torch.Tensor


class Geometry(NamedTuple):
    """The inputs on one side of a kernel, as vectors whose inner products are the first layer's K.

    directions: (N, d + 1), their unit vectors
    stds: √K(x, x), (N,), for each layer but the last; for the first, the vectors' lengths
    """

    directions: torch.Tensor
    stds: list[torch.Tensor]


def geometry(x, net):
    "The Geometry of inputs x (N, d)."
    scaled = x * (net.weight / x.shape[1]).sqrt()
    vectors = F.pad(scaled, (0, 1), value=net.bias.sqrt().item())
    stds = [vectors.square().sum(1).sqrt()]
    for _ in range(net.hidden_layers - 1):
        product, _ = net.dual(stds[-1], stds[-1], torch.zeros_like(stds[-1]))
        stds.append((net.weight * product + net.bias).sqrt())
        if torch.equal(stds[-1], stds[-2]):  # at a fixed point, and so in all other layers
            stds += stds[-1:] * (net.hidden_layers - len(stds))
            break
    return Geometry(F.normalize(vectors, eps=1e-300), stds)


def kernels_of_pairs(i, j, one, two, cosine, net):
    """K and Θ, each (M,), for input i[m] of geometry `one` and j[m] of `two`, with the cosine (M,)
    of the angle between them."""
    for layer in range(net.hidden_layers):
        std_u, std_v = one.stds[layer][i], two.stds[layer][j]
        if layer == 0:
            nngp = ntk = std_u * std_v * cosine
            angle = angle_between(one.directions, two.directions, i, j, cosine)
        else:
            angle = angle_of(nngp / (std_u * std_v))
        product, slopes = net.dual(std_u, std_v, angle)
        nngp = net.weight * product + net.bias
        ntk = nngp + net.weight * slopes * ntk
    return nngp, ntk


# Angles


def angle_between(u, v, i, j, cosine):
    """The angles (M,) between unit vectors u[i] and v[j], in [0, π], of which the cosine is known.

    Near 0 and π the arccos of a cosine loses half of its digits. Kahan's form keeps them all, but
    takes a pass over both vectors, so it is for the pairs that are nearly parallel or opposite. If
    these are many, `cdist` does all pairs of the rows in less time than it takes to pick some.
    """
    angle = cosine.acos()
    steep = (cosine.abs() > 0.99).nonzero().squeeze(1)
    if 4 * len(steep) > len(angle):
        rows = u[i[0]:i[-1] + 1]
        distance = partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")
        return kahan(distance(rows, v), distance(rows, -v))[i - i[0], j]
    for some in steep.split(max(1, 2**18 // u.shape[1])):  # their vectors stay in the cache
        a, b = u[i[some]], v[j[some]]
        angle[some] = kahan((a - b).norm(dim=1), (a + b).norm(dim=1))
    return angle


def kahan(difference, total):
    """The angle between unit vectors a and b, from |a − b| and |a + b|.

    Source: Kahan 2006, "How futile are mindless assessments of roundoff …".
    """
    return 2 * torch.atan2(difference, total)


def angle_of(cosine):
    "The angles of the layers above the first; 0 / 0, of inputs that are zero, counts as 0."
    cosine = cosine.nan_to_num(0)
    # ±1 but for rounding is ±1: deep in chaos two copies of one input would drift apart
    return torch.where(1 - cosine.abs() < 1e-15, cosine.sign(), cosine).acos()


# Duals in closed form


def relu_dual(std_u, std_v, angle):
    """E[φ(u) φ(v)] and E[φ′(u) φ′(v)] for φ = relu, from the standard deviations of u and v and the
    angle between them.

    Source: Cho & Saul 2009, "Kernel methods for deep learning", the arc-cosine kernels of degree 1
    and 0, in d = π − angle: std_u std_v (sin d − d cos d) / 2π and d / 2π.
    """
    d = math.pi - angle
    arc = d.sin() - d * d.cos()
    small = d < 0.1  # there the difference cancels
    few = d[small]
    arc[small] = few**3 / 3 - few**5 / 30 + few**7 / 840
    return std_u * std_v * arc / (2 * math.pi), d / (2 * math.pi)


def erf_dual(std_u, std_v, angle):
    """The same for φ = erf, in p = Var u, q = Var v and k = √(p q) cos(angle):
    2/π arcsin(2k / √((1 + 2p)(1 + 2q))), and for the slopes 4/π / √((1 + 2p)(1 + 2q) − 4k²), which
    is written so that nothing cancels.

    Source: Williams 1997, "Computing with infinite networks", eq. 11; its derivative in k.
    """
    p, q, k = std_u.square(), std_v.square(), std_u * std_v * angle.cos()
    product = 2 / math.pi * (2 * k / ((1 + 2 * p) * (1 + 2 * q)).sqrt()).asin()
    slopes = 4 / math.pi / (1 + 2 * p + 2 * q + 4 * p * q * angle.sin() ** 2).sqrt()
    return product, slopes


# Duals by quadrature


def dual_by_quadrature(phi, std_u, std_v, angle):
    """The same for any φ, in polar coordinates; all of shape (M,).

    The lines u = 0 and v = 0, where activations bend, cut the plane into four sectors: two that
    lie across from each other in which u and v have one sign, π − angle wide, and two in which
    they have not, `angle` wide. At the fraction t of a sector of width w, and at the radius r,

        u = ± std_u r sin(w (1 − t))     v = std_v r sin(w t)     with density r exp(−r²/2) / 2π.

    Nodes are dense at the edges of a sector and at r = 0. Gauss–Hermite, 64 × 64, which knows no
    edges, misses 4 % of E[φ′φ′] for ReLU.
    """
    rules = angle_rule(angle.device), radius_rule(angle.device)
    with torch.inference_mode(False), torch.enable_grad():
        duals = [expectations(phi, *pair, *rules) for pair in zip(std_u, std_v, angle)]
    return torch.stack(duals, dim=1)


def expectations(phi, std_u, std_v, angle, angle_rule, radius_rule):
    "E[φ(u) φ(v)] and E[φ′(u) φ′(v)], (2,), for one pair of inputs."
    (t, t_weights), (r, r_weights) = angle_rule, radius_rule
    total = 0
    for width, sign in ((math.pi - angle, 1), (angle, -1)):
        u = sign * std_u * (width * t.flip(0)).sin()[:, None] * r
        v = std_v * (width * t).sin()[:, None] * r
        pairs = zip(values_and_slopes(phi, u), values_and_slopes(phi, v))
        total += width * torch.stack([t_weights @ (a * b) @ r_weights for a, b in pairs])
    return total


def values_and_slopes(phi, u):
    "φ(u) and φ′(u), refused unless φ acts on each entry by itself."
    u.requires_grad_()
    try:
        values = phi(u.clone())  # a copy, for φ that work in place
        [slopes] = torch.autograd.grad(values.sum(), u)
        few = phi(u[::7, ::7].clone())
    except (RuntimeError, AttributeError) as error:
        raise ValueError("activation must act on a float64 tensor so that autograd can follow: "
                         f"{error}") from error
    alone = values.shape == u.shape and few.dtype == u.dtype and is_close(few, values[::7, ::7])
    require(alone, "activation must act entry by entry, in float64 and not at random")
    return values.detach(), slopes


def angle_rule(device):
    "Nodes t (91,) in (0, 1) and weights: tanh–sinh (Takahasi & Mori 1974), ∫ f(t) dt over (0, 1)."
    s = torch.linspace(-3, 3, 91, dtype=torch.float64, device=device)
    t = (math.pi * s.sinh()).sigmoid()
    return t, (s[1] - s[0]) * math.pi * s.cosh() * t * t.flip(0)


def radius_rule(device):
    """Nodes r (142,) and weights: the same authors' rule r = exp(s − exp(−s)) for half a line,
    with the density r exp(−r²/2) / 2π in the weights; then −r, for the sector across."""
    s = torch.linspace(-3, 2.3, 71, dtype=torch.float64, device=device)
    r = (s - (-s).exp()).exp()
    weights = (s[1] - s[0]) * (1 + (-s).exp()) * r**2 * (-(r**2) / 2).exp() / (2 * math.pi)
    return torch.cat([r, -r]), torch.cat([weights, weights])
