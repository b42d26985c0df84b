"""Functions of two variables to be minimized. It knows no solver."""

from __future__ import annotations

from torch import Tensor

from implicit_solvers.testing.problems.problem import Problem

__all__ = ["BEALE", "HIMMELBLAU", "ROSENBROCK_VALLEY"]


def rosenbrock_valley(z: Tensor, theta: Tensor) -> Tensor:
    """Rosenbrock: ``(a - x)² + b (y - x²)²``; theta is ``(a, b)``."""
    x, y = z
    a, b = theta
    return (a - x) ** 2 + b * (y - x**2) ** 2


def himmelblau(z: Tensor, theta: Tensor) -> Tensor:
    """Himmelblau: ``(x² + y - a)² + (x + y² - b)²``, four minima; theta is ``(a, b)``."""
    x, y = z
    a, b = theta
    return (x**2 + y - a) ** 2 + (x + y**2 - b) ** 2


def beale(z: Tensor, theta: Tensor) -> Tensor:
    """Beale: ``Σ_i (y_i - x (1 - y^i))²``, i = 1, 2, 3; theta are the ``y_i``."""
    x, y = z
    a, b, c = theta
    return (a - x * (1 - y)) ** 2 + (b - x * (1 - y**2)) ** 2 + (c - x * (1 - y**3)) ** 2


ROSENBROCK_VALLEY = Problem(
    "rosenbrock-valley",
    "minimize",
    rosenbrock_valley,
    (-1.2, 1.0),
    (1.0, 100.0),
    "Rosenbrock, Computer J. 3 (1960), 175-184",
)
HIMMELBLAU = Problem(
    "himmelblau",
    "minimize",
    himmelblau,
    (1.0, 1.0),
    (11.0, 7.0),
    "Himmelblau, Applied Nonlinear Programming (1972), 428",
)
BEALE = Problem(
    "beale",
    "minimize",
    beale,
    (1.0, 1.0),
    (1.5, 2.25, 2.625),
    "Moré, Garbow and Hillstrom (1981), problem 5",
)
