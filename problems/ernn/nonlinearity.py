"""The nonlinearity of a cell and how steep it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import implicit_solvers as ims

__all__ = ["Nonlinearity", "nonlinearity_of", "without_share"]


@dataclass(frozen=True)
class Nonlinearity:
    """An elementwise function that never decreases, with its largest slope.

    ``0 <= function'(x) <= slope`` for every ``x``; that is trusted, not checked.

    Parameters
    ----------
    function
        Maps a tensor of any shape and real floating dtype to one like it, elementwise.
    slope
        The largest ``function'``, ``L``: the equilibrium is unique where ``L |U| < gamma``.

    Raises
    ------
    ValueError
        If ``slope`` is not positive and finite.

    Examples
    --------
    >>> Nonlinearity(torch.nn.functional.softplus, slope=1.0)(torch.tensor(0.0))
    tensor(0.6931)
    """

    function: Callable[[Tensor], Tensor]
    slope: float

    def __post_init__(self) -> None:
        """Refuse a slope that bounds nothing."""
        if not 0 < self.slope < math.inf:
            raise ValueError(
                f"slope={self.slope} is not positive and finite: pass the largest derivative of "
                "the function"
            )

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x)


_SLOPES: dict[Any, float] = {torch.tanh: 1.0, torch.relu: 1.0, torch.sigmoid: 0.25}
_NAMED = {function.__name__: function for function in _SLOPES}


def nonlinearity_of(given: Any) -> Nonlinearity:
    """Return ``given`` with its slope.

    It is ``"tanh"``, ``"relu"``, ``"sigmoid"``, a function of torch so named, or a `Nonlinearity`.

    Examples
    --------
    >>> nonlinearity_of("sigmoid").slope, nonlinearity_of(torch.relu).slope
    (0.25, 1.0)
    """
    if isinstance(given, Nonlinearity):
        return given
    function: Any = _NAMED.get(given) if isinstance(given, str) else given
    try:
        return Nonlinearity(function, _SLOPES[function])
    except (KeyError, TypeError):
        raise (ValueError if isinstance(given, str) else TypeError)(
            f'nonlinearity is {given!r}: pass "tanh", "relu", "sigmoid", or '
            "Nonlinearity(function, slope=...)"
        ) from None


def _less(phi: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, share: phi(z).addcmul_(z, share, value=-1)


def _sigmoid_slope(y: Tensor, z: Tensor, share: Tensor) -> list[Any]:
    value = torch.addcmul(y, z, share)
    return [torch.addcmul(value, value, value, value=-1) - share, lambda: -z]


_REST: dict[Any, Callable[..., Tensor]] = {
    torch.sigmoid: ims.elementwise_function(_less(torch.sigmoid), _sigmoid_slope, name="sigmoid"),
    torch.relu: ims.elementwise_function(
        _less(torch.relu),
        lambda y, z, share: [(z > 0).to(z.dtype) - share, lambda: -z],
        name="relu",
    ),
}


def without_share(phi: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Any], Tensor]:
    """Return ``(z, share) -> phi(z) - share z``, with slopes that are computed once for a graph.

    Examples
    --------
    >>> without_share(torch.relu)(torch.tensor([2.0, -2.0]), 0.5)
    tensor([1., 1.])
    """
    return _REST.get(phi) or (lambda z, share: phi(z) - share * z)
