"""Integral and differential equations, discretized. It knows no solver."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from implicit_solvers.testing.problems.problem import Problem

__all__ = ["BRATU", "CHANDRASEKHAR", "CHANDRASEKHAR_ITERATION", "HEAT", "ROBERTSON"]


def chandrasekhar_iteration(H: Tensor, theta: Tensor) -> Tensor:
    """Chandrasekhar's H-equation by the midpoint rule, as a fixed point.

    ``H_i = 1 / (1 - (c/2n) Σ_j μ_i H_j / (μ_i + μ_j))`` with ``μ_i = (i - 1/2)/n``; theta is
    ``c``, the albedo, between 0 and 1.
    """
    mu = (torch.arange(len(H)).to(H) + 0.5) / len(H)
    kernel = mu.unsqueeze(1) / (mu.unsqueeze(1) + mu)
    return 1 / (1 - theta[0] / (2 * len(H)) * (kernel @ H))


def chandrasekhar(H: Tensor, theta: Tensor) -> Tensor:
    """Chandrasekhar's H-equation as a root: `chandrasekhar_iteration` leaves ``H`` as it is."""
    return H - chandrasekhar_iteration(H, theta)


def bratu(u: Tensor, theta: Tensor) -> Tensor:
    """``-u'' = λ exp(u)``, ``u(0) = u(1) = 0``; theta is λ, below 3.51."""
    h = 1 / (len(u) + 1)
    all_u = pad(u, (1, 1))
    return (2 * u - all_u[:-2] - all_u[2:]) / h**2 - theta[0] * torch.exp(u)


def robertson(y: Tensor, theta: Tensor) -> Tensor:
    """Robertson's kinetics, a step of backward Euler from (1, 0, 0) over a time of 0.1.

    ``A -> B`` at the rate ``k1``, ``2 B -> B + C`` at ``k2``, ``B + C -> A + C`` at ``k3``; theta
    is ``(k1, k2, k3)``.
    """
    a, b, c = y
    k1, k2, k3 = theta
    rate = torch.stack([-k1 * a + k3 * b * c, k1 * a - k3 * b * c - k2 * b**2, k2 * b**2])
    before = torch.tensor([1.0, 0.0, 0.0]).to(y)
    return y - before - 0.1 * rate


def heat(u: Tensor, theta: Tensor) -> Tensor:
    """``u_t = (k(u) u_x)_x`` with ``k = a + b u²``, a step of Crank and Nicolson.

    The ends are held at zero, the step of time is ``h``, the start is ``sin(π x)``; theta is
    ``(a, b)``.
    """
    h = 1 / (len(u) + 1)
    x = h * torch.arange(1, len(u) + 1).to(u)
    before = torch.sin(math.pi * x)
    return u - before - h / 2 * (_diffusion(u, theta, h) + _diffusion(before, theta, h))


def _diffusion(u: Tensor, theta: Tensor, h: float) -> Tensor:
    a, b = theta
    all_u = pad(u, (1, 1))
    middle = (all_u[1:] + all_u[:-1]) / 2
    flux = (a + b * middle**2) * (all_u[1:] - all_u[:-1]) / h
    return (flux[1:] - flux[:-1]) / h


_KELLEY = "Kelley, Solving Nonlinear Equations with Newton's Method (2003), section 1.5"

CHANDRASEKHAR = Problem("chandrasekhar", "root", chandrasekhar, 20 * (1.0,), (0.9,), _KELLEY)
CHANDRASEKHAR_ITERATION = Problem(
    "chandrasekhar-iteration", "fixed_point", chandrasekhar_iteration, 20 * (1.0,), (0.9,), _KELLEY
)
BRATU = Problem(
    "bratu", "root", bratu, 20 * (0.0,), (2.0,), "Bratu, Bull. Soc. Math. France 42 (1914), 113-142"
)
ROBERTSON = Problem(
    "robertson",
    "root",
    robertson,
    (1.0, 0.0, 0.0),
    (0.04, 3e7, 1e4),
    "Robertson, in: Numerical Analysis, an Introduction (1966), 178-182",
)
HEAT = Problem(
    "heat",
    "root",
    heat,
    tuple(math.sin(math.pi * i / 21) for i in range(1, 21)),
    (0.1, 1.0),
    "Crank and Nicolson, Proc. Cambridge Philos. Soc. 43 (1947), 50-67",
)
