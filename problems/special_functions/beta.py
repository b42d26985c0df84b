r"""The regularized incomplete beta function, and how a beta variable moves with its parameters.

Everything is a function of ``a``, ``b`` and ``t = logit x``. With ``y = 1 - x``, the log-density
``l = ln(x^a y^b / B(a, b))`` of ``t``, and ``dt/da``, ``dt/db`` at a fixed value of the CDF,

    dI/dt = exp(l),    dI/da = -exp(l) dt/da,
    d/dt (dt/da) = w dt/da - (ln x - psi(a) + psi(a + b)),    w = b x - a y,

the same for b, and the derivatives of ``dt/da`` and ``dt/db`` by a and b are integrals of one
order more. A derivative of third order that needs those of the next order is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from implicit_solvers.problems.special_functions.beta_partials import (
    edge_slope,
    imbalance,
    imbalance_of_logit,
    log_lower,
    log_upper,
    lower,
    slopes,
    upper,
)
from implicit_solvers.problems.special_functions.places import read_place

__all__ = [
    "beta_logit_sample_derivatives",
    "beta_sample_derivatives",
    "betainc",
    "betaincc",
    "log_betainc",
    "log_betaincc",
]


@dataclass(frozen=True)
class Point:
    """Where a function is evaluated.

    ``x`` and ``t`` are 1/2 and 0 in place of the edges, x = 0 and x = 1. ``low`` is x or its
    logit at the lower edge, ``high`` is 1 - x or -logit x at the upper one, and both are 1
    elsewhere.
    """

    dtype: torch.dtype
    by_logit: bool
    a: Tensor
    b: Tensor
    x: Tensor
    t: Tensor
    w: Tensor
    zero: Tensor
    one: Tensor
    low: Tensor
    high: Tensor

    @property
    def nothing(self) -> Tensor:
        """Zero, NaN where ``a`` or ``b`` is not admissible."""
        return 0 * self.a + 0 * self.b

    def first_term(self, logarithm: bool, upper: bool = False) -> Tensor:
        """Return ``x^a / (a B(a, b))`` at 0, or its mirror image at 1, with its derivatives."""
        a, b, edge = (self.b, self.a, self.high) if upper else (self.a, self.b, self.low)
        constant = (a + b).lgamma() - (a + 1).lgamma() - b.lgamma()
        if logarithm:
            return a * (edge if self.by_logit else edge.log()) + constant
        return self.nothing if self.by_logit else edge**a * constant.clamp(max=700.0).exp()

    def join(self, inside: Tensor, at_zero: Tensor, at_one: Tensor) -> Tensor:
        """Join a function inside with its values at the edges."""
        out = torch.where(self.one, at_one, inside)
        return torch.where(self.zero, at_zero, out).to(self.dtype)

    def evaluate(self, function: Callable[..., Tensor], at_zero: Tensor, at_one: Tensor) -> Tensor:
        """Evaluate a function inside and join it with its values at the edges."""
        return self.join(function(self.a, self.b, self.x, self.t, self.w), at_zero, at_one)


def point(
    name: str,
    a: Tensor | float,
    b: Tensor | float,
    x: Tensor | float | None,
    logit_x: Tensor | float | None,
) -> Point:
    """Return the arguments of a function, whose place is given as ``x`` or as its logit.

    As `read_place`, for ``a`` and ``b``; all in float64.

    Examples
    --------
    >>> point("f", 2.0, 3.0, torch.tensor([0.5, 1.0]), None).one
    tensor([False,  True])
    """
    places = {"x": x, "logit_x": logit_x}
    dtype, by_logit, (p, q), place = read_place(name, {"a": a, "b": b}, places)
    if by_logit:
        zero, one = place == -torch.inf, place == torch.inf
        t = torch.where(zero | one, 0.0, place)
        inside = t.sigmoid()
        low, high = torch.where(zero, place, 1.0), torch.where(one, -place, 1.0)
    else:
        place = torch.where((place >= 0) & (place <= 1), place, torch.nan)
        zero, one = place == 0, place == 1
        inside = torch.where(zero | one, 0.5, place)
        t = inside.log() - (-inside).log1p()
        low, high = torch.where(zero, place, 1.0), torch.where(one, 1 - place, 1.0)
    w = imbalance_of_logit(p, q, t) if by_logit else imbalance(p, q, inside)
    return Point(dtype, by_logit, p, q, inside, t, w, zero, one, low, high)


def betainc(
    a: Tensor | float,
    b: Tensor | float,
    x: Tensor | float | None = None,
    *,
    logit_x: Tensor | float | None = None,
) -> Tensor:
    r"""Return the regularized incomplete beta function, the CDF of a beta variable.

    .. math:: I_x(a, b) = \frac{1}{B(a, b)} \int_0^x t^{a-1} (1 - t)^{b-1} \, dt

    Differentiable in all arguments, to second order, in every mode and under ``vmap``. For ``a``
    and ``b`` in [1e-3, 1e5] and a tail of at least 1e-12, the relative errors in float64 are at
    most 1e-12 (the value, where it is the smaller of ``I`` and ``1 - I``) and 1e-9 (``dI/da``,
    ``dI/db``); of second derivatives, 1e-9 of the sum of their absolute terms. Arguments of lower
    precision are taken as exact, computed with in float64, and the result is rounded.

    Parameters
    ----------
    a, b : Tensor or float
        Parameters, ``0 < a, b < inf``; elsewhere the result is NaN.
    x : Tensor or float
        ``0 <= x <= 1``; NaN elsewhere. All arguments are broadcast.
    logit_x : Tensor or float
        ``ln x - ln(1 - x)``, in place of ``x``, which rounds to 0 or 1 for small parameters.

    Returns
    -------
    Tensor
        ``I_x(a, b)``, with the common dtype of the arguments.

    Raises
    ------
    TypeError
        If no argument is a tensor, one has not a real floating dtype, or not exactly one of ``x``
        and ``logit_x`` is given.

    Examples
    --------
    For ``b = 1`` it is ``x^a``:

    >>> import torch
    >>> a, x = torch.tensor([0.5, 2.0]), torch.tensor(0.25)
    >>> betainc(a, 1.0, x)
    tensor([0.5000, 0.0625])
    >>> torch.func.jacrev(betainc)(a[0], 1.0, x)  # x^a ln x
    tensor(-0.6931)
    """
    at = point("betainc", a, b, x, logit_x)
    return at.evaluate(lower, at.first_term(False), 1 - at.first_term(False, upper=True))


def betaincc(
    a: Tensor | float,
    b: Tensor | float,
    x: Tensor | float | None = None,
    *,
    logit_x: Tensor | float | None = None,
) -> Tensor:
    """Return ``1 - I_x(a, b)``, computed where it is the smaller one, not by subtraction.

    Parameters
    ----------
    a, b, x, logit_x : Tensor or float
        As in `betainc`.

    Returns
    -------
    Tensor
        ``1 - I_x(a, b)``, with the derivatives and errors of `betainc`.

    Raises
    ------
    TypeError
        As `betainc` does.

    Examples
    --------
    For ``b = 1`` it is ``1 - x^a``, here with ``1 - x = 1e-20``:

    >>> import torch
    >>> betaincc(2.0, 1.0, logit_x=-torch.tensor(1e-20, dtype=torch.float64).log())
    tensor(2.0000e-20, dtype=torch.float64)
    """
    at = point("betaincc", a, b, x, logit_x)
    return at.evaluate(upper, 1 - at.first_term(False), at.first_term(False, upper=True))


def log_betainc(
    a: Tensor | float,
    b: Tensor | float,
    x: Tensor | float | None = None,
    *,
    logit_x: Tensor | float | None = None,
) -> Tensor:
    """Return ``ln I_x(a, b)``, also where ``I`` underflows.

    Parameters
    ----------
    a, b, x, logit_x : Tensor or float
        As in `betainc`.

    Returns
    -------
    Tensor
        ``ln I_x(a, b)``; its error is 1e-12, relative where it exceeds 1.

    Raises
    ------
    TypeError
        As `betainc` does.

    Examples
    --------
    >>> import torch
    >>> log_betainc(2000.0, 1.0, torch.tensor([0.5, 1.0]))
    tensor([-1386.2943,     0.0000])
    """
    at = point("log_betainc", a, b, x, logit_x)
    return at.evaluate(
        log_lower, at.first_term(True), at.nothing - at.first_term(False, upper=True)
    )


def log_betaincc(
    a: Tensor | float,
    b: Tensor | float,
    x: Tensor | float | None = None,
    *,
    logit_x: Tensor | float | None = None,
) -> Tensor:
    """Return ``ln(1 - I_x(a, b))``, also where ``1 - I`` underflows.

    Parameters
    ----------
    a, b, x, logit_x : Tensor or float
        As in `betainc`.

    Returns
    -------
    Tensor
        ``ln(1 - I_x(a, b))``; its error is 1e-12, relative where it exceeds 1.

    Raises
    ------
    TypeError
        As `betainc` does.

    Examples
    --------
    >>> import torch
    >>> log_betaincc(1.0, 2000.0, torch.tensor([0.0, 0.5]))
    tensor([    0.0000, -1386.2943])
    """
    at = point("log_betaincc", a, b, x, logit_x)
    return at.evaluate(
        log_upper, at.nothing - at.first_term(False), at.first_term(True, upper=True)
    )


def beta_sample_derivatives(
    a: Tensor | float, b: Tensor | float, x: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Return ``dx/da`` and ``dx/db`` of a beta variable ``x`` at a fixed value of its CDF.

    One quadrature gives both, accurate however far ``x`` is in a tail. Differentiable once more in
    all arguments. For ``a`` and ``b`` in [1e-3, 1e5] the relative error in float64 is at most 1e-9.

    Parameters
    ----------
    a, b : Tensor or float
        Parameters, ``0 < a, b < inf``; elsewhere the results are NaN.
    x : Tensor or float
        The variable, ``0 <= x <= 1``; NaN elsewhere. All arguments are broadcast.

    Returns
    -------
    tuple of Tensor
        ``dx/da >= 0`` and ``dx/db <= 0``, with the common dtype of the arguments.

    Raises
    ------
    TypeError
        If no argument is a tensor, or one has not a real floating dtype.

    Examples
    --------
    For ``b = 1``, ``F = x^a`` and ``dx/da = -x ln x / a``:

    >>> import torch
    >>> beta_sample_derivatives(2.0, 1.0, torch.tensor(0.5))[0]
    tensor(0.1733)
    """
    at = point("beta_sample_derivatives", a, b, x, None)
    by_a, by_b = slopes(at.a, at.b, at.x, at.t, at.w)
    density = at.x * (1 - at.x)
    low, high = at.low, at.high
    low_a, high_b = (torch.xlogy(edge, edge.detach()) + at.nothing for edge in (low, high))
    return (
        at.join(density * by_a, -low_a / at.a, high * edge_slope(at.b, at.a, high)),
        at.join(density * by_b, -low * edge_slope(at.a, at.b, low), high_b / at.b),
    )


def beta_logit_sample_derivatives(
    a: Tensor | float, b: Tensor | float, logit_x: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Return the derivatives by ``a`` and ``b`` of the logit of a beta variable, from the logit.

    For parameters so small that ``x`` rounds to 0 or 1; otherwise as `beta_sample_derivatives`, of
    which they are the quotients by ``x (1 - x)``.

    Parameters
    ----------
    a, b : Tensor or float
        Parameters, ``0 < a, b < inf``; elsewhere the results are NaN.
    logit_x : Tensor or float
        ``ln x - ln(1 - x)`` of the variable. All arguments are broadcast.

    Returns
    -------
    tuple of Tensor
        ``dt/da >= 0`` and ``dt/db <= 0`` for ``t = logit_x``, with the common dtype.

    Raises
    ------
    TypeError
        If no argument is a tensor, or one has not a real floating dtype.

    Examples
    --------
    For ``b = 1`` and small ``x``, ``dt/da = -t / a``:

    >>> import torch
    >>> beta_logit_sample_derivatives(1e-3, 1.0, torch.tensor(-1e3))[0]
    tensor(1000000.)
    """
    at = point("beta_logit_sample_derivatives", a, b, None, logit_x)
    by_a, by_b = slopes(at.a, at.b, at.x, at.t, at.w)
    at_zero, at_one = edge_slope(at.a, at.b, at.low), edge_slope(at.b, at.a, at.high)
    by_a = at.join(by_a, -at.low / at.a + at.nothing, at_one)
    return by_a, at.join(by_b, -at_zero, at.high / at.b + at.nothing)
