"""How much may be held at once.

Besides the inputs, the parameters and the kernel, a process holds at most `MEMORY_BUDGET`: what is
kept of the examples of two chunks, and a graph from which it is made, for a batch of them. How
much that is for an example is found out by a rehearsal. A kernel for which there is no room is
refused.
"""

import math
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from ntk.checks import forward, require
from ntk.graph import consumers_of, find_layers, gradients_at, shape_of
from ntk.layers import held_bytes

MEMORY_BUDGET = 256e6  # bytes


class Plan(NamedTuple):
    """groups: of the parameters' names, for which the kernels are computed one after the other
    fit: how many examples can be kept in all, in one chunk or two
    batch: how many examples to run at a time
    outputs: O
    """

    groups: list
    fit: int
    batch: int
    outputs: int

    def chunks(self, n1, n2, symmetric):
        """How many rows and columns at a time. Each strip of rows has all columns prepared anew, so
        that the rows get most of the room."""
        if (n1 if symmetric else n1 + n2) <= self.fit:
            return n1, n2
        rows = max(1, min(n1, 3 * self.fit // 4))
        return rows, max(1, self.fit - rows)


def plan(model, method, names, xs):
    """From a rehearsal with a few of the larger examples.

    A group's share of an example takes at most an eighth of the budget, if one parameter's does;
    what is kept of all examples half of it, and a batch with its graph the other half.
    """
    name, x = max(xs.items(), key=lambda item: item[1][0].numel())
    (outputs, start), graph_bytes = with_bytes_saved(model, x[:5], name)
    n, o = outputs.shape
    params = dict(model.named_parameters())
    held = {name: params[name].nbytes * o for name in names}  # for an example
    run = 2 * graph_bytes / n  # with gradients
    if method == "ntk_vector_products":
        held = dict.fromkeys(names, 0)
    if method in ("auto", "layerwise"):
        layers, _ = find_layers(model, outputs, names)
        orders, _ = gradients_at(layers, outputs, start)
        for layer in layers:
            if all(node in orders for node in layer.nodes):
                shares, beside = held_bytes(layer, outputs)
                held, run = held | shares, run + beside
    groups = grouped(held, MEMORY_BUDGET / 8)
    largest = max(sum(held[name] for name in group) for group in groups)
    fit = max(1, int(MEMORY_BUDGET / 2 / max(1, largest)))
    return Plan(groups, fit, max(1, int(MEMORY_BUDGET / 2 / max(1, run))), o)


def with_bytes_saved(model, x, name):
    "What `forward` returns, and how many bytes autograd saved for it besides the parameters."
    saved = {}  # by address, since a tensor may be saved twice

    def note(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a result is saved by its own node: the graph would hold itself

    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
            found = forward(model, x, name)
    except ValueError as error:
        if isinstance(error.__cause__, (MemoryError, torch.OutOfMemoryError)):
            raise
        found = forward(model, x, name)  # torch.func inside the model allows no such hooks
        return found, bytes_returned(found[0])
    for p in model.parameters():
        saved.pop(p.untyped_storage().data_ptr(), None)
    return found, sum(saved.values())


def bytes_returned(outputs):
    "The size of what all operations of the graph returned: about what autograd saved."
    nodes = [node for node in consumers_of(outputs) if not isinstance(node, torch.Tensor)]
    return outputs.element_size() * sum(math.prod(shape_of(node)) for node in nodes if node)


def grouped(sizes, most):
    "Names of {name: size}, in groups of neighbours: one, or several with at most `most` together."
    groups = [[]]
    for name, size in sizes.items():
        if groups[-1] and sum(sizes[other] for other in groups[-1]) + size > most:
            groups.append([])
        groups[-1].append(name)
    return groups


def require_room(shape, parameter, o):
    "Refuse a kernel of the shape (N1, N2, …) that does not fit into the memory of its device."
    entry, pairs = parameter.element_size(), shape[0] * shape[1]
    size = entry * math.prod(shape)
    if size < MEMORY_BUDGET:  # to find out what is free takes its time
        return
    free = free_bytes(parameter.device)
    smaller = {"diagonal": entry * pairs * o, "trace": entry * pairs}
    others = [f'; outputs="{name}" takes {gigabytes(less)}' for name, less in smaller.items()
              if less < min(free, size)]
    require(size <= free, f"the kernel of shape {tuple(shape)} takes {gigabytes(size)}, and "
            f"{gigabytes(free)} are free{''.join(others)}")


def gigabytes(count):
    "To three digits, without an exponent."
    return f"{float(f'{count / 1e9:.3g}'):,.12g} GB"


def free_bytes(device):
    "What is free on the device; on a CPU not more than a container may have."
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [math.inf]  # a system that does not tell
    with suppress(OSError):
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free.append(1024 * int(fields["MemAvailable"].split()[0]))
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # of cgroups, versions 2 and 1
        with suppress(OSError, ValueError):  # no such file, or "max"
            free.append(int(Path("/sys/fs/cgroup", limit).read_text()))
    return min(free)
