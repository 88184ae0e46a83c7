"""The tangent of a model in its parameters, and the training of the tangent in closed form.

`linearize` replaces the model f by f(x; θ₀) + J(x) Δθ, which is where gradient descent goes as long
as parameters hardly move. `gradient_flow` trains that with steps of no length: only the kernel
Θ = J Jᵀ at the start is left of the model, and a formula.

J itself is not formed if that can be helped. A backward pass is v ↦ Jᵀ v, and its own backward pass
is v ↦ J v (`pushforward`). Where that does not exist, or is not what an ordinary backward pass
says, `linearize` forms J after all.
"""

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn
from torch.func import debug_unwrap, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.weak import WeakIdKeyDictionary

from ntk.checks import (
    check_model,
    checked_forward,
    forward,
    is_finite,
    require,
    undisturbed,
    usable,
)
from ntk.gradients import Witness, jacobian, stateless, trainable
from ntk.reading import checked_kernel, checked_matrix, real_numbers, spectrum


def linearize(model):
    """The tangent f_lin(x, Δθ) = f(x; θ₀) + J(x) Δθ at the model's present parameters θ₀.

    Returns a function of x (N, …) and Δθ (P,), in the order of `get_grads`' columns, with values
    (N, O) as the model has them; differentiable in Δθ. What becomes of the model later does not
    change it. Source: Lee et al. 2019, arXiv:1902.06720, eq. 5.

    The first call with each x checks what `compute_ntk` checks. Where an operation has no second
    derivative, J (N, O, P) is formed. Raises TypeError for what is not an `nn.Module`, and for Δθ
    that is no tensor or array of numbers; ValueError for Δθ that is complex or of another shape,
    what `compute_ntk` refuses, a model that cannot be copied, and hooks on its parameters, which a
    copy does not have.
    """
    require(isinstance(model, nn.Module),
            f"model must be a torch.nn.Module, got {type(model).__name__}", TypeError)
    require(trainable(model), "model has no trainable parameter")
    for name, p in trainable(model).items():
        require(not p._backward_hooks, f"linearize cannot serve this model: {name} has a hook, "
                "which a copy of the model would not have")
    frozen = copied(model)
    params = list(trainable(frozen).values())
    sizes = [p.numel() for p in params]
    seen = WeakIdKeyDictionary()  # x → its version when it was checked, and J where it is needed

    def f_lin(x, delta):
        delta = checked_move(delta, sum(sizes))
        if not is_known(x, seen):
            with ThreadPoolExecutor(1) as thread:  # a transform of torch.func stays in its own
                J = thread.submit(jacobian_if_needed, frozen, x).result()
            seen[x] = version_of(x), J
        J = seen[x][1]
        with undisturbed(frozen, x) as (inputs,), sdpa_kernel(SDPBackend.MATH):
            if J is None:
                moves = [d.view_as(p).to(p) for d, p in zip(delta.split(sizes), params)]
                f0, change = pushforward(frozen, inputs, moves)
            else:
                f0, change = frozen(inputs.clone()), J @ delta.to(J)
            result = f0.detach() + change
        return result if torch.is_grad_enabled() else result.detach()

    return f_lin


def jacobian_if_needed(frozen, x):
    "None where `pushforward` is right, else J (N, O, P). Refuses what has no tangent."
    with undisturbed(frozen, x) as (x,), sdpa_kernel(SDPBackend.MATH):
        check_tangent(frozen, x)
        return None if has_pushforward(frozen, x) else jacobian(frozen, x)


def version_of(x):
    "A number that is another one after each change; None where PyTorch does not count."
    return None if x.is_inference() else x._version


def is_known(x, seen):
    transformed = isinstance(x, torch.Tensor) and debug_unwrap(x) is not x
    require(not transformed, "torch.func can transform f_lin in Δθ, and not in x")
    return x in seen and version_of(x) is not None and seen[x][0] == version_of(x)


def copied(model):
    "A copy with parameters of its own, which a model with pruned weights, say, does not have."
    refusal = (f"linearize needs a copy of the model, and this {type(model).__name__} cannot be "
               "copied")
    try:
        twin = copy.deepcopy(model)
    except Exception as error:  # the model may hold anything besides
        raise ValueError(f"{refusal}: {error}") from error
    require(all(p.is_leaf for p in twin.parameters()), f"{refusal}: PyTorch computes its "
            "parameters from the original's")
    return twin


def checked_move(delta, size):
    "Δθ (P,), with its graph if it has one."
    numbers = real_numbers(delta, "Δθ")
    require(numbers.shape == (size,), f"Δθ must have shape ({size},), got {tuple(numbers.shape)}")
    delta = delta if isinstance(delta, torch.Tensor) else numbers
    return usable(delta) if delta.is_inference() else delta


def check_tangent(frozen, x):
    "Refuse what `compute_ntk` refuses, and a copy that uses the original's weights."
    check_model(frozen, x, "x")
    checked_forward(frozen, x, "x")
    params = list(trainable(frozen).values())
    try:
        for p in params:
            p.requires_grad_(False)
        own = not forward(frozen, x, "x")[0].requires_grad
    finally:
        for p in params:
            p.requires_grad_()
    require(own, "linearize cannot serve this model: a copy of it still uses the original's "
            "parameters")


def has_pushforward(frozen, x):
    "Whether Σ R · J v is ⟨∇θ Σ R · f, v⟩ for a few examples and random R and v."
    witness = Witness.of(frozen, x, None)
    moves = [torch.randn_like(p) for p in trainable(frozen).values()]
    gradients = list(witness.gradients.values())
    require(all(map(is_finite, gradients)), "the gradients must be finite, got NaN or infinity")
    try:
        _, pushed = pushforward(frozen, x[witness.rows], moves)
    except Exception:  # the model's own functions may raise anything
        return False
    terms = [g * move.flatten() for g, move in zip(gradients, moves)]
    size = sum(term.norm() for term in terms)
    error = (witness.direction * pushed).sum() - sum(term.sum() for term in terms)
    return bool(error.abs() <= witness.eps**0.5 * size)


def pushforward(model, x, moves):
    """Outputs (N, O), and J v for v a list of moves of the trainable parameters.

    Backward, since not every operation has a forward mode: v ↦ Jᵀ v is linear, with J as gradient.
    """
    call = stateless(model)
    params = {name: p.detach() for name, p in trainable(model).items()}
    outputs, pullback = vjp(lambda params: call(params, x), params)
    _, push = vjp(lambda v: pullback(v)[0], torch.zeros_like(outputs))
    return outputs, push(dict(zip(params, moves)))[0]


# Trained in closed form


def gradient_flow(ntk, targets, initial, times, *, ntk_test=None, initial_test=None):
    """Outputs under gradient flow df/dt = −Θ (f − y) on ½ Σ (f − y)² with a constant kernel.

        f(t) = y + exp(−Θ t) (f₀ − y)
        f(x, t) = f₀(x) + Θ(x, X) Θ⁻¹ (1 − exp(−Θ t)) (y − f₀)

    (Jacot et al. 2018, arXiv:1806.07572, section 5; Lee et al. 2019, arXiv:1902.06720, section
    2.2.) Gradient descent with a small learning rate η is there at t = η · step. For a mean over N
    instead of the sum, divide t by N.

    ntk (N, N), targets y and initial f₀ (N,) or (N, O), times (T,) in any order, ∞ allowed →
    outputs (T, N[, O]) in float64. With ntk_test Θ(x, X) (M, N) and initial_test (M[, O]) a pair,
    the second the outputs off the training data, (T, M[, O]).

    Eigenvalues that are zero to the precision of the kernel's dtype are set to zero, with a
    warning that counts them: outputs do not move along their eigenvectors, and t = ∞ is the
    minimum-norm solution, Θ⁻¹ being the pseudo-inverse. Raises ValueError for shapes that do not
    fit, NaN, complex numbers, negative times, and a kernel that is not positive semidefinite.
    """
    λ, modes = moving_modes(checked_kernel(ntk))
    as_float64 = lambda values, name: real_numbers(values, name).to(modes)
    targets, initial = as_float64(targets, "targets"), as_float64(initial, "initial")
    times = as_float64(times, "times")
    check_flow(len(modes), targets, initial, times)
    require((ntk_test is None) == (initial_test is None),
            "ntk_test and initial_test belong together: give both or none")

    to_learn = torch.einsum("nk,n...->k...", modes, targets - initial)
    learned = -torch.expm1(-λ * times[:, None])  # (T, K): the part of each mode, by then
    outputs = initial + along(modes, learned, to_learn)
    if ntk_test is None:
        return outputs
    ntk_test = checked_matrix(ntk_test).to(modes)
    initial_test = as_float64(initial_test, "initial_test")
    require(ntk_test.shape == (len(initial_test), len(modes))
            and initial_test.shape[1:] == initial.shape[1:] and is_finite(initial_test),
            f"ntk_test must have shape (M, {len(modes)}) and initial_test (M, …) as initial, "
            f"finite, got {tuple(ntk_test.shape)} and {tuple(initial_test.shape)}")
    return outputs, initial_test + along(ntk_test @ modes, learned / λ, to_learn)


def moving_modes(ntk):
    "Eigenvalues (K,) that are not zero to the kernel's precision, and their eigenvectors (N, K)."
    eigenvalues, modes = spectrum(ntk)
    zero = eigenvalues.abs().max() * max(10, len(ntk)) * torch.finfo(ntk.dtype).eps
    require(eigenvalues.min() >= -10 * zero, "ntk must be positive semidefinite, got an eigenvalue "
            f"{eigenvalues.min():.3g}, with the largest {eigenvalues.max():.3g}")
    moving = eigenvalues > zero
    if not moving.all():
        warnings.warn(f"the kernel is singular: {(~moving).sum()} of {len(ntk)} eigenvalues are "
                      f"zero to its precision, below {zero:.2g}. What lies along their "
                      "eigenvectors is never learned.", stacklevel=3)
    return eigenvalues[moving], modes[:, moving]


def check_flow(n, targets, initial, times):
    require(targets.ndim in (1, 2) and len(targets) == n and targets.shape == initial.shape,
            f"targets and initial must both have shape ({n},) or ({n}, O), "
            f"got {tuple(targets.shape)} and {tuple(initial.shape)}")
    require(times.ndim == 1 and (times >= 0).all(),
            f"times must be a list of numbers, zero or more, got {times.tolist()}")
    require((targets.isfinite() & initial.isfinite()).all(),
            "targets and initial must be finite, got NaN or infinity")


def along(modes, shares, amounts):
    "Σ over k of modes[m, k] shares[t, k] amounts[k, …], (T, M, …)."
    return torch.einsum("mk,tk...->tm...", modes, torch.einsum("tk,k...->tk...", shares, amounts))
