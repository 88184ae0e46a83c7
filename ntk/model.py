"""The course's model: a fully connected net, as PyTorch draws it or as the NTK's limit wants it.

Both can draw the same functions, with different weights. PyTorch puts the width into the weights,
which are drawn small; the NTK parametrization draws all of them from N(0, 1) and puts the width
into a factor before each layer. Training tells them apart: a step moves the weights, and the
factor scales what that does to the outputs, so that the kernel has a limit at infinite width.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ntk.checks import require, require_positive_ints, require_scales

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "erf": torch.erf, "gelu": F.gelu}


class MLP(nn.Module):
    """Fully connected net (N, input_dim) → (N, output_dim); hidden layers have `hidden_dim` units.

    parametrization: "standard" is PyTorch's `nn.Linear` with its default initialisation;
        `weight_std` and `bias_std` keep their defaults. "ntk" is
        z = weight_std / √fan_in · W a + bias_std · b with all entries of W and b from N(0, 1)
        (Jacot et al. 2018, arXiv:1806.07572, section 2; scales as in Lee et al. 2019,
        arXiv:1902.06720, eq. 1).
    activation: "relu", "tanh", "erf", "gelu", or a callable applied to each hidden layer.

    The layers are `lin1`, `lin2`, …, so `parameters()` yields weight (fan_out, fan_in), bias
    (fan_out,), weight, bias, … Raises TypeError for sizes that are not integers, ValueError for
    values out of range or unknown names.
    """

    def __init__(self, input_dim, hidden_dim, output_dim=1, *, hidden_layers=1, activation="relu",
                 parametrization="standard", weight_std=2**0.5, bias_std=0.0):
        super().__init__()
        require_positive_ints(input_dim=input_dim, hidden_dim=hidden_dim, output_dim=output_dim,
                              hidden_layers=hidden_layers)
        require(parametrization in ("standard", "ntk"),
                f'parametrization must be "standard" or "ntk", got {parametrization!r}')
        require_scales(weight_std=weight_std, bias_std=bias_std)
        require(parametrization == "ntk" or (weight_std, bias_std) == (2**0.5, 0.0),
                'weight_std and bias_std need parametrization="ntk": the standard one has no such '
                "scales")

        self.hidden_layers, self.parametrization = hidden_layers, parametrization
        self.weight_std, self.bias_std = weight_std, bias_std
        self.activation = activation_function(activation)
        widths = [input_dim, *[hidden_dim] * hidden_layers, output_dim]
        for i, (fan_in, fan_out) in enumerate(zip(widths, widths[1:]), start=1):
            setattr(self, f"lin{i}", nn.Linear(fan_in, fan_out))
        if parametrization == "ntk":
            for p in self.parameters():
                nn.init.normal_(p)

    @property
    def layers(self):
        "The layers `lin1`, `lin2`, … in order."
        return [getattr(self, f"lin{i}") for i in range(1, self.hidden_layers + 2)]

    def scales(self, layer):
        "The factors before W a and b in `layer`: (1, 1) in the standard parametrization."
        if self.parametrization == "standard":
            return 1.0, 1.0
        return self.weight_std / layer.weight.shape[1] ** 0.5, self.bias_std

    def preactivation(self, layer, a):
        "What `layer` makes of its inputs `a` (N, fan_in), before the activation: (N, fan_out)."
        if self.parametrization == "standard":
            return layer(a)
        weight_scale, bias_scale = self.scales(layer)
        return F.linear(weight_scale * a, layer.weight, bias_scale * layer.bias)

    def forward(self, x):
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(self.preactivation(layer, x))
        return self.preactivation(last, x)


def activation_function(choice):
    "The callable that a name or a callable stands for."
    require(callable(choice) or isinstance(choice, str) and choice in ACTIVATIONS,
            f"activation must be a callable or one of {list(ACTIVATIONS)}, got {choice!r}")
    return choice if callable(choice) else ACTIVATIONS[choice]
