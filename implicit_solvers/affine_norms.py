"""Normalizations in operations whose second derivatives are right under ``vmap``.

The pullback of a vmapped gradient, ``vjp(vmap(grad(f)))``, is silently wrong (torch 2.8 to 2.15) if
``f`` calls ``layer_norm``, ``batch_norm`` or ``instance_norm`` with a weight, and refused (2.15) if
it calls the last two at all. So the weight and the bias are applied here by operations of their
own, and batches and instances are normalized by their means and variances. Nothing here knows an
equation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["WeightsApart", "is_written_out", "weights_apart"]

_LAYER = {
    F.layer_norm: ("input", "shape", "weight", "bias", "eps"),
    torch.layer_norm: ("input", "shape", "weight", "bias", "eps"),
}
_WEIGHTS = ("weight", "bias")
_REST = ("momentum", "eps")
_STATISTICS = ("running_mean", "running_var")
_BATCH = {
    F.batch_norm: ("input", *_STATISTICS, *_WEIGHTS, "training", *_REST),
    torch.batch_norm: ("input", *_WEIGHTS, *_STATISTICS, "training", *_REST),
}
_INSTANCE = {
    F.instance_norm: ("input", *_STATISTICS, *_WEIGHTS, "use_input_stats", *_REST),
    torch.instance_norm: ("input", *_WEIGHTS, *_STATISTICS, "use_input_stats", *_REST),
}
_NORMS: dict[Any, tuple[str, ...]] = {**_LAYER, **_BATCH, **_INSTANCE}


def is_written_out(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether an operation is a normalization that `WeightsApart` writes out."""
    if func not in _NORMS:
        return False
    given = _arguments(func, args, kwargs)
    weighted = given.get("weight") is not None or given.get("bias") is not None
    return weighted or func not in _LAYER


def _arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(_NORMS[func], args, strict=False)), **kwargs}


class WeightsApart(TorchFunctionMode):
    """A mode in which normalizations are products and sums of what they are made of."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not is_written_out(func, args, kwargs):
            return func(*args, **kwargs)
        given = _arguments(func, args, kwargs)
        out = None if func in _LAYER else _normalized(func, given)
        if out is None:
            names = _NORMS[func]
            bare = (
                None if n in ("weight", "bias") else a for n, a in zip(names, args, strict=False)
            )
            rest = {name: None if name in ("weight", "bias") else a for name, a in kwargs.items()}
            out = func(*bare, *args[len(names) :], **rest)
        trailing = () if func in _LAYER else (1,) * (out.dim() - 2)
        for name, combine in (("weight", torch.mul), ("bias", torch.add)):
            tensor = given.get(name)
            if tensor is not None:
                out = combine(out, tensor.reshape(*tensor.shape, *trailing))
        return out


def _normalized(func: Any, given: dict[str, Any]) -> Tensor | None:
    """Return ``(x - mean) / sqrt(variance + eps)``; None where torch has to do more than that.

    That is where running statistics are to be updated or missing, and where one value has no
    variance.
    """
    x = given["input"]
    mean, variance = given.get("running_mean"), given.get("running_var")
    batch = func in _BATCH
    own = given.get("training", False) if batch else given.get("use_input_stats", True)
    dims = [d for d in range(x.dim()) if d > 1 or (batch and d == 0)]
    count = 1
    for d in dims:
        count *= x.shape[d]
    if own and (mean is not None or variance is not None or count <= 1):
        return None
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if own:
        mean = wide.mean(dims, keepdim=True)
        variance = (wide - mean).square().mean(dims, keepdim=True)
    elif mean is None or variance is None:
        return None
    else:
        shape = (-1, *(1,) * (x.dim() - 2))
        mean, variance = mean.reshape(shape), variance.reshape(shape)
    return ((wide - mean) * (variance + given.get("eps", 1e-5)).rsqrt()).to(x.dtype)


def weights_apart(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``fn`` with its normalizations written out."""

    def separated(*tensors: Tensor) -> Tensor:
        with WeightsApart():
            return fn(*tensors)

    return separated
