"""Equations that are solved by hand. It knows no solver."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from implicit_solvers.testing.problems.problem import Problem

__all__ = ["AFFINE", "CIRCLE", "COSINE", "DOUBLE_ROOT", "NO_ROOT"]


def circle(x: Tensor, theta: Tensor) -> Tensor:
    """``x² + y² = r²`` in ``x``, a circle; theta is ``(y, r)``."""
    y, r = theta
    return x**2 + y**2 - r**2


def affine(z: Tensor, theta: Tensor) -> Tensor:
    """``z = a R z + b`` with a quarter turn ``R``; theta is ``(a, b1, b2)``."""
    turned = torch.stack([-z[1], z[0]])
    return theta[0] * turned + theta[1:]


def cosine(z: Tensor, theta: Tensor) -> Tensor:
    """``z = theta cos z``; at theta = 1 Dottie's number."""
    return theta[0] * torch.cos(z)


def double_root(z: Tensor, theta: Tensor) -> Tensor:
    """``z² - 2 z + theta = 0``: the roots ``1 ± sqrt(1 - theta)`` meet at theta = 1."""
    return z**2 - 2 * z + theta[0]


def no_root(z: Tensor, theta: Tensor) -> Tensor:
    """``z² + theta = 0``: no real root for theta > 0."""
    return z**2 + theta[0]


CIRCLE = Problem(
    "circle", "root", circle, 1.0, (0.6, 1.0), "Krantz and Parks, The Implicit Function Theorem, 1"
)
AFFINE = Problem("affine", "fixed_point", affine, (0.0, 0.0), (0.5, 1.0, 2.0), "by hand")
COSINE = Problem("cosine", "fixed_point", cosine, 1.0, (1.0,), "by hand")
DOUBLE_ROOT = Problem("double-root", "root", double_root, 2.0, (1.0,), "by hand", regular=False)
NO_ROOT = Problem("no-root", "root", no_root, math.sqrt(2), (1.0,), "by hand", regular=False)
