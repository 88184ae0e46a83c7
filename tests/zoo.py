"""The architectures that compute_ntk is tested on, small enough for the double loop over gradients.

ZOO has the entries of all tables before it; a comment says why a model is there where its name does
not. SURPRISES look simpler in their first examples than they are. TWO_WAYS use a parameter in one
way for some examples, and in another for the rest.
"""

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from definitions import Net, data, mlp, ntk_by_definition, two_layers
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from ntk import MLP


class Case(NamedTuple):
    "make() → a model in float64; inputs(n) → n examples for it."

    make: Callable
    inputs: Callable


class Example(NamedTuple):
    "A model of the zoo, x1 of 5 examples and x2 of 3, and by definition Θ(x1, x1) and Θ(x1, x2)."

    model: nn.Module
    x1: torch.Tensor
    x2: torch.Tensor
    among_x1: torch.Tensor
    x1_with_x2: torch.Tensor


@functools.cache
def example(name):
    "Made once, always with the same weights: no test may change it."
    make, inputs = ZOO[name]
    torch.manual_seed(0)
    model, x1, x2 = make(), inputs(5), inputs(3)
    return Example(model, x1, x2, ntk_by_definition(model, x1), ntk_by_definition(model, x1, x2))


def real(*shape):
    return lambda n: data(n, *shape)


def tokens(*shape):
    return lambda n: torch.randint(0, 7, (n, *shape))


# Models in parts


class Own(nn.Module):
    "Any forward(net, x) with any parameters and modules."

    def __init__(self, forward, **parts):
        super().__init__()
        self.rule = forward
        for name, part in parts.items():
            setattr(self, name, part)
        self.double().eval()

    def forward(self, x):
        return self.rule(self, x)


class Pooled(nn.Module):
    "The mean over all places: (N, C, …) → (N, C)."

    def forward(self, x):
        return x.flatten(2).mean(2)


def sequence(*layers):
    return nn.Sequential(*layers).double().eval()


def weight(*shape):
    return nn.Parameter(torch.randn(shape))


def bare(forward, **shapes):
    "How to make a model of nothing but parameters."
    return lambda: Own(forward, **{name: weight(*shape) for name, shape in shapes.items()})


def frozen(model, *names):
    for name, p in model.named_parameters():
        p.requires_grad_(not any(part in name for part in names))
    return model


# Layers of torch.nn, on four numbers


class LastState(nn.Module):
    "An LSTM over the four numbers."

    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(1, 3, batch_first=True), nn.Linear(3, 2)
        self.double()

    def forward(self, x):
        return self.out(self.lstm(x[..., None])[0][:, -1])


def batch_norm():
    model = sequence(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)).train()
    model(3 * data(20) + 1)  # running statistics other than 0 and 1
    return model.eval()


LIBRARY = {
    "conv": lambda: sequence(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.Tanh(),
                             nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 2)),
    "lstm": LastState,  # which vmap does not serve
    "layer norm": lambda: sequence(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 1)),
    "batch norm in eval": batch_norm,
    "dropout in eval": lambda: sequence(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 2)),
    "no bias": lambda: nn.Linear(4, 2, bias=False).double(),
    "transformer": lambda: sequence(
        nn.Unflatten(1, (2, 2)), nn.TransformerEncoderLayer(2, 1, 4, batch_first=True),
        nn.Flatten(), nn.Linear(4, 1)),
    "weight norm": lambda: sequence(
        parametrizations.weight_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 1)),
    "pruned": lambda: sequence(
        prune.random_unstructured(nn.Linear(4, 3), "weight", 0.5), nn.Tanh(), nn.Linear(3, 1)),
}


# Nets of two layers that do something unusual


class StraightThrough(torch.autograd.Function):
    "The sign, with the gradient of the identity: not what differences or forward mode would give."

    @staticmethod
    def forward(ctx, z):
        return z.sign()

    @staticmethod
    def backward(ctx, grad):
        return grad


def tied():
    model = Net(lambda net, x: net.last(torch.tanh(net.second(torch.tanh(net.first(x))))),
                second=nn.Linear(4, 4))
    model.second.weight = model.first.weight
    return model


def shared_module():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, 1)).double()


def kept_in_a_list():
    model = Net(lambda net, x: net.last(torch.tanh(F.linear(x, net.weights[0]))))
    model.weights = [model.first.weight]
    return model


def one_output_detached(net, x):
    first, second = two_layers(net, x).T
    return torch.stack([first, second.detach()], 1)


def partly_without_grad(net, x):
    with torch.no_grad():
        constant = torch.tanh(net.first(x))
    return net.last(constant + torch.sin(net.first(x)))


def branching(net, x):
    return torch.cat([two_layers(net, xi[None]) if xi[0] > 0 else net.last(xi[None]) for xi in x])


def input_changed_in_place(net, x):
    x -= 0.5
    return two_layers(net, x)


UNUSUAL = {
    "scalar parameter": lambda: Net(
        lambda net, x: net.gain * two_layers(net, x), gain=nn.Parameter(torch.tensor(2.0))),
    "empty parameter": lambda: Net(two_layers, nothing=nn.Parameter(torch.zeros(0, 3))),
    "unused parameter": lambda: Net(lambda net, x: net.last(x)),
    "tied weights": tied,
    "shared module": shared_module,
    "weight read from a list": kept_in_a_list,  # where functional_call does not exchange it
    "detached path": lambda: Net(
        lambda net, x: net.last(torch.tanh(net.first(x)).detach() + net.first(x))),
    "output detached": lambda: Net(lambda net, x: two_layers(net, x).detach()),
    "one output detached": lambda: Net(one_output_detached),
    "partly without grad": lambda: Net(partly_without_grad),
    "own backward": lambda: Net(lambda net, x: net.last(StraightThrough.apply(net.first(x)))),
    "branches on data": lambda: Net(branching),
    "input changed in place": lambda: Net(input_changed_in_place),
}


# MLPs that are not what their class says


class Doubled(MLP):
    def forward(self, x):
        return super().forward(x) + super().forward(2 * x)


def mlp_with(change, **kwargs):
    model = mlp(4, 4, 2, hidden_layers=2, **kwargs)
    change(model)
    return model


def tie(model):
    model.lin2.weight = model.lin1.weight


def use_first_layer_twice(model):
    model.lin2 = model.lin1


def use_second_layer_as_activation(model):
    model.activation = model.lin2


def closure_over_its_own_weight():
    model = mlp(4, 4, hidden_layers=2,
                activation=lambda z: torch.tanh(z) * model.lin2.weight.sum())
    return model


def square_what_the_first_layer_returns(model):
    model.lin1.register_forward_hook(lambda module, x, z: z**2)


def double_the_input(model):
    model.register_forward_pre_hook(lambda module, x: 2 * x[0])


def replace_forward(model):
    model.forward = lambda x: model.lin3(model.lin2(model.lin1(x)))


def replace_a_layer(model):
    model.lin2 = nn.Sequential(nn.Linear(4, 4)).double()


def freeze_all_but_the_first_layer(model):
    model.lin2.requires_grad_(False)
    model.lin3.requires_grad_(False)


def step(z):
    return (z > 0).to(z.dtype)


MLPS = {
    "PReLU": lambda: mlp(4, 5, 2, activation=nn.PReLU()),
    "tied": lambda: mlp_with(tie),
    "tied, with PReLU": lambda: mlp_with(tie, activation=nn.PReLU()),
    "shared layer": lambda: mlp_with(use_first_layer_twice),
    "own layer as activation": lambda: mlp_with(use_second_layer_as_activation),
    "closure over its own weight": closure_over_its_own_weight,
    "forward hook": lambda: mlp_with(square_what_the_first_layer_returns),
    "forward pre-hook": lambda: mlp_with(double_the_input),
    "forward replaced": lambda: mlp_with(replace_forward),
    "layer replaced": lambda: mlp_with(replace_a_layer),
    "subclass": lambda: Doubled(4, 5).double(),
    "weight norm": lambda: mlp_with(lambda model: parametrizations.weight_norm(model.lin1)),
    "pruned": lambda: mlp_with(
        lambda model: prune.random_unstructured(model.lin1, "weight", 0.5)),
    "relu in place": lambda: mlp(4, 5, 2, hidden_layers=2, activation=nn.ReLU(inplace=True)),
    "relu_, NTK parametrization": lambda: mlp(
        4, 5, 2, activation=torch.relu_, parametrization="ntk", bias_std=0.2),
    "activation mixing units": lambda: mlp(
        4, 5, 2, hidden_layers=2, activation=lambda z: z.softmax(1)),
    "activation for the hidden width only": lambda: mlp(
        4, 5, 2, activation=nn.LayerNorm(5, elementwise_affine=False)),
    "activation with its own backward": lambda: mlp(4, 5, 2, activation=StraightThrough.apply),
    # no path leads to a trainable parameter
    "step activation before a frozen layer": lambda: mlp_with(
        freeze_all_but_the_first_layer, activation=step),
}

MODELS = LIBRARY | UNUSUAL | {f"MLP: {name}": make for name, make in MLPS.items()}


# Convolutions


def conv_net(*convs, outputs=2):
    body = [layer for conv in convs for layer in (conv, nn.Tanh())]
    return sequence(*body, Pooled(), nn.Linear(convs[-1].out_channels, outputs))


def scaled_convolution(net, x):
    return F.conv2d(x, 0.3 * net.w, 0.1 * net.b).tanh().sum((2, 3))


def frames(fold, unfold):
    "How to make a convolution that is applied to all frames of (N, T, C, H, W) at once."
    def forward(net, x):
        z = torch.tanh(net.conv(fold(x))).flatten(2).mean(2)
        return net.last(torch.sin(unfold(z, len(x))))

    return lambda: Own(forward, conv=nn.Conv2d(2, 3, 2, padding=1), last=nn.Linear(3, 2))


EXAMPLES_FIRST = (lambda x: x.flatten(0, 1), lambda z, n: z.unflatten(0, (n, -1)).square().sum(1))
TIME_FIRST = (lambda x: x.transpose(0, 1).flatten(0, 1),
              lambda z, n: z.unflatten(0, (-1, n)).square().sum(0))


def normalised(conv, norm):
    "With affine parameters and running statistics other than 1 and 0."
    model = sequence(conv, norm, nn.Tanh(), Pooled(), nn.Linear(conv.out_channels, 2))
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2)
    return model


def scaled_channels(net, x):
    return net.last(torch.tanh(net.conv(x) * net.scale).mean((2, 3)))


def filtered_twice(net, x):
    return net.last(torch.tanh(net.conv(torch.tanh(net.conv(x)))).mean(2))


def two_dilations_of_a_filter(net, x):
    near, far = F.conv1d(x, net.w, net.b), F.conv1d(x, net.w, net.b, stride=2, dilation=3)
    return net.last(torch.sin(near).sum(2) + torch.cos(far).sum(2))


def squeeze_and_excite(net, x):
    z = net.conv(x)
    gates = net.up(torch.relu(net.down(z.mean((2, 3))))).sigmoid()
    return net.last((z * gates[:, :, None, None]).square().mean((2, 3)))


CONVOLUTIONS = {
    "conv1d: stride, padding, dilation": Case(
        lambda: conv_net(nn.Conv1d(2, 3, 3, stride=2, padding=2, dilation=2)), real(2, 7)),
    "conv1d: twice, one output": Case(
        lambda: conv_net(nn.Conv1d(2, 3, 3), nn.Conv1d(3, 2, 2), outputs=1), real(2, 7)),
    "conv2d: stride, padding, dilation": Case(
        lambda: conv_net(nn.Conv2d(2, 3, (2, 3), (2, 1), (1, 2), (2, 1))), real(2, 5, 4)),
    "conv2d: groups": Case(
        lambda: conv_net(nn.Conv2d(4, 6, 2, groups=2), nn.Conv2d(6, 3, 1, groups=3)),
        real(4, 3, 3)),
    "conv2d: depthwise, then pointwise": Case(
        lambda: conv_net(nn.Conv2d(3, 6, 2, groups=3), nn.Conv2d(6, 2, 1)), real(3, 3, 4)),
    "conv2d: no bias, then pooling": Case(
        lambda: sequence(nn.Conv2d(2, 3, 2, bias=False), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(),
                         nn.Linear(3, 2)), real(2, 3, 3)),
    "conv2d: then average pooling": Case(
        lambda: sequence(nn.Conv2d(2, 2, 2), nn.AvgPool2d(2), nn.Tanh(), nn.Flatten()),
        real(2, 3, 3)),
    "conv2d: same, even kernel": Case(  # the padding differs from side to side
        lambda: conv_net(nn.Conv2d(2, 3, (2, 4), padding="same")), real(2, 4, 5)),
    "conv2d: circular": Case(
        lambda: conv_net(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")), real(2, 3, 4)),
    "conv2d: rest at the edge": Case(  # pixels that no stride reaches
        lambda: conv_net(nn.Conv2d(2, 3, 2, stride=3)), real(2, 6, 7)),
    "conv2d: frozen weight": Case(
        lambda: frozen(conv_net(nn.Conv2d(2, 3, 2), nn.Conv2d(3, 2, 1)), "0.weight"),
        real(2, 3, 3)),
    "conv2d: channels last": Case(
        lambda: conv_net(nn.Conv2d(2, 3, 2)).to(memory_format=torch.channels_last), real(2, 3, 3)),
    "conv2d: functional, scaled weight": Case(
        bare(scaled_convolution, w=(3, 2, 2, 2), b=(3,)), real(2, 3, 3)),
    "conv3d: stride, padding, groups": Case(
        lambda: conv_net(nn.Conv3d(2, 4, 2, (1, 2, 1), 1, groups=2)), real(2, 2, 3, 2)),
    "transposed conv": Case(
        lambda: conv_net(nn.Conv2d(2, 3, 2), nn.ConvTranspose2d(3, 2, 2, 2, output_padding=1)),
        real(2, 3, 3)),
    "transposed conv, as many channels out": Case(  # its weight has the shape of a convolution's
        lambda: conv_net(nn.ConvTranspose2d(3, 3, 2)), real(3, 2, 2)),
    "frames, example by example": Case(frames(*EXAMPLES_FIRST), real(3, 2, 2, 2)),
    "frames, time by time": Case(frames(*TIME_FIRST), real(3, 2, 2, 2)),
    "five frames, time by time": Case(  # as many as examples
        frames(*TIME_FIRST), real(5, 2, 2, 2)),
    "group norm": Case(lambda: normalised(nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4)), real(2, 3, 3)),
    "instance norm": Case(
        lambda: normalised(nn.Conv1d(2, 3, 2), nn.InstanceNorm1d(3, affine=True)), real(2, 5)),
    "instance norm with running statistics": Case(
        lambda: normalised(nn.Conv1d(2, 3, 2),
                           nn.InstanceNorm1d(3, affine=True, track_running_stats=True)),
        real(2, 5)),
    "batch norm 2d": Case(lambda: normalised(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3)), real(2, 3, 3)),
    "learned scale for each channel": Case(
        lambda: Own(scaled_channels, conv=nn.Conv2d(2, 3, 2), scale=weight(3, 1, 1),
                    last=nn.Linear(3, 2)), real(2, 3, 3)),
    "one filter, applied twice": Case(
        lambda: Own(filtered_twice, conv=nn.Conv1d(2, 2, 2), last=nn.Linear(2, 2)), real(2, 5)),
    "one filter, two dilations": Case(
        lambda: Own(two_dilations_of_a_filter, w=weight(3, 2, 2), b=weight(3),
                    last=nn.Linear(3, 2)), real(2, 6)),
    "squeeze and excitation": Case(
        lambda: Own(squeeze_and_excite, conv=nn.Conv2d(2, 4, 2), down=nn.Linear(4, 2),
                    up=nn.Linear(2, 4), last=nn.Linear(4, 2)), real(2, 3, 3)),
}


# Sequences


def over_places(layer, last, change=lambda x: x, places=1):
    "How to make a layer on (N, T, d), or on what `change` makes of it, with a sum over its places."
    def forward(net, x):
        return net.last(torch.tanh(net.layer(change(x))).sum(places))

    return lambda: Own(forward, layer=nn.Linear(*layer), last=nn.Linear(*last))


def transposed(x):
    return x.transpose(0, 1)


def transposed_and_copied(x):
    return x.transpose(0, 1).contiguous()


def mix_places_and_channels(net, x):
    mixed = net.places(torch.tanh(net.channels(x)).mT).mT
    return net.last((x + mixed).mean(1))


class Attention(nn.Module):
    def __init__(self, batch_first, **kwargs):
        super().__init__()
        self.batch_first = batch_first
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first, **kwargs)
        self.last = nn.Linear(4, 2)
        self.double().eval()

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        z, _ = self.attention(x, x, x)
        return self.last(z.mean(1 if self.batch_first else 0))


def transformer(layers=1, outputs=2, **kwargs):
    layer = nn.TransformerEncoderLayer(4, 2, 3, batch_first=True, **kwargs)
    stack = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    return sequence(layer if layers == 1 else stack, nn.Flatten(), nn.Linear(12, outputs))


def recurrent(layer, width, state=-1, **kwargs):
    def forward(net, x):
        states, _ = net.layer(x)
        return net.last(states[:, state])

    return lambda: Own(forward, layer=layer(2, 3, batch_first=True, **kwargs),
                       last=nn.Linear(width, 2))


def two_steps_of_a_cell(net, x):
    state = net.cell(x[:, 0])
    return net.last(net.cell(x[:, 1], state)[0])


def lookup_with_positions(net, x):
    return net.last(torch.tanh(net.lookup(x) + net.positions).flatten(1))


def lookup_with_one_position(net, x):
    return net.last(torch.tanh(net.lookup(x) + net.position).sum(1))


def lookup_twice(net, x):
    return net.last(torch.tanh(net.lookup(x) * net.lookup((x + 1) % 7)).sum(1))


def lookup_time_by_time(net, x):
    return net.last(torch.tanh(net.lookup(x.T)).sum(0))


def lookup_and_read_out(net, x):
    return F.linear(torch.tanh(net.lookup(x)).sum(1), net.lookup.weight)


SEQUENCES = {
    # few places: their pairs are cheaper than gradients of the weight; many: they are not
    "few places": Case(over_places((8, 30), (30, 1)), real(2, 8)),
    "few places, two outputs": Case(over_places((20, 9), (9, 2)), real(2, 20)),
    "many places": Case(over_places((3, 2), (2, 2)), real(9, 3)),
    "many places, no bias": Case(over_places((3, 2, False), (2, 1)), real(9, 3)),
    "many places, frozen weight": Case(
        lambda: frozen(over_places((3, 2), (2, 1))(), "layer.weight"), real(9, 3)),
    "places of a transposed input": Case(
        over_places((3, 2), (2, 2), lambda x: x.mT), real(3, 4)),
    "places, time by time": Case(over_places((8, 30), (30, 1), transposed, 0), real(2, 8)),
    "places, time by time, contiguous": Case(
        over_places((3, 2), (2, 2), transposed_and_copied, 0), real(7, 3)),
    "places in a grid": Case(over_places((3, 4), (4, 2), places=(1, 2)), real(2, 2, 3)),
    "mixer": Case(
        lambda: Own(mix_places_and_channels, channels=nn.Linear(3, 3), places=nn.Linear(4, 4),
                    last=nn.Linear(3, 2)), real(4, 3)),
    "attention, batch first": Case(lambda: Attention(True), real(3, 4)),
    "attention, batch second": Case(lambda: Attention(False), real(3, 4)),
    "attention, other widths": Case(  # a weight each for queries, keys and values
        lambda: Attention(True, kdim=4, vdim=4, bias=False, add_bias_kv=True), real(3, 4)),
    "transformer, norm first": Case(lambda: transformer(norm_first=True), real(3, 4)),
    "two transformer layers": Case(lambda: transformer(layers=2, outputs=1), real(3, 4)),
    "GRU": Case(recurrent(nn.GRU, 3), real(3, 2)),
    "RNN": Case(recurrent(nn.RNN, 3), real(3, 2)),
    "LSTM, both ways": Case(recurrent(nn.LSTM, 6, state=1, bidirectional=True), real(3, 2)),
    "LSTM cell": Case(
        lambda: Own(two_steps_of_a_cell, cell=nn.LSTMCell(2, 3), last=nn.Linear(3, 2)),
        real(2, 2)),
    "layer norm over places": Case(
        lambda: sequence(nn.Linear(3, 4), nn.LayerNorm((2, 4)), nn.GELU(), nn.Flatten(),
                         nn.Linear(8, 2)), real(2, 3)),
    "RMS norm": Case(
        lambda: sequence(nn.Linear(3, 4), nn.RMSNorm(4), nn.GELU(), nn.Linear(4, 2)), real(3)),
    "embedding with positions": Case(
        lambda: Own(lookup_with_positions, lookup=nn.Embedding(7, 3), positions=weight(4, 3),
                    last=nn.Linear(12, 2)), tokens(4)),
    "embedding with one position": Case(  # added like a bias
        lambda: Own(lookup_with_one_position, lookup=nn.Embedding(7, 3), position=weight(3),
                    last=nn.Linear(3, 2)), tokens(4)),
    "embedding with broadcast positions": Case(
        lambda: Own(lookup_with_positions, lookup=nn.Embedding(7, 3), positions=weight(1, 4, 3),
                    last=nn.Linear(12, 2)), tokens(4)),
    "embedding with padding": Case(  # a row without gradient
        lambda: sequence(nn.Embedding(7, 3, padding_idx=2), nn.Tanh(), nn.Flatten(),
                         nn.Linear(12, 2)), tokens(4)),
    "embedding, time by time": Case(
        lambda: Own(lookup_time_by_time, lookup=nn.Embedding(7, 3), last=nn.Linear(3, 2)),
        tokens(4)),
    "one embedding, used twice": Case(
        lambda: Own(lookup_twice, lookup=nn.Embedding(7, 3), last=nn.Linear(3, 2)), tokens(4)),
    "embedding bag": Case(
        lambda: sequence(nn.EmbeddingBag(7, 3, mode="sum"), nn.Tanh(), nn.Linear(3, 2)),
        tokens(4)),
    "embedding bag, mean": Case(
        lambda: sequence(nn.EmbeddingBag(7, 3), nn.Tanh(), nn.Linear(3, 2)), tokens(4)),
    "embedding bag, maximum": Case(
        lambda: sequence(nn.EmbeddingBag(7, 3, mode="max"), nn.Tanh(), nn.Linear(3, 2)),
        tokens(4)),
    "embedding and read-out share a weight": Case(
        lambda: Own(lookup_and_read_out, lookup=nn.Embedding(7, 3)), tokens(4)),
}


# Parameters in any role


def tied_autoencoder(net, x):
    return F.linear(torch.tanh(F.linear(x, net.w, net.b)), net.w.T)


def normed(norm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old weight_norm is deprecated
        return sequence(norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 2))


def without_grad(net, x):
    with torch.no_grad():
        z = net.first(x)
    return net.last(torch.tanh(z))


def low_rank(net, x):
    return two_layers(net, x) + x @ net.a @ net.b * 0.5


def residual(net, x):
    z = x + torch.tanh(net.one(x))
    return net.last(z + torch.tanh(net.two(z)))


def weighted_experts(net, x):
    experts = torch.stack([net.one(x), net.two(x)], 1)
    return torch.einsum("ne,neo->no", net.gate(x).softmax(1), experts)


def routed(net, x):
    "Each row of (…, 4) goes to one of two experts."
    rows = x.reshape(-1, 4)
    out = rows.new_zeros(len(rows), 2)
    for expert, chosen in zip((net.first, net.other), (rows[:, 0] > 0, rows[:, 0] <= 0)):
        out[chosen] = torch.tanh(expert(rows[chosen]))
    return out.reshape(len(x), -1, 2).sum(1)


def experts():
    return Own(routed, first=nn.Linear(4, 2), other=nn.Linear(4, 2))


def sorted_inside(net, x):
    order = x[:, 0].argsort()
    return net.last(torch.tanh(net.first(x[order])))[order.argsort()]


def flipped_inside(net, x):
    return net.last(torch.tanh(net.first(x.flip(0)))).flip(0)


def both_halves_at_once(net, x):
    return sum(torch.tanh(two_layers(net, torch.cat([x, -2 * x]))).chunk(2))


def example_by_example(net, x):
    return torch.cat([two_layers(net, xi[None]) for xi in x])


def checkpointed(net, x):
    return net.last(checkpoint(lambda z: torch.tanh(net.first(z)), x, use_reentrant=False))


class Closure(torch.autograd.Function):
    "Uses a weight that is no input: no edge of the graph leads to it, and it has no gradient."

    weight = None

    @staticmethod
    def forward(ctx, x):
        return x @ Closure.weight.detach().T

    @staticmethod
    def backward(ctx, grad):
        return grad @ Closure.weight.detach()


def closure(net, x):
    Closure.weight = net.first.weight
    return net.last(torch.tanh(Closure.apply(x + net.first.bias)))


class OwnLinear(torch.autograd.Function):
    "A linear layer with its own backward pass, which doubles the gradient of the weight."

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad @ w, 2 * grad.T @ x


def own_linear(net, x):
    return OwnLinear.apply(torch.tanh(net.first(x)), net.last.weight)


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        return torch.jit.script(sequence(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))


def shifted(outputs=2, *shape):
    return Net(lambda net, x: two_layers(net, x) + net.shift, outputs, shift=weight(*shape))


def shifted_twice(net, x):
    return two_layers(net, x + net.shift) + net.shift[:2] + net.shift.sum()


def reordered_inputs():
    order = nn.Parameter(torch.tensor([2, 0, 3, 1]), requires_grad=False)
    return Net(lambda net, x: two_layers(net, x[:, net.order]), order=order)


def changed_in_place(net, x):
    z = net.first(x)
    z += net.bias
    z *= 2
    return net.last(torch.tanh(z))


def hooked(net, x):
    z = net.first(x)
    if z.requires_grad:
        z.register_hook(lambda grad: 2 * grad)
    return net.last(torch.tanh(z))


class Parts(nn.Module):
    "The forward pass as a sum over modules of a list and a dictionary."

    def __init__(self):
        super().__init__()
        self.several = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])
        self.named = nn.ParameterDict({"shift": weight(2), "w": weight(4, 2)})
        self.double()

    def forward(self, x):
        several = sum(torch.tanh(layer(x)) for layer in self.several)
        return several + x @ self.named["w"] + self.named["shift"]


def towers(net, x):
    return net.last(torch.tanh(net.layer(x.unflatten(1, (2, 2)))).flatten(1))


OWN = {
    "tied autoencoder": Case(bare(tied_autoencoder, w=(3, 4), b=(3,)), real(4)),
    "weight norm of the whole matrix": Case(
        lambda: normed(lambda layer: parametrizations.weight_norm(layer, dim=None)), real(4)),
    "spectral norm": Case(lambda: normed(parametrizations.spectral_norm), real(4)),
    "old weight norm": Case(lambda: normed(nn.utils.weight_norm), real(4)),
    "old spectral norm": Case(lambda: normed(nn.utils.spectral_norm), real(4)),
    "orthogonal": Case(lambda: normed(parametrizations.orthogonal), real(4)),
    "weight read outside its layer": Case(
        lambda: Net(lambda net, x: net.last(torch.tanh(x @ net.first.weight.T))), real(4)),
    "weight read inside and outside": Case(
        lambda: Net(lambda net, x: two_layers(net, x) * net.first.weight.sum()), real(4)),
    "layer never called": Case(
        lambda: Net(lambda net, x: net.last(x), other=nn.Conv1d(2, 2, 2)), real(4)),
    "without grad": Case(lambda: Net(without_grad), real(4)),
    "detached": Case(
        lambda: Net(lambda net, x: net.last(net.first(x).detach()) + net.first(x)[:, :2]), real(4)),
    # products and sums, each with nodes of its own in the graph
    "x @ W + b": Case(
        bare(lambda net, x: torch.tanh(x @ net.w + net.b) @ net.v, w=(4, 3), b=(3,), v=(3, 2)),
        real(4)),
    "b + x @ W": Case(bare(lambda net, x: net.b + x @ net.w, w=(4, 3), b=(3,)), real(4)),
    "x @ W @ W": Case(bare(lambda net, x: torch.tanh(x @ net.w) @ net.w, w=(4, 4)), real(4)),
    "x - b": Case(bare(lambda net, x: torch.sin(x - net.b), b=(4,)), real(4)),
    "x @ W - b": Case(bare(lambda net, x: torch.sin(x @ net.w - net.b), w=(4, 3), b=(3,)), real(4)),
    "W @ x": Case(bare(lambda net, x: torch.sin(net.w @ x.T).T, w=(3, 4)), real(4)),
    "square W @ x": Case(  # as many rows as examples, in whatever order
        bare(lambda net, x: torch.sin(net.w @ x.T).T, w=(5, 5)), real(5)),
    "W @ x + b at places": Case(
        bare(lambda net, x: torch.sin(net.w @ x + net.b).sum(2), w=(3, 4), b=(3, 1)), real(4, 2)),
    "x @ W at places": Case(
        bare(lambda net, x: torch.sin(x @ net.w + net.b).sum(1), w=(4, 3), b=(3,)), real(2, 4)),
    "einsum": Case(
        bare(lambda net, x: torch.einsum("nti,oi->nto", x, net.w).sin().sum(1), w=(2, 3)),
        real(3, 3)),
    "addmm with factors": Case(
        bare(lambda net, x: torch.addmm(net.b, x, net.w, beta=0.5, alpha=2.0), w=(4, 3), b=(3,)),
        real(4)),
    "addmm with a scaled weight": Case(
        bare(lambda net, x: torch.addmm(0.3 * net.b, x, net.w * 2, beta=0.5, alpha=2.0).sin(),
             w=(4, 3), b=(3,)), real(4)),
    "add with a factor": Case(
        bare(lambda net, x: torch.add(x @ net.w, net.b, alpha=3).sin(), w=(4, 3), b=(3,)), real(4)),
    "own NTK parametrization": Case(
        bare(lambda net, x: torch.tanh(x @ (net.w / 3**0.5) + 0.1 * net.b) @ (2.0 * net.v),
             w=(4, 3), b=(3,), v=(3, 2)), real(4)),
    "W / tensor": Case(
        bare(lambda net, x: torch.tanh(
            x @ (net.w / torch.tensor(3.0)) @ (net.v * torch.tensor(0.5))), w=(4, 3), v=(3, 2)),
        real(4)),
    "1 / W": Case(bare(lambda net, x: torch.tanh(x @ (1 / net.w)), w=(4, 3)), real(4)),
    "minus W": Case(
        bare(lambda net, x: torch.tanh(x @ -net.w + -net.b), w=(4, 3), b=(3,)), real(4)),
    "learned scalar times W": Case(
        bare(lambda net, x: torch.tanh(x @ (net.scale * net.w)) @ (net.v / net.scale),
             w=(4, 3), v=(3, 2), scale=()), real(4)),
    "learned scalar times learned scalar": Case(
        bare(lambda net, x: x[:, :1] @ (net.one * net.two)[None, None], one=(), two=()), real(4)),
    "learned scale for each row": Case(
        bare(lambda net, x: torch.tanh(F.linear(x, net.scale * net.w)), w=(3, 4), scale=(3, 1)),
        real(4)),
    "W + b": Case(  # as many rows as examples: b looks like a bias
        bare(lambda net, x: torch.tanh(F.linear(x, net.w + net.b)), w=(5, 4), b=(4,)), real(4)),
    "W V": Case(  # as many rows as examples: W looks like the inputs of V
        bare(lambda net, x: torch.tanh(x @ (net.w @ net.v)), w=(5, 3), v=(3, 5)), real(5)),
    "low rank": Case(lambda: Net(low_rank, a=weight(4, 1), b=weight(1, 2)), real(4)),
    # layers that are not in a row
    "residual blocks": Case(
        lambda: Own(residual, one=nn.Linear(4, 4), two=nn.Linear(4, 4), last=nn.Linear(4, 2)),
        real(4)),
    "gating": Case(lambda: Net(lambda net, x: net.last(x * net.first(x).sigmoid())), real(4)),
    "bilinear": Case(
        lambda: Own(lambda net, x: net.layer(x, torch.sin(x)), layer=nn.Bilinear(4, 4, 2)),
        real(4)),
    "experts": Case(
        lambda: Own(weighted_experts, gate=nn.Linear(4, 2), one=nn.Linear(4, 2),
                    two=nn.Linear(4, 2)), real(4)),
    # layers that see some of the examples, or all in another order
    "routed to experts": Case(experts, real(4)),
    "places routed to experts": Case(experts, real(2, 4)),
    "flipped inside": Case(lambda: Net(flipped_inside), real(4)),
    "sorted inside": Case(lambda: Net(sorted_inside), real(4)),
    "both halves at once": Case(lambda: Net(both_halves_at_once), real(4)),
    "example by example": Case(lambda: Net(example_by_example), real(4)),
    # what autograd does by other means
    "checkpoint": Case(lambda: Net(checkpointed), real(4)),
    "function with a closure": Case(lambda: Net(closure), real(4)),
    "function with its own weight gradient": Case(lambda: Net(own_linear), real(4)),
    "scripted": Case(scripted, real(4)),
    # parameters that are frozen, broadcast, used twice, or sliced
    "frozen first layer": Case(lambda: frozen(Net(two_layers), "first"), real(4)),
    "frozen biases": Case(lambda: frozen(Net(two_layers), "bias"), real(4)),
    "frozen weights": Case(lambda: frozen(Net(two_layers), "weight"), real(4)),
    "one bias for all outputs": Case(lambda: shifted(2, 1), real(4)),
    "one bias, one output": Case(lambda: shifted(1, 1), real(4)),
    "bias of shape (1, n)": Case(lambda: shifted(2, 1, 2), real(4)),
    "bias used twice": Case(lambda: Net(shifted_twice, shift=weight(4)), real(4)),
    "square net, bias used twice": Case(
        bare(lambda net, x: torch.tanh(x @ net.w + net.b) @ net.v + net.b,
             w=(4, 4), v=(4, 4), b=(4,)), real(4)),
    "p + p": Case(
        bare(lambda net, x: torch.tanh(x @ (net.w + net.w) + (net.b + net.b)), w=(4, 3), b=(3,)),
        real(4)),
    "p * p": Case(
        bare(lambda net, x: torch.tanh(x @ (net.w * net.w) + net.b * net.b), w=(4, 3), b=(3,)),
        real(4)),
    "frozen integer parameter": Case(reordered_inputs, real(4)),
    "bias changed in place": Case(lambda: Net(changed_in_place, bias=weight(4)), real(4)),
    "gradient hook": Case(lambda: Net(hooked), real(4)),
    "lists and dictionaries": Case(Parts, real(4)),
    "output from a view": Case(
        lambda: Net(lambda net, x: two_layers(net, x).T.contiguous().T[:, ::2]), real(4)),
    "weight sliced": Case(
        lambda: Net(lambda net, x: F.linear(torch.tanh(net.first(x)), net.first.weight[:2])),
        real(4)),
    "one output constant": Case(
        lambda: Net(lambda net, x: torch.cat([two_layers(net, x), x[:, :1]], 1)), real(4)),
    "output is the bias": Case(
        bare(lambda net, x: torch.zeros_like(x[:, :3]) + net.b, b=(3,)), real(4)),
    "output is the bias, expanded": Case(
        bare(lambda net, x: net.b.expand(len(x), 3), b=(3,)), real(4)),
    "parallel towers of one layer": Case(
        lambda: Own(towers, layer=nn.Linear(2, 3), last=nn.Linear(6, 2)), real(4)),
}

# Gradients that vmap gets wrong, by some per cent and without an error


def radial(net, x):
    return net.last(torch.exp(-torch.cdist(x, net.centres)))


WRONG_UNDER_VMAP = {
    "distances to learned centres": Case(
        lambda: Own(radial, centres=weight(3, 4), last=nn.Linear(3, 2)), real(4)),
    "PReLU, five outputs for five examples": Case(
        lambda: mlp(4, 3, 5, activation=nn.PReLU()), real(4)),
}


ZOO = ({name: Case(make, real(4)) for name, make in MODELS.items()}
       | CONVOLUTIONS | SEQUENCES | OWN | WRONG_UNDER_VMAP)


# What the first examples do not show: for 12 examples, of which five are looked at closely


def first_five(change, *shape):
    def inputs(n):
        x = data(n, *shape)
        x[:5] = change(x[:5])
        return x

    return inputs


def negative(x):
    return -x.abs()


def large_from_six_to_nine(n):
    x = data(n)
    x[6:10] += 10
    return x


def negative_from_six_to_nine(n):
    "In chunks of four: half of the places go to each expert, as many as there are examples."
    x = data(n, 2, 4).abs()
    x[6:10] *= -1
    return x


def one_place_for_each_expert(n):
    "But none and two of example 5, two and none of example 6: the number of rows does not tell."
    x = data(n, 2, 4).abs()
    x[:, 1] *= -1
    x[5], x[6] = -x[5].abs(), x[6].abs()
    return x


def positive(layer):
    "The layer with positive weights: dead for negative inputs, if it has no bias."
    layer.weight.data.abs_()
    return layer


def relu_over_time(net, x):
    return net.last(torch.relu(net.layer(x.transpose(0, 1))).sum(0))


def relu_over_frames(net, x):
    z = torch.relu(net.conv(x.transpose(0, 1).flatten(0, 1))).flatten(1)
    return net.last(z.unflatten(0, (-1, len(x))).sum(0))


def relu_of_flipped(net, x):
    return net.last(torch.relu(net.layer(x.flip(0)))).flip(0)


def large_ones_first(net, x):
    order = (x[:, 0] > 5).long().argsort(descending=True, stable=True)
    return net.last(torch.tanh(net.first(x[order])))[order.argsort()]


SURPRISES = {
    "dead units, time by time": Case(
        lambda: Own(relu_over_time, layer=positive(nn.Linear(4, 30, bias=False)),
                    last=nn.Linear(30, 1)), first_five(negative, 2, 4)),
    "dead units, time by time, many places": Case(
        lambda: Own(relu_over_time, layer=positive(nn.Linear(4, 3, bias=False)),
                    last=nn.Linear(3, 2)), first_five(negative, 6, 4)),
    "dead units, frames": Case(
        lambda: Own(relu_over_frames, conv=positive(nn.Conv1d(2, 3, 2, bias=False)),
                    last=nn.Linear(6, 2)), first_five(negative, 4, 2, 3)),
    "dead layer before a sorted one": Case(
        lambda: Own(relu_of_flipped, layer=positive(nn.Linear(4, 3, bias=False)),
                    last=nn.Linear(3, 2)), first_five(negative, 4)),
    "sorted from the start": Case(
        lambda: Net(sorted_inside), first_five(lambda x: x.sort(0)[0], 4)),
    "reordered later": Case(lambda: Net(large_ones_first), large_from_six_to_nine),
    "routed to one expert at first": Case(experts, first_five(torch.abs, 4)),
    "routed to one expert, places": Case(experts, first_five(torch.abs, 2, 4)),
    "routed half and half, places": Case(experts, negative_from_six_to_nine),
    "one of two places to an expert": Case(experts, one_place_for_each_expert),
}


# One parameter used in two ways


def one_way_or_the_other(one, other, **shapes):
    "How to make a model: `one` for examples whose first entry is positive, `other` for the rest."
    def forward(net, x):
        is_positive = x.flatten(1)[:, 0] > 0
        if is_positive.all() or not is_positive.any():
            return torch.tanh((one if is_positive.all() else other)(net, x))
        return torch.cat([forward(net, xi[None]) for xi in x])

    return bare(forward, **shapes)


def summed_over_places(z):
    return z.sin().sum(1).reshape(len(z), -1)


TWO_WAYS = {
    "W or Wᵀ": Case(
        one_way_or_the_other(lambda net, x: x @ net.w, lambda net, x: x @ net.w.T, w=(4, 4)),
        real(4)),
    "W or −W": Case(
        one_way_or_the_other(lambda net, x: x @ net.w, lambda net, x: x @ -net.w, w=(4, 3)),
        real(4)),
    "W or 3 W": Case(
        one_way_or_the_other(lambda net, x: x @ net.w, lambda net, x: x @ (3 * net.w), w=(4, 3)),
        real(4)),
    "2 W or W / 2, and a layer that is used in one way": Case(
        one_way_or_the_other(lambda net, x: torch.tanh(x @ (2.0 * net.w)) @ net.v,
                             lambda net, x: torch.tanh(x @ (0.5 * net.w)) @ net.v,
                             w=(4, 4), v=(4, 2)), real(4)),
    "weight and bias, or −bias": Case(
        one_way_or_the_other(lambda net, x: F.linear(x, net.w, net.b),
                             lambda net, x: F.linear(x, net.w, -1.0 * net.b), w=(3, 4), b=(3,)),
        real(4)),
    "b or −b": Case(
        one_way_or_the_other(lambda net, x: x + net.b, lambda net, x: x - net.b, b=(4,)), real(4)),
    "W or Wᵀ, at many places": Case(
        one_way_or_the_other(lambda net, x: summed_over_places(x @ net.w),
                             lambda net, x: summed_over_places(x @ net.w.T), w=(3, 3)),
        real(9, 3)),
    "a filter or its transpose": Case(
        one_way_or_the_other(
            lambda net, x: F.conv2d(x, net.w).sum((2, 3)),
            lambda net, x: F.conv2d(x, net.w.permute(0, 1, 3, 2)).sum((2, 3)), w=(2, 1, 2, 2)),
        real(1, 3, 3)),
    "a filter or its negative": Case(
        one_way_or_the_other(
            lambda net, x: F.conv2d(x, net.w, net.b).sum((2, 3)),
            lambda net, x: F.conv2d(x, -net.w, 2 * net.b).sum((2, 3)), w=(2, 1, 2, 2), b=(2,)),
        real(1, 3, 3)),
}
