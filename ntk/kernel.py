"""The empirical NTK of any model, within a budget of memory, by one process or by many.

The kernel is cut into strips of rows, and its columns into chunks of examples. Chunks are
*prepared* to what the method needs, a Jacobian or a share for each layer. The *product* of two of
them gives tiles of the kernel, which are added up as they come. In these two steps alone the
methods differ.
"""

import math
import warnings
from itertools import chain
from typing import NamedTuple

import torch
from joblib import Parallel, delayed, effective_n_jobs
from torch.func import jvp, vjp, vmap
from tqdm.auto import tqdm

from ntk.checks import (
    check_model,
    checked_forward,
    forward,
    is_close,
    is_finite,
    require,
    require_positive_ints,
    undisturbed,
)
from ntk.gradients import LOCK, functional, jacobian, jacobian_by_loop
from ntk.graph import find_layers, gradients_at
from ntk.layers import gradient_share, held_bytes, shares, sum_of_shares

METHODS = ("auto", "layerwise", "jacobian", "ntk_vector_products", "loop")
MEMORY_BUDGET = 256e6  # bytes to hold besides the inputs, the parameters and the kernel


def compute_ntk(model, x1, x2=None, *, method="auto", chunk_size=None, n_jobs=None, progress=False):
    """The empirical NTK, Θ[i, j, a, b] = ⟨∇θ f_a(x1[i]), ∇θ f_b(x2[j])⟩, θ: trainable parameters.

    x1 (N1, …), x2 (N2, …) or None for x2 = x1 → (N1, N2) for a model with one output, else
    (N1, N2, O, O), with the model's dtype, on its device; exactly symmetric if x2 is None. The
    model is left as it was, and no other thread may use it meanwhile.

    method
        "auto": "layerwise" for every parameter it serves, "jacobian" for the others of the model.
        "layerwise": Σ over layers of (D Dᵀ) ∘ (A Aᵀ + 1), from a layer's inputs A and the
            gradients D at its outputs, for weights and biases of linear layers and convolutions
            that enter the graph once. Where a layer is applied at many places, its gradients are
            formed instead, layer by layer.
        "jacobian": J Jᵀ. Cost N·O backward passes and N²O²P (Novak et al. 2022, arXiv:2206.08720,
            section 3.2).
        "ntk_vector_products": Θ v by one backward and one forward-mode pass per pair and output
            (same paper, section 3.3).
        "loop": the definition, pair by pair of gradients. Slow; to learn from and test against.
    chunk_size: examples in a chunk; two are held, and gradients computed anew for each pair of
        chunks. None: as many as fit into 256 MB for each process, and one if none does.
    n_jobs: processes that share the rows, as in `joblib.Parallel`. None: one, or what
        `joblib.parallel_config` says.
    progress: show a bar.

    Raises TypeError or ValueError for a model that is not an `nn.Module`, has no trainable
    parameter, or whose output is not (N, O), or for one example depends on the others or on chance
    (call `model.eval()`); for inputs that are no tensors, empty, or not of the model's shape, dtype
    and device; for NaN or infinity anywhere; and for a method that cannot serve the model.
    """
    require(method in METHODS, f"method must be one of {METHODS}, got {method!r}")
    if chunk_size is not None:
        require_positive_ints(chunk_size=chunk_size)
    require(n_jobs is None or type(n_jobs) is int and n_jobs != 0,
            f"n_jobs must be None or an integer other than 0, got {n_jobs!r}")
    with undisturbed(model, x1, x2) as (x1, x2):
        xs = {"x1": x1} if x2 is None else {"x1": x1, "x2": x2}
        for name, x in xs.items():
            check_model(model, x, name)
        groups, fit = plan(model, method, xs)
        n1, n2 = len(x1), len(x1 if x2 is None else x2)
        if chunk_size is None:  # two chunks are held, unless one is all
            chunk_size = max(1, fit if max(n1, n2) <= fit else fit // 2)
        jobs = effective_n_jobs(n_jobs)
        strips = 1 if jobs == 1 else 2 * jobs  # two for each, since they are of unequal length
        height = min(chunk_size, math.ceil(n1 / strips))
        work = Strip.tiles if jobs == 1 else Strip.all_tiles
        done = Parallel(n_jobs, return_as="generator_unordered")(
            delayed(work)(Strip(model, method, group, x1, x2, start, start + height, chunk_size))
            for group in groups for start in range(0, n1, height))
        with tqdm(total=n1 * n2 * len(groups), desc="NTK", unit=" entries", unit_scale=True,
                  disable=not progress) as bar:
            ntk = added_up(chain.from_iterable(done), n1, n2, symmetric=x2 is None, bar=bar)
    return ntk[:, :, 0, 0] if ntk.shape[2] == 1 else ntk


class Tile(NamedTuple):
    "The block (height, width, O, O) of Θ with its first entry in `row` and `column`."

    row: int
    column: int
    block: torch.Tensor


def added_up(tiles, n1, n2, symmetric, bar):
    "The kernel (N1, N2, O, O). Of a symmetric one, tiles cover the diagonal and all to its right."
    ntk = None
    for row, column, block in tiles:
        require(is_finite(block), "the kernel must be finite, got NaN or infinity: a gradient is "
                "not, or is too long")
        if ntk is None:
            ntk = block.new_zeros(n1, n2, *block.shape[2:])
        height, width = block.shape[:2]
        ntk[row:row + height, column:column + width] += block
        bar.update(height * width)
        if symmetric:  # Θ(x′, x) = Θ(x, x′)ᵀ; a square on the diagonal is symmetric by itself
            square = height if row == column else 0
            mirrored = block[:, square:].permute(1, 0, 3, 2)
            ntk[column + square:column + width, row:row + height] += mirrored
            bar.update(height * (width - square))
    return ntk


class Strip(NamedTuple):
    "Work for one process: the rows from `start` to `stop` of Θ, of the parameters named."

    model: torch.nn.Module
    method: str
    names: list
    x1: torch.Tensor
    x2: torch.Tensor | None
    start: int
    stop: int
    chunk_size: int

    def tiles(self):
        "Yield the strip's tiles; with x2 None only those on the diagonal and right of it."
        rows = self.prepared(self.x1[self.start:self.stop], "x1")
        if self.x2 is None:
            yield from self.on_the_diagonal(rows)
            others, name, first = self.x1, "x1", min(self.stop, len(self.x1))
        else:
            others, name, first = self.x2, "x2", 0
        for column in range(first, len(others), self.chunk_size):
            columns = self.prepared(others[column:column + self.chunk_size], name)
            yield from self.beside(rows, columns, column)
            del columns  # before the next chunk comes

    def all_tiles(self):
        "As a list: another process cannot yield."
        return list(self.tiles())

    def prepared(self, x, name):
        with LOCK:  # another thread may be at work on the same model
            outputs, start = checked_forward(self.model, x, name)
            match self.method:
                case "auto" | "layerwise":
                    strict = self.method == "layerwise"
                    kept = shares(self.model, x, outputs, start, self.names, strict)
                case "jacobian":
                    kept = [gradient_share((), jacobian(self.model, x, self.names))]
                case "loop":
                    kept = [gradient_share((), jacobian_by_loop(self.model, x, self.names))]
                case "ntk_vector_products":
                    kept = []
        return Chunk(x, outputs.shape[1], kept)

    def on_the_diagonal(self, rows):
        for slab, i in slabs(rows, rows):
            block = self.product(slab, rows.rows(i))
            square = block[:, :len(block)]
            square.copy_((square + square.permute(1, 0, 3, 2)) / 2)
            yield Tile(self.start + i, self.start + i, block)

    def beside(self, rows, columns, column):
        if rows.labels() != columns.labels():  # the model branches on its inputs
            rows, columns = self.by_jacobian(rows), self.by_jacobian(columns)
        for slab, i in slabs(rows, columns):
            yield Tile(self.start + i, column, self.product(slab, columns))

    def by_jacobian(self, chunk):
        with LOCK:
            gradients = jacobian(self.model, chunk.x, self.names)
        return chunk._replace(shares=[gradient_share((), gradients)])

    def product(self, one, two):
        match self.method:
            case "ntk_vector_products":
                return vector_products(self.model, one.x, two.x, one.outputs)
            case "loop":
                return pair_by_pair(one.shares, two.shares)
            case _:
                return sum_of_shares(one.shares, two.shares)


class Chunk(NamedTuple):
    "Examples, the number of their outputs, and the shares of Θ that they have in parts or in one."

    x: torch.Tensor
    outputs: int
    shares: list

    def labels(self):
        return [share.label for share in self.shares]

    def rows(self, start, stop=None):
        return Chunk(self.x[start:stop], self.outputs, [s.rows(start, stop) for s in self.shares])


def slabs(rows, columns):
    "Yield parts of `rows` of which a product with all columns is small, and where each begins."
    width = len(columns.x) * columns.outputs**2
    height = min(max(64, math.ceil(len(rows.x) / 8)), max(1, int(MEMORY_BUDGET / 128 / width)))
    for i in range(0, len(rows.x), height):
        yield rows.rows(i, i + height), i


def pair_by_pair(shares1, shares2):
    "Θ (N1, N2, O, O) from two Jacobians, by its definition."
    [one], [two] = shares1, shares2
    j1, j2 = one.gradients[:, 0], two.gradients[:, 0]
    return torch.stack([torch.stack([a @ b.T for b in j2]) for a in j1])


def vector_products(model, x1, x2, outputs):
    "Θ (N1, N2, O, O) from products Θ v. Its first pair is compared with the definition."
    def block(xi, xj):
        _, pullback = vjp(lambda p: f(p, xj), params)  # v ↦ J(xj)ᵀ v
        push = lambda v: jvp(lambda p: f(p, xi), (params,), pullback(v))[1]  # v ↦ J(xi) J(xj)ᵀ v
        return vmap(push, out_dims=1)(torch.eye(outputs, dtype=dtype, device=x1.device))

    refusal = (f'method="ntk_vector_products" cannot serve this {type(model).__name__}; '
               'use method="jacobian"')
    try:
        with LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, on what is slow under vmap
            f, params = functional(model)
            dtype = model(x1[:1].clone()).dtype
            one_pair = outputs * sum(p.nbytes for p in params.values())
            pairs = max(1, int(MEMORY_BUDGET / 4 / max(1, one_pair)))
            blocks = vmap(block, (None, 0), chunk_size=pairs)
            ntk = torch.stack([blocks(xi, x2) for xi in x1])
            first, second = (jacobian_by_loop(model, x[:1]) for x in (x1, x2))
            expected = torch.einsum("iap,jbp->ijab", first, second)
    except RuntimeError as error:
        raise ValueError(f"{refusal}: {error}") from error
    # torch.no_grad inside, say, which forward mode does not see
    require(is_close(ntk[:1, :1], expected), f"{refusal}: forward and backward mode disagree")
    return ntk


# Within the memory


def plan(model, method, xs):
    """Groups of parameters' names, and how many examples fit into half of the budget.

    An example's gradients of a group take at most an eighth of the budget, if one parameter's do.
    The sizes, that of the graph among them, are those of a rehearsal with a few of the larger
    inputs.
    """
    name, x = max(xs.items(), key=lambda item: item[1][0].numel())
    (outputs, start), graph_bytes = with_bytes_saved(model, x[:5], name)
    n, o = outputs.shape
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    held = {name: p.nbytes * o for name, p in params.items()}  # for an example
    if method == "ntk_vector_products":
        held = dict.fromkeys(params, 0)
    if method in ("auto", "layerwise"):
        layers, _ = find_layers(model, outputs, params)
        orders, _ = gradients_at(layers, outputs, start)
        held |= held_bytes(layers, orders, outputs)
    groups = grouped(held, MEMORY_BUDGET / 8)
    largest = max(sum(held[name] for name in group) for group in groups)
    return groups, int(MEMORY_BUDGET / 2 / max(1, graph_bytes / n + largest))


def with_bytes_saved(model, x, name):
    "What `forward` returns, and how many bytes autograd saved for it besides the parameters."
    saved = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs, start = forward(model, x, name)
    for p in model.parameters():
        saved.pop(p.untyped_storage().data_ptr(), None)
    return (outputs, start), sum(saved.values())


def grouped(sizes, most):
    "Names of {name: size}, in groups of neighbours: one, or several with at most `most` together."
    groups = [[]]
    for name, size in sizes.items():
        if groups[-1] and sum(sizes[other] for other in groups[-1]) + size > most:
            groups.append([])
        groups[-1].append(name)
    return groups
