"""Normalizations with weights, whose second derivatives torch gets wrong under ``vmap``.

The pullback of a vmapped gradient, ``vjp(vmap(grad(f)))``, is silently wrong (torch 2.8 to 2.15) if
``f`` calls ``layer_norm``, ``batch_norm`` or ``instance_norm`` with a weight; without one, it is
right. So the weight and the bias are applied here by operations of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["WeightsApart", "applies_weight", "weights_apart"]

# Where a function takes its weight and its bias, and whether they belong to channels.
_NORMS: dict[Any, tuple[int, int, bool]] = {
    F.layer_norm: (2, 3, False),
    torch.layer_norm: (2, 3, False),
    F.batch_norm: (3, 4, True),
    torch.batch_norm: (1, 2, True),
    F.instance_norm: (3, 4, True),
    torch.instance_norm: (1, 2, True),
}


def applies_weight(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether an operation is one of those normalizations, with a weight or a bias."""
    if func not in _NORMS:
        return False
    weight, bias, _ = _NORMS[func]
    places = ((weight, "weight"), (bias, "bias"))
    return any(_argument(args, kwargs, *place) is not None for place in places)


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)


class WeightsApart(TorchFunctionMode):
    """A mode in which normalizations leave their weights to a product and a sum."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not applies_weight(func, args, kwargs):
            return func(*args, **kwargs)
        weight_place, bias_place, of_channels = _NORMS[func]
        weight = _argument(args, kwargs, weight_place, "weight")
        bias = _argument(args, kwargs, bias_place, "bias")
        bare = tuple(None if i in (weight_place, bias_place) else a for i, a in enumerate(args))
        rest = {name: None if name in ("weight", "bias") else a for name, a in kwargs.items()}
        out = func(*bare, **rest)
        trailing = (1,) * (out.dim() - 2) if of_channels else ()
        for tensor, combine in ((weight, torch.mul), (bias, torch.add)):
            if tensor is not None:
                out = combine(out, tensor.reshape(*tensor.shape, *trailing))
        return out


def weights_apart(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``fn`` with the weights of its normalizations applied apart."""

    def separated(*tensors: Tensor) -> Tensor:
        with WeightsApart():
            return fn(*tensors)

    return separated
