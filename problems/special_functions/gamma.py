r"""The regularized incomplete gamma functions, and how a gamma variable moves with its shape.

Everything is a function of ``a`` and ``u = ln z``. With ``l = ln(z f(z)) = a u - z - lgamma(a)``,
the log-density of ``u``, and ``g = du/da`` at a fixed value of the CDF,

    dP/du = exp(l),    dP/da = -exp(l) g,    dg/du = -(u - psi(a)) - g (a - z),

and ``dg/da`` is one integral more. A derivative of third order that needs ``d2g/da2`` is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.special_functions import gamma_evaluation as evaluation
from implicit_solvers.problems.special_functions.derivatives import differentiable_sample
from implicit_solvers.problems.special_functions.places import read_place
from implicit_solvers.problems.special_functions.polygamma import trigamma

__all__ = [
    "gamma_log_sample",
    "gamma_log_sample_derivative",
    "gamma_sample_derivative",
    "gammainc",
    "gammaincc",
    "log_gammainc",
    "log_gammaincc",
]

# ------------------------------------------------------------------- differentiable functions
# Functions of (a, z, u), where z = exp(u) and u are both connected to the graph: the derivative is
# taken by u, and z is there for its precision.


def _by_log(
    rate: Callable[..., Tensor], by_shape: Callable[..., Tensor]
) -> Callable[..., list[Any]]:
    """Return ``partials`` of a function of (a, z, u): ``rate`` by u, ``by_shape`` by a."""
    return lambda y, a, z, u: [
        lambda: by_shape(y, a, z, u),
        None,
        lambda: rate(y, a, z, u),
    ]


def _cdf_partials(sign: float, of_log: bool) -> Callable[..., list[Any]]:
    """Return ``partials`` of P (sign 1), Q (sign -1), or of their logarithms."""

    def rate(y: Tensor, a: Tensor, z: Tensor, u: Tensor) -> Tensor:
        return sign * (log_density(a, z, u) - (y if of_log else 0.0)).exp()

    return _by_log(rate, lambda y, a, z, u: -rate(y, a, z, u) * slope(a, z, u))


score = ims.elementwise_function(
    lambda a, z, u: evaluation.score(a, z, u)[0],
    _by_log(lambda y, a, z, u: torch.ones_like(u), lambda y, a, z, u: -trigamma(a)),
    name="score of the gamma density",
)
log_density = ims.elementwise_function(
    lambda a, z, u: evaluation.log_density(a, z, u)[0],
    _by_log(lambda y, a, z, u: a - z, lambda y, a, z, u: score(a, z, u)),
    name="logarithm of the gamma density",
)
curvature = ims.elementwise_function(
    lambda a, z, u: evaluation.curvature(a, z, u)[0],
    None,
    name="second derivative of a gamma variable",
)
slope = ims.elementwise_function(
    lambda a, z, u: evaluation.slope(a, z, u)[0],
    _by_log(
        lambda g, a, z, u: -score(a, z, u) - g * (a - z), lambda g, a, z, u: curvature(a, z, u)
    ),
    name="derivative of a gamma variable",
)
lower, upper, log_lower, log_upper = (
    ims.elementwise_function(
        lambda a, z, u, i=i: evaluation.tails(a, z, u)[i], _cdf_partials(sign, of_log), name=name
    )
    for i, (name, sign, of_log) in enumerate(
        [
            ("gammainc", 1.0, False),
            ("gammaincc", -1.0, False),
            ("log_gammainc", 1.0, True),
            ("log_gammaincc", -1.0, True),
        ]
    )
)


# ------------------------------------------------------------------------------------- public


@dataclass(frozen=True)
class Point:
    """Where a function is evaluated.

    ``z`` and ``u`` are 1 and 0 in place of the edges, z = 0 and z = inf. ``low`` and ``high`` hold
    the argument, z or its logarithm, at one edge, and 1 elsewhere.
    """

    dtype: torch.dtype
    by_log: bool
    a: Tensor
    z: Tensor
    u: Tensor
    zero: Tensor
    infinite: Tensor
    low: Tensor
    high: Tensor

    @property
    def nothing(self) -> Tensor:
        """Zero, NaN where ``a`` is not admissible."""
        return 0 * self.a

    @property
    def first_term(self) -> Tensor:
        """``z^a / Gamma(a + 1)`` at ``z = 0``, with its derivatives."""
        if self.by_log:
            return self.nothing
        return self.low**self.a * (-(self.a + 1).lgamma()).exp()

    @property
    def exponential(self) -> Tensor:
        """``z`` where it is infinite, with its derivatives."""
        return self.high.exp() if self.by_log else self.high

    def evaluate(
        self, function: Callable[..., Tensor], at_zero: Tensor, at_infinity: Tensor
    ) -> Tensor:
        """Join the function inside with its values at the edges."""
        out = torch.where(self.infinite, at_infinity, function(self.a, self.z, self.u))
        return torch.where(self.zero, at_zero, out).to(self.dtype)


def point(
    name: str, a: Tensor | float, z: Tensor | float | None, log_z: Tensor | float | None
) -> Point:
    """Return the arguments of a function, whose place is given as ``z`` or as its logarithm.

    As `read_place`, for ``a``; all in float64.

    Examples
    --------
    >>> point("f", 2.0, torch.tensor([0.0, 1.0]), None).zero
    tensor([ True, False])
    """
    dtype, by_log, (shape,), place = read_place(name, {"a": a}, {"z": z, "log_z": log_z})
    if by_log:
        zero, infinite = place == -torch.inf, place.exp() == torch.inf
        u = torch.where(zero | infinite, 0.0, place)
        inside = u.exp()
    else:
        zero, infinite = place == 0, place == torch.inf
        inside = torch.where(zero | infinite, 1.0, place)
        u = inside.log()
    low, high = torch.where(zero, place, 1.0), torch.where(infinite, place, 1.0)
    return Point(dtype, by_log, shape, inside, u, zero, infinite, low, high)


def gammainc(
    a: Tensor | float, z: Tensor | float | None = None, *, log_z: Tensor | float | None = None
) -> Tensor:
    r"""Return the regularized lower incomplete gamma function, the CDF of a gamma variable.

    .. math:: P(a, z) = \frac{1}{\Gamma(a)} \int_0^z t^{a-1} e^{-t} \, dt

    Differentiable in both arguments, to second order, in every mode and under ``vmap``. For
    ``1e-3 <= a <= 1e5`` and a tail of at least 1e-12, the relative errors in float64 are at most
    1e-12 (the value, where it is the smaller of ``P`` and ``1 - P``) and 1e-9 (``dP/da``); of
    second derivatives, 1e-9 of the sum of their absolute terms. Arguments of lower precision are
    taken as exact, computed with in float64, and the result is rounded.

    Parameters
    ----------
    a : Tensor or float
        Shape, ``0 < a < inf``; elsewhere the result is NaN.
    z : Tensor or float
        ``0 <= z <= inf``; NaN elsewhere. It is broadcast with ``a``.
    log_z : Tensor or float
        The logarithm of ``z``, in place of ``z``: for small shapes ``z`` itself may underflow.

    Returns
    -------
    Tensor
        ``P(a, z)``, with the common dtype of the arguments.

    Raises
    ------
    TypeError
        If no argument is a tensor, one has not a real floating dtype, or not exactly one of ``z``
        and ``log_z`` is given.

    Examples
    --------
    >>> import torch
    >>> a, z = torch.tensor([0.5, 2.0]), torch.tensor(1.0)
    >>> gammainc(a, z)
    tensor([0.8427, 0.2642])
    >>> torch.func.jacrev(gammainc)(a[1], z)
    tensor(-0.2762)
    """
    at = point("gammainc", a, z, log_z)
    return at.evaluate(lower, at.first_term, 1 + at.nothing)


def gammaincc(
    a: Tensor | float, z: Tensor | float | None = None, *, log_z: Tensor | float | None = None
) -> Tensor:
    """Return the regularized upper incomplete gamma function ``Q(a, z) = 1 - P(a, z)``.

    Computed where it is the smaller one, not by subtraction; derivatives and errors are those of
    `gammainc`.

    Parameters
    ----------
    a, z, log_z : Tensor or float
        As in `gammainc`.

    Returns
    -------
    Tensor
        ``Q(a, z)``, with the common dtype of the arguments.

    Raises
    ------
    TypeError
        As `gammainc` does.

    Examples
    --------
    >>> import torch
    >>> gammaincc(2.0, torch.tensor([1.0, 80.0]))
    tensor([7.3576e-01, 1.4619e-33])
    """
    at = point("gammaincc", a, z, log_z)
    return at.evaluate(upper, 1 - at.first_term, at.nothing)


def log_gammainc(
    a: Tensor | float, z: Tensor | float | None = None, *, log_z: Tensor | float | None = None
) -> Tensor:
    """Return ``ln P(a, z)``, also where ``P`` underflows.

    Parameters
    ----------
    a, z, log_z : Tensor or float
        As in `gammainc`.

    Returns
    -------
    Tensor
        ``ln P(a, z)``; its error is 1e-12, relative where it exceeds 1.

    Raises
    ------
    TypeError
        As `gammainc` does.

    Examples
    --------
    >>> import torch
    >>> log_gammainc(1e3, torch.tensor([1.0, 1e3]))
    tensor([-5.9131e+03, -6.8477e-01])
    """
    at = point("log_gammainc", a, z, log_z)
    log_low = at.low if at.by_log else at.low.log()
    return at.evaluate(log_lower, at.a * log_low - (at.a + 1).lgamma(), at.nothing)


def log_gammaincc(
    a: Tensor | float, z: Tensor | float | None = None, *, log_z: Tensor | float | None = None
) -> Tensor:
    """Return ``ln Q(a, z)``, also where ``Q`` underflows.

    Parameters
    ----------
    a, z, log_z : Tensor or float
        As in `gammainc`.

    Returns
    -------
    Tensor
        ``ln Q(a, z)``; its error is 1e-12, relative where it exceeds 1.

    Raises
    ------
    TypeError
        As `gammainc` does.

    Examples
    --------
    >>> import torch
    >>> log_gammaincc(2.0, torch.tensor([1.0, 1e4]))
    tensor([-3.0685e-01, -9.9908e+03])
    """
    at = point("log_gammaincc", a, z, log_z)
    return at.evaluate(log_upper, at.nothing - at.first_term, at.nothing - at.exponential)


def gamma_sample_derivative(a: Tensor | float, z: Tensor | float) -> Tensor:
    """Return ``dz/da`` of a gamma variable ``z`` at a fixed value of its CDF.

    ``dz/da = -(dP/da) / f(z)``, computed as one integral of positive terms, so that it is accurate
    however far ``z`` is in a tail. Differentiable once more in both arguments. For
    ``1e-3 <= a <= 1e5`` the relative error in float64 is at most 1e-9, in fact about 1e-11.

    Parameters
    ----------
    a : Tensor or float
        Shape, ``0 < a < inf``; elsewhere the result is NaN.
    z : Tensor or float
        The variable, ``0 <= z <= inf``; NaN elsewhere. It is broadcast with ``a``.

    Returns
    -------
    Tensor
        ``dz/da``, with the common dtype of the arguments; 0 at ``z = 0``, inf at infinity.

    Raises
    ------
    TypeError
        If no argument is a tensor, or one has not a real floating dtype.

    Examples
    --------
    >>> import torch
    >>> gamma_sample_derivative(3.0, torch.tensor([1e-9, 3.0, 30.0]))
    tensor([7.3265e-09, 1.0570e+00, 2.6859e+00])
    """
    at = point("gamma_sample_derivative", a, z, None)
    at_zero = at.nothing - torch.xlogy(at.low, at.low.detach()) / at.a
    return at.evaluate(lambda a, z, u: z * slope(a, z, u), at_zero, at.nothing + at.high.log())


def gamma_log_sample_derivative(a: Tensor | float, log_z: Tensor | float) -> Tensor:
    """Return ``d(ln z)/da`` of a gamma variable at a fixed value of its CDF, from ``ln z``.

    For shapes so small that ``z`` underflows; otherwise as `gamma_sample_derivative`, of which it
    is the quotient by ``z``.

    Parameters
    ----------
    a : Tensor or float
        Shape, ``0 < a < inf``; elsewhere the result is NaN.
    log_z : Tensor or float
        Logarithm of the variable. It is broadcast with ``a``.

    Returns
    -------
    Tensor
        ``d(ln z)/da``, with the common dtype of the arguments.

    Raises
    ------
    TypeError
        If no argument is a tensor, or one has not a real floating dtype.

    Examples
    --------
    As ``z`` tends to 0, ``P = z^a / Gamma(a + 1)`` and ``d(ln z)/da = (psi(a + 1) - ln z) / a``:

    >>> import torch
    >>> gamma_log_sample_derivative(1e-3, torch.tensor(-2e3))
    tensor(1999424.3750)
    """
    at = point("gamma_log_sample_derivative", a, None, log_z)
    return at.evaluate(slope, at.nothing - at.low / at.a, at.nothing)


_log_sample = differentiable_sample(
    lambda log_z, a: [lambda: gamma_log_sample_derivative(a, log_z)], name="gamma_log_sample"
)


def gamma_log_sample(log_z: Tensor, a: Tensor) -> Tensor:
    """Return the logarithm of a gamma variable as it is, with its derivatives by the shape.

    For shapes so small that the variable itself underflows.

    Parameters
    ----------
    log_z : Tensor
        Logarithms of draws of a gamma variable with shape ``a`` and scale 1, taken as constant but
        for the dependence on ``a`` at a fixed value of the CDF.
    a : Tensor
        Shape, broadcast with ``log_z``.

    Returns
    -------
    Tensor
        ``log_z``, whose derivative by ``a`` is `gamma_log_sample_derivative`.

    Raises
    ------
    TypeError
        If one of them has not a real floating dtype.

    Examples
    --------
    >>> import torch
    >>> log_z, a = torch.tensor(-2e3), torch.tensor(1e-3, requires_grad=True)
    >>> gamma_log_sample(log_z, a).backward()
    >>> a.grad
    tensor(1999424.3750)
    """
    return _log_sample(log_z, a)
