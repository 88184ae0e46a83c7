"""How long the empirical NTK takes: python tests/benchmark_ntk.py prints one table, from one run.

The article's loop: one backward pass per example, then a dot product for each pair, N (N + 1) / 2
of them. torch.func, Jacobian and torch.func, products: the two functions of PyTorch's tutorial
"Neural Tangent Kernels". compute_ntk: ours. Floor: forward, backward and Gram products alone, with
half of the latter where x2 = x1.

Methods take turns within a case, and the median of five turns is shown. A number after ~ was
measured on a few examples or pairs and scaled up with N or N²; "memory" stands where the Jacobians
would take more than 8 GB.
"""

import math
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap

sys.path.insert(0, str(Path(__file__).parent.parent))
from ntk import MLP, compute_ntk  # noqa: E402


class TutorialCNN(nn.Module):
    "Three 3×3 convolutions of 32 channels on 3×32×32 images, 10 outputs: 235,978 parameters."

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)
        self.conv3 = nn.Conv2d(32, 32, 3)
        self.fc = nn.Linear(21632, 10)

    def forward(self, x):
        return self.fc(self.conv3(self.conv2(self.conv1(x).relu()).relu()).flatten(1))


def layers(model):
    if isinstance(model, MLP):
        return model.layers
    return [model.conv1, model.conv2, model.conv3, model.fc]


def article(model, x1, x2, few=20):
    "Seconds, from `few` gradients and as many dot products as they have pairs."
    start = time.perf_counter()
    grads = []
    for xi in x1[:few]:
        model.zero_grad()
        for out in model(xi[None])[0]:
            out.backward(retain_graph=True)
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    middle = time.perf_counter()
    for i in range(len(grads)):
        for j in range(i, len(grads)):
            torch.dot(grads[i], grads[j]).item()
    end = time.perf_counter()
    model.zero_grad()
    outputs, n = model(x1[:1]).shape[1], len(grads)
    pairs = len(x1) * (len(x1) + 1) / 2 if x2 is None else len(x1) * len(x2)
    gradients = len(x1) + (0 if x2 is None else len(x2))
    products = (end - middle) / (n * (n + 1) / 2) * pairs * outputs**2
    return (middle - start) / n * gradients + products, n < len(x1)


def functional(model):
    params = {k: p.detach() for k, p in model.named_parameters()}
    return lambda p, xi: functional_call(model, p, (xi[None],))[0], params


def jacobian_contraction(model, x1, x2):
    f, params = functional(model)
    j1, j2 = (vmap(jacrev(f), (None, 0))(params, x) for x in (x1, x1 if x2 is None else x2))
    return sum(torch.einsum("Naf,Mbf->NMab", j1[k].flatten(2), j2[k].flatten(2)) for k in params)


def ntk_vector_products(model, x1, x2):
    f, params = functional(model)

    def block(a, b):
        out, pullback = vjp(lambda p: f(p, a), params)
        push = lambda v: jvp(lambda p: f(p, b), (params,), pullback(v))[1]
        return vmap(push)(torch.eye(len(out)))

    return vmap(vmap(block, (None, 0)), (0, None))(x1, x1 if x2 is None else x2)


def floor(model, x1, x2):
    """Forward, backward for each output, and all Gram products, of inputs and of gradients or of a
    convolution's Jacobian."""
    ready, outputs = [], model(x1[:1]).shape[1]
    for x in (x1,) if x2 is None else (x1, x2):
        seen = []
        note = lambda layer, inputs, z, seen=seen: seen.append((inputs[0], z))
        hooks = [layer.register_forward_hook(note) for layer in layers(model)]
        out = model(x)
        for hook in hooks:
            hook.remove()
        grads = [torch.autograd.grad(out, [z for _, z in seen], v.expand_as(out), retain_graph=True)
                 for v in torch.eye(outputs)]
        ready.append([(a.detach(), d) for (a, _), *d in zip(seen, *grads)])
    n, block = len(x1), max(64, math.ceil(len(x1) / 8))
    for layer, (a1, d1), (a2, d2) in zip(layers(model), ready[0], ready[-1]):
        if isinstance(layer, nn.Conv2d):
            size = sum(p.numel() for p in layer.parameters())
            j1, j2 = torch.ones(len(a1) * outputs, size), torch.ones(len(a2) * outputs, size)
            j1 @ j2.T
            continue
        for i in range(0, n, block):
            left = i if x2 is None else 0
            a1[i:i + block] @ a2[left:].T
            for one in d1:
                for two in d2:
                    one[i:i + block] @ two[left:].T


def seconds(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def cases():
    for n, sizes in [(100, (20, 10)), (300, (784, 512, 512)), (1000, (64, 512, 512)),
                     (1797, (64, 4096, 4096))]:
        model = MLP(sizes[0], sizes[1], hidden_layers=len(sizes) - 1)
        yield f"{n}, {'-'.join(map(str, sizes))}-1", model, torch.rand(n, sizes[0]), None
    yield "20×5, the tutorial's CNN", TutorialCNN(), *(torch.rand(n, 3, 32, 32) for n in (20, 5))


def measure(model, x1, x2):
    "{method: (seconds, whether scaled up) or None}."
    others, outputs = x1 if x2 is None else x2, model(x1[:1]).shape[1]
    size = 4 * outputs * sum(p.numel() for p in model.parameters())
    few = max(1, min(len(x1), int(2e8 / size)))
    few_pairs = x1[:min(few, 5)], others[:min(few, 5)]
    scale = len(x1) * len(others) / len(few_pairs[0]) / len(few_pairs[1])
    turns = {"the article's loop": [], "torch.func, Jacobian": [], "torch.func, products": [],
             "compute_ntk": [], "floor": []}
    compute_ntk(model, x1[:2])
    for _ in range(5):
        turns["compute_ntk"].append(seconds(compute_ntk, model, x1, x2))
        turns["floor"].append(seconds(floor, model, x1, x2))
        if size * (len(x1) + len(others)) < 8e9:
            turns["torch.func, Jacobian"].append(seconds(jacobian_contraction, model, x1, x2))
        products = seconds(ntk_vector_products, model, *few_pairs)
        turns["torch.func, products"].append(scale * products)
        turns["the article's loop"].append(article(model, x1, x2, few=min(20, few))[0])
    scaled = {"torch.func, products": scale > 1, "the article's loop": min(20, few) < len(x1)}
    return {name: (statistics.median(t), scaled.get(name, False)) if t else None
            for name, t in turns.items()}


def cell(result):
    if result is None:
        return "memory"
    value, scaled = result
    unit = (value, "s") if value >= 1 else (1e3 * value, "ms")
    digits = 0 if unit[0] >= 100 else 1 if unit[0] >= 10 else 2
    return f"{'~ ' if scaled else ''}{unit[0]:,.{digits}f} {unit[1]}"


def main():
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32\n")
    print("| N, sizes | article's loop | torch.func, Jacobian | torch.func, products | compute_ntk "
          "| floor | ours / floor | best torch.func / ours |\n|" + "---|" * 8)
    for name, model, x1, x2 in cases():
        r = measure(model, x1, x2)
        ours = r["compute_ntk"][0]
        best = min(r[m][0] for m in ("torch.func, Jacobian", "torch.func, products") if r[m])
        print(f"| {name} |", " | ".join(map(cell, r.values())),
              f"| {ours / r['floor'][0]:.2f} | {best / ours:,.3g} |", flush=True)


if __name__ == "__main__":
    main()
