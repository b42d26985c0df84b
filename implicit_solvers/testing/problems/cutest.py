"""Square systems of CUTEst, each with the name, the start and the constants that it has there.

Source: Gould, Orban and Toint, "CUTEst: a Constrained and Unconstrained Testing Environment with
safe threads", Comput. Optim. Appl. 60 (2015), 545-557. Bounds that a few of them have are left out.
It knows no solver.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from implicit_solvers.testing.problems.problem import Problem

__all__ = ["CUTEST"]


def booth(x: Tensor, theta: Tensor) -> Tensor:
    """``x1 + 2 x2 = a``, ``2 x1 + x2 = b``; theta is ``(a, b) = (7, 5)``."""
    return x.sum() + x.flip(0) - theta


def chandheq(h: Tensor, theta: Tensor) -> Tensor:
    """Chandrasekhar's H-equation, ``h_i - 1 = (c/2n) h_i Σ_j i h_j / (i + j)``; theta is c = 1.

    The Jacobian at the root is singular.
    """
    i = torch.arange(1, len(h) + 1).to(h)
    kernel = i.unsqueeze(1) / (i.unsqueeze(1) + i)
    return h - 1 - theta[0] / (2 * len(h)) * h * (kernel @ h)


def cluster(x: Tensor, theta: Tensor) -> Tensor:
    """``(x1 - x2²) (x1 - sin x2) = 0``, ``(cos x2 - x1) (x2 - cos x1) = 0``."""
    x1, x2 = x
    first = (x1 - x2**2) * (x1 - torch.sin(x2))
    return torch.stack([first, (torch.cos(x2) - x1) * (x2 - torch.cos(x1))])


def coolhans(x: Tensor, theta: Tensor) -> Tensor:
    """Cooley and Hansen's economy: ``A X² + B X + C = 0`` for a matrix ``X`` of 3 x 3."""
    X = x.reshape(3, 3)
    A, B, C = _COOLHANS.to(x)
    return (A @ X @ X + B @ X + C).reshape(-1)


def denschncne(x: Tensor, theta: Tensor) -> Tensor:
    """``x1² + x2² = a``, ``exp(x1 - 1) + x2³ = b``; theta is ``(a, b) = (2, 2)``."""
    x1, x2 = x
    return torch.stack([x1**2 + x2**2, torch.exp(x1 - 1) + x2**3]) - theta


def denschndne(x: Tensor, theta: Tensor) -> Tensor:
    """``x1² + x2³ = x3⁴``, ``2 x1 x2 x3 = 0``, ``2 x1 x2 - 3 x2 x3 + x1 x3 = 0``."""
    x1, x2, x3 = x
    last = 2 * x1 * x2 - 3 * x2 * x3 + x1 * x3
    return torch.stack([x1**2 + x2**3 - x3**4, 2 * x1 * x2 * x3, last])


def denschnene(x: Tensor, theta: Tensor) -> Tensor:
    """``x1 = 0``, ``x2 + x2² = 0``, ``exp(x3) = a``; theta is ``a = 1``."""
    x1, x2, x3 = x
    return torch.stack([x1, x2 + x2**2, torch.exp(x3) - theta[0]])


def denschnfne(x: Tensor, theta: Tensor) -> Tensor:
    """``2 (x1 + x2)² + (x1 - x2)² = a``, ``5 x1² + (x2 - 3)² = b``; theta is ``(8, 9)``."""
    x1, x2 = x
    return torch.stack([2 * (x1 + x2) ** 2 + (x1 - x2) ** 2, 5 * x1**2 + (x2 - 3) ** 2]) - theta


def gottfr(x: Tensor, theta: Tensor) -> Tensor:
    """``x1 = a (x1 + 3 x2) (1 - x1)``, ``x2 = -b (2 x1 - x2) (1 - x2)``; theta: 0.1136, 7.5."""
    x1, x2 = x
    a, b = theta
    first = x1 - a * (x1 + 3 * x2) * (1 - x1)
    return torch.stack([first, x2 + b * (2 * x1 - x2) * (1 - x2)])


def hatfldane(x: Tensor, theta: Tensor) -> Tensor:
    """``x1 = a``, ``x_{i-1} = √x_i``; theta is ``a = 1``."""
    return torch.cat([x[:1] - theta, x[:-1] - torch.sqrt(x[1:])])


def hatfldcne(x: Tensor, theta: Tensor) -> Tensor:
    """``x1 = a``, ``x_{i+1} = x_i²`` for ``1 < i < n``, ``x_n = b``; theta is ``(1, 1)``."""
    return torch.cat([x[:1] - theta[:1], x[2:] - x[1:-1] ** 2, x[-1:] - theta[1:]])


def hatfldf(x: Tensor, theta: Tensor) -> Tensor:
    """``x1 + x2 exp(i x3) = θ_i``, i = 1, 2, 3; theta is ``(0.032, 0.056, 0.099)``."""
    return x[0] + x[1] * torch.exp(torch.arange(1, 4).to(x) * x[2]) - theta


def hatfldflne(x: Tensor, theta: Tensor) -> Tensor:
    """``x1 + x2 x3^i = θ_i``, i = 1, 2, 3, from a start whose path leads to infinity and back."""
    return x[0] + x[1] * x[2] ** torch.arange(1, 4).to(x) - theta


def hatfldg(x: Tensor, theta: Tensor) -> Tensor:
    """``x_i (x_{i-1} - x_{i+1}) + x_i - x_13 + a = 0``; theta is ``a = 1``."""
    return x * (pad(x[:-1], (1, 0)) - pad(x[1:], (0, 1))) + x - x[12] + theta


def heart8(x: Tensor, theta: Tensor) -> Tensor:
    """Two dipoles of the heart: the complex ``Σ_k m_k p_k^j``, j = 0, ..., 3, are theta.

    ``m = (x1 + i x3, x2 + i x4)``, ``p = (x5 + i x7, x6 + i x8)``.
    """
    real, imag, p, q = x.reshape(4, 2)
    sums = []
    for _ in range(4):
        sums += [real.sum(), imag.sum()]
        real, imag = real * p - imag * q, real * q + imag * p
    return torch.stack(sums) - theta


def heart6(x: Tensor, theta: Tensor) -> Tensor:
    """`heart8` without its first two equations, solved for the ``m`` of the second dipole."""
    m = torch.stack([x[:2], theta[:2] - x[:2]], 1).reshape(4)
    return heart8(torch.cat([m, x[2:]]), theta)[2:]


def hypcir(x: Tensor, theta: Tensor) -> Tensor:
    """``x1 x2 = a``, a hyperbola, ``x1² + x2² = b``, a circle; theta is ``(a, b) = (1, 4)``."""
    return torch.stack([x[0] * x[1], (x**2).sum()]) - theta


def mancinone(x: Tensor, theta: Tensor) -> Tensor:
    """Mancino: ``14 n x_i - (i - n/2)³ + Σ_{j≠i} v (sin⁵ log v + cos⁵ log v) = 0``.

    ``v² = x_j² + i/j``.
    """
    n = len(x)
    return 14 * n * x - (torch.arange(1, n + 1).to(x) - n / 2) ** 3 + _mancino_sums(x)


def _mancino_sums(x: Tensor) -> Tensor:
    i = torch.arange(1, len(x) + 1).to(x)
    v = torch.sqrt(x**2 + i.unsqueeze(1) / i)
    terms = v * (torch.sin(torch.log(v)) ** 5 + torch.cos(torch.log(v)) ** 5)
    return (terms * (1 - torch.eye(len(x)).to(x))).sum(1)


def oscipane(x: Tensor, theta: Tensor) -> Tensor:
    """Nesterov's path: ``(x1 - 1)/2 = 0``, ``ρ (x_i - 2 x_{i-1}² + 1) = 0``; theta is ρ = 500."""
    return torch.cat([(x[:1] - 1) / 2, theta * (x[1:] - 2 * x[:-1] ** 2 + 1)])


def pfit(x: Tensor, theta: Tensor) -> Tensor:
    """Fit a pole to values and derivatives at two points; theta are the three targets."""
    a, r, h = x
    bend = a * (a + 1) * r * h**2
    value, slope, curvature = 1 - (1 + h) ** -(a + torch.arange(3).to(x))
    fits = [a * r * h - bend / 2 - r * value, a * r * h * slope - bend, -bend * curvature]
    return torch.stack(fits) - theta


def powellsq(x: Tensor, theta: Tensor) -> Tensor:
    """``x1² = 0``, ``10 x1/(x1 + a) + 2 x2² = 0``; theta is ``a = 0.1``."""
    x1, x2 = x
    return torch.stack([x1**2, 10 * x1 / (x1 + theta[0]) + 2 * x2**2])


def powersumne(x: Tensor, theta: Tensor) -> Tensor:
    """``Σ_j x_j^i = θ_i``, i = 1, ..., n; theta are the sums for x = (1, 2, 3, 2)."""
    return torch.stack([(x**i).sum() for i in range(1, len(x) + 1)]) - theta


def recipe(x: Tensor, theta: Tensor) -> Tensor:
    """``x1 = a``, ``x2² = 0``, ``x3/(x2 - x1) = 0``; theta is ``a = 5``."""
    x1, x2, x3 = x
    return torch.stack([x1 - theta[0], x2**2, x3 / (x2 - x1)])


def sinvalne(x: Tensor, theta: Tensor) -> Tensor:
    """``x2 = sin x1`` and ``x1 = 0``, weighted by theta, ``(10, 1/2)``."""
    x1, x2 = x
    return theta * torch.stack([x2 - torch.sin(x1), x1])


_COOLHANS = torch.tensor(
    [
        [[0, 0, 0], [0.13725e-6, 937.62, -42.207], [0, 0, 0]],
        [
            [0.0060893, -44.292, 2.0011],
            [0.13880e-6, -1886.0, 42.362],
            [-0.13877e-6, 42.362, -2.0705],
        ],
        [[0, 44.792, 0], [0, 948.21, 0], [0, -42.684, 0]],
    ],
    dtype=torch.float64,
)
_OPTIMA = (0.032, 0.056, 0.099)
_HEART6 = (-0.816, -0.017, -1.826, -0.754, -4.839, -3.259, -14.023, 15.467)
_HEART8 = (-0.69, -0.044, -1.57, -1.31, -2.65, 2.0, -12.6, 9.48)
_PFIT4 = (-98.9629629629, -216.098765432, -239.670781893)


def _mancino_start(n: int) -> tuple[float, ...]:
    cubes = (torch.arange(1, n + 1, dtype=torch.float64) - n / 2) ** 3
    shrink = 14 * n / ((14 * n) ** 2 - 36 * (n - 1) ** 2)
    return tuple((-shrink * (_mancino_sums(torch.zeros_like(cubes)) + cubes)).tolist())


def _system(
    fn: Callable[[Tensor, Tensor], Tensor],
    z0: tuple[float, ...],
    parameters: tuple[float, ...] = (),
    name: str = "",
    regular: bool = True,
) -> Problem:
    name = name or fn.__name__
    return Problem(name, "root", fn, z0, parameters, f"CUTEst, {name.upper()}", regular=regular)


CUTEST = (
    _system(booth, (0.0, 0.0), (7.0, 5.0)),
    _system(chandheq, 100 * (1.0,), (1.0,), regular=False),
    _system(cluster, (0.0, 0.0)),
    _system(coolhans, 9 * (0.0,)),
    _system(denschncne, (2.0, 3.0), (2.0, 2.0)),
    _system(denschndne, 3 * (10.0,), regular=False),
    _system(denschnene, (2.0, 3.0, -8.0), (1.0,)),
    _system(denschnfne, (2.0, 0.0), (8.0, 9.0)),
    _system(gottfr, (0.5, 0.5), (0.1136, 7.5)),
    _system(hatfldane, 4 * (0.1,), (1.0,)),
    _system(hatfldcne, 25 * (0.9,), (1.0, 1.0)),
    _system(hatfldf, 3 * (0.1,), _OPTIMA),
    _system(hatfldflne, (1.2, -1.2, 0.98), _OPTIMA),
    _system(hatfldg, 25 * (1.0,), (1.0,)),
    _system(heart6, (0.0, 0.0, 1.0, 1.0, 1.0, 1.0), _HEART6),
    _system(heart8, (0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0), _HEART8),
    _system(hypcir, (0.0, 1.0), (1.0, 4.0)),
    _system(mancinone, _mancino_start(100)),
    _system(oscipane, (-1.0, *9 * (1.0,)), (500.0,)),
    _system(pfit, (1.0, 0.0, 1.0), (-8.0, -18.6666666666, -23.1111111111), "pfit1"),
    _system(pfit, (1.0, 0.0, 1.0), _PFIT4, "pfit4"),
    _system(powellsq, (3.0, 1.0), (0.1,), regular=False),
    _system(powersumne, 4 * (2.0,), (8.0, 18.0, 44.0, 114.0), regular=False),
    _system(recipe, (2.0, 5.0, 1.0), (5.0,), regular=False),
    _system(sinvalne, (4.712389, -1.0), (10.0, 0.5)),
)
