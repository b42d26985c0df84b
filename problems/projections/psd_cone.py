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


def positive_part(X: Tensor, S: Tensor) -> Tensor:
    """Evaluate the equation of the positive part, ``X X = (X S + S X) / 2``, as it is raveled."""
    n = S.shape[-1]
    X = X.reshape(*X.shape[:-1], n, n)
    return (X @ X - (X @ S + S @ X) / 2).flatten(-2)


class SpectralState(NamedTuple):
    """The state of `Spectral`, and what `Lyapunov` divides by."""

    z: Tensor
    error: Tensor
    estimate: Tensor
    flag: Tensor
    means: Tensor

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The mean absolute value of each pair of eigenvalues."""
        return (self.means,)


@dataclass(frozen=True)
class Spectral(ims.EquationMethod):
    """Solve `positive_part` for a diagonal ``S``, at the start, for good."""

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
        """Leave out the negative eigenvalues; a lane that is not finite fails."""
        lanes = len(z)
        if len(problem.shape) > 1:
            problem = problem.take(torch.arange(lanes, device=z.device))
        S = problem.operands[0]
        values = S.diagonal(dim1=-2, dim2=-1).reshape(-1, S.shape[-1]).expand(lanes, -1)
        finite = torch.isfinite(values).all(-1)
        sizes = values.abs()
        means = (sizes.unsqueeze(-1) + sizes.unsqueeze(-2)) / 2
        flag = torch.where(finite, 0, int(ims.Status.NONFINITE))
        error = torch.where(finite, 0.0, torch.nan).to(z)
        z = torch.diag_embed(values.clamp(min=0)).flatten(1)
        return SpectralState(z, error, error, flag, means.flatten(1))

    def step(self, problem: ims.EquationProblem, state: SpectralState) -> SpectralState:
        """Stay."""
        return state


@dataclass(frozen=True)
class Lyapunov(ims.DirectSolver):
    """Solve ``(|S| W + W |S|) / 2 = B``, where ``S`` is diagonal: the Jacobian is, too."""

    def factor_dense(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """Return the diagonal."""
        return (matrix.diagonal(dim1=-2, dim2=-1),)

    def solve(self, factors: tuple[Tensor, ...], b: Tensor, transposed: bool) -> Tensor:
        """Return ``W`` for ``B`` raveled, ``(grid, n n, columns)``."""
        return b / factors[0].unsqueeze(-1)

    def status(self, factors: tuple[Tensor, ...]) -> Tensor:
        """Return SINGULAR where an eigenvalue is zero."""
        return torch.where((factors[0] > 0).all(-1), 0, int(ims.Status.SINGULAR))


def to_inside(values: Tensor) -> Tensor:
    """Return eigenvalues ``(..., n)``; those that are nothing but rounding become positive ones."""
    n, info = values.shape[-1], torch.finfo(values.dtype)
    largest = values.abs().amax(-1, keepdim=True)
    least = n * info.eps * torch.where(largest >= info.tiny, largest, 1.0)
    return torch.where(values.abs() < least, least, values)


def project_psd_cone(
    S: Tensor, *, on_failure: Literal["raise", "warn", "mask"] = "raise"
) -> Tensor:
    r"""Project onto the positive semidefinite matrices: negative eigenvalues become zero.

    The derivatives come from the equation ``X X = (X S + S X) / 2``, in the eigenvectors of ``S``,
    where each solve is a division; they are finite where eigenvalues coincide, where those of
    ``torch.linalg.eigh`` are not.

    Parameters
    ----------
    S
        ``(..., n, n)``, floating; the symmetric part is projected.
    on_failure
        As in `implicit_solvers.root`; a problem with NaN fails.

    Returns
    -------
    Tensor
        ``X``, like ``S``, differentiable to any order. At a zero eigenvalue there is a kink, and
        the derivative is that from inside, as at the tip of `project_second_order_cone`: at ``S =
        0`` it is the identity. An eigenvalue counts as zero that is less than ``n eps`` times the
        largest, beside which it is nothing but rounding.

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
        # the projection of s S is s times that of S: no square under- or overflows
        largest = values.abs().amax(-1, keepdim=True)
        scale = torch.where(largest >= torch.finfo(S.dtype).tiny, largest, 1.0)
        near = to_inside(values / scale)
        exact = (V * values.clamp(min=0).unsqueeze(-2)) @ V.mT
        exact, near = (torch.where(finite, t, torch.nan) for t in (exact, torch.diag_embed(near)))
        scale = scale.unsqueeze(-1)
    turned = near + V.mT @ ((S - S.detach()) / scale) @ V
    X = ims.root(
        positive_part,
        near.flatten(1),
        (turned,),
        solver=Spectral(),
        adjoint=ims.ImplicitAdjoint(Lyapunov()),
        batch_dims=1,
        in_dims=(0,),
        on_failure=on_failure,
    ).value.reshape(turned.shape)
    X = exact + scale * (V @ (X - X.detach()) @ V.mT)
    return X.reshape(*lanes, n, n)
