"""Systems of equations of Moré, Garbow and Hillstrom, numbered as in their paper.

Source: "Testing Unconstrained Optimization Software", ACM Trans. Math. Software 7 (1981), 17-41;
as systems with as many equations as unknowns: Moré and Cosnard, "Numerical Solution of Nonlinear
Equations", ACM Trans. Math. Software 5 (1979), 64-85. It knows no solver.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from implicit_solvers.testing.problems.problem import Problem

__all__ = [
    "BROWN_ALMOST_LINEAR",
    "BROYDEN_BANDED",
    "BROYDEN_TRIDIAGONAL",
    "CHEBYQUAD_7",
    "CHEBYQUAD_8",
    "CHEBYQUAD_9",
    "DISCRETE_BOUNDARY_VALUE",
    "DISCRETE_INTEGRAL_EQUATION",
    "FREUDENSTEIN_ROTH",
    "FREUDENSTEIN_ROTH_FAR",
    "FREUDENSTEIN_ROTH_NEAR",
    "HELICAL_VALLEY",
    "POWELL_BADLY_SCALED",
    "POWELL_SINGULAR",
    "ROSENBROCK",
    "TRIGONOMETRIC",
    "VARIABLY_DIMENSIONED",
    "WATSON",
    "WOOD",
]


def rosenbrock(x: Tensor, theta: Tensor) -> Tensor:
    """1: ``a (x2 - x1²) = 0``, ``b - x1 = 0``; theta is ``(a, b) = (10, 1)``."""
    x1, x2 = x
    a, b = theta
    return torch.stack([a * (x2 - x1**2), b - x1])


def freudenstein_roth(x: Tensor, theta: Tensor) -> Tensor:
    """2: ``x1 + ((5 - x2) x2 - 2) x2 = a``, ``x1 + ((x2 + 1) x2 - 14) x2 = b``.

    theta is ``(a, b) = (13, 29)``.
    """
    x1, x2 = x
    a, b = theta
    return torch.stack([x1 + ((5 - x2) * x2 - 2) * x2 - a, x1 + ((x2 + 1) * x2 - 14) * x2 - b])


def powell_badly_scaled(x: Tensor, theta: Tensor) -> Tensor:
    """3: ``a x1 x2 = 1``, ``exp(-x1) + exp(-x2) = b``; theta is ``(a, b) = (10⁴, 1.0001)``."""
    x1, x2 = x
    a, b = theta
    return torch.stack([a * x1 * x2 - 1, torch.exp(-x1) + torch.exp(-x2) - b])


def helical_valley(x: Tensor, theta: Tensor) -> Tensor:
    """7: ``10 (x3 - 10 turn) = 0``, ``10 (√(x1² + x2²) - r) = 0``, ``x3 = h``.

    ``turn`` is the angle of ``(x1, x2)`` in turns, between -1/4 and 3/4; theta is
    ``(r, h) = (1, 0)``.
    """
    x1, x2, x3 = x
    r, h = theta
    turn = 0.25 + torch.atan2(-x1, x2) / (2 * math.pi)
    return torch.stack([10 * (x3 - 10 * turn), 10 * (torch.sqrt(x1**2 + x2**2) - r), x3 - h])


def powell_singular(x: Tensor, theta: Tensor) -> Tensor:
    """13: ``x1 + a x2``, ``√5 (x3 - x4)``, ``(x2 - 2 x3)²``, ``√10 (x1 - x4)²``; theta is ``a``.

    The Jacobian at the root, zero, has rank 2.
    """
    x1, x2, x3, x4 = x
    return torch.stack(
        [
            x1 + theta[0] * x2,
            math.sqrt(5) * (x3 - x4),
            (x2 - 2 * x3) ** 2,
            math.sqrt(10) * (x1 - x4) ** 2,
        ]
    )


def wood(x: Tensor, theta: Tensor) -> Tensor:
    """14: a stationary point of Wood's function; theta is ``(a, b) = (1, 1)``.

    The function is ``100 (x2 - x1²)² + (a - x1)² + 90 (x4 - x3²)² + (b - x3)²
    + 10.1 ((x2 - 1)² + (x4 - 1)²) + 19.8 (x2 - 1) (x4 - 1)``; the derivatives in x1 and x3 are
    halved.
    """
    x1, x2, x3, x4 = x
    a, b = theta
    s, t = x2 - x1**2, x4 - x3**2
    return torch.stack(
        [
            -200 * x1 * s - (a - x1),
            200 * s + 20.2 * (x2 - 1) + 19.8 * (x4 - 1),
            -180 * x3 * t - (b - x3),
            180 * t + 20.2 * (x4 - 1) + 19.8 * (x2 - 1),
        ]
    )


def watson(x: Tensor, theta: Tensor) -> Tensor:
    """20: ``Jᵀ r = 0`` for a polynomial ``u(t) = Σ_j x_j t^(j-1)`` that solves ``u' = a + u²``.

    The residuals are ``u' - u² - a`` at ``t = 1/29, ..., 1``, and ``x1`` and ``x2 - x1² - b``;
    theta is ``(a, b) = (1, 1)``.
    """
    a, b = theta
    t = torch.arange(1, 30).to(x).unsqueeze(1) / 29
    j = torch.arange(len(x)).to(x)
    powers = t**j
    slopes = j * powers / t
    u = powers @ x
    r = slopes @ x - u**2 - a
    end = x[1] - x[0] ** 2 - b
    inner = (slopes - 2 * u.unsqueeze(1) * powers).mT @ r
    return inner + pad(torch.stack([x[0] - 2 * x[0] * end, end]), (0, len(x) - 2))


def chebyquad(x: Tensor, theta: Tensor) -> Tensor:
    """35: nodes of a quadrature: ``mean_j T_i(x_j) = ∫ T_i`` over [0, 1], i = 1, ..., n.

    ``T_i`` is the shifted Chebyshev polynomial; theta are the first two integrals, (0, -1/3).
    There is no real root for n = 8 and n > 9.
    """
    i = torch.arange(3, len(x) + 1).to(x)
    integrals = torch.where(i % 2 == 0, -1 / (i**2 - 1), 0.0)
    y = 2 * x - 1
    before, now = torch.ones_like(y), y
    means = []
    for _ in range(len(x)):
        means.append(now.mean())
        before, now = now, 2 * y * now - before
    return torch.stack(means) - torch.cat([theta, integrals])


def brown_almost_linear(x: Tensor, theta: Tensor) -> Tensor:
    """27: ``x_i + Σ_j x_j = a`` for i < n, ``Π_j x_j = b``; theta is ``(a, b) = (n + 1, 1)``."""
    a, b = theta
    return torch.cat([x[:-1] + x.sum() - a, (math.prod(x.unbind()) - b).reshape(1)])


def discrete_boundary_value(x: Tensor, theta: Tensor) -> Tensor:
    """28: ``2 x_i - x_{i-1} - x_{i+1} + h² (x_i + t_i + 1)³/2 = 0``, ``t_i = i h``.

    theta is ``(x_0, x_{n+1}) = (0, 0)``.
    """
    h = 1 / (len(x) + 1)
    t = h * torch.arange(1, len(x) + 1).to(x)
    all_x = torch.cat([theta[:1], x, theta[1:]])
    return 2 * x - all_x[:-2] - all_x[2:] + h**2 * (x + t + 1) ** 3 / 2


def discrete_integral_equation(x: Tensor, theta: Tensor) -> Tensor:
    """29: ``x_i + a h ((1-t_i) Σ_{j≤i} t_j w_j + t_i Σ_{j>i} (1-t_j) w_j) = 0``.

    ``w_j = (x_j + t_j + b)³``; theta is ``(a, b) = (1/2, 1)``.
    """
    a, b = theta
    h = 1 / (len(x) + 1)
    t = h * torch.arange(1, len(x) + 1).to(x)
    w = (x + t + b) ** 3
    below = (t * w).cumsum(0)
    above = ((1 - t) * w).sum() - ((1 - t) * w).cumsum(0)
    return x + a * h * ((1 - t) * below + t * above)


def trigonometric(x: Tensor, theta: Tensor) -> Tensor:
    """26: ``a - Σ_j cos x_j + i (1 - cos x_i) - sin x_i = 0``; theta is ``a = n``."""
    i = torch.arange(1, len(x) + 1).to(x)
    return theta[0] - torch.cos(x).sum() + i * (1 - torch.cos(x)) - torch.sin(x)


def variably_dimensioned(x: Tensor, theta: Tensor) -> Tensor:
    """25: ``x_i - a + i s (1 + 2 s²) = 0`` with ``s = Σ_j j (x_j - b)``; theta is (1, 1)."""
    a, b = theta
    i = torch.arange(1, len(x) + 1).to(x)
    s = (i * (x - b)).sum()
    return x - a + i * s * (1 + 2 * s**2)


def broyden_tridiagonal(x: Tensor, theta: Tensor) -> Tensor:
    """30: ``(a - b x_i) x_i - x_{i-1} - 2 x_{i+1} + 1 = 0``; theta is ``(a, b) = (3, 2)``."""
    a, b = theta
    return (a - b * x) * x - pad(x[:-1], (1, 0)) - 2 * pad(x[1:], (0, 1)) + 1


def broyden_banded(x: Tensor, theta: Tensor) -> Tensor:
    """31: ``x_i (a + b x_i²) + 1 - Σ_j x_j (1 + x_j) = 0``, j from i - 5 to i + 1 without i.

    theta is ``(a, b) = (2, 5)``.
    """
    a, b = theta
    band = torch.ones(len(x), len(x)).tril(1).triu(-5).fill_diagonal_(0).to(x)
    return x * (a + b * x**2) + 1 - band @ (x * (1 + x))


def _source(number: int) -> str:
    return f"Moré, Garbow and Hillstrom (1981), problem {number}"


_N = 10
_GRID = tuple(i / (_N + 1) for i in range(1, _N + 1))
_PARABOLA = tuple(t * (t - 1) for t in _GRID)


def _chebyquad(n: int) -> Problem:
    nodes = tuple(i / (n + 1) for i in range(1, n + 1))
    theta = (0.0, -1 / 3)
    return Problem(f"chebyquad-{n}", "root", chebyquad, nodes, theta, _source(35), regular=n != 8)


ROSENBROCK = Problem("rosenbrock", "root", rosenbrock, (-1.2, 1.0), (10.0, 1.0), _source(1))
FREUDENSTEIN_ROTH = Problem(
    "freudenstein-roth", "root", freudenstein_roth, (0.5, -2.0), (13.0, 29.0), _source(2)
)
FREUDENSTEIN_ROTH_FAR = Problem(
    "freudenstein-roth-far",
    "root",
    freudenstein_roth,
    (15.0, -2.0),
    (13.0, 29.0),
    "Broyden, Math. Comp. 19 (1965), 577-593, case 8",
)
FREUDENSTEIN_ROTH_NEAR = Problem(
    "freudenstein-roth-near", "root", freudenstein_roth, (6.0, 3.0), (13.0, 29.0), _source(2)
)
POWELL_BADLY_SCALED = Problem(
    "powell-badly-scaled", "root", powell_badly_scaled, (0.0, 1.0), (1e4, 1.0001), _source(3)
)
HELICAL_VALLEY = Problem(
    "helical-valley", "root", helical_valley, (-1.0, 0.0, 0.0), (1.0, 0.0), _source(7)
)
POWELL_SINGULAR = Problem(
    "powell-singular",
    "root",
    powell_singular,
    (3.0, -1.0, 0.0, 1.0),
    (10.0,),
    _source(13),
    regular=False,
)
WOOD = Problem("wood", "root", wood, (-3.0, -1.0, -3.0, -1.0), (1.0, 1.0), _source(14))
WATSON = Problem("watson", "root", watson, 6 * (0.0,), (1.0, 1.0), _source(20))
TRIGONOMETRIC = Problem(
    "trigonometric", "root", trigonometric, _N * (1 / _N,), (float(_N),), _source(26)
)
VARIABLY_DIMENSIONED = Problem(
    "variably-dimensioned",
    "root",
    variably_dimensioned,
    tuple(1 - i / _N for i in range(1, _N + 1)),
    (1.0, 1.0),
    _source(25),
)
BROWN_ALMOST_LINEAR = Problem(
    "brown-almost-linear", "root", brown_almost_linear, _N * (0.5,), (_N + 1.0, 1.0), _source(27)
)
DISCRETE_BOUNDARY_VALUE = Problem(
    "discrete-boundary-value", "root", discrete_boundary_value, _PARABOLA, (0.0, 0.0), _source(28)
)
DISCRETE_INTEGRAL_EQUATION = Problem(
    "discrete-integral-equation",
    "root",
    discrete_integral_equation,
    _PARABOLA,
    (0.5, 1.0),
    _source(29),
)
BROYDEN_TRIDIAGONAL = Problem(
    "broyden-tridiagonal", "root", broyden_tridiagonal, _N * (-1.0,), (3.0, 2.0), _source(30)
)
BROYDEN_BANDED = Problem(
    "broyden-banded", "root", broyden_banded, _N * (-1.0,), (2.0, 5.0), _source(31)
)
CHEBYQUAD_7, CHEBYQUAD_8, CHEBYQUAD_9 = (_chebyquad(n) for n in (7, 8, 9))
