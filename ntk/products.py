"""Products with the kernel, Θ v = J (Jᵀ v), by a backward and a forward-mode pass: J is never
formed.

For one pair of examples and each v = e_a this gives the kernel itself (Novak et al. 2022,
arXiv:2206.08720, section 3.3); for all examples at once, what iterative solvers ask for.
"""

import math
import warnings
from contextlib import suppress
from functools import partial

import torch
from torch.func import jvp, vjp, vmap

from ntk.checks import LOCK, check_alone, check_model, forward, require, undisturbed
from ntk.gradients import Witness, functional, stateless, trainable
from ntk.memory import MEMORY_BUDGET, plan


def vector_products(model, names, x1, x2, outputs):
    "Θ (N1, N2, …), pair by pair; some pairs are held against ordinary backward passes."
    refusal = (f'method="ntk_vector_products" cannot serve this {type(model).__name__}; '
               'use method="jacobian"')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, on what is slow under vmap
            f, params = functional(model, names)
            ntk = blocks(f, params, x1, x2, outputs)
            one, two = (Witness.of(model, x, names) for x in (x1, x2))
            few = blocks(f, params, x1[one.rows], x2[two.rows], "full")
    except RuntimeError as error:
        raise ValueError(f"{refusal}: {error}") from error
    # torch.no_grad inside, say, which forward mode does not see
    require(is_what_they_say(one, two, few), f"{refusal}: forward and backward mode disagree")
    return ntk


def blocks(f, params, x1, x2, outputs):
    "Θ (N1, N2, …) of f(params, xi) → (O,)."
    o, dtype = f(params, x1[0]).shape[0], f(params, x1[0]).dtype
    units = torch.eye(o, dtype=dtype, device=x1.device)

    def product(xi, xj):  # v ↦ J(xi) J(xj)ᵀ v
        _, pullback = vjp(lambda p: f(p, xj), params)
        return lambda v: jvp(lambda p: f(p, xi), (params,), pullback(v))[1]

    def block(xi, xj):
        times = product(xi, xj)
        if outputs == "full":
            return vmap(times, out_dims=1)(units)
        diagonal = torch.stack([times(unit)[a] for a, unit in enumerate(units)])
        return diagonal if outputs == "diagonal" else diagonal.sum()

    one_pair = o * sum(p.nbytes for p in params.values())
    pairs = max(1, int(MEMORY_BUDGET / 4 / max(1, one_pair)))
    row = vmap(block, (None, 0), chunk_size=pairs)
    return torch.stack([row(xi, x2) for xi in x1])


def is_what_they_say(one, two, few):
    "Whether Σ R · Θ · R′ is the product of the gradients of Σ R · f and Σ R′ · f of two witnesses."
    direction1, direction2 = one.direction.to(few), two.direction.to(few)
    found = torch.einsum("ia,ijab,jb->", direction1, few, direction2)
    expected = sum(one.gradients[name] @ two.gradients[name] for name in one.gradients)
    size = torch.einsum("ia,ijab,jb->", direction1.abs(), few.abs(), direction2.abs())
    lengths = [math.hypot(*(g.norm() for g in w.gradients.values())) for w in (one, two)]
    tolerance = one.eps**0.5 * size + 100 * one.eps * math.prod(lengths)
    return not (found - expected).abs() > tolerance


def ntk_operator(model, x):
    """Θ as a `scipy.sparse.linalg.LinearOperator` (N·O, N·O), for `eigsh`, `cg` and the like.

    x (N, …). Entry i·O + a of a vector belongs to output a of example i; the dtype is the model's.
    Θ v takes one backward and one forward pass over all examples, in batches; Θ is never formed.
    The weights must stay as they are meanwhile. Needs SciPy. Refuses what `compute_ntk` refuses,
    and a model of which Θ v is not what an ordinary backward pass of a few examples says.
    """
    from scipy.sparse.linalg import LinearOperator

    with undisturbed(model, x) as (x,), LOCK:
        check_model(model, x, "x")
        names = list(trainable(model))
        planned = plan(model, "ntk_vector_products", names, {"x": x})
        with torch.no_grad():
            outputs = torch.cat([forward(model, some, "x")[0] for some in x.split(planned.batch)])
        check_alone(model, x, outputs, "x")
        witness = Witness.of(model, x, names)
        v = torch.zeros_like(outputs)
        v[witness.rows] = witness.direction
        terms = v * ntk_times(model, x, v, planned.batch)
        expected = sum(g.square().sum() for g in witness.gradients.values())
        tolerance = witness.eps**0.5 * terms.abs().sum() + 100 * witness.eps * expected
        require(not (terms.sum() - expected).abs() > tolerance, "ntk_operator cannot serve this "
                f"{type(model).__name__}: forward and backward mode disagree")

    def matvec(v):
        with undisturbed(model, x), LOCK:
            v = torch.as_tensor(v).to(outputs).view(outputs.shape)
            return ntk_times(model, x, v, planned.batch).flatten().cpu().numpy()

    size, dtype = outputs.numel(), outputs[:0].cpu().numpy().dtype
    return LinearOperator((size, size), matvec=matvec, rmatvec=matvec, dtype=dtype)


def ntk_times(model, x, v, batch):
    "Θ v (N, O): Jᵀ v is added up over batches of examples, then J times that is taken in each."
    call, params = stateless(model), {name: p.detach() for name, p in trainable(model).items()}
    pulled = {name: torch.zeros_like(p) for name, p in params.items()}
    for some, part in zip(x.split(batch), v.split(batch)):
        _, pullback = vjp(partial(call, x=some), params)
        for name, g in pullback(part)[0].items():
            pulled[name] += g
    return torch.cat([pushed(partial(call, x=some), params, pulled) for some in x.split(batch)])


def pushed(f, params, tangent):
    "J times a move of the parameters; without forward mode, by the transpose of Jᵀ."
    with suppress(RuntimeError, NotImplementedError):
        return jvp(f, (params,), (tangent,))[1]
    outputs, pullback = vjp(f, params)
    _, push = vjp(lambda v: pullback(v)[0], torch.zeros_like(outputs))
    return push(tangent)[0]
