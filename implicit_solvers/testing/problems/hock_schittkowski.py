"""Minima with bounds, equalities and inequalities, each with its number in the collection.

Source: Hock and Schittkowski, "Test Examples for Nonlinear Programming Codes", Lecture Notes in
Economics and Mathematical Systems 187 (1981). The parameters are constants of the objective, of
the constraints, or of the bounds. Four solutions are degenerate: 13 has no multipliers, 17 a
constraint that is active with a zero one, 26 no curvature in one direction, 30 too many
multipliers. It knows no solver.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, cat, exp, log, sin, stack

from implicit_solvers.testing.problems.problem import Bound, Problem

__all__ = ["HOCK_SCHITTKOWSKI"]

Function = Callable[[Tensor, Tensor], Tensor]
INF = math.inf


def rosenbrock(z: Tensor, p: Tensor) -> Tensor:
    """``p1 (z2 - z1²)² + (p2 - z1)²``."""
    return p[0] * (z[1] - z[0] ** 2) ** 2 + (p[1] - z[0]) ** 2


def wood(z: Tensor, p: Tensor) -> Tensor:
    """Two of Rosenbrock's valleys, coupled: the objective of 38."""
    u, v = z[1] - 1, z[3] - 1
    valleys = 100 * (z[1] - z[0] ** 2) ** 2 + (p[0] - z[0]) ** 2
    valleys = valleys + 90 * (z[3] - z[2] ** 2) ** 2 + (p[1] - z[2]) ** 2
    return valleys + 10.1 * (u**2 + v**2) + 19.8 * u * v


def powell(z: Tensor, p: Tensor) -> Tensor:
    """Return the equalities of 78 and 80."""
    sphere, cubes = (z**2).sum() - p[0], z[0] ** 3 + z[1] ** 3 + 1
    return stack([sphere, z[1] * z[2] - p[1] * z[3] * z[4], cubes])


def exponentials(z: Tensor, p: Tensor) -> Tensor:
    """Return the inequalities of 34 and 66."""
    return exp(z[:2]) - z[1:]


def market(z: Tensor, p: Tensor) -> Tensor:
    """Three logarithms of shares, weighted: the objective of 62."""
    tail = z.flip(0).cumsum(0).flip(0) + 0.03
    kept = tail - z.new_tensor([0.91, 0.93, 0.87]) * z
    return -(cat([p, p.new_tensor([9330.46])]) * log(tail / kept)).sum()


def grid(z: Tensor, p: Tensor) -> Tensor:
    """Flows between three nodes, at two angles: the equalities of 74."""
    a, b, first, second = z
    return stack(
        [
            1000 * (sin(-first - 0.25) + sin(-second - 0.25)) + p[0] - a,
            1000 * (sin(first - 0.25) + sin(first - second - 0.25)) + p[0] - b,
            1000 * (sin(second - 0.25) + sin(second - first - 0.25)) + p[1],
        ]
    )


def colville_3(z: Tensor, p: Tensor) -> Tensor:
    """Three flows within limits: the inequalities of 83."""
    a, b, c, d, e = z
    flows = stack(
        [
            p[0] + 0.0056858 * b * e + 0.0006262 * a * d - 0.0022053 * c * e,
            p[1] - 90 + 0.0071317 * b * e + 0.0029955 * a * b + 0.0021813 * c**2,
            9.300961 - 20 + 0.0047026 * c * e + 0.0012547 * a * c + 0.0019085 * c * d,
        ]
    )
    return cat([-flows, flows - z.new_tensor([92, 20, 5])])


def colville_1(z: Tensor, p: Tensor) -> Tensor:
    """``Σ p_i z_i + z·Cz + Σ d_i z_i³``."""
    return p @ z + z @ (_C.to(z) @ z) + _D.to(z) @ z**3


def colville_2(z: Tensor, p: Tensor) -> Tensor:
    """Return the objective of the dual of `colville_1`."""
    return -_B.to(z) @ z[:10] + z[10:] @ (_C.to(z) @ z[10:]) + 2 * _D.to(z) @ z[10:] ** 3


def transformer(z: Tensor) -> Tensor:
    """Return two volumes in a transformer, and both with their losses."""
    first = z[0] * z[3] * (z[0] + z[1] + z[2])
    second = z[1] * z[2] * (z[0] + 1.57 * z[1] + z[3])
    return stack([first, second, first * z[4] ** 2, second * z[5] ** 2])


def reactors(z: Tensor, p: Tensor) -> Tensor:
    """Two reactors in sequence: the objective of 104."""
    return p[1] * (z[:2] ** 0.67 * z[6:] ** -0.67).sum() + 10 - z[0] - z[1]


def reactions(z: Tensor, p: Tensor) -> Tensor:
    """Return the inequalities of 104: balances of the reactors, and their cost."""
    fed, held, flow, rate = z.reshape(4, 2)
    level = p[0] * flow * rate + 0.1 * fed.cumsum(0) - 1
    balance = (4 * held + 2 * held**-0.71) / flow + p[0] * rate * held**-1.3 - 1
    total = reactors(z, p)
    return cat([level, balance, stack([1 - total, total - 4.2])])


def exchangers(z: Tensor, p: Tensor) -> Tensor:
    """Three heat exchangers in sequence: the inequalities of 106."""
    a, b, c, s, t, u, v, w = z
    return stack(
        [
            0.0025 * (s + u) - 1,
            0.0025 * (t + v - s) - 1,
            0.01 * (w - t) - 1,
            p[0] * s + 100 * a - 83333.333 - a * u,
            p[1] * (t - s) + b * s - b * v,
            1250000 + c * t - 2500 * t - c * w,
        ]
    )


def wong_1(z: Tensor, p: Tensor) -> Tensor:
    """Return the objective of 100."""
    a, b, c, d, e, f, g = z
    squares = (a - 10) ** 2 + 5 * (b - 12) ** 2 + c**4 + 3 * (d - 11) ** 2
    return squares + 10 * e**6 + 7 * f**2 + g**4 - 4 * f * g - 10 * f - 8 * g


def wong_1_inequalities(z: Tensor, p: Tensor) -> Tensor:
    """Return the inequalities of 100."""
    a, b, c, d, e, f, g = z
    return stack(
        [
            2 * a**2 + 3 * b**4 + c + 4 * d**2 + 5 * e - p[0],
            7 * a + 3 * b + 10 * c**2 + d - e - p[1],
            23 * a + b**2 + 6 * f**2 - 8 * g - p[2],
            4 * a**2 + b**2 - 3 * a * b + 2 * c**2 + 5 * f - 11 * g,
        ]
    )


def wong_2(z: Tensor, p: Tensor) -> Tensor:
    """Return the objective of 113."""
    weights, center = z.new_tensor([1, 4, 1, 2, 5, 7, 2, 1]), z.new_tensor(_WONG_2)
    first = z[0] ** 2 + z[1] ** 2 + z[0] * z[1] - 14 * z[0] - 16 * z[1]
    return first + weights @ (z[2:] - center) ** 2 + 45


def wong_2_inequalities(z: Tensor, p: Tensor) -> Tensor:
    """Return the inequalities of 113."""
    a, b, c, d, e, f, g, h, i, j = z
    return stack(
        [
            4 * a + 5 * b - 3 * g + 9 * h - p[0],
            10 * a - 8 * b - 17 * g + 2 * h,
            -8 * a + 2 * b + 5 * i - 2 * j - 12,
            3 * (a - 2) ** 2 + 4 * (b - 3) ** 2 + 2 * c**2 - 7 * d - p[1],
            5 * a**2 + 8 * b + (c - 6) ** 2 - 2 * d - p[2],
            0.5 * (a - 8) ** 2 + 2 * (b - 4) ** 2 + 3 * e**2 - f - 30,
            a**2 + 2 * (b - 2) ** 2 - 2 * a * b + 14 * e - 6 * f,
            -3 * a + 6 * b + 12 * (i - 8) ** 2 - 7 * j,
        ]
    )


_WONG_2 = (10, 5, 3, 1, 0, 11, 10, 7)
_A = torch.tensor(
    [
        [-16, 2, 0, 1, 0],
        [0, -2, 0, 4, 2],
        [-3.5, 0, 2, 0, 0],
        [0, -2, 0, -4, -1],
        [0, -9, -2, 1, -2.8],
        [2, 0, -4, 0, 0],
        [-1, -1, -1, -1, -1],
        [-1, -2, -3, -2, -1],
        [1, 2, 3, 4, 5],
        [1, 1, 1, 1, 1],
    ],
    dtype=torch.float64,
)
_B = torch.tensor([-40, -2, -0.25, -4, -4, -1, -40, -60, 5, 1])
_C = torch.tensor(
    [
        [30.0, -20, -10, 32, -10],
        [-20, 39, -6, -31, 32],
        [-10, -6, 10, -6, -10],
        [32, -31, -6, 39, -20],
        [-10, 32, -10, -20, 30],
    ]
)
_D = torch.tensor([4.0, 8, 10, 6, 2])
_COLVILLE = (-15.0, -27.0, -36.0, -18.0, -12.0)
_ROOT2, _ROOT3 = math.sqrt(2), math.sqrt(3)


def _vector(p: Tensor, *entries: Tensor | float) -> Tensor:
    return stack([e if isinstance(e, Tensor) else p.new_tensor(e) for e in entries])


def _box(lower: Any, upper: Any = None) -> Callable[[Tensor], tuple[Bound, Bound]]:
    def of(p: Tensor, bound: Any) -> Bound:
        return p.new_tensor(bound) if isinstance(bound, tuple) else bound

    return lambda p: (of(p, lower), of(p, upper))


def _minimum(
    number: int,
    z0: tuple[float, ...],
    parameters: tuple[float, ...],
    objective: Function,
    *,
    h: Function | None = None,
    g: Function | None = None,
    bounds: Callable[[Tensor], tuple[Bound, Bound]] | None = None,
    regular: bool = True,
) -> Problem:
    return Problem(
        f"hs{number}",
        "minimize",
        objective,
        z0,
        parameters,
        f"Hock and Schittkowski (1981), problem {number}",
        regular=regular,
        equalities=h,
        inequalities=g,
        bounds=bounds,
    )


# fmt: off
HOCK_SCHITTKOWSKI = (
    # bounds
    _minimum(1, (-2, 1), (100, 1), rosenbrock, bounds=_box((-INF, -1.5))),
    _minimum(2, (-2, 1), (100, 1, 1.5),
        rosenbrock, bounds=lambda p: (_vector(p, -INF, p[2]), None)
    ),
    _minimum(3, (10, 1), (1e-5, 0),
        lambda z, p: z[1] + p[0] * (z[1] - z[0]) ** 2,
        bounds=lambda p: (_vector(p, -INF, p[1]), None)
    ),
    _minimum(4, (1.125, 0.125), (1, 1, 0),
        lambda z, p: (z[0] + p[0]) ** 3 / 3 + z[1], bounds=lambda p: (p[1:], None)
    ),
    _minimum(5, (0, 0), (1.5, 2.5),
        lambda z, p: sin(z.sum()) + (z[0] - z[1]) ** 2 - p[0] * z[0] + p[1] * z[1] + 1,
        bounds=_box((-1.5, -3), (4, 3))
    ),
    _minimum(38, (-3, -1, -3, -1), (1, 1), wood, bounds=_box(-10, 10)),
    _minimum(45, 5 * (2,), (1, 2, 3, 4, 5),
        lambda z, p: 2 - z.prod() / 120, bounds=lambda p: (0, p)
    ),
    _minimum(110, 10 * (9,), (2, 10, 0.2),
        lambda z, p: (log(z - p[0]) ** 2 + log(p[1] - z) ** 2).sum() - z.prod() ** p[2],
        bounds=_box(2.001, 9.999)
    ),
    # equalities
    _minimum(6, (-1.2, 1), (1, 1),
        lambda z, p: (p[0] - z[0]) ** 2, h=lambda z, p: 10 * (z[1:] - p[1] * z[:1] ** 2)
    ),
    _minimum(7, (2, 2), (4,),
        lambda z, p: log(1 + z[0] ** 2) - z[1],
        h=lambda z, p: (1 + z[:1] ** 2) ** 2 + z[1:] ** 2 - p
    ),
    _minimum(26, (-2.6, 2, 2), (3,),
        lambda z, p: (z[0] - z[1]) ** 2 + (z[1] - z[2]) ** 4,
        h=lambda z, p: (1 + z[1] ** 2) * z[0] + z[2] ** 4 - p, regular=False
    ),
    _minimum(27, (2, 2, 2), (0.01, 1),
        lambda z, p: p[0] * (z[0] - 1) ** 2 + (z[1] - z[0] ** 2) ** 2,
        h=lambda z, p: z[:1] + z[2] ** 2 + p[1]
    ),
    _minimum(39, 4 * (2,), (0, 0),
        lambda z, p: -z[0],
        h=lambda z, p: stack([z[1] - z[0] ** 3, z[0] ** 2 - z[1]]) - z[2:] ** 2 - p
    ),
    _minimum(40, 4 * (0.8,), (1, 1),
        lambda z, p: -z.prod(),
        h=lambda z, p: stack(
            [z[0] ** 3 + z[1] ** 2 - p[0], z[0] ** 2 * z[3] - p[1] * z[2], z[3] ** 2 - z[1]]
        )
    ),
    _minimum(42, 4 * (1,), (2, 2),
        lambda z, p: ((z - z.new_tensor([1, 2, 3, 4])) ** 2).sum(),
        h=lambda z, p: stack([z[0], z[2] ** 2 + z[3] ** 2]) - p
    ),
    _minimum(52, 5 * (2,), (4, 0),
        lambda z, p: (p[0] * z[0] - z[1]) ** 2 + (z[1] + z[2] - 2) ** 2 + ((z[3:] - 1) ** 2).sum(),
        h=lambda z, p: stack([z[0] + 3 * z[1] - p[1], z[2] + z[3] - 2 * z[4], z[1] - z[4]])
    ),
    _minimum(61, 3 * (0,), (7, 11),
        lambda z, p: z.new_tensor([4, 2, 2]) @ z**2 + z.new_tensor([-33, 16, -24]) @ z,
        h=lambda z, p: stack([3 * z[0] - 2 * z[1] ** 2, 4 * z[0] - z[2] ** 2]) - p
    ),
    _minimum(77, 5 * (2,), (2 * _ROOT2, 8 + _ROOT2),
        lambda z, p: (z[0] - 1) ** 2 + (z[0] - z[1]) ** 2 + (z[2] - 1) ** 2 + (z[3] - 1) ** 4
            + (z[4] - 1) ** 6,
        h=lambda z, p:
            stack([z[0] ** 2 * z[3] + sin(z[3] - z[4]), z[1] + z[2] ** 4 * z[3] ** 2]) - p
    ),
    _minimum(78, (-2, 1.5, 2, -1, -1), (10, 5), lambda z, p: z.prod(), h=powell),
    _minimum(79, 5 * (2,), (2 + 3 * _ROOT2, 2 * _ROOT2 - 2, 2),
        lambda z, p: (z[0] - 1) ** 2 + (z[0] - z[1]) ** 2 + (z[1] - z[2]) ** 2
            + (z[2] - z[3]) ** 4 + (z[3] - z[4]) ** 4,
        h=lambda z, p:
            stack([z[0] + z[1] ** 2 + z[2] ** 3, z[1] - z[2] ** 2 + z[3], z[0] * z[4]]) - p
    ),
    # inequalities
    _minimum(10, (-10, 10), (1, 1),
        lambda z, p: p[1] * z[0] - z[1],
        g=lambda z, p: 3 * z[:1] ** 2 - 2 * z[0] * z[1] + z[1] ** 2 - p[0]
    ),
    _minimum(11, (4.9, 0.1), (5, 1),
        lambda z, p: (z[0] - p[0]) ** 2 + z[1] ** 2 - 25, g=lambda z, p: p[1] * z[:1] ** 2 - z[1:]
    ),
    _minimum(12, (0, 0), (7, 7, 25),
        lambda z, p: 0.5 * z[0] ** 2 + z[1] ** 2 - z[0] * z[1] - p[:2] @ z,
        g=lambda z, p: 4 * z[:1] ** 2 + z[1] ** 2 - p[2]
    ),
    _minimum(13, (-2, -2), (2, 1),
        lambda z, p: (z[0] - p[0]) ** 2 + z[1] ** 2, g=lambda z, p: z[1:] - (p[1] - z[0]) ** 3,
        bounds=_box(0), regular=False
    ),
    _minimum(15, (-2, 1), (1, 0.5),
        lambda z, p: 100 * (z[1] - z[0] ** 2) ** 2 + (1 - z[0]) ** 2,
        g=lambda z, p: stack([p[0] - z[0] * z[1], -z[0] - z[1] ** 2]),
        bounds=lambda p: (None, _vector(p, p[1], INF))
    ),
    _minimum(17, (-2, 1), (100, 1),
        rosenbrock, g=lambda z, p: z - z.flip(0) ** 2, bounds=_box((-0.5, -INF), (0.5, 1)),
        regular=False
    ),
    _minimum(19, (20.1, 5.84), (10, 100, 82.81),
        lambda z, p: (z[0] - p[0]) ** 3 + (z[1] - 20) ** 3,
        g=lambda z, p: stack([p[1] - (z[0] - 5) ** 2, (z[0] - 6) ** 2 - p[2]])
            + z.new_tensor([-1, 1]) * (z[1] - 5) ** 2,
        bounds=_box((13, 0), 100)
    ),
    _minimum(22, (2, 2), (2, 1),
        lambda z, p: (z[0] - 2) ** 2 + (z[1] - 1) ** 2,
        g=lambda z, p: stack([z.sum() - p[0], z[0] ** 2 - p[1] * z[1]])
    ),
    _minimum(24, (1, 0.5), (1 / _ROOT3, 6),
        lambda z, p: ((z[0] - 3) ** 2 - 9) * z[1] ** 3 / (27 * _ROOT3),
        g=lambda z, p: stack(
            [z[1] - p[0] * z[0], -z[0] - _ROOT3 * z[1], z[0] + _ROOT3 * z[1] - p[1]]
        ),
        bounds=_box(0)
    ),
    _minimum(29, 3 * (1,), (2, 48),
        lambda z, p: -z.prod(), g=lambda z, p: z[:1] ** 2 + p[0] * z[1] ** 2 + 4 * z[2] ** 2 - p[1]
    ),
    _minimum(30, 3 * (1,), (1,),
        lambda z, p: (z**2).sum(), g=lambda z, p: p - z[0] ** 2 - z[1] ** 2,
        bounds=_box((1, -10, -10), 10), regular=False
    ),
    _minimum(31, 3 * (1,), (9, 1),
        lambda z, p: p[0] * z[0] ** 2 + z[1] ** 2 + 9 * z[2] ** 2,
        g=lambda z, p: p[1:] - z[0] * z[1], bounds=_box((-10, 1, -10), (10, 10, 1))
    ),
    _minimum(34, (0, 1.05, 2.9), (10,),
        lambda z, p: -z[0], g=exponentials, bounds=lambda p: (0, _vector(p, 100, 100, p[0]))
    ),
    _minimum(35, 3 * (0.5,), (8, 3),
        lambda z, p: 9 - p[0] * z[0] - 6 * z[1] - 4 * z[2] + 2 * z[0] ** 2 + 2 * z[1] ** 2
            + z[2] ** 2 + 2 * z[0] * z[1] + 2 * z[0] * z[2],
        g=lambda z, p: z[:1] + z[1] + 2 * z[2] - p[1], bounds=_box(0)
    ),
    _minimum(37, 3 * (10,), (2, 72),
        lambda z, p: -z.prod(),
        g=lambda z, p: stack(
            [z[0] + p[0] * z[1] + 2 * z[2] - p[1], -z[0] - p[0] * z[1] - 2 * z[2]]
        ),
        bounds=_box(0, 42)
    ),
    _minimum(43, 4 * (0,), (8, 10, 5),
        lambda z, p: z.new_tensor([1, 1, 2, 1]) @ z**2 + z.new_tensor([-5, -5, -21, 7]) @ z,
        g=lambda z, p: z.new_tensor([[1, 1, 1, 1], [1, 2, 1, 2], [2, 1, 1, 0]]) @ z**2
            + z.new_tensor([[1, -1, 1, -1], [-1, 0, 0, -1], [2, -1, 0, -1]]) @ z - p
    ),
    _minimum(64, 3 * (1,), (4, 32),
        lambda z, p: z.new_tensor([5, 20, 10]) @ z + z.new_tensor([5e4, 7.2e4, 14.4e4]) @ (1 / z),
        g=lambda z, p: p[:1] / z[0] + p[1] / z[1] + 120 / z[2] - 1, bounds=_box(1e-5)
    ),
    _minimum(65, (-5, 5, 0), (5, 48),
        lambda z, p: (z[0] - z[1]) ** 2 + (z[0] + z[1] - 10) ** 2 / 9 + (z[2] - p[0]) ** 2,
        g=lambda z, p: (z**2).sum() - p[1:], bounds=_box((-4.5, -4.5, -5), (4.5, 4.5, 5))
    ),
    _minimum(66, (0, 1.05, 2.9), (0.8, 0.2),
        lambda z, p: p[1] * z[2] - p[0] * z[0], g=exponentials, bounds=_box(0, (100, 100, 10))
    ),
    _minimum(72, 4 * (1,), (0.0401, 0.010085),
        lambda z, p: 1 + z.sum(),
        g=lambda z, p: z.new_tensor([[4, 2.25, 1, 0.25], [0.16, 0.36, 0.64, 0.64]]) @ (1 / z) - p,
        bounds=_box(1e-3, (4e5, 3e5, 2e5, 1e5))
    ),
    _minimum(76, 4 * (0.5,), (5, 4, 1.5),
        lambda z, p: z.new_tensor([1, 0.5, 1, 0.5]) @ z**2 + z[2] * (z[3] - z[0])
            + z.new_tensor([-1, -3, 1, -1]) @ z,
        g=lambda z, p: z.new_tensor([[1, 2, 1, 1], [3, 1, 2, -1], [0, -1, -4, 0]]) @ z
            - stack([p[0], p[1], -p[2]]),
        bounds=_box(0)
    ),
    _minimum(83, (78, 33, 27, 27, 27), (85.334407, 80.51249),
        lambda z, p: 5.3578547 * z[2] ** 2 + 0.8356891 * z[0] * z[4] + 37.293239 * z[0] - 40792.141,
        g=colville_3, bounds=_box((78, 33, 27, 27, 27), (102, 45, 45, 45, 45))
    ),
    _minimum(86, (0, 0, 0, 0, 1), _COLVILLE,
        colville_1, g=lambda z, p: _B.to(z) - _A.to(z) @ z, bounds=_box(0)
    ),
    _minimum(93, (5.54, 4.4, 12.02, 11.82, 0.702, 0.852), (2.07, 1),
        lambda z, p: z.new_tensor([0.0204, 0.0187, 0.0607, 0.0437]) @ transformer(z),
        g=lambda z, p: stack(
            [p[0] - 0.001 * z.prod(), z.new_tensor([62e-5, 58e-5]) @ transformer(z)[2:] - p[1]]
        ),
        bounds=_box(0)
    ),
    _minimum(100, (1, 2, 0, 4, 0, 1, 1), (127, 282, 196), wong_1, g=wong_1_inequalities),
    _minimum(104, (6, 3, 0.4, 0.2, 6, 6, 1, 0.5), (0.0588, 0.4),
        reactors, g=reactions, bounds=_box(0.1, 10)
    ),
    _minimum(106, (5000, 5000, 5000, 200, 350, 150, 225, 425), (833.33252, 1250),
        lambda z, p: z[:3].sum(), g=exchangers,
        bounds=_box((100, 1000, 1000, 10, 10, 10, 10, 10), (3 * (1e4,) + 5 * (1e3,)))
    ),
    _minimum(113, (2, 3, 5, 5, 1, 2, 7, 3, 6, 10), (105, 120, 40), wong_2, g=wong_2_inequalities),
    _minimum(117, (*6 * (0.001,), 60, *8 * (0.001,)), _COLVILLE,
        colville_2,
        g=lambda z, p: _A.to(z).mT @ z[:10] - 2 * _C.to(z) @ z[10:] - 3 * _D.to(z) * z[10:] ** 2
            - p,
        bounds=_box(0)
    ),
    # equalities with inequalities or bounds
    _minimum(14, (2, 2), (1, 1),
        lambda z, p: (z[0] - 2) ** 2 + (z[1] - 1) ** 2, h=lambda z, p: z[:1] - 2 * z[1] + p[0],
        g=lambda z, p: 0.25 * z[:1] ** 2 + z[1] ** 2 - p[1]
    ),
    _minimum(41, 4 * (2,), (2, 2),
        lambda z, p: 2 - z[:3].prod(), h=lambda z, p: z[:1] + p[0] * z[1] + 2 * z[2] - z[3],
        bounds=lambda p: (0, _vector(p, 1, 1, 1, p[1]))
    ),
    _minimum(60, 3 * (2,), (4 + 3 * _ROOT2,),
        lambda z, p: (z[0] - 1) ** 2 + (z[0] - z[1]) ** 2 + (z[1] - z[2]) ** 4,
        h=lambda z, p: z[0] * (1 + z[1] ** 2) + z[2] ** 4 - p, bounds=_box(-10, 10)
    ),
    _minimum(62, (0.7, 0.2, 0.1), (8204.37, 9008.72),
        market, h=lambda z, p: z.sum().reshape(1) - 1, bounds=_box(0, 1)
    ),
    _minimum(63, 3 * (2,), (56, 25),
        lambda z, p: 1000 - z.new_tensor([1, 2, 1]) @ z**2 - z[0] * (z[1] + z[2]),
        h=lambda z, p: stack([z.new_tensor([8, 14, 7]) @ z, (z**2).sum()]) - p, bounds=_box(0)
    ),
    _minimum(71, (1, 5, 5, 1), (25, 40),
        lambda z, p: z[0] * z[3] * z[:3].sum() + z[2], h=lambda z, p: (z**2).sum() - p[1:],
        g=lambda z, p: p[:1] - z.prod(), bounds=_box(1, 5)
    ),
    _minimum(73, 4 * (1,), (5, 21),
        lambda z, p: z.new_tensor([24.55, 26.75, 39, 40.5]) @ z,
        h=lambda z, p: z.sum().reshape(1) - 1,
        g=lambda z, p: p - z.new_tensor([[2.3, 5.6, 11.1, 1.3], [12, 11.9, 41.8, 52.1]]) @ z
            + z.new_tensor([0, 1.645]) * (z.new_tensor([0.28, 0.19, 20.5, 0.62]) @ z**2).sqrt(),
        bounds=_box(0)
    ),
    _minimum(74, 4 * (0,), (894.8, 1294.8),
        lambda z, p: 3 * z[0] + 1e-6 * z[0] ** 3 + 2 * z[1] + 2e-6 / 3 * z[1] ** 3, h=grid,
        g=lambda z, p: stack([z[2] - z[3], z[3] - z[2]]) - 0.55,
        bounds=_box((0, 0, -0.55, -0.55), (1200, 1200, 0.55, 0.55))
    ),
    _minimum(80, (-2, 2, 2, -1, -1), (10, 5),
        lambda z, p: exp(z.prod()), h=powell,
        bounds=_box((-2.3, -2.3, -3.2, -3.2, -3.2), (2.3, 2.3, 3.2, 3.2, 3.2))
    ),
)
# fmt: on
