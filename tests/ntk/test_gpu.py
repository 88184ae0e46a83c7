"""compute_ntk on a GPU: the zoo against the double loop on the CPU, devices, memory, random state.

And what is made of its kernels there. Skipped on a machine without a GPU.
"""

import copy
import itertools
import math

import matplotlib.pyplot as plt
import pytest
import torch
from definitions import METHODS, assert_close, data, may_decline, mlp, ntk_by_definition
from torch import nn
from zoo import CONVOLUTIONS, OWN, SEQUENCES, ZOO, example

from ntk.kernel import MEMORY_BUDGET
from ntk_helpers import (
    MLP,
    alignment,
    check,
    compute_ntk,
    cosine,
    get_grads,
    gradient_flow,
    infinite_width_ntk,
    linearize,
    plot_kernel,
    spectrum,
    train,
)

# torch has warnings of its own, about nested tensors and torch.jit
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CONVOLUTIONS | SEQUENCES | OWN)
def test_kernel_of_the_zoo_is_right_or_declined(name, method):
    _, x1, x2, among_x1, x1_with_x2 = example(name)
    torch.manual_seed(0)
    model = ZOO[name].make().cuda()  # made anew: not every model can be copied
    for chunk_size, (inputs, expected) in itertools.product(
            (None, 2), [((x1.cuda(),), among_x1), ((x1.cuda(), x2.cuda()), x1_with_x2)]):
        with may_decline(method):
            kernel = compute_ntk(model, *inputs, method=method, chunk_size=chunk_size)
            assert kernel.is_cuda
            assert_close(kernel.cpu(), expected, 1e-7)  # the old weight_norm is off by 2e-8


@pytest.mark.parametrize("where", ["model", "inputs"])
def test_inputs_on_another_device_are_refused(where):
    model, x = mlp(4, 3), data()
    with pytest.raises(ValueError, match="on the model's device"):
        compute_ntk(*((model.cuda(), x) if where == "model" else (model, x.cuda())))


def test_float32_loses_no_more_than_float32_does():
    "Convolutions, too, for which cuDNN would take ten bits (TF32) unless told otherwise."
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(),
                          nn.AvgPool2d(4), nn.Flatten(), nn.Linear(64 * 9, 2)).cuda()
    x = torch.randn(6, 3, 16, 16).cuda()
    expected = ntk_by_definition(copy.deepcopy(model).double(), x.double()).cpu()
    for method in METHODS:
        assert_close(compute_ntk(model, x, method=method).cpu(), expected, 1e-5)


def test_random_state_is_left_as_it_was():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x):
            return self.layer(x) + 0 * torch.randn(len(x), 2, device=x.device)

    before = torch.cuda.get_rng_state()
    compute_ntk(Noisy().cuda(), torch.randn(5, 4).cuda())
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_memory_is_bounded_by_budget_and_kernel():
    model, x = MLP(64, 1024, hidden_layers=2).cuda(), torch.rand(3000, 64).cuda()
    for method in "auto", "jacobian":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kernel = compute_ntk(model, x if method == "auto" else x[:200], method=method)
        extra = torch.cuda.max_memory_allocated() - before
        assert extra < 2 * MEMORY_BUDGET + 3 * kernel.nbytes


def test_what_is_made_of_kernels_takes_them_from_the_gpu():
    model, x = mlp(4, 8, activation="erf", parametrization="ntk"), data(6)
    there, kernel = copy.deepcopy(model).cuda(), compute_ntk(model, x)
    ntk, labels = compute_ntk(there, x.cuda()), torch.arange(6).cuda() % 2
    assert_close(get_grads(there, x.cuda()).cpu(), get_grads(model, x))
    assert_close(cosine(ntk).cpu(), cosine(kernel))
    assert_close(spectrum(ntk).eigenvalues.cpu(), spectrum(kernel).eigenvalues)
    assert abs(alignment(ntk, labels) - alignment(kernel, labels.cpu())) < 1e-9
    limit_there, limit = (infinite_width_ntk(z, activation="erf") for z in (x.cuda(), x))
    for got, expected in zip(limit_there, limit):
        assert_close(got.cpu(), expected)
    plot_kernel(ntk)
    plt.close("all")


def test_check_takes_an_answer_from_the_gpu(capsys):
    check(torch.eye(3).cuda(), torch.eye(3))
    assert capsys.readouterr().out == "Right.\n"


@pytest.mark.parametrize("several", [False, True])
def test_training_and_its_prediction_are_those_of_the_cpu(several):
    x, y, times = data(6), data(6)[:, 0], torch.tensor([0.0, 1.0, math.inf])
    models = [mlp(4, 16, activation="tanh", parametrization="ntk")
              for _ in range(3 if several else 1)]
    there = [copy.deepcopy(model).cuda() for model in models]
    ntk, out = compute_ntk(models[0], x), models[0](x)[:, 0].detach()
    delta = data(sum(p.numel() for p in models[0].parameters()), 1)[:, 0]
    tangent_there = linearize(there[0])(x.cuda(), delta.cuda())
    assert_close(tangent_there.detach().cpu(), linearize(models[0])(x, delta).detach())
    flow_there = gradient_flow(ntk.cuda(), y.cuda(), out.cuda(), times.cuda())
    assert_close(flow_there.cpu(), gradient_flow(ntk, y, out, times), 1e-8)
    pair = [train(m if several else m[0], x.to(device), y.to(device), lr=0.05, steps=30, every=10,
                  kernel=True)
            for m, device in ((models, "cpu"), (there, "cuda"))]
    assert_close(pair[1].outputs.cpu(), pair[0].outputs, 1e-8)
    assert_close(pair[1].kernels.cpu(), pair[0].kernels, 1e-8)
