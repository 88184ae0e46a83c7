"""Nothing wrong is ever returned: situations where PyTorch, or the model, is not what it seems.

Wrong batching rules, hooks, changed weights, mixed examples, cancellation, threads. Where a kernel
exists it is the double loop's; where the package may decline, it declines by a ValueError.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from definitions import (
    METHODS,
    Net,
    assert_close,
    assert_untouched,
    cudnn_settings,
    data,
    gradients,
    may_decline,
    ntk_by_definition,
    two_layers,
)
from torch import nn
from zoo import Own, real, sequence, tokens, weight

from ntk import MLP, compute_ntk, get_grads
from ntk.checks import undisturbed

RETURNING = ["auto", "jacobian", "loop"]  # which serve every model


def assert_right_or_refused(function, expected):
    "A ValueError, or what is expected."
    try:
        got = function()
    except ValueError:
        return
    assert_close(got, expected)


# What torch gets wrong under vmap, and what looks the same in every example but the next


def rule(forward, **parts):
    "How to make a net 4 → 4 → 2 with this forward pass."
    return lambda: Net(forward, **{name: make() for name, make in parts.items()})


def distances(net, x):
    return net.last(torch.exp(-torch.cdist(net.first(x), net.centres) ** 2))


def second_derivative(net, x):
    u = lambda z: two_layers(net, z[None]).sum()
    return torch.func.vmap(torch.func.hessian(u))(x).diagonal(dim1=1, dim2=2)[:, :2]


def derivative_along(net, x):
    along = torch.ones_like(x)
    return torch.func.jvp(lambda z: two_layers(net, z), (x,), (along,))[1]


def gradient_by_input(net, x):
    return torch.func.vmap(torch.func.grad(lambda z: two_layers(net, z[None]).sum()))(x)[:, :2]


def complex_product(net, x):
    return (x.to(torch.complex128) @ torch.view_as_complex(net.w)).imag


def minus_what_it_was(net, x):
    return two_layers(net, x) - net.initial(x).detach()


def minus_itself():
    model = Net(minus_what_it_was, initial=nn.Sequential(nn.Linear(4, 4), nn.Tanh(),
                                                         nn.Linear(4, 2)).double())
    model.initial.requires_grad_(False)
    model.initial[0].load_state_dict(model.first.state_dict())
    model.initial[2].load_state_dict(model.last.state_dict())
    return model


def mirrored():
    "Two halves that differ in the sign of what they give, so that every output is zero."
    model = MLP(4, 60, 2, parametrization="ntk").double()
    with torch.no_grad():
        model.lin1.weight[30:], model.lin1.bias[30:] = model.lin1.weight[:30], model.lin1.bias[:30]
        model.lin2.weight[:, 30:] = -model.lin2.weight[:, :30]
    return model


def with_hook(change):
    "How to make a net with a hook on its first weight."
    def make():
        model = Net(two_layers)
        model.first.weight.register_hook(change)
        return model

    return make


def freezes_two_rows(gradient):
    return gradient * gradient.new_tensor([1.0, 1, 0, 0])[:, None]


def hooked_tensor(change):
    def forward(net, x):
        z = net.first(x)
        if z.requires_grad:
            z.register_hook(change)
        return net.last(torch.tanh(z))

    return rule(forward)


def hooked_module(change):
    def make():
        model = sequence(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
        model[1].register_full_backward_hook(change)
        return model

    return make


def accumulates_elsewhere():
    model = Net(two_layers)
    model.first.weight.register_post_accumulate_grad_hook(lambda p: p.grad.zero_())
    return model


def sign_of_the_bias(net, x):
    plus = x[:, 0] > 0
    if plus.all() or not plus.any():
        sign = 1.0 if plus.all() else -1.0
        return net.last(torch.tanh(F.linear(x, net.first.weight, sign * net.first.bias)))
    return torch.cat([sign_of_the_bias(net, xi[None]) for xi in x])


SERVED = {
    "distances to learned centres": rule(distances, centres=lambda: weight(4, 4)),
    "PReLU with a slope for each unit": lambda: sequence(
        nn.Linear(4, 5), nn.PReLU(5), nn.Linear(5, 5)),
    "F.prelu, ten outputs": lambda: Own(lambda net, x: F.prelu(net.first(x), net.slope),
                                        first=nn.Linear(4, 10), slope=weight(1)),
    "bilinear": lambda: Own(lambda net, x: net.layer(x, torch.tanh(x)), layer=nn.Bilinear(4, 4, 2)),
    "sign of the bias": rule(sign_of_the_bias),
    "second derivatives": rule(second_derivative),
    "derivative along a line": rule(derivative_along),
    "derivatives by the input": rule(gradient_by_input),
    "real coordinates of a complex matrix": lambda: Own(complex_product, w=weight(4, 3, 2)),
    "mirrored": mirrored,
    "f − f₀": minus_itself,
    "parameter hook freezes two rows": with_hook(freezes_two_rows),
    "parameter hook doubles": with_hook(lambda gradient: 2 * gradient),
    "tensor hook doubles": hooked_tensor(lambda gradient: 2 * gradient),
    "tensor hook stops the gradient": hooked_tensor(torch.zeros_like),
    "module hook triples": hooked_module(lambda module, before, after: (3 * before[0],)),
    "hook after accumulation": accumulates_elsewhere,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SERVED)
def test_kernel_is_right_where_little_is_what_it_seems(name, method):
    model = SERVED[name]()
    o = model(data(1)).shape[1]
    for n in {o, o + 1, 6}:
        x = data(n)
        expected = ntk_by_definition(model, x)
        with assert_untouched(model), may_decline(method):
            assert_close(compute_ntk(model, x, method=method), expected, 1e-9)
            assert_close(compute_ntk(model, x, method=method, chunk_size=3), expected, 1e-9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SERVED)
def test_in_float32_too_where_a_second_witness_is_called(name):
    if "complex" in name or "derivative" in name:
        pytest.skip("its tensors are made in float64")
    model = SERVED[name]()
    o = model(data(1)).shape[1]
    x = data(o)
    expected = ntk_by_definition(model, x)
    model.float()
    assert_close(compute_ntk(model, x.float()).double(), expected, 1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SERVED)
def test_gradients_are_right_where_little_is_what_it_seems(name):
    model = SERVED[name]()
    for n in model(data(1)).shape[1], 6:
        x = data(n)
        assert_close(get_grads(model, x), gradients(model, x).squeeze(1), 1e-9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("function", [compute_ntk, get_grads])
@pytest.mark.parametrize("name", SERVED)
def test_a_single_example(name, function):
    model, x = SERVED[name](), data(1)
    definition = {compute_ntk: ntk_by_definition, get_grads: gradients}[function]
    expected = definition(model, x)
    for seed in range(20 if name == "mirrored" else 1):  # a matter of chance
        torch.manual_seed(seed)
        assert_close(function(model, x), expected, 1e-9)


def test_chunks_that_use_a_parameter_in_two_ways():
    model, x = Net(sign_of_the_bias), data(10)
    x[:5, 0], x[5:, 0] = x[:5, 0].abs(), -x[5:, 0].abs()
    expected = ntk_by_definition(model, x)
    assert_close(compute_ntk(model, x, chunk_size=5), expected)
    assert_close(compute_ntk(model, x[:5], x[5:]), expected[:5, 5:])


@pytest.mark.parametrize("method", RETURNING)
@pytest.mark.parametrize("make", [mirrored, minus_itself])
def test_outputs_that_cancel_in_float32(make, method):
    model, x = make(), data(6)
    expected = ntk_by_definition(model, x)
    assert_close(compute_ntk(model.float(), x.float(), method=method), expected, 1e-4)


@pytest.mark.parametrize("method", RETURNING)
def test_outputs_in_float64_of_a_net_in_float32(method):
    model = Net(lambda net, x: two_layers(net, x).double())
    x = data(6)
    expected = ntk_by_definition(model, x)
    ntk = compute_ntk(model.float(), x.float(), method=method)
    assert_close(ntk, expected, 1e-4)


# Hooks that make a gradient of several examples other than the sum of theirs


MIXING_HOOKS = {
    "tensor hook, norm of all": hooked_tensor(lambda gradient: gradient / gradient.norm()),
    "tensor hook, mean of all": hooked_tensor(lambda gradient: gradient - gradient.mean(0)),
    "tensor hook, largest of all": hooked_tensor(lambda gradient: gradient.clamp(max=0.1)),
    "module hook, norm of all": hooked_module(
        lambda module, before, after: (before[0] / before[0].norm(),)),
    "parameter hook, norm": with_hook(lambda gradient: gradient / gradient.norm()),
    "parameter hook, clipped": with_hook(lambda gradient: gradient.clamp(-0.1, 0.1)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MIXING_HOOKS)
def test_hooks_that_mix_are_undone_or_refused(name, method):
    model, x = MIXING_HOOKS[name](), data(6)
    expected = ntk_by_definition(model, x)
    for chunk_size in None, 2, 1:
        assert_right_or_refused(
            lambda size=chunk_size: compute_ntk(model, x, method=method, chunk_size=size), expected)
    assert_right_or_refused(lambda: get_grads(model, x), gradients(model, x))


# Examples that are not independent


def halved_until_small(net, x):
    z = net.first(x)
    while z.abs().max() > 0.1:
        z = z / 2
    return net.last(z)


MIXED = {
    "while loop": halved_until_small,
    "batch maximum": lambda net, x: net.last(net.first(x) / net.first(x).abs().max()),
    "maximum of each unit": lambda net, x: net.last(net.first(x) - net.first(x).amax(0)),
    "sorted": lambda net, x: net.last(net.first(x).sort(0).values),
    "ranks": lambda net, x: two_layers(net, x) * (1 + x.argsort(0).argsort(0)[:, :1]),
    "median": lambda net, x: net.last(net.first(x) - net.first(x).median(0).values),
    "rolled": lambda net, x: two_layers(net, x.roll(1, 0)),
    "backwards": lambda net, x: two_layers(net, x.flip(0)),
    "number of examples": lambda net, x: two_layers(net, x) * len(x),
    "attention among examples": lambda net, x: net.last(
        F.scaled_dot_product_attention(net.first(x), net.first(x), net.first(x))),
}


@pytest.mark.parametrize("function", [compute_ntk, get_grads])
@pytest.mark.parametrize("name", MIXED)
def test_models_that_mix_examples_are_refused(name, function):
    with pytest.raises(ValueError, match="depends on the others.*or on chance"):
        function(Net(MIXED[name]), data(7))


# Models that change their weights


def changed(change):
    "A net that changes its first weight before it uses it."
    def forward(net, x):
        with torch.no_grad():
            change(net.first.weight)
        return two_layers(net, x)

    return lambda: Net(forward)


def one_entry(w):
    w[0] = 0.5


def one_entry_by_data(w):
    w.data[0, 1] = 0.5


def another_tensor(w):
    w.data = 2 * w.data


def halved(w):
    w /= 2


CHANGING = {
    "in place": (changed(halved), real(4)),
    "by .data": (changed(lambda w: w.data.mul_(0.5)), real(4)),
    "by detach": (changed(lambda w: w.detach().add_(1)), real(4)),
    "by a view": (changed(lambda w: w.view(-1).zero_()), real(4)),
    "an entry": (changed(one_entry), real(4)),
    "an entry by .data": (changed(one_entry_by_data), real(4)),
    "out=": (changed(lambda w: torch.mul(w, 0.5, out=w)), real(4)),
    "out= of .data": (changed(lambda w: torch.mul(w, 0.5, out=w.data)), real(4)),
    "copied": (changed(lambda w: w.copy_(w.clone() / 2)), real(4)),
    "initialised anew": (changed(nn.init.ones_), real(4)),
    "another tensor": (changed(another_tensor), real(4)),
    "many at once": (changed(lambda w: torch._foreach_mul_([w], 0.5)), real(4)),
    "many at once, by .data": (changed(lambda w: torch._foreach_mul_([w.data], 0.5)), real(4)),
    "max_norm": (lambda: sequence(nn.Embedding(7, 3, max_norm=0.1), nn.Flatten(),
                                  nn.Linear(9, 2)), tokens(3)),
    "max_norm of bags": (lambda: sequence(nn.EmbeddingBag(7, 3, max_norm=0.1),
                                          nn.Linear(3, 2)), tokens(3)),
    "functional max_norm": (lambda: Net(lambda net, x: two_layers(net, F.embedding(
        x, net.table, max_norm=0.1).sum(1)), table=weight(7, 4)), tokens(3)),
    "functional max_norm of bags": (lambda: Net(lambda net, x: two_layers(net, F.embedding_bag(
        x, net.table, max_norm=0.1)), table=weight(7, 4)), tokens(3)),
}


@pytest.mark.parametrize("function", [compute_ntk, get_grads])
@pytest.mark.parametrize("name", CHANGING)
def test_models_that_change_their_weights_are_refused_and_untouched(name, function):
    make, inputs = CHANGING[name]
    model = make()
    x = inputs(5)
    with (assert_untouched(model),
          pytest.raises(ValueError, match="the model changes its own weights")):
        function(model, x)


# Complex parameters


@pytest.mark.parametrize("function", [compute_ntk, get_grads])
def test_complex_parameters_are_refused_by_name(function):
    model = Own(lambda net, x: (x.to(torch.complex128) @ net.w).imag)
    model.w = nn.Parameter(torch.randn(4, 2, dtype=torch.complex128))
    model.b = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"w is complex.*view_as_real.*view_as_complex"):
        function(model, data())


# Threads


def test_four_threads_with_one_model():
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    batches = [data(4, 5) for _ in range(60)]
    own = list(model.parameters())
    expected = [(gradients(model, x), ntk_by_definition(model, x)) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: (get_grads(model, x), compute_ntk(model, x)), batches))
    for got, wanted in zip(found, expected):
        assert_close(got[0], wanted[0])
        assert_close(got[1], wanted[1])
    assert all(p is q for p, q in zip(own, model.parameters(), strict=True))


@pytest.mark.parametrize("first", ["first", "last"])
@pytest.mark.parametrize("other", [lambda: Net(two_layers), lambda: nn.LSTM(3, 4)])
def test_settings_of_the_process_are_as_before_whichever_thread_ends_first(first, other):
    before, mkldnn = cudnn_settings(), torch.backends.mkldnn.enabled
    one, two = undisturbed(Net(two_layers)), undisturbed(other())
    one.__enter__(), two.__enter__()
    for context in (one, two) if first == "first" else (two, one):
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        context.__exit__(None, None, None)
    assert cudnn_settings() == before and torch.backends.mkldnn.enabled == mkldnn
    # each is a setting of its own again, where the process has not set one
    assert torch.backends.cudnn.conv.fp32_precision == torch.backends.cudnn.rnn.fp32_precision
