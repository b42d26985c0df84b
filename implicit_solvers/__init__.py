"""Differentiable solvers for PyTorch: an equation becomes a layer.

``root``, ``fixed_point``, ``minimize``, ``least_squares`` and ``linear_solve`` solve; derivatives
come from the implicit function theorem, by one linear solve, in every mode of ``torch.func`` and
``torch.autograd``, batched by ``vmap``. This file knows public names, and nothing else.
"""

import typing as _typing

from implicit_solvers import nn as nn
from implicit_solvers.adjoint import ImplicitAdjoint, OneStepAdjoint, UnrolledAdjoint
from implicit_solvers.affine_norms import weights_apart
from implicit_solvers.allocation import retain_freed_memory
from implicit_solvers.autodiff import transformed
from implicit_solvers.constraints import Multipliers
from implicit_solvers.custom_solvers import attach, attach_kkt, custom_fixed_point, custom_root
from implicit_solvers.elementwise import elementwise_function
from implicit_solvers.error_estimates import gradient_error
from implicit_solvers.evaluations import Evaluations
from implicit_solvers.fixed_points import fixed_point
from implicit_solvers.foreign_names import explains_names_of as _explains_names_of
from implicit_solvers.foreign_names import missing_name as _missing_name
from implicit_solvers.linear.adjoint_start import AdjointStart
from implicit_solvers.linear.banded import Banded
from implicit_solvers.linear.bicgstab import BiCGStab
from implicit_solvers.linear.cg import CG
from implicit_solvers.linear.cholesky import Cholesky
from implicit_solvers.linear.diagonal import Diagonal
from implicit_solvers.linear.gmres import GMRES
from implicit_solvers.linear.linear_operator import LinearOperator
from implicit_solvers.linear.lsmr import LSMR
from implicit_solvers.linear.lu import LU
from implicit_solvers.linear.minres import MINRES
from implicit_solvers.linear.neumann import Neumann
from implicit_solvers.linear.operators import (
    DiagonalOperator,
    FunctionOperator,
    HessianOperator,
    IdentityOperator,
    JacobianOperator,
    MatrixOperator,
)
from implicit_solvers.linear.preconditioners import (
    ILU,
    Jacobi,
    SparsePreconditioner,
)
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.linear.qr import QR
from implicit_solvers.linear.solve import linear_solve
from implicit_solvers.linear.sparse import SparseOperator
from implicit_solvers.linear.sparsity import SparsityPattern
from implicit_solvers.linear.structured import Structured
from implicit_solvers.linear.superlu import SuperLU
from implicit_solvers.linear.svd import SVD
from implicit_solvers.linear.tridiagonal import TridiagonalOperator
from implicit_solvers.many_starts import multistart
from implicit_solvers.minimization import minimize
from implicit_solvers.monitoring import Monitor, SolveRecord, monitor
from implicit_solvers.nonlinear_least_squares import least_squares
from implicit_solvers.path_following import continuation
from implicit_solvers.precision import in_full_precision
from implicit_solvers.problem import EquationProblem
from implicit_solvers.root_finding import root
from implicit_solvers.solution import (
    ConvergenceError,
    ConvergenceWarning,
    Solution,
    Status,
    warn_degenerate,
)
from implicit_solvers.solver import DirectSolver, EquationMethod, LinearMethod
from implicit_solvers.solvers.aitken import Aitken
from implicit_solvers.solvers.anderson import Anderson
from implicit_solvers.solvers.bfgs import BFGS
from implicit_solvers.solvers.bisection import Bisection
from implicit_solvers.solvers.broyden import Broyden
from implicit_solvers.solvers.chandrupatla import Chandrupatla
from implicit_solvers.solvers.chord import Chord
from implicit_solvers.solvers.continuation import Continuation
from implicit_solvers.solvers.dogleg import Dogleg
from implicit_solvers.solvers.fixed_point_iteration import FixedPointIteration
from implicit_solvers.solvers.gauss_newton import GaussNewton
from implicit_solvers.solvers.gradient_descent import GradientDescent
from implicit_solvers.solvers.interior_point import FilterInteriorPoint
from implicit_solvers.solvers.lbfgs import LBFGS, LBFGSB
from implicit_solvers.solvers.levenberg_marquardt import LevenbergMarquardt
from implicit_solvers.solvers.line_search import Backtracking, StrongWolfe
from implicit_solvers.solvers.newton import Newton
from implicit_solvers.solvers.newton_cg import NewtonCG, ProjectedNewton
from implicit_solvers.solvers.newton_dogleg import NewtonDogleg
from implicit_solvers.solvers.nonlinear_cg import NonlinearCG
from implicit_solvers.solvers.proximal_gradient import FISTA, ProximalGradient
from implicit_solvers.solvers.steffensen import Steffensen
from implicit_solvers.solvers.torch_optimizer import TorchOptimizer
from implicit_solvers.solvers.trust_region_newton import TrustRegion
from implicit_solvers.sparsity_detection import jacobian_sparsity
from implicit_solvers.tolerance import AUTO, Auto, rms

__version__ = "0.1.0"

__all__ = [
    # equations
    "root",
    "fixed_point",
    "minimize",
    "least_squares",
    "multistart",
    "continuation",
    "jacobian_sparsity",
    "SparsityPattern",
    # solutions and solvers of your own
    "attach",
    "attach_kkt",
    "custom_root",
    "custom_fixed_point",
    "elementwise_function",
    "EquationProblem",
    "EquationMethod",
    "AUTO",
    "Auto",
    "rms",
    "transformed",
    # linear systems
    "linear_solve",
    "LinearOperator",
    "MatrixOperator",
    "FunctionOperator",
    "JacobianOperator",
    "HessianOperator",
    "DiagonalOperator",
    "TridiagonalOperator",
    "SparseOperator",
    "IdentityOperator",
    # linear solvers
    "LinearMethod",
    "LinearProblem",
    "DirectSolver",
    "LU",
    "Cholesky",
    "QR",
    "SVD",
    "Diagonal",
    "Banded",
    "SuperLU",
    "Structured",
    "CG",
    "MINRES",
    "GMRES",
    "BiCGStab",
    "LSMR",
    "Neumann",
    "Jacobi",
    "ILU",
    "SparsePreconditioner",
    # solvers for equations
    "Newton",
    "Chord",
    "Broyden",
    "LevenbergMarquardt",
    "Dogleg",
    "Steffensen",
    "Bisection",
    "Chandrupatla",
    "FixedPointIteration",
    "Anderson",
    "Aitken",
    "GradientDescent",
    "LBFGS",
    "BFGS",
    "NonlinearCG",
    "NewtonCG",
    "TrustRegion",
    "LBFGSB",
    "ProjectedNewton",
    "NewtonDogleg",
    "FilterInteriorPoint",
    "ProximalGradient",
    "FISTA",
    "TorchOptimizer",
    "Backtracking",
    "StrongWolfe",
    "GaussNewton",
    "Continuation",
    # derivatives
    "ImplicitAdjoint",
    "OneStepAdjoint",
    "UnrolledAdjoint",
    "AdjointStart",
    "gradient_error",
    "in_full_precision",
    "weights_apart",
    # results
    "Solution",
    "Multipliers",
    "Status",
    "Evaluations",
    "monitor",
    "Monitor",
    "SolveRecord",
    "ConvergenceError",
    "ConvergenceWarning",
    "warn_degenerate",
    # the process
    "retain_freed_memory",
]


def __dir__() -> list[str]:
    """Offer the public names for completion, and no files."""
    return sorted([*__all__, "nn", *(name for name in globals() if name.startswith("__"))])


for _name in __all__:
    _explains_names_of(globals()[_name])

if not _typing.TYPE_CHECKING:  # a checker knows the names

    def __getattr__(name: str) -> object:
        raise _missing_name(__name__, name)
