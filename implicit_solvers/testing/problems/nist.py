"""NIST's 27 nonlinear regressions, each from both of its starts; the second is the nearer one.

Source: Statistical Reference Datasets of NIST, nonlinear regression (2003), in the public domain.
theta are the observations, the residuals ``model(b, x) - theta``. ``MODELS`` states the models as
NIST does; those that are not of the textbook's kind are functions. It knows no solver.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib.resources import files

import torch
from torch import Tensor, exp

from implicit_solvers.testing.problems.problem import Problem

__all__ = ["NIST"]


def saturation(b: Tensor, x: Tensor) -> Tensor:
    """``b1 (1 - exp(-b2 x))``."""
    return b[0] * (1 - exp(-b[1] * x))


def chwirut(b: Tensor, x: Tensor) -> Tensor:
    """``exp(-b1 x) / (b2 + b3 x)``."""
    return exp(-b[0] * x) / (b[1] + b[2] * x)


def enso(b: Tensor, x: Tensor) -> Tensor:
    """Three cycles of the pressure: of a year, of ``b4`` and of ``b7`` months."""
    turn = 2 * math.pi * x
    year = b[1] * torch.cos(turn / 12) + b[2] * torch.sin(turn / 12)
    slow = b[4] * torch.cos(turn / b[3]) + b[5] * torch.sin(turn / b[3])
    return b[0] + year + slow + b[7] * torch.cos(turn / b[6]) + b[8] * torch.sin(turn / b[6])


def gauss(b: Tensor, x: Tensor) -> Tensor:
    """``b1 exp(-b2 x)`` and two peaks ``b3 exp(-((x - b4)/b5)²)``."""
    peaks = b[2] * exp(-(((x - b[3]) / b[4]) ** 2)) + b[5] * exp(-(((x - b[6]) / b[7]) ** 2))
    return b[0] * exp(-b[1] * x) + peaks


def rational(b: Tensor, x: Tensor) -> Tensor:
    """``(b1 + b2 x + ...)/(1 + ... x + ...)``, polynomials of the same degree."""
    powers = x.unsqueeze(1) ** torch.arange(len(b) // 2 + 1).to(x)
    return powers @ b[: len(b) // 2 + 1] / (1 + powers[:, 1:] @ b[len(b) // 2 + 1 :])


def lanczos(b: Tensor, x: Tensor) -> Tensor:
    """``Σ_k b_{2k-1} exp(-b_{2k} x)``, k = 1, 2, 3."""
    return exp(-x.unsqueeze(1) * b[1::2]) @ b[::2]


MODELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bennett5": lambda b, x: b[0] * (b[1] + x) ** (-1 / b[2]),
    "boxbod": saturation,
    "chwirut1": chwirut,
    "chwirut2": chwirut,
    "danwood": lambda b, x: b[0] * x ** b[1],
    "eckerle4": lambda b, x: b[0] / b[1] * exp(-0.5 * ((x - b[2]) / b[1]) ** 2),
    "enso": enso,
    "gauss1": gauss,
    "gauss2": gauss,
    "gauss3": gauss,
    "hahn1": rational,
    "kirby2": rational,
    "lanczos1": lanczos,
    "lanczos2": lanczos,
    "lanczos3": lanczos,
    "mgh09": lambda b, x: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
    "mgh10": lambda b, x: b[0] * exp(b[1] / (x + b[2])),
    "mgh17": lambda b, x: b[0] + b[1] * exp(-x * b[3]) + b[2] * exp(-x * b[4]),
    "misra1a": saturation,
    "misra1b": lambda b, x: b[0] * (1 - (1 + b[1] * x / 2) ** -2),
    "misra1c": lambda b, x: b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5),
    "misra1d": lambda b, x: b[0] * b[1] * x / (1 + b[1] * x),
    "nelson": lambda b, x: b[0] - b[1] * x[0] * exp(-b[2] * x[1]),
    "rat42": lambda b, x: b[0] / (1 + exp(b[1] - b[2] * x)),
    "rat43": lambda b, x: b[0] / (1 + exp(b[1] - b[2] * x)) ** (1 / b[3]),
    "roszman1": lambda b, x: b[0] - b[1] * x - torch.atan(b[2] / (x - b[3])) / math.pi,
    "thurber": rational,
}


def _fits() -> list[Problem]:
    sets = json.loads(files(__package__).joinpath("nist.json").read_text(encoding="utf-8"))
    return [
        Problem(
            f"{name}-{number}",
            "least_squares",
            _residuals(MODELS[name], data["x"]),
            tuple(map(float, start)),
            # the model is of the logarithm
            tuple(map(math.log if name == "nelson" else float, data["y"])),
            f"NIST, {name}, start {number}",
            certified=tuple(data["certified"]),
            squares=data["squares"],
        )
        for name, data in sets.items()
        for number, start in enumerate(data["starts"], start=1)
    ]


def _residuals(
    model: Callable[[Tensor, Tensor], Tensor], x: list[float]
) -> Callable[[Tensor, Tensor], Tensor]:
    predictor = torch.tensor(x, dtype=torch.float64)
    return lambda b, theta: model(b, predictor.to(b)) - theta


NIST = tuple(_fits())
