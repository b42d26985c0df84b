"""Equations of which the root is known, and equations that have none.

It knows no concrete solver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from implicit_solvers.solution import Solution
from implicit_solvers.testing.kinds import SOLVE, Kind
from implicit_solvers.testing.strategies.maps import apply, contraction, points
from implicit_solvers.testing.strategies.spectra import check_condition
from implicit_solvers.testing.strategies.tensors import (
    Device,
    check_sizes,
    normal,
    rotation,
    seeds,
)

__all__ = ["DrawnEquation", "RootlessEquation", "rooted_equations", "rootless_equations"]


@dataclass(frozen=True, eq=False)
class DrawnEquation:
    """An equation, a start, and the solution, up to the rounding of ``args`` to their dtype.

    Attributes
    ----------
    kind
        Which function solves it: ``"root"``, ``"fixed_point"``, ``"minimize"`` or
        ``"least_squares"``.
    fn, start, args
        What is passed to that function. Equations of one kind share ``fn``, which takes lanes in
        front, so that several of one size can be stacked.
    root
        The solution, ``(n,)``.
    jacobian
        The Jacobian there of the optimality condition ``F``: of ``f``, of ``z - g(z)``, or the
        Hessian.
    condition
        The condition number of ``jacobian``.
    stability
        A number such that ``|z - root| <= stability |F(z)|`` for all ``z`` (for least squares:
        for all that fit no worse than the start).

    Examples
    --------
    >>> import hypothesis
    >>> equation = hypothesis.find(rooted_equations(), lambda e: e.root.abs().max() > 0)
    >>> equation.root, equation.solve().value
    (tensor([0.2500], dtype=torch.float64), tensor([0.2500], dtype=torch.float64))
    """

    kind: Kind
    fn: Callable[..., Tensor]
    start: Tensor
    args: tuple[Tensor, ...]
    root: Tensor
    jacobian: Tensor
    condition: float
    stability: float

    def solve(self, **options: Any) -> Solution:
        """Solve it by the library, with the options given."""
        return SOLVE[self.kind](self.fn, self.start, self.args, **options)


@dataclass(frozen=True, eq=False)
class RootlessEquation:
    """An equation that has no solution.

    Attributes
    ----------
    kind, fn, start, args
        As for `DrawnEquation`.
    gap
        ``rms(F(z)) >= gap`` for all ``z``.

    Examples
    --------
    >>> import hypothesis
    >>> equation = hypothesis.find(rootless_equations(), lambda e: True)
    >>> equation.gap, bool(equation.solve(on_failure="mask").converged)
    (1.0, False)
    """

    kind: Kind
    fn: Callable[..., Tensor]
    start: Tensor
    args: tuple[Tensor, ...]
    gap: float

    def solve(self, **options: Any) -> Solution:
        """Try to solve it by the library, with the options given."""
        return SOLVE[self.kind](self.fn, self.start, self.args, **options)


def _residual(z: Tensor, A: Tensor, b: Tensor, t: Tensor) -> Tensor:
    return apply(A, z + t.unsqueeze(-1) * torch.sin(z)) - b


def _objective(z: Tensor, H: Tensor, b: Tensor, t: Tensor) -> Tensor:
    return (z * (apply(H, z) / 2 - b)).sum(-1) + t * torch.sqrt(1 + z**2).sum(-1)


def _residuals(z: Tensor, A: Tensor, E: Tensor, b: Tensor, t: Tensor) -> Tensor:
    return apply(A, z) + t.unsqueeze(-1) * apply(E, torch.sin(z)) - b


@dataclass(frozen=True)
class _Numbers:
    """What an equation is made of: the grid steps of its spectrum, numbers, and seeds."""

    root: Tensor
    start: Tensor
    steps: Sequence[int]
    curvature: float
    misfit: float
    left: int
    right: int

    def spectrum(self, condition: float) -> Tensor:
        """Return numbers from 1 down to ``1 / condition``."""
        return condition ** (-torch.tensor(self.steps, dtype=torch.float64) / 8)

    def matrix(self, condition: float, rows: int = 0) -> Tensor:
        """Return a matrix with these singular values and some rows more."""
        n = len(self.root)
        left = rotation(self.left, n + rows)[:, :n]
        return (left * self.spectrum(condition)) @ rotation(self.right, n).T


_Parts = tuple[Callable[..., Tensor], tuple[Tensor, ...], Tensor, float]


def _root(numbers: _Numbers, condition: float) -> _Parts:
    z, t = numbers.root, torch.tensor(0.6 * numbers.curvature, dtype=torch.float64)
    bend = float((1 + t) / (1 - t))
    A = numbers.matrix(max(condition / bend, 1.0))
    b = apply(A, z + t * torch.sin(z))
    stability = 1 / (float(torch.linalg.svdvals(A)[-1]) * float(1 - t))
    return _residual, (A, b, t), A * (1 + t * torch.cos(z)), stability


def _fixed_point(numbers: _Numbers, condition: float) -> _Parts:
    z, n = numbers.root, len(numbers.root)
    c = (condition - 1) / (condition + 1) * max(numbers.steps) / 8
    W, V = c * rotation(numbers.left, n), rotation(numbers.right, n)
    b = z - apply(W, torch.tanh(apply(V, z)))
    slope = (W * (1 - torch.tanh(apply(V, z)) ** 2)) @ V
    return contraction, (W, V, b), torch.eye(n, dtype=torch.float64) - slope, 1 / (1 - c)


def _minimum(numbers: _Numbers, condition: float) -> _Parts:
    z, t = numbers.root, torch.tensor(numbers.curvature, dtype=torch.float64)
    # curvatures lie between those of H and t more
    q = rotation(numbers.left, len(z))
    values = numbers.spectrum(condition) * (1 - t / 2)
    H = (q * values) @ q.T
    H, t = (H + H.T) / 2, t * values.min()
    b = apply(H, z) + t * z / torch.sqrt(1 + z**2)
    hessian = H + torch.diag(t * (1 + z**2) ** -1.5)
    return _objective, (H, b, t), hessian, 1 / float(values.min())


def _fit(numbers: _Numbers, condition: float) -> _Parts:
    z, n = numbers.root, len(numbers.root)
    condition = condition**0.5  # the Hessian squares it
    A = numbers.matrix(condition, rows=2)
    E = rotation(numbers.right + 1, n + 2)[:, :n]
    distance = float(torch.linalg.vector_norm(numbers.start - z))
    # so little curvature that |r|^2 / 2 is convex wherever it is no greater than at the start
    bend = numbers.curvature / (16 * condition**3 * (1 + numbers.misfit + distance))
    t = torch.tensor(bend, dtype=torch.float64)
    J = A + t * E * torch.cos(z)
    off = normal(numbers.left + 1, n + 2)
    for _ in range(2):
        off = off - apply(J, torch.linalg.lstsq(J, off.unsqueeze(-1)).solution.squeeze(-1))
    off = numbers.misfit * off / torch.linalg.vector_norm(off)
    b = apply(A, z) + t * apply(E, torch.sin(z)) - off
    hessian = J.T @ J - torch.diag(t * apply(E.T, off) * torch.sin(z))
    least = float(torch.linalg.svdvals(A)[-1]) - bend
    return _residuals, (A, E, b, t), hessian, 2 / least**2


_MAKE: dict[str, Callable[[_Numbers, float], _Parts]] = {
    "root": _root,
    "fixed_point": _fixed_point,
    "minimize": _minimum,
    "least_squares": _fit,
}


def _check_kind(kind: str, kinds: Sequence[str]) -> None:
    if kind not in kinds:
        raise ValueError(f"kind is {kind!r}: pass one of {', '.join(kinds)}")


def rooted_equations(
    kind: Kind = "root",
    *,
    min_size: int = 1,
    max_size: int = 6,
    condition: float = 100.0,
    magnitude: float = 1.0,
    dtype: torch.dtype = torch.float64,
    device: Device = "cpu",
) -> SearchStrategy[DrawnEquation]:
    """Draw a smooth equation with a known root, of bounded condition everywhere.

    ===================  =========================================================================
    ``"root"``           ``f(z; A, b, t) = A (z + t sin z) - b``, any regular ``A``, ``|t| < 1``
    ``"fixed_point"``    ``g(z; W, V, b) = W tanh(V z) + b``, a contraction
    ``"minimize"``       ``f(z; H, b, t) = z^T H z / 2 - b^T z + t sum sqrt(1 + z^2)``, convex
    ``"least_squares"``  ``r(z; A, E, b, t) = A z + t E sin z - b``, ``A (n + 2, n)``; residuals at
                         the root need not be zero
    ===================  =========================================================================

    The root is drawn first, and ``b`` follows from it. The first three have no other root; the
    last has none that fits as well as the start does.

    Parameters
    ----------
    kind
        Which equation: one of the four.
    min_size, max_size
        The bounds of the number of unknowns ``n``.
    condition
        About the greatest condition number of the Jacobian of the optimality condition.
    magnitude
        The unit of length: the entries of root and start lie within twice this number of zero.
    dtype, device
        Of start, root and ``args``.

    Returns
    -------
    SearchStrategy
        Of `DrawnEquation`; it shrinks to one unknown, a linear equation, and the root 0.

    Raises
    ------
    ValueError
        If ``kind`` is none of the four, no size satisfies the bounds, ``condition`` is below 1, or
        ``magnitude`` is not positive.

    Examples
    --------
    >>> import hypothesis
    >>> bowl = hypothesis.find(rooted_equations("minimize"), lambda e: e.root[0] == 1)
    >>> bowl.fn(bowl.root, *bowl.args), bowl.jacobian  # z^2 / 2 - z
    (tensor(-0.5000, dtype=torch.float64), tensor([[1.]], dtype=torch.float64))
    """
    _check_kind(kind, tuple(_MAKE))
    check_sizes(min_size, max_size)
    check_condition(condition, magnitude)

    def build(numbers: _Numbers) -> DrawnEquation:
        fn, args, jacobian, stability = _MAKE[kind](numbers, condition)
        tensors = [t.to(device=device, dtype=dtype) for t in (numbers.root, numbers.start, *args)]
        number = float(torch.linalg.cond(jacobian))
        jacobian = jacobian.to(device=device, dtype=dtype)
        return DrawnEquation(
            kind, fn, tensors[1], tuple(tensors[2:]), tensors[0], jacobian, number, stability
        )

    def numbers(n: int) -> SearchStrategy[_Numbers]:
        return st.builds(
            _Numbers,
            points(n, magnitude),
            points(n, magnitude),
            st.lists(st.integers(0, 8), min_size=n, max_size=n),
            st.integers(0, 4).map(lambda k: k / 4),
            st.integers(0, 4).map(lambda k: k / 4),
            seeds(),
            seeds(),
        )

    return st.integers(min_size, max_size).flatmap(numbers).map(build)


def _no_root(z: Tensor, A: Tensor, c: Tensor) -> Tensor:
    return apply(A, z**2 + c.unsqueeze(-1))


def _no_fixed_point(z: Tensor, A: Tensor, c: Tensor) -> Tensor:
    return z + apply(A, z**2 + c.unsqueeze(-1))


def _no_minimum(z: Tensor, A: Tensor, c: Tensor) -> Tensor:
    q = apply(A, z)
    return (2 * c.unsqueeze(-1) * q + torch.sqrt(1 + q**2)).sum(-1)


_ROOTLESS: dict[str, Callable[..., Tensor]] = {
    "root": _no_root,
    "fixed_point": _no_fixed_point,
    "minimize": _no_minimum,
}


def rootless_equations(
    kind: Literal["root", "fixed_point", "minimize"] = "root",
    *,
    min_size: int = 1,
    max_size: int = 6,
    condition: float = 100.0,
    dtype: torch.dtype = torch.float64,
    device: Device = "cpu",
) -> SearchStrategy[RootlessEquation]:
    """Draw a smooth equation without a solution, whose residual stays away from zero.

    ``f(z; A, c) = A (z^2 + c)`` has no root, ``z + A (z^2 + c)`` no fixed point, and
    ``sum (2 c q + sqrt(1 + q^2))`` with ``q = A z`` no stationary point, for a regular ``A`` and
    ``c >= 1``. (The gradient of a sum of squares always comes near to zero.)

    Parameters
    ----------
    kind
        Which equation: ``"root"``, ``"fixed_point"`` or ``"minimize"``.
    min_size, max_size
        The bounds of the number of unknowns.
    condition
        The greatest condition number of ``A``, whose largest singular value is 1.
    dtype, device
        Of start and ``args``.

    Returns
    -------
    SearchStrategy
        Of `RootlessEquation`; it shrinks to one unknown with ``A = c = 1`` and the start 0.

    Raises
    ------
    ValueError
        As for `rooted_equations`.

    Examples
    --------
    >>> import hypothesis
    >>> slope = hypothesis.find(rootless_equations("minimize"), lambda e: True)
    >>> slope.solve(on_failure="mask").converged
    tensor(False)
    """
    _check_kind(kind, tuple(_ROOTLESS))
    check_sizes(min_size, max_size)
    check_condition(condition)

    def build(numbers: _Numbers, extra: int) -> RootlessEquation:
        A = numbers.matrix(condition)
        c = torch.tensor(1 + extra / 4, dtype=torch.float64)
        least = float(torch.linalg.svdvals(A)[-1])
        # 2 c + q / sqrt(1 + q^2) >= 2 c - 1
        gap = least * float(2 * c - 1 if kind == "minimize" else c)
        start, A, c = (t.to(device=device, dtype=dtype) for t in (numbers.start, A, c))
        return RootlessEquation(kind, _ROOTLESS[kind], start, (A, c), gap)

    def numbers(n: int) -> SearchStrategy[_Numbers]:
        steps = st.lists(st.integers(0, 8), min_size=n, max_size=n)
        zero, nothing = torch.zeros(n, dtype=torch.float64), st.just(0.0)
        return st.builds(
            _Numbers, st.just(zero), points(n), steps, nothing, nothing, seeds(), seeds()
        )

    return st.builds(build, st.integers(min_size, max_size).flatmap(numbers), st.integers(0, 4))
