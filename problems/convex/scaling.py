"""Units in which the data of a cone program are neither tiny nor huge."""

from __future__ import annotations

import torch
from torch import Tensor

from implicit_solvers.problems.convex.cones import Cones

__all__ = ["program_scales"]

_LEFT_ALONE = 6.0


def program_scales(P: Tensor, c: Tensor, A: Tensor, cones: Cones) -> tuple[Tensor, Tensor]:
    """Return what to multiply the objective and the constraints of a cone program with.

    The minimizer is the same in all units, but what a tolerance means is not. The factors are
    powers of two, so that they make no rounding errors, and one where the largest entry is between
    ``2**-6`` and ``2**6``. Equations and inequalities have their own, the rows of another cone one
    in common.

    Parameters
    ----------
    P, c, A
        ``(..., n, n)``, ``(..., n)``, ``(..., m, n)``; matrices that lanes share have factors that
        they share.
    cones
        The cones, of dimension ``m``.

    Returns
    -------
    tuple of Tensor
        The factor of ``P`` and ``c``, with the lanes of ``P``, and those of the rows of ``A`` and
        ``b``, ``(..., m)``, with the lanes of ``A``; constants to every derivative.

    Examples
    --------
    >>> tiny, rows = 1e-6 * torch.eye(2), torch.tensor([[1.0, 1.0], [0.0, 1000.0]])
    >>> program_scales(tiny, torch.zeros(2), rows, Cones(nonnegative=2))
    (tensor(1048576.), tensor([1.0000e+00, 9.7656e-04]))
    """
    largest = _largest(c, 1)
    if P.dim() == 2 and largest.dim() > 0:
        largest = torch.cat([largest.flatten(), largest.new_zeros(1)]).amax()
    rows = _largest(A, 1)
    parts = [rows[..., : cones.linear]]
    for _, _, place, count, size in cones.blocks():
        block = rows[..., place].unflatten(-1, (count, size))
        parts.append(block.amax(-1, keepdim=True).expand(block.shape).flatten(-2))
    return _factor(torch.maximum(_largest(P, 2), largest)), _factor(torch.cat(parts, -1))


def _largest(t: Tensor, rank: int) -> Tensor:
    """Return the largest size of an entry, and zero where one is not finite."""
    entries = t.detach().abs().flatten(t.dim() - rank)
    none = entries.new_zeros(*entries.shape[:-1], 1)
    largest = torch.cat([entries, none], -1).amax(-1)
    return torch.where(largest.isfinite(), largest, 0.0)


def _factor(size: Tensor) -> Tensor:
    exponent = torch.log2(size).round()
    scaled = exponent.isfinite() & (exponent.abs() > _LEFT_ALONE)
    return torch.exp2(torch.where(scaled, -exponent, 0.0))
