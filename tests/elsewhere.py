"""A second device that needs no GPU: its tensors compute on the CPU, and call themselves `cuda`.

A tensor of `Elsewhere` holds one on the CPU and says that it lies on the device. As on a GPU, it
may not meet one that was left on the CPU, but for a single number or an index. Values are true, so
that what depends on them takes the way that it takes on a GPU.

What it does not see: kernels, streams, memory, autocast, inference mode, which is `no_grad` here,
and random draws of the device's own generator, which are the CPU's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

DEVICE = torch.device("cuda", 0)

INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
"""Operators that take indices from the CPU for tensors of any device."""

ACROSS = {"copy_"}
"""Operators that may have tensors of two devices."""


class WrongDevice(RuntimeError):
    """Tensors of two devices met, as PyTorch would refuse it on a GPU."""


class Elsewhere(Tensor):
    """A tensor that says it lies on the device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device="cpu", requires_grad=inner.requires_grad,
        )  # fmt: skip
        made.inner = inner.detach()
        return made

    @property
    def device(self) -> torch.device:  # autograd must not look for its threads and streams
        return DEVICE

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, **_) -> str:
        return f"Elsewhere({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    name = func._schema.name.partition("::")[2]
    flat, form = tree_flatten((args, kwargs))
    _refuse_two_devices(name, flat, args)
    theirs = {id(v.inner): v for v in flat if isinstance(v, Elsewhere)}
    plain = [v.inner if isinstance(v, Elsewhere) else v for v in flat]
    given, named = tree_unflatten(plain, form)
    out = func(*given, **named)
    stays = isinstance(args[0], Elsewhere) if name == "copy_" else bool(theirs)

    def there(value):
        if not isinstance(value, Tensor) or isinstance(value, Elsewhere) or not stays:
            return value
        return (
            theirs[id(value)] if id(value) in theirs else Elsewhere(value)
        )  # in place: what was given comes back

    return tree_map(there, out)


def _refuse_two_devices(name, flat, args):
    tensors = [v for v in flat if isinstance(v, Tensor)]
    ours = [v for v in tensors if isinstance(v, Elsewhere)]
    left = [v for v in tensors if not isinstance(v, Elsewhere)]
    generators = [v for v in flat if isinstance(v, torch.Generator)]
    if ours and generators:
        raise WrongDevice(f"{name}: a generator of the CPU draws for the device")
    if not (ours and left) or name in ACROSS:
        return
    if name in INDEXED:
        first, *others = [v for v in (args[0], *args[2:]) if isinstance(v, Tensor)]
        indices = [v for v in args[1] if isinstance(v, Tensor)]
        bad = isinstance(first, Elsewhere) and any(_whole(v) for v in others)
        if not isinstance(first, Elsewhere):  # a tensor of the CPU takes no indices from elsewhere
            bad = any(isinstance(v, Elsewhere) for v in [*indices, *others])
    else:
        bad = any(_whole(v) for v in left)
    if bad:
        shapes = ", ".join(str(tuple(v.shape)) for v in left)
        raise WrongDevice(f"{name}: a tensor {shapes} was left on the CPU")


def _whole(value: Tensor) -> bool:
    """Say whether this is a tensor of the CPU that is no single number."""
    return not isinstance(value, Elsewhere) and value.ndim > 0


class _Asked(TorchFunctionMode):
    """Make what is asked for on the device there: PyTorch itself would look for a GPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        own = args[0] if args and isinstance(args[0], Elsewhere) else None
        if own is not None and name == "tolist":
            return own.inner.tolist()
        if own is not None and name == "numpy":
            raise WrongDevice("numpy: a tensor of the device has none")
        if func is Tensor.data.__get__ and own is not None:
            return own.detach()
        if func is Tensor.data.__set__ and own is not None:
            own.inner = args[1].inner
            return None
        if own is not None and name in ("new_tensor", "one_hot"):
            return Elsewhere(func(own.inner, *args[1:], **kwargs))
        if name == "pin_memory":
            if own is not None:
                raise WrongDevice("pin_memory: a tensor of the device cannot be pinned")
            return args[0]
        if name == "cuda":
            return args[0] if own is not None else _Send.apply(args[0])
        if name == "cpu" and own is not None:
            return _Fetch.apply(own)
        if name == "to" and (called := _device(args[1:], kwargs)) is not None:
            device, rest, named = called
            moved = func(args[0], *rest, **named) if rest or named else args[0]
            if isinstance(moved, Elsewhere) == (device.type == "cuda"):
                return moved
            return (_Fetch if isinstance(moved, Elsewhere) else _Send).apply(moved)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda" and name != "device":
            if isinstance(kwargs.get("generator"), torch.Generator):
                raise WrongDevice(f"{name}: a generator of the CPU draws for the device")
            wanted = kwargs.pop("requires_grad", False)
            made = func(*args, **{**kwargs, "device": "cpu"})
            made = made if isinstance(made, Elsewhere) else Elsewhere(made)
            return made.requires_grad_() if wanted else made
        if own is not None and device is not None and name != "device":  # such as x.new_zeros
            return func(own.inner, *args[1:], **kwargs)
        return func(*args, **kwargs)


def _device(args, kwargs):
    """Return the device that `to` was asked for, and its other arguments."""
    asked = [v for v in (*args, kwargs.get("device")) if isinstance(v, str | torch.device | Tensor)]
    if not asked:
        return None
    rest = [v for v in args if isinstance(v, torch.dtype)]
    rest += [asked[0].dtype] if isinstance(asked[0], Tensor) else []
    named = {k: v for k, v in kwargs.items() if k == "dtype" and v is not None}
    device = asked[0].device if isinstance(asked[0], Tensor) else torch.device(asked[0])
    return device, rest, named


class _Send(torch.autograd.Function):
    """Bring a tensor to the device; its gradient comes back."""

    @staticmethod
    def forward(ctx, value):
        return Elsewhere(value.detach().clone())

    @staticmethod
    def backward(ctx, grad):
        return grad.inner


class _Fetch(torch.autograd.Function):
    """Bring a tensor to the CPU; its gradient goes back."""

    @staticmethod
    def forward(ctx, value):
        return value.inner.clone()

    @staticmethod
    def backward(ctx, grad):
        return Elsewhere(grad)


@contextlib.contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Lend a device that is not the CPU."""
    no = {
        "get_rng_state": lambda *_: torch.zeros(1),
        "set_rng_state": lambda *_: None,
        "manual_seed": lambda seed: None,
        "synchronize": lambda *_: None,
        "current_device": lambda: 0,
        "reset_peak_memory_stats": lambda *_: None,
        "max_memory_allocated": lambda *_: 0,
        "default_generators": (torch.default_generator,),
        "device": lambda _: contextlib.nullcontext(),
    }
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        plain = mock.patch.object(torch, "inference_mode", torch.no_grad)
        with mock.patch.multiple(torch.cuda, **no), plain, _Asked():
            yield DEVICE
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
