"""The cone of positive semidefinite matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.projections.validation import check_array

__all__ = ["project_psd_cone"]


def absolute_value(N: Tensor, S: Tensor) -> Tensor:
    """Evaluate the equation of ``N = (S^2)^(1/2)``, ``N N = S S``, as it is raveled."""
    n = S.shape[-1]
    square = N.reshape(*N.shape[:-1], n, n)
    return (square @ square - S @ S).reshape(N.shape)


class SpectralState(NamedTuple):
    """The state of `Spectral`, and what `Lyapunov` solves with."""

    z: Tensor
    error: Tensor
    estimate: Tensor
    flag: Tensor
    V: Tensor
    sizes: Tensor

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The eigenvectors and the absolute eigenvalues."""
        return self.V, self.sizes


@dataclass(frozen=True)
class Spectral(ims.EquationMethod):
    """Solve ``N N = S S`` by an eigendecomposition of ``S``, at the start, for good.

    Parameters
    ----------
    rtol, atol, f_atol, max_steps, max_trials, norm
        As in `EquationMethod`.
    compact, chunk_size, check_every, compile
        As in `EquationMethod`; no step is made.
    """

    max_steps: int = field(default=1, kw_only=True)
    monotone: ClassVar[bool] = True
    traceable: ClassVar[bool] = False
    solves: ClassVar[tuple[str, ...]] = ("root",)

    def examined(self, n: int) -> bool:
        """Tell that the solver judges for itself."""
        return False

    def factorization(self, n: int) -> Lyapunov:
        """Return what solves in the eigenvectors."""
        return Lyapunov()

    def init(self, problem: ims.EquationProblem, z: Tensor) -> SpectralState:
        """Decompose; a lane that is not finite fails."""
        lanes = len(z)
        if len(problem.shape) > 1:
            problem = problem.take(torch.arange(lanes, device=z.device))
        S = problem.operands[0]
        n = S.shape[-1]
        S = S.reshape(-1, n, n).expand(lanes, n, n)
        finite = torch.isfinite(S).flatten(1).all(-1)
        values, V = torch.linalg.eigh(torch.where(finite[:, None, None], S, 0.0))
        sizes = values.abs()
        N = ((V * sizes.unsqueeze(-2)) @ V.mT).reshape(lanes, -1)
        flag = torch.where(finite, 0, int(ims.Status.NONFINITE))
        error = torch.where(finite, 0.0, torch.nan).to(z)
        return SpectralState(N, error, error, flag, V, sizes)

    def step(self, problem: ims.EquationProblem, state: SpectralState) -> SpectralState:
        """Stay."""
        return state


@dataclass(frozen=True)
class Lyapunov(ims.DirectSolver):
    """Solve ``N W + W N = B`` in the eigenvectors of ``N``."""

    def factor_dense(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """Find ``N`` in the Jacobian ``N x I + I x N`` and decompose it."""
        n = round(matrix.shape[-1] ** 0.5)
        blocks = matrix.reshape(-1, n, n, n, n)
        partial = torch.einsum("gijkj->gik", blocks)  # n N + trace(N) I
        trace = partial.diagonal(dim1=-2, dim2=-1).sum(-1) / (2 * n)
        eye = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
        sizes, V = torch.linalg.eigh((partial - trace[:, None, None] * eye) / n)
        return V, sizes

    def solve(self, factors: tuple[Tensor, ...], b: Tensor, transposed: bool) -> Tensor:
        """Return ``W`` for ``B`` raveled, ``(grid, n n, columns)``; the operator is symmetric."""
        V, sizes = factors
        n, columns = V.shape[-1], b.shape[-1]
        B = b.mT.reshape(len(b), columns, n, n)
        V = V.unsqueeze(1)
        sums = (sizes.unsqueeze(-1) + sizes.unsqueeze(-2)).unsqueeze(1)
        W = V @ ((V.mT @ B @ V) / sums) @ V.mT
        return W.reshape(len(b), columns, n * n).mT

    def status(self, factors: tuple[Tensor, ...]) -> Tensor:
        """Return SINGULAR where an eigenvalue is zero."""
        regular = (factors[1] > 0).all(-1)
        return torch.where(regular, 0, int(ims.Status.SINGULAR))


def project_psd_cone(
    S: Tensor, *, on_failure: Literal["raise", "warn", "mask"] = "raise"
) -> Tensor:
    r"""Project onto the positive semidefinite matrices: negative eigenvalues become zero.

    ``X = (S + N) / 2`` with the absolute value ``N``, the positive root of ``N N = S S``. The
    derivatives come from that equation, a Lyapunov equation in the eigenvectors; they are finite
    where eigenvalues coincide, where those of ``torch.linalg.eigh`` are not.

    Parameters
    ----------
    S
        ``(..., n, n)``, floating; the symmetric part is projected.
    on_failure
        As in `implicit_solvers.root`; a problem with NaN fails.

    Returns
    -------
    Tensor
        ``X``, like ``S``, differentiable to any order. At a zero eigenvalue there is a kink; the
        derivative there is that of a matrix a little to the inside, by ``sqrt(eps)`` times the
        largest eigenvalue. So the derivative at ``S = 0`` is the identity, as that of
        `project_second_order_cone` at its tip.

    Raises
    ------
    implicit_solvers.ConvergenceError
        If a problem fails and ``on_failure="raise"``.
    TypeError, ValueError
        If ``S`` is not a floating tensor, or not square.

    Notes
    -----
    Source: Higham, "Computing a nearest symmetric positive semidefinite matrix" (1988); Higham,
    "Functions of Matrices" (2008), chapter 6.

    Examples
    --------
    >>> project_psd_cone(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    S = check_array("S", S, 2)
    n = S.shape[-1]
    if S.shape[-2] != n:
        raise ValueError(f"S has the shape {tuple(S.shape)}: pass square matrices")
    lanes = S.shape[:-2]
    S = ((S + S.mT) / 2).reshape(math.prod(lanes), n, n)
    with torch.no_grad():
        fixed = S.detach()
        finite = fixed.isfinite().all(-1, True).all(-2, True)
        values, V = torch.linalg.eigh(torch.where(finite, fixed, 0.0))
        largest = values.abs().amax(-1, keepdim=True)
        # the projection of s S is s times that of S: no square under- or overflows
        scale = torch.where(largest >= torch.finfo(S.dtype).tiny, largest, 1.0)
        least = scale * torch.finfo(S.dtype).eps ** 0.5
        moved = torch.where(values.abs() < least, least, values)
        shift = (V * (moved - values).unsqueeze(-2)) @ V.mT
        exact = (V * values.clamp(min=0).unsqueeze(-2)) @ V.mT
        exact = torch.where(finite, exact, torch.nan)
        scale = scale.unsqueeze(-1)
    regular = (S + shift) / scale
    N = ims.root(
        absolute_value,
        regular.detach().flatten(1),
        (regular,),
        solver=Spectral(),
        adjoint=ims.ImplicitAdjoint(Lyapunov()),
        batch_dims=1,
        in_dims=(0,),
        on_failure=on_failure,
    ).value
    X = scale * (regular + N.reshape(regular.shape)) / 2
    X = exact + (X - X.detach())
    return X.reshape(*lanes, n, n)
