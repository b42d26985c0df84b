"""Boxes, and the balls of two norms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from implicit_solvers.problems.projections.row_norms import norm_beyond
from implicit_solvers.problems.projections.simplex import shrink
from implicit_solvers.problems.projections.validation import (
    check_array,
    check_lanes,
    check_number,
    read_radius,
)

__all__ = ["project_box", "project_l1_ball", "project_l2_ball"]


def project_box(v: Tensor, lower: float | Tensor, upper: float | Tensor) -> Tensor:
    """Project onto the box ``{x : lower <= x <= upper}``: ``min(max(v, lower), upper)``.

    Source: Parikh and Boyd, "Proximal Algorithms" (2014), section 6.2.4.

    Parameters
    ----------
    v
        ``(..., n)``, floating.
    lower, upper
        Numbers, or tensors that broadcast to ``v``; infinite where there is no bound. Where a
        tensor has ``lower > upper`` the result is NaN.

    Returns
    -------
    Tensor
        Like ``v``, differentiable in all three. At a bound there is a kink; the derivative there
        is the one from inside.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> project_box(torch.tensor([-2.0, 0.5, 3.0]), 0.0, 1.0)
    tensor([0.0000, 0.5000, 1.0000])
    """
    v = check_array("v", v)
    lo, hi = _bound("lower", lower, v), _bound("upper", upper, v)
    numbers = not isinstance(lower, Tensor) and not isinstance(upper, Tensor)
    if numbers and not lower <= upper:
        raise ValueError(f"lower is {lower} and upper is {upper}: pass lower <= upper")
    inside = torch.where(v < lo, lo, torch.where(v > hi, hi, v))
    return torch.where(lo <= hi, inside, torch.nan)


def _bound(name: str, bound: float | Tensor, v: Tensor) -> Tensor:
    if not isinstance(bound, Tensor):
        return v.new_tensor(check_number(name, bound, -math.inf, strict=False))
    check_lanes(name, bound, v)
    return bound


def project_l1_ball(v: Tensor, radius: float | Tensor = 1.0) -> Tensor:
    r"""Project onto the ball ``{x : sum_i |x_i| <= radius}``.

    The nearest point is ``v`` itself, or ``x_i = sign(v_i) max(|v_i| - tau, 0)`` with the ``tau``
    that puts it on the boundary: sparse.

    Parameters
    ----------
    v
        ``(..., n)``, floating; each row is projected.
    radius
        As in `project_simplex`.

    Returns
    -------
    Tensor
        Like ``v``, differentiable in ``v`` and ``radius``, kinks aside.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    Source: Duchi et al., "Efficient Projections onto the l1-Ball for Learning in High Dimensions"
    (2008).

    Examples
    --------
    >>> project_l1_ball(torch.tensor([1.0, -0.5, 0.125]))
    tensor([ 0.7500, -0.2500,  0.0000])
    """
    v = check_array("v", v)
    size = read_radius(radius, v)
    sizes = v.abs()
    shrunk = v.sign() * shrink(sizes, size)
    return torch.where(sizes.sum(-1, keepdim=True) <= size, v, shrunk)


def project_l2_ball(v: Tensor, radius: float | Tensor = 1.0) -> Tensor:
    r"""Project onto the ball ``{x : |x|_2 <= radius}``: ``v``, or ``radius v / |v|``.

    Source: Parikh and Boyd, "Proximal Algorithms" (2014), section 6.5.1.

    Parameters
    ----------
    v
        ``(..., n)``, floating; each row is projected.
    radius
        As in `project_simplex`.

    Returns
    -------
    Tensor
        Like ``v``, differentiable in ``v`` and ``radius``; on the sphere, the derivative is the
        one from inside.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> project_l2_ball(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """
    v = check_array("v", v)
    size = read_radius(radius, v)
    inside, norm = norm_beyond(v, size)
    return torch.where(inside, v, size * (v / norm))
