"""What stands around the mathematics: refusals, tolerances, and a model left as it was found.

An example has a row in the kernel where its output depends on this example and the weights alone,
and on nothing by chance. What breaks this is refused, with the name of the argument and what it
was.
"""

import math
from contextlib import contextmanager
from numbers import Real

import numpy as np
import torch
from torch import nn


def require(holds, message, error=ValueError):
    "Raise error(message) unless it holds."
    if not holds:
        raise error(message)


def require_positive_ints(**values):
    for name, value in values.items():
        integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        require(integer, f"{name} must be a positive integer, got {value!r}", TypeError)
        require(value >= 1, f"{name} must be a positive integer, got {value}")


def require_scales(**scales):
    for name, std in scales.items():
        require(isinstance(std, Real) and 0 <= std < math.inf,
                f"{name} must be a finite number, zero or more, got {std!r}")


def is_finite(tensor):
    "Whether no entry is NaN or infinite: one pass, without a mask as large as the tensor."
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    return all(map(math.isfinite, tensor.detach().aminmax()))


def is_close(got, expected):
    "Whether the error is below the root of the dtype's precision, next to the largest entry."
    tolerance = torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().max()
    return not (got - expected).abs().max() > tolerance


# A model left as it was found


@contextmanager
def undisturbed(model, *inputs):
    """Detached `inputs` that autograd can use; afterwards model and random state are as before.

    What PyTorch cannot differentiate becomes a ValueError; running out of memory stays what it is.
    """
    require(isinstance(model, nn.Module),
            f"model must be a torch.nn.Module, got {type(model).__name__}", TypeError)
    with torch.inference_mode(False), torch.enable_grad(), exact_cudnn(model), restored(model):
        inputs = [usable(x) if isinstance(x, torch.Tensor) else x for x in inputs]
        gpus = [x.device for x in inputs if isinstance(x, torch.Tensor) and x.is_cuda]
        try:
            with torch.random.fork_rng(devices=gpus[:1]):
                yield inputs
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(
                f"PyTorch cannot differentiate this {type(model).__name__}: {error}") from error


def usable(x):
    "Detached; a tensor made in inference mode is copied, since autograd may not save it."
    return (x.clone() if x.is_inference() else x).detach()


@contextmanager
def restored(model):
    "Afterwards the modules hold the objects they held, and buffers changed in place their values."
    stores = [s for m in model.modules() for s in (vars(m), m._parameters, m._buffers)]
    contents = [dict(store) for store in stores]
    buffers = [(buffer, buffer.clone(), buffer._version) for buffer in model.buffers()]
    identity = lambda store: [(name, id(value)) for name, value in store.items()]
    try:
        yield
    finally:
        for store, before in zip(stores, contents):
            if identity(store) != identity(before):
                store.clear()
                store.update(before)
        with torch.no_grad():
            for buffer, before, version in buffers:
                if buffer._version != version:
                    buffer.copy_(before)


@contextmanager
def exact_cudnn(model):
    """On a GPU: convolutions without TF32, which keeps ten bits of 23, and recurrent nets without
    cuDNN, which cannot differentiate them in eval mode."""
    cudnn = torch.backends.cudnn
    before = cudnn.enabled, cudnn.conv.fp32_precision
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    try:
        cudnn.enabled, cudnn.conv.fp32_precision = before[0] and not recurrent, "ieee"
        yield
    finally:
        cudnn.enabled, cudnn.conv.fp32_precision = before


# What has no kernel, seen before the model is run


def check_model(model, x, name):
    "Refuse inputs `x`, called `name`, and models that have no kernel whatever the model computes."
    params = dict(model.named_parameters())
    require(any(p.requires_grad for p in params.values()),
            "model has no trainable parameter, one with requires_grad=True")
    check_inputs(x, name, {p.dtype for p in params.values()}, {p.device for p in params.values()})
    for where, p in params.items():
        require(is_finite(p),
                f"the model's weights must be finite, got NaN or infinity in {where}")
    for where, module in model.named_modules():
        check_mode(module, f"{type(module).__name__} {where!r}")


def check_inputs(x, name, dtypes, devices):
    require(isinstance(x, torch.Tensor),
            f"{name} must be a torch.Tensor of shape (N, …), got {type(x).__name__}", TypeError)
    require(x.ndim > 0 and x.numel() > 0,
            f"{name} must hold at least one example, in rows, got shape {tuple(x.shape)}")
    require(not x.is_floating_point() or x.dtype in dtypes,
            f"{name} must have the model's dtype {' or '.join(map(str, dtypes))}, got {x.dtype}",
            TypeError)
    require(x.device in devices, f"{name} must be on the model's device "
            f"{' or '.join(map(str, devices))}, got {x.device}")
    require(is_finite(x), f"{name} must be finite, got NaN or infinity")


def check_mode(module, what):
    "Refuse dropout and batch norm that make an output depend on more than its example."
    norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    require(not ((norm or dropout) and module.training), f"{what} is in training mode: an "
            "example's output then depends on the others or on chance; call model.eval() first")
    require(not (norm and module.running_mean is None), f"{what} has no running statistics: an "
            "example's output then depends on the others or on chance, also after model.eval()")


# What has no kernel, seen when the model is run


def forward(model, x, name):
    "The outputs (N, O) with their graph, and the copy of `x` that it starts from."
    start = x.clone()
    outputs = run(model, start, name)
    require(isinstance(outputs, torch.Tensor),
            f"the output must be one tensor (N, O), got {type(outputs).__name__}", TypeError)
    require(outputs.ndim == 2 and len(outputs) == len(x) and outputs.shape[1] > 0,
            f"the model's output must have shape (N, O) = ({len(x)}, O), got "
            f"{tuple(outputs.shape)} for {name} of shape {tuple(x.shape)}")
    require(outputs.is_floating_point(),
            f"the model's output must be of a floating dtype, got {outputs.dtype}", TypeError)
    require(is_finite(outputs),
            f"the model's outputs must be finite, got NaN or infinity for {name}")
    return outputs, start


def checked_forward(model, x, name):
    """The same, once a few examples had the same outputs in other company: the first by itself, the
    next four and the last without the others. A single example is put beside itself."""
    versions = [p._version for p in model.parameters()]
    outputs, start = forward(model, x, name)
    few = [*range(1, min(5, len(x))), -1]
    if len(x) > 1:
        rows, batches = [0, *few], [x[:1], x[few]]
    else:
        rows, batches = [0, 0], [torch.cat([x, x])]
    with torch.no_grad():
        apart = torch.cat([run(model, batch.clone(), name) for batch in batches])
    require(versions == [p._version for p in model.parameters()],
            "the model changes its own weights when it is called")
    require(is_close(apart, outputs[rows]),
            "the model's output for one example depends on the others in the batch or on chance; "
            "call model.eval(), or write the model so that examples do not mix")
    return outputs, start


def run(model, x, name):
    try:
        return model(x)
    except Exception as error:
        raise ValueError(f"the model cannot take {name} of shape {tuple(x.shape)} and dtype "
                         f"{x.dtype}: {error}") from error
