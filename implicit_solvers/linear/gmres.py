"""Generalized minimal residuals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.hyperparameters import check_count, check_stopping
from implicit_solvers.linear.gmres_in_graph import gmres_in_graph
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.solution import Status
from implicit_solvers.tolerance import AUTO, Auto, rms

__all__ = ["GMRES"]


_FIRST = 8  # columns allocated at first; more come by doubling, so that memory follows need


class GMRESState(NamedTuple):
    """The state of `GMRES`: the basis so far and a QR factorization of the Hessenberg matrix.

    ``directions`` are the preconditioned basis vectors, empty without a preconditioner.
    """

    start: Tensor
    basis: Tensor
    directions: Tensor
    rotation: Tensor
    triangle: Tensor
    beta: Tensor
    columns: Tensor
    j: int
    error: Tensor
    flag: Tensor

    @property
    def z(self) -> Tensor:
        """The iterate ``x + M V y``, where ``y`` solves the small triangular system."""
        if self.j == 0:
            return self.start
        k = self.j
        # a lane that ended before the others has fewer columns
        own = torch.arange(k, device=self.columns.device) < self.columns.unsqueeze(-1)
        g = torch.where(own.unsqueeze(-1), self.beta * self.rotation[:, :k, :1], 0.0)
        y = torch.linalg.solve_triangular(self.triangle[:, :k, :k], g, upper=True)
        directions = self.directions if self.directions.shape[1] else self.basis
        return self.start + (directions[:, :k].mT @ y).squeeze(-1)


@dataclass(frozen=True)
class GMRES:
    """Restarted generalized minimal residuals, for any regular operator.

    Classical Gram-Schmidt, done twice, keeps the basis orthogonal to working precision. Source:
    Saad and Schultz (1986); flexible preconditioning from the right, so that the residual is that
    of the system itself: Saad (1993).

    Parameters
    ----------
    rtol, atol
        A lane has converged when ``rms(b - A x) <= atol + rtol rms(b)``. ``rtol=None`` makes
        exactly ``max_steps`` steps and judges nothing.
    max_steps
        The number of products allowed, restarts not counted.
    restart
        The size of the Krylov space at which the method starts again from its iterate.
    compact
        Whether lanes that ended leave the computation; False keeps shapes static.
    check_every
        Every how many steps it is asked whether all lanes have ended. A GPU waits for the answer;
        lanes that ended keep what they have.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter makes no sense; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> A = ims.MatrixOperator(torch.tensor([[2.0, 1.0], [0.0, 2.0]]))
    >>> ims.linear_solve(A, torch.tensor([4.0, 2.0]), solver=GMRES()).value
    tensor([1.5000, 1.0000])
    """

    rtol: float | Auto | None = AUTO
    atol: float | Auto = AUTO
    max_steps: int = 1000
    restart: int = 50
    compact: bool = True
    check_every: int = 1
    monotone: ClassVar[bool] = True
    symmetric_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        check_stopping(self)
        check_count(self, "check_every", least=1)
        check_count(self, "restart", least=1)

    def init(self, problem: LinearProblem, x: Tensor) -> GMRESState:
        """Start at ``x``."""
        n = x.shape[-1]
        m = max(1, min(self.restart, n, self.max_steps))
        r = problem.residual(x)
        beta = torch.linalg.vector_norm(r, dim=-1).reshape(-1, 1, 1)
        basis = x.new_zeros(len(x), min(m, _FIRST) + 1, n)
        basis[:, 0] = torch.where(beta[:, 0] > 0, r / beta[:, 0], 0.0)
        eye = torch.eye(m + 1, dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
        directions = basis[:, :0] if problem.M is None else torch.zeros_like(basis[:, 1:])
        flag = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        triangle = eye[:, :m, :m].clone()
        return GMRESState(x, basis, directions, eye.clone(), triangle, beta, flag, 0, rms(r), flag)

    def iterate_in_graph(
        self, problem: LinearProblem, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Iterate from ``x`` in a compiled graph."""
        return gmres_in_graph(self, problem, x)

    def refresh(self, problem: LinearProblem, state: GMRESState) -> GMRESState:
        """Make room for the next vector, or start again from the iterate if there is none."""
        j, m = state.j, state.triangle.shape[-1]
        if j == m:
            return self.init(problem, state.z)
        if j + 1 < state.basis.shape[1]:
            return state
        more = torch.zeros_like(state.basis[:, : min(j, m - j)])
        basis = torch.cat([state.basis, more], dim=1)
        directions = state.directions
        if problem.M is not None:
            directions = torch.cat([directions, more], dim=1)
        return state._replace(basis=basis, directions=directions)

    def step(self, problem: LinearProblem, state: GMRESState) -> GMRESState:
        """Add a vector to the basis and rotate its column of the Hessenberg matrix."""
        j, n = state.j, state.start.shape[-1]
        # Columns past a lane's own count are never read: writing them in place disturbs no lane.
        basis, directions = state.basis, state.directions
        direction = problem.precondition(basis[:, j])
        if problem.M is not None:
            directions[:, j] = direction
        w = problem.A.mv(direction)
        before = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
        old = basis[:, : j + 1]
        h = (old.conj() @ w.unsqueeze(-1)).squeeze(-1)
        w = w - (h.unsqueeze(-2) @ old).squeeze(-2)
        again = (old.conj() @ w.unsqueeze(-1)).squeeze(-1)
        w = w - (again.unsqueeze(-2) @ old).squeeze(-2)
        after = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
        eps = torch.finfo(w.dtype).eps
        exhausted = after <= 10 * eps * before
        after = torch.where(exhausted, 0.0, after)
        basis[:, j + 1] = torch.where(exhausted, 0.0, w / after)

        column = torch.cat([h + again, after], dim=-1).unsqueeze(-1)
        column = (state.rotation[:, : j + 2, : j + 2] @ column).squeeze(-1)
        size = torch.linalg.vector_norm(column[:, -2:], dim=-1, keepdim=True)
        singular = size <= 10 * eps * before
        c = torch.where(singular, 1.0, column[:, -2:-1] / size)
        s = torch.where(singular, 0.0, column[:, -1:] / size)
        triangle, rotation = state.triangle.clone(), state.rotation.clone()
        triangle[:, :j, j] = torch.where(singular, 0.0, column[:, :j])
        triangle[:, j, j] = torch.where(singular, 1.0, size).squeeze(-1)
        upper, lower = state.rotation[:, j], state.rotation[:, j + 1]
        # A column that adds nothing gets no weight: its right-hand side is set to zero.
        rotation[:, j] = torch.where(singular, 0.0, c.conj() * upper + s * lower)
        rotation[:, j + 1] = torch.where(singular, upper, c * lower - s * upper)
        error = (state.beta[:, 0, 0] * rotation[:, j + 1, 0]).abs() / max(n, 1) ** 0.5
        error = torch.where(torch.isfinite(before.squeeze(-1)), error, torch.nan)
        stuck = exhausted.squeeze(-1) & (error > 0)
        flag = torch.where(stuck, int(Status.BREAKDOWN), 0)
        return GMRESState(
            state.start,
            basis,
            directions,
            rotation,
            triangle,
            state.beta,
            state.columns + 1,
            j + 1,
            error,
            flag,
        )
