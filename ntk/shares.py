"""What is kept of a chunk of examples, and the product of two.

With D = ∂f/∂z, a product z = a Wᵀ + b has the gradients ∂f/∂W = D aᵀ and ∂f/∂b = D. Its share of Θ,

    (D Dᵀ) ∘ (A Aᵀ + 1),

takes the inputs A and the gradients D of all examples, and no gradient of W is ever formed (the
"structured derivatives" of Novak et al. 2022, arXiv:2206.08720). A layer that is applied at T
places of an example, or T times, has this summed over all pairs of places. An embedding is a
product with rows of an identity: in place of A Aᵀ stands whether two tokens are the same.
"""

import itertools
from functools import partial
from typing import NamedTuple

import torch

from ntk.gradients import Claim

COLUMNS = 16384  # of a product of gradients at a time
ENTRIES = 4e6  # of gradients by tokens at a time


class Share(NamedTuple):
    """What N examples hold of a summand of Θ, for the parameters in `uses`, {name: Use}.

    kind "layer": Σ over places of (D Dᵀ) ∘ (A Aᵀ + 1), with the inputs A (N, T, fan_in) and the
        gradients D (N, T, O, fan_out)
    kind "table": Σ over places of D Dᵀ where the tokens are the same, with the inputs (N, T,
    tokens)
    kind "gradients": J Jᵀ, with the gradients J (N, 1, O, P) and no inputs
    """

    kind: str
    uses: dict
    inputs: torch.Tensor | None
    gradients: torch.Tensor

    @property
    def label(self):
        """Only shares with equal labels may be multiplied: a model may branch on its inputs, so
        that two chunks use a parameter in two ways."""
        return self.kind, tuple(self.uses.items())

    def rows(self, rows):
        "The share of some of the examples, a slice or a list."
        inputs = None if self.inputs is None else self.inputs[rows]
        return self._replace(inputs=inputs, gradients=self.gradients[rows])


def jacobian_share(names, gradients):
    "The share of the parameters named, which have the gradients (N, O, P)."
    return Share("gradients", dict.fromkeys(names), None, gradients[:, None])


def sum_of_shares(shares1, shares2, outputs):
    "The block Θ (N1, N2, …) from the shares of N1 and of N2 examples."
    ntk = shares1[0].gradients.new_zeros(())
    for one, two in zip(shares1, shares2):
        match one.kind:
            case "layer":
                ntk = plus_layer_product(ntk, one, two, outputs)
            case "table":
                ntk = ntk + table_product(one, two, outputs)
            case "gradients":
                ntk = ntk + dot(one.gradients[:, 0], two.gradients[:, 0], outputs)
    return ntk


def dot(one, two, outputs):
    """Products of the gradients (N1, O, P) and (N2, O, P): of all pairs of outputs (N1, N2, O, O),
    of each with itself (N1, N2, O), or their sum (N1, N2). In blocks of columns, since one float32
    product of rows of millions loses digits."""
    pattern = {"full": "iap,jbp->ijab", "diagonal": "iap,jap->ija", "trace": "iap,jap->ij"}[outputs]
    columns = max(1, COLUMNS // one.shape[1]) if outputs == "trace" else COLUMNS
    first, *others = zip(one.split(columns, dim=2), two.split(columns, dim=2))
    found = torch.einsum(pattern, *first)
    for block in others:
        found += torch.einsum(pattern, *block)
    return found


def plus_layer_product(ntk, one, two, outputs):
    "ntk + Σ over places of (D Dᵀ) ∘ (w² A Aᵀ + b²), with the factors of the weight and the biases."
    factors = {"matrix": 0.0, "bias": 0.0}
    for use in one.uses.values():
        factors[use.role] += use.factor**2
    bias = one.inputs.new_tensor(factors["bias"])
    for s, t in itertools.product(range(one.inputs.shape[1]), range(two.inputs.shape[1])):
        inputs = torch.addmm(bias, one.inputs[:, s], two.inputs[:, t].T, alpha=factors["matrix"])
        block = dot(one.gradients[:, s], two.gradients[:, t], outputs)
        ntk = torch.addcmul(ntk, block, inputs.view(*inputs.shape, *[1] * (block.ndim - 2)))
    return ntk


def table_product(one, two, outputs):
    "Σ over places of D Dᵀ where the tokens are the same: over the tokens that both chunks have."
    (n1, _, o, width), n2 = one.gradients.shape, len(two.gradients)
    tokens, others = one.inputs.unique(), two.inputs.unique()
    common = tokens[torch.isin(tokens, others) & (tokens >= 0)]
    at_a_time = max(1, int(ENTRIES / (max(n1, n2) * o * width)))
    return sum(dot(by_token(one, some), by_token(two, some), outputs)
               for some in common.split(at_a_time))


def by_token(share, tokens):
    "The gradients (N, O, K · width) of the rows of an embedding for K of its tokens, sorted."
    n, t, o, width = share.gradients.shape
    entries = share.inputs.reshape(n, -1)
    slots = torch.searchsorted(tokens, entries).clamp(max=max(0, len(tokens) - 1))
    hit = tokens[slots] == entries if len(tokens) else torch.zeros_like(entries, dtype=torch.bool)
    slots = (slots + len(tokens) * torch.arange(n, device=slots.device)[:, None])[hit]
    each = entries.shape[1] // t  # tokens of a place have its gradient in common
    gradients = share.gradients.repeat_interleave(each, 1)[hit]
    found = gradients.new_zeros(n * len(tokens), o, width).index_add_(0, slots, gradients)
    return found.view(n, len(tokens), o, width).transpose(1, 2).flatten(2)


def joined(batches):
    """The shares of all batches of a chunk; None if they are not of one kind. The gradients of a
    batch are a list, (N, T, width) for each output."""
    if len({tuple(share.label for share in batch) for batch in batches}) > 1:
        return None
    found = []
    for _ in batches[0][:]:  # one share by another, so that little is held twice
        parts = [batch.pop(0) for batch in batches]
        share = parts[0]
        if share.inputs is not None and len(parts) > 1:
            share = share._replace(inputs=torch.cat([part.inputs for part in parts]))
        gradients = side_by_side([part.gradients for part in parts])
        found.append(share._replace(gradients=gradients))
    return found


def side_by_side(batches):
    "(N, T, O, width) from lists over the outputs, in one copy, or in none for one list of one."
    if len(batches) == len(batches[0]) == 1:
        return batches[0][0].unsqueeze(2)
    sizes, (first, *others) = [len(batch[0]) for batch in batches], batches[0]
    found = first.new_empty(sum(sizes), first.shape[1], 1 + len(others), first.shape[2])
    for batch, rows in zip(batches, found.split(sizes)):
        torch.stack(batch, 2, out=rows)
    return found


def claims_of(share, witness, params):
    """{name: Claim} for the parameters in a share.

    The gradient of a matrix or a table is as large as the parameter. So its products with a few
    random vectors are compared, uᵀ ∇ v, which takes no gradient to be formed.
    """
    direction = witness.direction.to(share.gradients)
    along = torch.einsum("io,itop->itp", direction, share.gradients)
    said = {}
    for name, use in share.uses.items():
        expected = witness.gradients[name].view(params[name].shape).permute(use.axes)
        if share.kind == "gradients" or use.role == "bias":
            factor = use.factor if share.kind == "layer" else 1.0
            found, expected = factor * along.sum((0, 1)), expected.flatten()
        else:
            u, v = (torch.randn(size, 2).to(along) for size in expected.shape)
            if share.kind == "table":
                beside = (u[share.inputs] * (share.inputs >= 0)[..., None]).sum(2)
            else:
                beside = use.factor * (share.inputs @ u)
            found, expected = (beside * (along @ v)).sum((0, 1)), ((u.T @ expected).T * v).sum(0)
        said[name] = Claim(found, expected, partial(size_of_terms, share, use, direction))
    return said


def size_of_terms(share, use, direction):
    "Of what is added up to a parameter's gradient of Σ R · f."
    lengths = torch.einsum("io,ito->it", direction.abs(), share.gradients.norm(dim=3))
    if share.kind == "table":
        lengths = lengths * (share.inputs >= 0).sum(2)
    elif share.kind == "layer":
        inputs = share.inputs.norm(dim=2) if use.role == "matrix" else 1.0
        lengths = abs(use.factor) * lengths * inputs
    return lengths.sum()
