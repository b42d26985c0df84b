"""The linear solver that is taken when none is named.

It knows sizes and structure, and no entries.
"""

from __future__ import annotations

from implicit_solvers.linear.banded import Banded
from implicit_solvers.linear.cg import CG
from implicit_solvers.linear.cholesky import Cholesky
from implicit_solvers.linear.diagonal import Diagonal
from implicit_solvers.linear.gmres import GMRES
from implicit_solvers.linear.lsmr import LSMR
from implicit_solvers.linear.lu import LU
from implicit_solvers.linear.qr import QR
from implicit_solvers.linear.sparsity import SparsityPattern
from implicit_solvers.linear.structured import Structured
from implicit_solvers.linear.superlu import SuperLU
from implicit_solvers.solver import DENSE_LIMIT, LinearSolver

__all__ = ["DENSE_LIMIT", "default_linear_solver", "sparse_linear_solver"]


def default_linear_solver(
    n: float,
    *,
    positive_definite: bool = False,
    diagonal: bool = False,
    banded: bool = False,
    sparse: bool = False,
    detect: bool = False,
    rectangular: bool = False,
) -> LinearSolver:
    """Choose a linear solver.

    Diagonal operators are divided by; on the CPU, banded and square sparse ones are factored as
    such. Of the others, up to 512 unknowns, `Cholesky` solves positive definite, `QR` rectangular
    and `LU` all other systems; beyond, `CG`, `LSMR` and `GMRES` do.
    """
    if sparse and not rectangular:
        return SuperLU()
    if detect and not rectangular:
        return Structured()
    if rectangular:
        return QR() if n <= DENSE_LIMIT else LSMR()
    if diagonal:
        return Diagonal()
    if banded:
        return Banded()
    if n <= DENSE_LIMIT:
        return Cholesky() if positive_definite else LU()
    return CG() if positive_definite else GMRES()


def sparse_linear_solver(pattern: SparsityPattern) -> SuperLU:
    """Choose how a Jacobian of that pattern is factored.

    Minimum degree on ``A^T + A`` fills less where the pattern is symmetric.
    """
    return SuperLU("MMD_AT_PLUS_A" if pattern.symmetric else "COLAMD")
