"""Equations in one unknown from astronomy, statistics, hydraulics and finance.

It knows no solver.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.special import ndtr

from implicit_solvers.testing.problems.problem import Problem

__all__ = ["COLEBROOK", "IMPLIED_VOLATILITY", "KEPLER", "QUANTILE"]


def kepler(E: Tensor, theta: Tensor) -> Tensor:
    """Kepler's equation ``E - e sin E = M`` in the eccentric anomaly; theta is ``(M, e)``."""
    M, e = theta
    return E - e * torch.sin(E) - M


def quantile(z: Tensor, theta: Tensor) -> Tensor:
    """``(1-w) Φ(z) + w Φ((z-μ)/σ) = p``: a quantile of a mixture of normals.

    theta is ``(p, w, μ, σ)``.
    """
    p, w, mean, scale = theta
    return (1 - w) * ndtr(z) + w * ndtr((z - mean) / scale) - p


def colebrook(f: Tensor, theta: Tensor) -> Tensor:
    """Colebrook's friction factor: ``1/√f = -2 log10(ε/3.7 + 2.51/(Re √f))``.

    theta is ``(Re, ε)``, the Reynolds number and the relative roughness.
    """
    reynolds, roughness = theta
    s = 1 / torch.sqrt(f)
    return s + 2 * torch.log10(roughness / 3.7 + 2.51 * s / reynolds)


def implied_volatility(sigma: Tensor, theta: Tensor) -> Tensor:
    """``S Φ(d) - K exp(-r T) Φ(d - σ√T) = price``: a call's volatility by Black and Scholes.

    ``d = (log(S/K) + (r + σ²/2) T)/(σ√T)``; theta is ``(price, S, K, r, T)``.
    """
    price, spot, strike, rate, years = theta
    spread = sigma * torch.sqrt(years)
    d = (torch.log(spot / strike) + rate * years) / spread + spread / 2
    return spot * ndtr(d) - strike * torch.exp(-rate * years) * ndtr(d - spread) - price


KEPLER = Problem(
    "kepler", "root", kepler, 0.5, (0.5, 0.9), "Kepler, Astronomia nova (1609), chapter 60"
)
QUANTILE = Problem(
    "quantile",
    "root",
    quantile,
    0.0,
    (0.95, 0.1, 1.0, 3.0),
    "Tukey, A survey of sampling from contaminated distributions (1960)",
)
COLEBROOK = Problem(
    "colebrook",
    "root",
    colebrook,
    0.02,
    (1e5, 1e-4),
    "Colebrook, J. Inst. Civ. Eng. 11 (1939), 133-156",
)
IMPLIED_VOLATILITY = Problem(
    "implied-volatility",
    "root",
    implied_volatility,
    0.2,
    (12.0, 100.0, 110.0, 0.03, 1.5),
    "Black and Scholes, J. Political Economy 81 (1973), 637-654",
)
