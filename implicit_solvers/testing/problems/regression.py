"""Regressions: linear, generalized linear, and nonlinear least squares. It knows no solver."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from implicit_solvers.testing.problems.problem import Problem

__all__ = [
    "LOGISTIC",
    "MEYER",
    "MICHAELIS_MENTEN",
    "OSBORNE_1",
    "OSBORNE_2",
    "POISSON",
    "RIDGE",
    "RIDGE_RESIDUALS",
]

_I = torch.arange(1, 21, dtype=torch.float64)
DESIGN = torch.stack([torch.ones(20, dtype=torch.float64), torch.sin(_I), torch.cos(3 * _I)], 1)
HEIGHTS = 1 + torch.sin(_I + 1)
LABELS = torch.tensor([1.0, 1, -1, -1, 1, 1, -1, 1, 1, -1, -1, -1, 1, 1, 1, -1, 1, -1, 1, 1])
COUNTS = torch.tensor([3.0, 4, 1, 0, 1, 2, 5, 2, 3, 0, 0, 2, 4, 2, 3, 1, 0, 1, 6, 3])


def ridge(w: Tensor, theta: Tensor) -> Tensor:
    """Ridge regression: ``(|X w - y|² + λ |w|²)/2`` with `DESIGN`, `HEIGHTS`; theta is λ."""
    misfit = DESIGN.to(w) @ w - HEIGHTS.to(w)
    return ((misfit**2).sum() + theta[0] * (w**2).sum()) / 2


def ridge_residuals(w: Tensor, theta: Tensor) -> Tensor:
    """Ridge regression as least squares: ``(X w - y, √λ w)``; theta is λ."""
    return torch.cat([DESIGN.to(w) @ w - HEIGHTS.to(w), torch.sqrt(theta[0]) * w])


def logistic(w: Tensor, theta: Tensor) -> Tensor:
    """Logistic regression: ``Σ_i log(1 + exp(-y_i x_i·w)) + λ |w|²/2``; theta is λ.

    The ``x_i`` are the rows of `DESIGN`, the ``y_i`` are `LABELS`.
    """
    margin = LABELS.to(w) * (DESIGN.to(w) @ w)
    return softplus(-margin).sum() + theta[0] * (w**2).sum() / 2


def poisson(w: Tensor, theta: Tensor) -> Tensor:
    """Poisson regression: ``Σ_i (exp(x_i·w) - y_i x_i·w) + λ |w|²/2``; theta is λ.

    The ``x_i`` are the rows of `DESIGN`, the ``y_i`` are `COUNTS`.
    """
    eta = DESIGN.to(w) @ w
    return (torch.exp(eta) - COUNTS.to(w) * eta).sum() + theta[0] * (w**2).sum() / 2


def meyer(z: Tensor, theta: Tensor) -> Tensor:
    """Meyer's thermistor: ``z1 exp(z2/(t_i + z3)) - y_i``, ``t_i = 45 + 5 i``; theta are the y.

    Badly scaled: the unknowns are 0.0056, 6181 and 345.
    """
    t = 45 + 5 * torch.arange(1, 17).to(z)
    return z[0] * torch.exp(z[1] / (t + z[2])) - theta


def michaelis_menten(z: Tensor, theta: Tensor) -> Tensor:
    """Michaelis and Menten's kinetics: ``z1 c_i/(z2 + c_i) - y_i``; theta are the y."""
    c = torch.tensor([0.02, 0.06, 0.11, 0.22, 0.56, 1.1], dtype=torch.float64).to(z)
    c = c.repeat_interleave(2)
    return z[0] * c / (z[1] + c) - theta


def osborne_1(z: Tensor, theta: Tensor) -> Tensor:
    """``z1 + z2 exp(-z4 t_i) + z3 exp(-z5 t_i) - y_i``, ``t_i = 10 (i - 1)``; theta are the y."""
    t = 10 * torch.arange(len(theta)).to(z)
    return z[0] + z[1] * torch.exp(-z[3] * t) + z[2] * torch.exp(-z[4] * t) - theta


def osborne_2(z: Tensor, theta: Tensor) -> Tensor:
    """``z1 exp(-z5 t_i) + Σ_k z_k exp(-z_{k+4} (t_i - z_{k+7})²) - y_i``, a decay and peaks.

    k is 2, 3, 4, and ``t_i = (i - 1)/10``; theta are the y.
    """
    t = torch.arange(len(theta)).to(z) / 10
    height, width, centre = z[1:4], z[5:8], z[8:]
    peaks = torch.exp(-width * (t.unsqueeze(1) - centre) ** 2) @ height
    return z[0] * torch.exp(-z[4] * t) + peaks - theta


RIDGE = Problem(
    "ridge", "minimize", ridge, 3 * (0.0,), (0.5,), "Hoerl and Kennard, Technometrics 12 (1970)"
)
RIDGE_RESIDUALS = Problem(
    "ridge-residuals", "least_squares", ridge_residuals, 3 * (0.0,), (0.5,), RIDGE.source
)
LOGISTIC = Problem(
    "logistic", "minimize", logistic, 3 * (0.0,), (0.1,), "Cox, J. R. Stat. Soc. B 20 (1958)"
)
POISSON = Problem(
    "poisson",
    "minimize",
    poisson,
    3 * (0.0,),
    (0.1,),
    "McCullagh and Nelder, Generalized Linear Models (1989), chapter 6",
)
MEYER = Problem(
    "meyer",
    "least_squares",
    meyer,
    (0.02, 4000.0, 250.0),
    (
        *(34780.0, 28610.0, 23650.0, 19630.0, 16370.0, 13720.0, 11540.0, 9744.0),
        *(8261.0, 7030.0, 6005.0, 5147.0, 4427.0, 3820.0, 3307.0, 2872.0),
    ),
    "Moré, Garbow and Hillstrom (1981), problem 10",
)
MICHAELIS_MENTEN = Problem(
    "michaelis-menten",
    "least_squares",
    michaelis_menten,
    (205.0, 0.08),
    (76.0, 47.0, 97.0, 107.0, 123.0, 139.0, 159.0, 152.0, 191.0, 201.0, 207.0, 200.0),
    "Bates and Watts, Nonlinear Regression Analysis (1988), 269 (puromycin)",
)
OSBORNE_1 = Problem(
    "osborne-1",
    "least_squares",
    osborne_1,
    (0.5, 1.5, -1.0, 0.01, 0.02),
    (
        *(0.844, 0.908, 0.932, 0.936, 0.925, 0.908, 0.881, 0.850, 0.818, 0.784, 0.751),
        *(0.718, 0.685, 0.658, 0.628, 0.603, 0.580, 0.558, 0.538, 0.522, 0.506, 0.490),
        *(0.478, 0.467, 0.457, 0.448, 0.438, 0.431, 0.424, 0.420, 0.414, 0.411, 0.406),
    ),
    "Moré, Garbow and Hillstrom (1981), problem 17",
)
OSBORNE_2 = Problem(
    "osborne-2",
    "least_squares",
    osborne_2,
    (1.3, 0.65, 0.65, 0.7, 0.6, 3.0, 5.0, 7.0, 2.0, 4.5, 5.5),
    (
        *(
            1.366,
            1.191,
            1.112,
            1.013,
            0.991,
            0.885,
            0.831,
            0.847,
            0.786,
            0.725,
            0.746,
            0.679,
            0.608,
        ),
        *(
            0.655,
            0.616,
            0.606,
            0.602,
            0.626,
            0.651,
            0.724,
            0.649,
            0.649,
            0.694,
            0.644,
            0.624,
            0.661,
        ),
        *(
            0.612,
            0.558,
            0.533,
            0.495,
            0.500,
            0.423,
            0.395,
            0.375,
            0.372,
            0.391,
            0.396,
            0.405,
            0.428,
        ),
        *(
            0.429,
            0.523,
            0.562,
            0.607,
            0.653,
            0.672,
            0.708,
            0.633,
            0.668,
            0.645,
            0.632,
            0.591,
            0.559,
        ),
        *(
            0.597,
            0.625,
            0.739,
            0.710,
            0.729,
            0.720,
            0.636,
            0.581,
            0.428,
            0.292,
            0.162,
            0.098,
            0.054,
        ),
    ),
    "Moré, Garbow and Hillstrom (1981), problem 19",
)
