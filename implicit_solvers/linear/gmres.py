"""Generalized minimal residuals."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.compiled_step import to_compile
from implicit_solvers.hyperparameters import check_count
from implicit_solvers.iterate import Outcome, iterate
from implicit_solvers.linear.gmres_in_graph import gmres_compiled, gmres_in_graph
from implicit_solvers.linear.iterative_refinement import refine
from implicit_solvers.linear.mixed_precision import RoundedTensors
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.solution import Status
from implicit_solvers.solver import LinearMethod
from implicit_solvers.tolerance import rms

__all__ = ["GMRES"]


_FIRST = 8  # columns allocated at first; more come by doubling, so that memory follows need


class GMRESState(NamedTuple):
    """The state of `GMRES`: the basis so far and the Hessenberg matrix, transposed.

    ``directions`` are the preconditioned basis vectors, empty without a preconditioner.
    ``null`` is the row of norm one that is orthogonal to the columns of the Hessenberg matrix; the
    residual is a multiple of ``V null^H``.
    """

    start: Tensor
    basis: Tensor
    directions: Tensor
    hessenberg: Tensor
    null: Tensor
    beta: Tensor
    columns: Tensor
    j: int
    error: Tensor
    flag: Tensor

    @property
    def z(self) -> Tensor:
        """The iterate ``x + M V y``, where ``y`` solves the small least-squares problem."""
        if self.j == 0:
            return self.start
        k = self.j
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

    For square operators ``(*lanes, n, n)`` of every floating and complex dtype, known by their
    products.

    Parameters
    ----------
    rtol, atol, max_steps, compact, check_every, compile
        As in `LinearMethod`; restarts are no steps.
    restart
        The size of the Krylov space at which the method starts again from its iterate.
    inner_dtype
        ``torch.float32``: make the steps in float32 (complex64), and restart them with a residual
        of float64 (complex128) often enough; in float32 it changes nothing. Operators made of
        tensors (`MatrixOperator`, `SparseOperator`, ..., their sums and products), preconditioners
        too, are rounded once for both passes; functions are evaluated in float64, on rounded
        vectors. Lanes that float32 carries no further, as their matrix is too ill-conditioned or
        out of its range, go on in float64. Not in a compiled graph.

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

    restart: int = 50
    inner_dtype: torch.dtype | None = None
    _rounded: RoundedTensors | None = field(default=None, init=False, repr=False, compare=False)
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

    def session(self) -> GMRES:
        """Return a solver that keeps the rounded tensors of one solve for its derivatives."""
        if self.inner_dtype is None:
            return self
        session = replace(self)
        object.__setattr__(session, "_rounded", RoundedTensors())
        return session

    def whole(self, problem: Any, x: Tensor) -> Any:
        """Iterate by compiled cycles, or in mixed precision by refinement."""
        if self.inner_dtype is None:
            form = to_compile(self, problem, x)
            return None if form is None else gmres_compiled(self, form, x)
        if x.dtype in (torch.float32, torch.complex64):
            out = iterate(replace(self, inner_dtype=None), problem, x)
            return out._replace(error=rms(problem.residual(out.z)))
        if x.dtype not in (torch.float64, torch.complex128):
            raise TypeError(
                f"GMRES has inner_dtype={self.inner_dtype} and the vectors are {x.dtype}: convert "
                "them to torch.float64, or leave inner_dtype out"
            )
        return refine(self, problem, x, self.inner_dtype, self._rounded or RoundedTensors())

    def init(self, problem: LinearProblem, x: Tensor) -> GMRESState:
        """Start at ``x``."""
        return self._begin(problem, x, problem.first_residual(x))

    def _begin(self, problem: LinearProblem, x: Tensor, r: Tensor) -> GMRESState:
        n = x.shape[-1]
        m = max(1, min(self.restart, n, self.max_steps))
        beta = torch.linalg.vector_norm(r, dim=-1).reshape(-1, 1, 1)
        basis = x.new_zeros(len(x), min(m, _FIRST) + 1, n)
        basis[:, 0] = torch.where(beta[:, 0] > 0, r / beta[:, 0], 0.0)
        directions = basis[:, :0] if problem.M is None else torch.zeros_like(basis[:, 1:])
        hessenberg, null = x.new_zeros(len(x), m, m + 1), x.new_zeros(len(x), 1, m + 1)
        null[..., 0] = 1
        flag = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        error = rms(r)
        return GMRESState(x, basis, directions, hessenberg, null, beta, flag, 0, error, flag)

    def iterate_in_graph(self, problem: LinearProblem, x: Tensor) -> Outcome:
        """Iterate from ``x`` in a compiled graph."""
        if self.inner_dtype is not None:
            raise ValueError(
                f"GMRES has inner_dtype={self.inner_dtype} and runs in a compiled graph: leave "
                "inner_dtype out"
            )
        return gmres_in_graph(self, problem, x)

    def refresh(self, problem: LinearProblem, state: GMRESState) -> GMRESState:
        """Make room for the next vector, or start again from the iterate if there is none."""
        j, m = state.j, state.hessenberg.shape[1]
        if j == m:
            x = state.z
            return self._begin(problem, x, problem.residual(x))
        if j + 1 < state.basis.shape[1]:
            return state
        more = torch.zeros_like(state.basis[:, : min(j, m - j)])
        basis = torch.cat([state.basis, more], dim=1)
        directions = state.directions
        if problem.M is not None:
            directions = torch.cat([directions, more], dim=1)
        return state._replace(basis=basis, directions=directions)

    def step(self, problem: LinearProblem, state: GMRESState) -> GMRESState:
        """Add a vector to the basis and a column to the Hessenberg matrix."""
        j = state.j
        # Columns past a lane's own count are never read: writing them in place disturbs no lane.
        basis, directions, hessenberg = state.basis, state.directions, state.hessenberg
        direction = problem.precondition(basis[:, j])
        if problem.M is not None:
            directions[:, j] = direction
        w = problem.A.mv(direction).unsqueeze(-2)
        old = basis[:, : j + 1]
        dual = old.mH
        h = w @ dual
        w = torch.baddbmm(w, h, old, alpha=-1)
        again = w @ dual
        w = torch.baddbmm(w, again, old, alpha=-1)
        h = h + again
        length = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
        column = torch.cat([h, length], dim=-1)
        hessenberg[:, j : j + 1, : j + 2] = column
        before = torch.linalg.vector_norm(column, dim=-1, keepdim=True)
        rounding = 10 * torch.finfo(before.dtype).eps * before
        grows = length > rounding
        torch.div(w, torch.where(grows, length, torch.inf), out=basis[:, j + 1 : j + 2])

        length = torch.where(grows, length, 0 * before)  # not a number if the product is none
        along = h @ state.null[..., : j + 1].mT
        size = torch.linalg.vector_norm(torch.cat([along, length], -1), dim=-1, keepdim=True)
        # a column that adds nothing gets no weight
        singular = size <= rounding
        shrink = torch.where(singular, 1.0, length / size)
        null = shrink * state.null
        null[..., j + 1 : j + 2] = torch.where(singular, 0.0, -along / size)
        error = state.error * shrink.flatten()
        stuck = (error > 0) & ~grows.flatten()
        return state._replace(
            null=null,
            columns=state.columns + ~singular.flatten(),
            j=j + 1,
            error=error,
            flag=torch.where(stuck, int(Status.BREAKDOWN), 0),
        )
