"""Generalized minimal residuals. It knows ``A`` by its products alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import nowhere, pick
from implicit_solvers.hyperparameters import check_count
from implicit_solvers.linear.iterative_refinement import RefinementState, begin_refinement, refine
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.ranks import entries, norm, summed
from implicit_solvers.solution import Status
from implicit_solvers.solver import LinearMethod
from implicit_solvers.tolerance import rms
from implicit_solvers.traced_loop import inside, repeat

__all__ = ["GMRES"]


_FIRST = 8  # columns allocated at first; more come by doubling, so that memory follows need


class GMRESState(NamedTuple):
    """The state of `GMRES`: the basis so far and the Hessenberg matrix, transposed.

    ``directions`` are the preconditioned basis vectors, empty without a preconditioner.
    ``null (N, m + 1, 1)`` is the vector of norm one that is orthogonal to the columns of the
    Hessenberg matrix, conjugated; the residual is a multiple of ``V null^H``. Lanes that
    run are all at the column ``j``: a number, or, where nobody can be asked, a tensor ``(N,)``
    beside arrays of the full size, in which what is not filled is zero.
    """

    start: Tensor
    basis: Tensor
    directions: Tensor
    hessenberg: Tensor
    null: Tensor
    beta: Tensor
    columns: Tensor
    j: Any
    error: Tensor
    flag: Tensor

    @property
    def place(self) -> Any:
        """The column that comes next: a number, or a tensor ``(1,)``."""
        if not isinstance(self.j, Tensor):
            return self.j
        return torch.where(self.flag == 0, self.j, 0).amax(0, keepdim=True)

    @property
    def z(self) -> Tensor:
        """The iterate ``x + M V y``, where ``y`` solves the small least-squares problem."""
        k = self.hessenberg.shape[1] if isinstance(self.j, Tensor) else self.j
        if k == 0:
            return self.start
        # a lane that ended before the others has fewer columns: the rest get no weight
        own = torch.arange(k, device=self.columns.device) < self.columns.unsqueeze(-1)
        unit = torch.eye(k + 1, dtype=self.basis.dtype, device=self.basis.device)[1:]
        hessenberg = torch.where(own.unsqueeze(-1), self.hessenberg[:, :k, : k + 1], unit)
        q, r = torch.linalg.qr(hessenberg.mT)
        g = self.beta * q[:, :1].mH
        y = torch.linalg.solve_triangular(r, g, upper=True)
        directions = self.directions if self.directions.shape[1] else self.basis
        return self.start + (y.mT @ directions[:, :k]).squeeze(-2)


@dataclass(frozen=True)
class GMRES(LinearMethod):
    """Restarted generalized minimal residuals, for any regular operator.

    Classical Gram-Schmidt, done twice, keeps the basis orthogonal to working precision. Source:
    Saad and Schultz (1986); flexible preconditioning from the right, so that the residual is that
    of the system itself: Saad (1993).

    With ``inner_dtype=torch.float32``, ``x <- x + d`` with residuals ``b - A x`` in float64, and
    ``A d = b - A x`` solved in float32 to four or five digits at a time: as accurate, at half of
    the memory traffic. Source: Turner and Walker (1992); Carson and Higham (2018); Loe, Glusa,
    Yamazaki, Boman and Rajamanickam, "A study of mixed precision strategies for GMRES on GPUs"
    (2021).

    For square operators ``(*batch, n, n)`` of every floating and complex dtype, known by their
    products.

    Parameters
    ----------
    rtol, atol, max_steps, compact, chunk_size, check_every, compile
        As in `LinearMethod`; restarts are no steps.
    restart
        The size of the Krylov space at which the method starts again from its iterate.
    inner_dtype
        ``torch.float32``: make the steps in float32 (complex64), and restart them with a residual
        of float64 (complex128) often enough; in float32 it changes nothing. Operators made of
        tensors (`MatrixOperator`, `SparseOperator`, ..., their sums and products), preconditioners
        too, are rounded once for both passes; functions are evaluated in float64, on rounded
        vectors. Problems that float32 carries no further, as their matrix is too ill-conditioned or
        out of its range, go on in float64. Not in a compiled graph.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid; the message names it.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> A = ims.MatrixOperator(torch.tensor([[2.0, 1.0], [0.0, 2.0]]))
    >>> ims.linear_solve(A, torch.tensor([4.0, 2.0]), solver=GMRES()).value
    tensor([1.5000, 1.0000])
    """

    restart: int = 50
    inner_dtype: torch.dtype | None = None
    monotone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse hyperparameters that make no sense."""
        super().__post_init__()
        check_count(self, "restart", least=1)
        if self.compile and self.inner_dtype is not None:
            raise ValueError(
                f"GMRES has compile=True and inner_dtype={self.inner_dtype!r}: leave one out"
            )
        if self.inner_dtype not in (None, torch.float32):
            kind = ValueError if isinstance(self.inner_dtype, torch.dtype) else TypeError
            raise kind(
                f"GMRES has inner_dtype={self.inner_dtype!r}: pass torch.float32, or leave it out"
            )

    def _refines(self, problem: LinearProblem) -> bool:
        """Whether steps are cycles of `refine`."""
        dtype = problem.b.dtype
        if self.inner_dtype is None or dtype in (torch.float32, torch.complex64):
            return False
        if not problem.branches:
            raise ValueError(
                f"GMRES has inner_dtype={self.inner_dtype} and runs in a compiled graph: leave "
                "inner_dtype out"
            )
        return True

    def error_at(self, problem: LinearProblem, x: Tensor, error: Tensor) -> Tensor:
        """Return the error of the residual itself, as refinement has it."""
        return error if self._refines(problem) else super().error_at(problem, x, error)

    @property
    def traceable(self) -> bool:  # type: ignore[override]
        """Whether a solve can be part of a graph."""
        return self.inner_dtype is None

    @property
    def spreads(self) -> bool:  # type: ignore[override]
        """Whether rows may be spread over ranks."""
        return self.inner_dtype is None

    def init(self, problem: LinearProblem, x: Tensor) -> GMRESState | RefinementState:
        """Start at ``x``."""
        if self._refines(problem):
            return begin_refinement(self, problem, x)
        m = max(1, min(self.restart, entries(x), self.max_steps))
        return self._begin(problem, x, problem.first_residual(x), m)

    def _begin(self, problem: LinearProblem, x: Tensor, r: Tensor, m: int) -> GMRESState:
        lanes, n = x.shape
        beta = norm(r).reshape(-1, 1, 1)
        rows = min(m, _FIRST) if problem.branches else m
        basis = x.new_zeros(lanes, rows + 1, n)
        basis[:, 0] = torch.where(beta[:, 0] > 0, r / beta[:, 0], 0.0)
        directions = basis[:, :0] if problem.M is None else torch.zeros_like(basis[:, 1:])
        hessenberg, null = x.new_zeros(lanes, m, m + 1), x.new_zeros(lanes, m + 1, 1)
        null[:, 0] = 1
        flag = torch.zeros(lanes, dtype=torch.int64, device=x.device)
        j = 0 if problem.branches else flag
        return GMRESState(x, basis, directions, hessenberg, null, beta, flag, j, rms(r), flag)

    def refresh(self, problem: LinearProblem, state: Any) -> Any:
        """Start again from the iterate if the space is full; make room for the next vector."""
        if isinstance(state, RefinementState):
            return state
        j, m = state.place, state.hessenberg.shape[1]
        ends = m >= self.max_steps and self.check_every in (None, 1)  # before it is full
        full = not ends and j == m
        if not nowhere(full):

            def residual(_: Any) -> tuple[Tensor, Tensor]:
                x = state.z
                return x, inside(problem).residual(x)

            where, none = torch.as_tensor(full), (state.start, state.start)
            x, r = repeat(lambda _: where.all(), residual, none, most=1)
            return pick(full, self._begin(problem, x, r, m), state)
        if isinstance(j, Tensor) or j + 1 < state.basis.shape[1]:
            return state
        more = torch.zeros_like(state.basis[:, : min(j, m - j)])
        basis = torch.cat([state.basis, more], dim=1)
        directions = state.directions
        if problem.M is not None:
            directions = torch.cat([directions, more], dim=1)
        return state._replace(basis=basis, directions=directions)

    def step(self, problem: LinearProblem, state: Any) -> GMRESState | RefinementState:
        """Add a vector to the basis and a column to the Hessenberg matrix."""
        if isinstance(state, RefinementState):
            return refine(self, problem, state)
        j, basis, directions = state.place, state.basis, state.directions
        in_graph = isinstance(j, Tensor)
        v = basis.index_select(1, j).squeeze(1) if in_graph else basis[:, j]
        direction = problem.precondition(v)
        if problem.M is not None:
            directions = _put(directions, j, direction.unsqueeze(1))
        w = problem.A.mv(direction).unsqueeze(-2)
        old = basis if in_graph else basis[:, : j + 1]
        dual = old.mH
        h = summed(w @ dual)
        w = torch.baddbmm(w, h, old, alpha=-1)
        again = summed(w @ dual)
        w = torch.baddbmm(w, again, old, alpha=-1)
        h = h + again
        length = norm(w, keepdim=True)
        column = (
            h.index_copy(2, j + 1, length.to(h.dtype)) if in_graph else torch.cat([h, length], -1)
        )
        before = torch.linalg.vector_norm(column, dim=-1, keepdim=True)
        rounding = 10 * torch.finfo(before.dtype).eps * before
        grows = length > rounding

        along = h @ state.null[:, : h.shape[-1]]
        length = torch.where(grows, length, 0 * before)  # not a number if the product is none
        size = torch.linalg.vector_norm(torch.cat([along, length], -1), dim=-1, keepdim=True)
        # a column that adds nothing gets no weight
        singular = size <= rounding
        shrink = torch.where(singular, 1.0, length / size)
        error = state.error * shrink.flatten()
        stuck = (error > 0) & ~grows.flatten()
        return state._replace(
            basis=_put(basis, j + 1, w / torch.where(grows, length, torch.inf)),
            directions=directions,
            hessenberg=_put(state.hessenberg, j, column),
            null=_put(shrink * state.null, j + 1, torch.where(singular, 0.0, -along / size)),
            columns=state.columns + ~singular.flatten(),
            j=state.j + 1,
            error=error,
            flag=torch.where(stuck, int(Status.BREAKDOWN), 0),
        )


def _put(rows: Tensor, j: Any, row: Tensor) -> Tensor:
    """Return ``rows (N, m, k)`` with ``row (N, 1, k)`` in the place ``j``.

    On the host it is written: columns past a lane's own count are never read, so that this
    disturbs no lane; and ``row`` may be shorter.
    """
    if isinstance(j, Tensor):
        return rows.index_copy(1, j, row)
    rows[:, j : j + 1, : row.shape[-1]] = row
    return rows
