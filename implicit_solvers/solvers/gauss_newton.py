"""The Gauss-Newton method for nonlinear least squares. It knows no curvature of residuals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import Mask, divide, everywhere, nowhere, pick
from implicit_solvers.hyperparameters import check_count
from implicit_solvers.iterate import IterativeSolver, iterate
from implicit_solvers.linear.cg import CG
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.problem import EquationProblem
from implicit_solvers.residual_map import ResidualMap
from implicit_solvers.solution import Status
from implicit_solvers.solvers.damped import DampedState
from implicit_solvers.solvers.trust_region import ModelSteps, Proposal

__all__ = ["GaussNewton", "full_step", "normal_step"]


class Direction(NamedTuple):
    """The full step ``p``, its ``slope`` ``p . J^T r`` and its ``bend`` ``|J p|^2``."""

    step: Tensor
    slope: Any
    bend: Any


@dataclass(frozen=True)
class GaussNewton(ModelSteps):
    """Gauss-Newton: ``z <- z + t p``, where ``p`` minimizes ``|r(z) + J p|``.

    The step length ``t`` is halved until ``|r|^2`` falls by ``1e-4`` of what ``r + J p`` promises,
    or, near the minimum, where both falls drown in rounding, until the norm of ``J^T r`` falls, or
    the step is small; if no ``t`` does so, the problem is STALLED. The step comes from a QR
    factorization of ``J``; a ``J`` without full column rank ends the problem as SINGULAR. Source:
    Nocedal and Wright, "Numerical Optimization", section 10.3.

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile, autocast
        As in `EquationMethod`.
    linear_solver
        An iterative solver (``CG()``) that solves ``J^T J p = -J^T r`` with products; it does not
        notice a ``J`` without full rank. Left out, ``J`` is formed up to 512 unknowns; beyond,
        ``CG(rtol=1e-3)``.
    halvings
        How many times the step length may be halved.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it. A ValueError also when a solve
        begins with fewer residuals than unknowns; use `LevenbergMarquardt` then.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> t, y = torch.arange(3.0), torch.tensor([1.0, 2.0, 4.0])
    >>> ims.least_squares(lambda z: torch.exp(z * t) - y, torch.tensor(0.0)).value
    tensor(0.6931)
    """

    halvings: int = 30
    solves: ClassVar[tuple[str, ...]] = ("least_squares",)

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_count(self, "halvings")

    @property
    def trials(self) -> int:
        """How many trials in a row may be rejected."""
        return self.halvings

    def init(self, problem: EquationProblem, z: Tensor) -> DampedState:
        """Evaluate residuals and gradient at the start."""
        state = super().init(problem, z)
        if state.residual.shape[-1] < z.shape[-1]:
            raise ValueError(
                f"fn returned {state.residual.shape[-1]} residuals for {z.shape[-1]} unknowns: "
                "GaussNewton() needs at least as many residuals as unknowns; use "
                "LevenbergMarquardt()"
            )
        return state

    def blank(self, problem: EquationProblem, z: Tensor, residuals: Tensor) -> Direction:
        """Return a model of zeros."""
        none = torch.zeros_like(z)
        return Direction(none, none.sum(-1), none.sum(-1))

    def modeled(self, problem: EquationProblem, state: DampedState) -> tuple[Direction, Any]:
        """Solve the linear least-squares problem."""
        jacobian, r = problem.linearize_residuals(state.z), state.residual
        solver = self.by_products(state.z, _PRODUCTS)
        flag: Any = 0
        if solver is None:
            matrix = jacobian.dense()
            p, regular = full_step(problem, matrix, r)
            image = torch.bmm(matrix, p.unsqueeze(-1)).squeeze(-1)
            flag = pick(regular, 0, int(Status.SINGULAR))
        else:
            gradient = jacobian.rmv(r)
            p = normal_step(jacobian, gradient, torch.zeros_like(gradient[:, :1]), solver)
            image = jacobian.mv(p)
        bend = problem.number((image**2).sum(-1))
        return Direction(p, problem.number((image * r).sum(-1)), bend), flag

    def radius(self, problem: EquationProblem, state: DampedState) -> Any:
        """Return the step length of a trial."""
        length = pick(state.search.rejected == 0, 1.0, state.search.radius)
        return length.to(state.z.dtype) if isinstance(length, Tensor) else length

    def propose(self, problem: EquationProblem, state: DampedState) -> Proposal:
        """Go along the direction."""
        direction, slope, bend = state.memory
        t, size = state.search.within, state.search.size
        change = t * (2 * slope + t * bend)
        step = direction * (t.unsqueeze(-1) if isinstance(t, Tensor) else t)
        return Proposal(step, t, divide(-change, size * size))

    def resized(self, state: DampedState, ratio: Any) -> Any:
        """Halve the step length."""
        return 0.5 * state.search.within


class _NormalMap:
    """The map ``J^T J + damping`` of each lane; ``damping`` is ``(N, 1)``."""

    symmetric: ClassVar[bool] = True

    def __init__(self, jacobian: ResidualMap, damping: Tensor) -> None:
        self.jacobian, self.damping = jacobian, damping

    @property
    def separable(self) -> bool:
        """Whether lanes can be selected."""
        return self.jacobian.separable

    def mv(self, v: Tensor) -> Tensor:
        """Return the product."""
        return self.jacobian.rmv(self.jacobian.mv(v)) + self.damping * v

    def to_compile(self) -> None:
        """Return None: steps on it are compiled with those of the outer solver only."""

    def aliased(self) -> _NormalMap:
        """Return the map as the body of a loop in a graph has to see it."""
        return _NormalMap(self.jacobian.aliased(), self.damping)

    def take(self, index: Tensor) -> _NormalMap:
        """Return the map of some of the lanes."""
        return _NormalMap(self.jacobian.take(index), self.damping[index])


def normal_step(
    jacobian: ResidualMap, gradient: Tensor, damping: Tensor, solver: IterativeSolver
) -> Tensor:
    """Return the ``p`` of ``(J^T J + damping) p = -gradient``, as well as ``solver`` finds it."""
    normal: Any = _NormalMap(jacobian, damping)
    return iterate(solver, LinearProblem(normal, -gradient), torch.zeros_like(gradient)).z


def full_step(problem: EquationProblem, matrix: Tensor, residuals: Tensor) -> tuple[Tensor, Mask]:
    """Return the ``p`` that minimizes ``|r + J p|``, and whether ``J`` has full column rank.

    Where it has not, ``p`` is zero.
    """
    m, n = matrix.shape[-2:]
    none = torch.zeros_like(matrix[:, 0])
    if m < n:
        return none, problem.number(torch.zeros_like(none[:, 0], dtype=torch.bool))
    q, r = torch.linalg.qr(matrix)
    diagonal = r.diagonal(dim1=-2, dim2=-1).abs()
    columns = torch.linalg.vector_norm(matrix, dim=-2)
    regular = problem.number((diagonal > m * torch.finfo(r.dtype).eps * columns).all(-1))
    if nowhere(regular):
        return none, False
    if not everywhere(regular):
        r = pick(regular, r, torch.eye(n).to(r))
    rhs = -torch.bmm(q.mT, residuals.unsqueeze(-1))
    p = torch.linalg.solve_triangular(r, rhs, upper=True).squeeze(-1)
    return pick(regular, p, none), regular


_PRODUCTS = CG(rtol=1e-3)
