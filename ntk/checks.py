"""What stands around the mathematics: refusals, tolerances, and a model left as it was found.

An example has a row in the kernel where its output depends on this example and the weights alone,
and on nothing by chance. What breaks this is refused, with the name of the argument and what it
was.
"""

import math
import threading
from contextlib import contextmanager
from numbers import Real

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

CHANGES_WEIGHTS = "the model changes its own weights when it is called"
LOCK = threading.RLock()  # functional_call exchanges a model's own parameters while it runs
SINGLES = 3  # examples that are run by themselves, to see whether the others matter


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


def is_close(got, expected, rounding=0.0):
    """Whether the error is below the root of the dtype's precision, next to the largest entry, or
    below `rounding`, which counts where large terms cancel."""
    tolerance = torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().max() + rounding
    return not (got - expected).abs().max() > tolerance


def precision(model, outputs):
    "The dtype in which the model computes: the coarsest among its parameters' and its outputs'."
    dtypes = {outputs.dtype, *(p.dtype for p in model.parameters() if p.is_floating_point())}
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


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
    with LOCK:  # not while another thread has other parameters in it
        stores = [s for m in model.modules() for s in (vars(m), m._parameters, m._buffers)]
        contents = [dict(store) for store in stores]
        buffers = [(buffer, buffer.clone(), buffer._version) for buffer in model.buffers()]
        weights = [(p, p.data, p.data_ptr()) for p in model.parameters()]
    identity = lambda store: [(name, id(value)) for name, value in store.items()]
    try:
        yield
    finally:
        with LOCK, torch.no_grad():
            for store, before in zip(stores, contents):
                if identity(store) != identity(before):
                    store.clear()
                    store.update(before)
            for p, data, address in weights:
                if p.data_ptr() != address:
                    p.data = data
            for buffer, before, version in buffers:
                if buffer._version != version:
                    buffer.copy_(before)


@contextmanager
def exact_cudnn(model):
    """On a GPU: convolutions without TF32, which keeps ten bits of 23. Recurrent nets without
    cuDNN, which cannot differentiate them in eval mode, and oneDNN, which hides their steps."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with LOCK:
        SETTINGS.enter(recurrent)
    try:
        yield
    finally:
        with LOCK:
            SETTINGS.leave(recurrent)


class Settings:
    """Those of the process, exchanged while anyone is within. The first to enter notes how they
    were, the last to leave restores them, in whatever order threads come and go."""

    def __init__(self):
        self.within, self.before = [], None

    def enter(self, recurrent):
        cudnn, one_dnn = torch.backends.cudnn, torch.backends.mkldnn
        if not self.within:
            self.before = cudnn.enabled, one_dnn.enabled, cudnn.conv.fp32_precision
        self.within.append(recurrent)
        self.apply()

    def leave(self, recurrent):
        self.within.remove(recurrent)
        self.apply()

    def apply(self):
        cudnn, one_dnn = torch.backends.cudnn, torch.backends.mkldnn
        cudnn.enabled, one_dnn.enabled, cudnn.conv.fp32_precision = self.before
        if self.within:
            cudnn.conv.fp32_precision = "ieee"
        if any(self.within):
            cudnn.enabled = one_dnn.enabled = False


SETTINGS = Settings()


# What has no kernel, seen before the model is run


def check_model(model, x, name):
    """Refuse inputs `x`, called `name`, and models that have no kernel whatever they compute, or,
    as a trial with one example shows, that change their weights."""
    params = dict(model.named_parameters())
    require(any(p.requires_grad for p in params.values()),
            "model has no trainable parameter, one with requires_grad=True")
    check_inputs(x, name, {p.dtype for p in params.values()}, {p.device for p in params.values()})
    for where, p in params.items():
        require(is_finite(p),
                f"the model's weights must be finite, got NaN or infinity in {where}")
        require(not (p.is_complex() and p.requires_grad), f"{where} is complex, and the kernel is "
                "one over real coordinates: make it nn.Parameter(torch.view_as_real(…)), and use "
                "torch.view_as_complex of it in forward")
    for where, module in model.named_modules():
        check_mode(module, f"{type(module).__name__} {where!r}")
    guard = Guard(params.values())
    try:
        with LOCK, torch.no_grad(), guard:
            model(x[:1].clone())
    except MemoryError:
        raise
    except Exception:
        pass  # what else is wrong is seen later
    require(not guard.struck, CHANGES_WEIGHTS)


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


class Guard(TorchFunctionMode):
    "Stops a function that is about to change one of the tensors, as an Embedding's with max_norm."

    def __init__(self, tensors):
        super().__init__()
        self.storages, self.struck = {t.untyped_storage().data_ptr() for t in tensors}, False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        operator = name.startswith("__i") or name == "__setitem__"
        in_place = operator or name.endswith("_") and not name.endswith("__")
        written = args[0] if in_place and args else kwargs.get("out")
        written = written if isinstance(written, (list, tuple)) else [written]
        if kwargs.get("max_norm") is not None or any(
                isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() in self.storages
                for t in written):
            self.struck = True
            raise RuntimeError(CHANGES_WEIGHTS)
        return function(*args, **kwargs)


# What has no kernel, seen when the model is run


def forward(model, x, name):
    "The outputs (N, O) with their graph, and the copy of `x` that it starts from."
    start, weights = x.clone(), [(p._version, p.data_ptr()) for p in model.parameters()]
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
    require(weights == [(p._version, p.data_ptr()) for p in model.parameters()], CHANGES_WEIGHTS)
    return outputs, start


def checked_forward(model, x, name):
    "The same, once a few examples had the same outputs by themselves."
    outputs, start = forward(model, x, name)
    check_alone(model, x, outputs, name)
    return outputs, start


def check_alone(model, x, outputs, name):
    """Refuse a model that gives other outputs for an example alone: the first, the last, and some
    between them. A group would not do, since it may share what they depend on. A single example is
    put beside itself."""
    if len(x) > 1:
        between = (1 + torch.randperm(max(0, len(x) - 2))[:SINGLES - 2]).tolist()
        rows = [0, *between, len(x) - 1]
        batches = [x[row:row + 1] for row in rows]
    else:
        rows, batches = [0, 0], [torch.cat([x, x])]
    with torch.no_grad():
        apart = torch.cat([run(model, batch.clone(), name) for batch in batches])
    require(agree(model, x[rows], apart, outputs[rows]),
            "the model's output for one example depends on the others in the batch or on chance; "
            "call model.eval(), or write the model so that examples do not mix")


def agree(model, x, got, outputs):
    """Whether outputs for `x` are the same but for rounding. Where they are small because large
    terms cancel, as in a mirrored net, that of these terms counts: θ ∂f/∂θ has their size."""
    dtype = precision(model, outputs)
    if is_close(got.to(dtype), outputs.detach().to(dtype)):
        return True
    again = model(x.clone())
    if not again.requires_grad:
        return False
    params = [p for p in model.parameters() if p.requires_grad]
    v = torch.randn_like(again)  # not signs, with which two equal rows may cancel
    grads = torch.autograd.grad((v * again).sum(), params, materialize_grads=True)
    terms = sum((g.to_dense() * p).abs().sum() for g, p in zip(grads, params)).detach()
    return is_close(got, outputs.detach(), rounding=100 * torch.finfo(dtype).eps * terms)


def run(model, x, name):
    try:
        return model(x)
    except Exception as error:
        raise ValueError(f"the model cannot take {name} of shape {tuple(x.shape)} and dtype "
                         f"{x.dtype}: {error}") from error
