"""Functions of two variables by polynomials: one matrix product in place of a quadrature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Interpolant", "interpolant"]

Range = tuple[float, float]
CHUNK = 1 << 13  # elements: their powers stay in the cache


@dataclass(frozen=True, eq=False)
class Interpolant:
    """Polynomials in two variables on a rectangle.

    ``coefficients`` is ``(count, powers of q, powers of p)``, of the variables mapped to [-1, 1].
    """

    p: Range
    q: Range
    coefficients: np.ndarray

    def __call__(self, p: Tensor, q: Tensor) -> tuple[Tensor, ...]:
        """Evaluate at flat float64 tensors; outside of the rectangle it means nothing."""
        if len(p) <= CHUNK:
            return self._chunk(p, q).unbind()
        parts = [self._chunk(*c) for c in zip(p.split(CHUNK), q.split(CHUNK), strict=True)]
        return torch.cat(parts, -1).unbind()

    def _chunk(self, p: Tensor, q: Tensor) -> Tensor:
        _, of_q, of_p = self.coefficients.shape
        matrix = torch.from_numpy(self.coefficients).to(p.device)
        fewer, most = sorted((of_p, of_q))
        powers = p.new_empty((most, 2, len(p)))
        powers[0] = 1
        for x, (low, high), row in zip((p, q), (self.p, self.q), powers[1], strict=True):
            torch.sub(x, (low + high) / 2, out=row).mul_(2 / (high - low))
        known = 2
        while known < most:
            rows = powers if known < fewer else powers[:, int(of_q > of_p)]
            more = min(known, most - known)
            torch.mul(rows[:more], rows[known - 1] * rows[1], out=rows[known : known + more])
            known += more
        in_p = matrix @ powers[:of_p, 0]
        return in_p.mul_(powers[:of_q, 1]).sum(1)


def interpolant(
    function: Callable[[Tensor, Tensor], tuple[Tensor, ...]], p: Range, q: Range, *degrees: int
) -> Interpolant:
    """Interpolate a function on a rectangle, at the zeros of Chebyshev polynomials.

    ``function`` maps two flat float64 tensors to a tuple of such, analytic around the rectangle;
    ``degrees`` are the numbers of points in ``p`` and in ``q``. The coefficients are of powers:
    they do not cancel if the function is analytic in the unit disc of each mapped variable.

    Source: Trefethen, "Approximation Theory and Approximation Practice" (2013), chapters 3 and 8.

    Examples
    --------
    >>> f = interpolant(lambda p, q: ((p * q).exp(),), (0.0, 1.0), (1.0, 2.0), 12, 12)
    >>> f(torch.tensor([0.5], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64))
    (tensor([2.7183], dtype=torch.float64),)
    """
    points = [np.cos(np.pi * (np.arange(n) + 0.5) / n) for n in degrees]
    grid = [
        torch.from_numpy(low + (high - low) * (x + 1) / 2).reshape(shape).expand(*degrees)
        for (low, high), x, shape in zip((p, q), points, ((-1, 1), (1, -1)), strict=True)
    ]
    values = function(*(t.reshape(-1) for t in grid))
    stack = np.stack([v.reshape(degrees).numpy() for v in values])
    of_p = np.apply_along_axis(_coefficients, 1, stack)
    return Interpolant(p, q, np.apply_along_axis(_coefficients, 2, of_p).transpose(0, 2, 1).copy())


def _coefficients(values: np.ndarray) -> np.ndarray:
    """Return the coefficients of powers from values at the zeros of a Chebyshev polynomial."""
    count = len(values)
    orders = np.arange(count)
    series = np.cos(np.outer(orders, np.pi * (orders + 0.5) / count)) @ values * (2 / count)
    series[0] /= 2
    powers = np.zeros(count)
    known = np.polynomial.chebyshev.cheb2poly(series)
    powers[: len(known)] = known
    return powers
