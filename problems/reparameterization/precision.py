"""Half precision: computed in float32 and returned in kind."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from implicit_solvers.problems.reparameterization.tails import like_parameters

__all__ = ["converted", "halves_in_single"]


def _to(value: Any, source: torch.dtype, target: torch.dtype) -> Any:
    if isinstance(value, tuple):
        return tuple(_to(v, source, target) for v in value)
    return value.to(target) if isinstance(value, Tensor) and value.dtype == source else value


def converted(distribution: Any, dtype: torch.dtype) -> Any:
    """Return a copy whose parameters have another dtype; gradients go to the original ones.

    Parameters are the floating tensors that it, and distributions in it, hold as attributes.
    """

    def part(value: Any) -> Any:
        if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
            return type(value)(part(v) for v in value)
        if isinstance(value, Distribution):
            return converted(value, dtype)
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else value

    new = copy.copy(distribution)
    new.__dict__.update({name: part(value) for name, value in vars(distribution).items()})
    return new


def halves_in_single(*names: str) -> Callable[[type], type]:
    """Let methods and properties of a class of distributions compute half precision in float32.

    Examples
    --------
    >>> @halves_in_single("log_prob")
    ... class Exact(torch.distributions.Normal):
    ...     pass
    >>> q = Exact(torch.tensor(0.0, dtype=torch.float16), torch.tensor(1.0, dtype=torch.float16))
    >>> q.log_prob(torch.tensor(0.1, dtype=torch.float16))
    tensor(-0.9238, dtype=torch.float16)
    """

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def method(self: Any, *args: Any, **options: Any) -> Any:
            dtype = like_parameters(self).dtype
            if torch.finfo(dtype).bits >= 32:
                return function(self, *args, **options)
            single = torch.float32
            result = function(converted(self, single), *_to(args, dtype, single), **options)
            return _to(result, single, dtype)

        return method

    def decorate(kind: Any) -> type:
        for name in names:
            member = getattr(kind, name)
            if isinstance(member, property) and member.fget:
                setattr(kind, name, property(wrapped(member.fget), doc=member.__doc__))
            else:
                setattr(kind, name, wrapped(member))
        return kind

    return decorate
