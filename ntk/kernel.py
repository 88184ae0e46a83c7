"""The empirical NTK of any model, by one process or by many.

The kernel is cut into strips of rows, and its columns into chunks of examples. Chunks are
*prepared* to what the method needs, a Jacobian or a share for each layer. The *product* of two of
them gives tiles of the kernel, which are added up as they come. In these two steps alone the
methods differ.
"""

import itertools
import math
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

import torch
from joblib import Parallel, delayed, effective_n_jobs
from tqdm.auto import tqdm

from ntk.checks import (
    LOCK,
    check_alone,
    check_model,
    forward,
    is_finite,
    require,
    require_positive_ints,
    undisturbed,
)
from ntk.gradients import jacobian, trainable
from ntk.layers import prepared
from ntk.memory import MEMORY_BUDGET, plan, require_room
from ntk.products import vector_products
from ntk.shares import dot, jacobian_share, sum_of_shares

OUTPUTS = ("full", "diagonal", "trace", "sum")
TASKS, GIVEN_UP = itertools.count(), set()  # one for each kernel; those that failed
METHODS = ("auto", "layerwise", "jacobian", "ntk_vector_products", "loop")


def compute_ntk(model, x1, x2=None, *, outputs="full", params=None, method="auto",
                chunk_size=None, n_jobs=None, progress=False):
    """The empirical NTK, Θ[i, j, a, b] = ⟨∇θ f_a(x1[i]), ∇θ f_b(x2[j])⟩, θ: trainable parameters.

    x1 (N1, …), x2 (N2, …) or None for x2 = x1 → (N1, N2) for a model with one output, else
    (N1, N2, O, O), with the model's dtype, on its device; exactly symmetric if x2 is None. The
    model is left as it was, and no other thread may use it meanwhile.

    outputs
        "full": every pair of outputs. "diagonal": (N1, N2, O), each output with itself. "trace":
        (N1, N2), the sum of these. "sum": (N1, N2), the kernel of Σ_a f_a. The last three never
        hold O × O blocks.
    params: names of parameters, as in `model.named_parameters()`, None for all that require a
        gradient. Kernels of disjoint sets add up to that of their union.
    method
        "auto": "layerwise" for every parameter it serves, "jacobian" for the others of the model.
        "layerwise": Σ over layers of (D Dᵀ) ∘ (A Aᵀ + 1), from a layer's inputs A and the
            gradients D at its outputs, for parameters of linear layers, convolutions, embeddings
            and norms that enter the graph in one way. Where that is cheaper, gradients are formed
            instead, layer by layer.
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
    and device; for NaN or infinity anywhere; for gradients that an ordinary backward pass of a few
    examples contradicts; for a method that cannot serve the model; and for a kernel that does not
    fit into the memory.
    """
    require(outputs in OUTPUTS, f"outputs must be one of {OUTPUTS}, got {outputs!r}")
    require(method in METHODS, f"method must be one of {METHODS}, got {method!r}")
    if chunk_size is not None:
        require_positive_ints(chunk_size=chunk_size)
    require(n_jobs is None or type(n_jobs) is int and n_jobs != 0,
            f"n_jobs must be None or an integer other than 0, got {n_jobs!r}")
    with undisturbed(model, x1, x2) as (x1, x2):
        xs = {"x1": x1} if x2 is None else {"x1": x1, "x2": x2}
        with LOCK:
            for name, x in xs.items():
                check_model(model, x, name)
        names = chosen_names(model, params)
        if outputs == "sum":
            with LOCK:
                forward(model, x1[:1], "x1")  # what is refused is the model's own
            model, names, outputs = SumOfOutputs(model), [f"model.{n}" for n in names], "full"
        with LOCK:
            planned = plan(model, method, names, xs)
        n1, n2, o = len(x1), len(x1 if x2 is None else x2), planned.outputs
        shape = {"full": (n1, n2, o, o), "diagonal": (n1, n2, o), "trace": (n1, n2)}[outputs]
        require_room(shape, next(model.parameters()), o)
        height, width = planned.chunks(n1, n2, x2 is None)
        if chunk_size is not None:
            height = width = chunk_size
        task, jobs = next(TASKS), effective_n_jobs(n_jobs)
        strips = 1 if jobs == 1 else 2 * jobs  # two for each, since they are of unequal length
        height = min(height, math.ceil(n1 / strips))
        work = Strip.tiles if jobs == 1 else Strip.all_tiles
        done = Parallel(n_jobs, return_as="generator_unordered")(
            delayed(work)(Strip(task, model, x1, x2, outputs, method, group, start, start + height,
                                width, planned.batch, math.prod(shape[2:])))
            for group in planned.groups for start in range(0, n1, height))
        try:
            with tqdm(total=n1 * n2 * len(planned.groups), desc="NTK", unit=" entries",
                      unit_scale=True, disable=not progress) as bar:
                ntk = added_up(chain.from_iterable(done), shape, x2 is None, bar)
        except BaseException:
            GIVEN_UP.add(task)  # threads that are still at work run the model no more,
            with LOCK:  # once the one that does so now has finished
                raise
    return ntk[:, :, 0, 0] if ntk.shape[2:] == (1, 1) else ntk


def chosen_names(model, params):
    "The trainable parameters' names that are in `params`, or all, in the model's order."
    own = trainable(model)
    if params is None:
        return list(own)
    require(not isinstance(params, str), f"params must be a list of names, got one: [{params!r}]?",
            TypeError)
    first = {p: name for name, p in own.items()}  # a shared parameter has several names
    known = {name: first[p] for name, p in model.named_parameters(remove_duplicate=False)
             if p in first}
    wanted = list(params)
    require(wanted, "params must name at least one parameter")
    for name in wanted:
        require(name in known, f"params must name trainable parameters of the model, got {name!r}; "
                f"it has {', '.join(known)}")
    chosen = {known[name] for name in wanted}
    return [name for name in own if name in chosen]


class SumOfOutputs(torch.nn.Module):
    "A model with one output, Σ_a f_a."

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).sum(1, keepdim=True)


class Tile(NamedTuple):
    "The block (height, width, …) of Θ with its first entry in `row` and `column`."

    row: int
    column: int
    block: torch.Tensor


def added_up(tiles, shape, symmetric, bar):
    "The kernel. Of a symmetric one, tiles cover the diagonal and what is right of it."
    ntk = None
    for row, column, block in tiles:
        require(is_finite(block), "the kernel must be finite, got NaN or infinity: a gradient is "
                "not, or is too long")
        ntk = block.new_zeros(shape) if ntk is None else ntk
        height, width = block.shape[:2]
        ntk[row:row + height, column:column + width] += block
        bar.update(height * width)
        if symmetric:  # a square on the diagonal is symmetric by itself
            square = height if row == column else 0
            ntk[column + square:column + width, row:row + height] += transposed(block[:, square:])
            bar.update(height * (width - square))
    return ntk


def transposed(block):
    "Θ(x′, x) from Θ(x, x′): examples and, in the full kernel, outputs change places."
    return block.permute(1, 0, 3, 2) if block.ndim == 4 else block.transpose(0, 1)


class Strip(NamedTuple):
    "Work for one process: the rows from `start` to `stop` of Θ, of the parameters named."

    task: int
    model: torch.nn.Module
    x1: torch.Tensor
    x2: torch.Tensor | None
    outputs: str
    method: str
    names: list
    start: int
    stop: int
    width: int
    batch: int
    entries: int

    def tiles(self):
        "Yield the strip's tiles; with x2 None only those on the diagonal and right of it."
        rows = self.prepared(self.x1[self.start:self.stop], "x1")
        if self.x2 is None:
            yield from self.on_the_diagonal(rows)
            others, name, first = self.x1, "x1", min(self.stop, len(self.x1))
        else:
            others, name, first = self.x2, "x2", 0
        for column in range(first, len(others), self.width):
            columns = self.prepared(others[column:column + self.width], name)
            yield from self.beside(rows, columns, column)
            del columns  # before the next chunk comes

    def all_tiles(self):
        "As a list: another process cannot yield."
        return list(self.tiles())

    @contextmanager
    def alone(self):
        "While no other thread is at work on the model; refused once the task is given up."
        with LOCK:
            require(self.task not in GIVEN_UP, "another part of this kernel failed")
            yield

    def prepared(self, x, name):
        with self.alone():
            if self.method in ("auto", "layerwise"):
                kept = prepared(self.model, x, name, self.names, self.batch,
                                strict=self.method == "layerwise")
                return Chunk(x, kept)
            with torch.no_grad():
                outputs = [forward(self.model, some, name)[0] for some in x.split(self.batch)]
            check_alone(self.model, x, torch.cat(outputs), name)
            return Chunk(x, [self.by_jacobian(x)] if self.method != "ntk_vector_products" else [])

    def by_jacobian(self, x):
        by_loop = self.method == "loop"
        return jacobian_share(self.names, jacobian(self.model, x, self.names, by_loop, self.batch))

    def on_the_diagonal(self, rows):
        for slab, i in slabs(rows, rows, self.entries):
            block = self.product(slab, rows.rows(i))
            square = block[:, :len(block)]
            square.copy_((square + transposed(square)) / 2)
            yield Tile(self.start + i, self.start + i, block)

    def beside(self, rows, columns, column):
        if rows.labels() != columns.labels():  # the model branches on its inputs
            with self.alone():
                rows, columns = (Chunk(chunk.x, [self.by_jacobian(chunk.x)])
                                 for chunk in (rows, columns))
        for slab, i in slabs(rows, columns, self.entries):
            yield Tile(self.start + i, column, self.product(slab, columns))

    def product(self, one, two):
        match self.method:
            case "ntk_vector_products":
                with self.alone():
                    return vector_products(self.model, self.names, one.x, two.x, self.outputs)
            case "loop":
                return pair_by_pair(one.shares, two.shares, self.outputs)
            case _:
                return sum_of_shares(one.shares, two.shares, self.outputs)


class Chunk(NamedTuple):
    "Examples, and the shares of Θ that they have."

    x: torch.Tensor
    shares: list

    def labels(self):
        return [share.label for share in self.shares]

    def rows(self, start, stop=None):
        return Chunk(self.x[start:stop], [share.rows(slice(start, stop)) for share in self.shares])


def slabs(rows, columns, entries):
    """Yield parts of `rows` of which a product with all columns, with so many entries for a pair,
    is small, and where each begins."""
    width = len(columns.x) * entries
    height = max(64, 256 // entries, math.ceil(len(rows.x) / 8))  # a product has its fixed cost
    height = min(height, max(1, int(MEMORY_BUDGET / 128 / width)))
    for i in range(0, len(rows.x), height):
        yield rows.rows(i, i + height), i


def pair_by_pair(shares1, shares2, outputs):
    "Θ (N1, N2, …) from two Jacobians, by its definition."
    [one], [two] = shares1, shares2
    pair = lambda a, b: dot(a[None], b[None], outputs)[0, 0]
    return torch.stack([torch.stack([pair(a, b) for b in two.gradients[:, 0]])
                        for a in one.gradients[:, 0]])
