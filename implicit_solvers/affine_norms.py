"""Normalizations in operations whose second derivatives are right under ``vmap``.

The pullback of a vmapped gradient, ``vjp(vmap(grad(f)))``, is silently wrong (torch 2.8 to 2.15) if
``f`` calls ``layer_norm``, ``batch_norm`` or ``instance_norm`` with a weight, and refused (2.15) if
it calls the last two at all. So the weight and the bias are applied here by operations of their
own, and from 2.15 on batches and instances are normalized by their means and variances. Nothing
here knows an equation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["WeightsApart", "is_written_out", "weights_apart"]

T = TypeVar("T")

# whether batches and instances are refused without a weight too; else torch's own are faster
REFUSED = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15)

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
    return weighted or (REFUSED and func not in _LAYER)


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
        if out is not None:
            return out
        names = _NORMS[func]
        bare = (None if n in _WEIGHTS else a for n, a in zip(names, args, strict=False))
        rest = {name: None if name in _WEIGHTS else a for name, a in kwargs.items()}
        out = func(*bare, *args[len(names) :], **rest)
        trailing = () if func in _LAYER else (1,) * (out.dim() - 2)
        for name, combine in (("weight", torch.mul), ("bias", torch.add)):
            tensor = given.get(name)
            if tensor is not None:
                out = combine(out, tensor.reshape(*tensor.shape, *trailing))
        return out


def _normalized(func: Any, given: dict[str, Any]) -> Tensor | None:
    """Return ``(x - mean) weight / sqrt(variance + eps) + bias``; None where torch's own is better.

    It is where it is right without a weight, in single or double precision; where running
    statistics are to be updated or missing; and where one value has no variance.
    """
    x = given["input"]
    low = x.dtype in (torch.float16, torch.bfloat16)
    if not (REFUSED or low):
        return None
    mean, variance = given.get("running_mean"), given.get("running_var")
    batch = func in _BATCH
    own = given.get("training", False) if batch else given.get("use_input_stats", True)
    dims = [d for d in range(x.dim()) if d > 1 or (batch and d == 0)]
    count = 1
    for d in dims:
        count *= x.shape[d]
    if own and (mean is not None or variance is not None or count <= 1):
        return None
    wide = x.float() if low else x
    shape = (-1, *(1,) * (x.dim() - 2))
    if own:
        variance, mean = torch.var_mean(wide, dims, correction=0, keepdim=True)
        centered = wide - mean
    elif mean is None or variance is None:
        return None
    else:
        centered, variance = wide - mean.reshape(shape), variance.reshape(shape)
    # what is small is multiplied first: a pass over all entries costs as much as a statistic
    scale, shift = (variance + given.get("eps", 1e-5)).rsqrt(), given.get("bias")
    if given.get("weight") is not None:
        scale = scale * given["weight"].reshape(shape)
    if shift is None:
        return (centered * scale).to(x.dtype)
    return torch.addcmul(shift.reshape(shape), centered, scale).to(x.dtype)


def weights_apart(fn: Callable[..., T]) -> Callable[..., T]:
    """Return ``fn`` with its normalizations written out, for second derivatives under ``vmap``.

    Solves do this by themselves. Wherever else a gradient that ``vmap`` batches is differentiated
    again, ``vjp(vmap(grad(f)))``, torch (2.8 to 2.15) is silently wrong, or refuses, if ``f`` calls
    ``layer_norm``, ``batch_norm`` or ``instance_norm``, unless the parts of ``weight (x - mean) /
    sqrt(variance + eps) + bias`` are operations of their own.

    Parameters
    ----------
    fn
        A function that normalizes, by ``torch.nn.functional`` or by modules.

    Returns
    -------
    callable
        With the same arguments and results; the values differ by rounding.

    Raises
    ------
    ValueError
        By the function returned, where one value has no variance, as by torch.

    Notes
    -----
    Inputs may have any shape that torch normalizes, of every floating dtype; in half precision,
    statistics are computed in float32.

    Examples
    --------
    >>> import torch
    >>> x, weight = torch.tensor([[1.0, 3.0]]), torch.tensor([1.0, 2.0])
    >>> weights_apart(torch.nn.functional.layer_norm)(x, (2,), weight)
    tensor([[-1.0000,  2.0000]])
    """

    @functools.wraps(fn)
    def separated(*args: Any, **kwargs: Any) -> T:
        with WeightsApart():
            return fn(*args, **kwargs)

    return separated
