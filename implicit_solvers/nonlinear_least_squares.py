"""Nonlinear least squares: ``argmin_z |r(z, theta)|^2 / 2``.

It states the task, and knows no step of the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from implicit_solvers.adjoint import Adjoint, ImplicitAdjoint, UnrolledAdjoint
from implicit_solvers.autodiff import vjp
from implicit_solvers.bounded_equation import Bounded
from implicit_solvers.bounds import read_bounds
from implicit_solvers.driver import Task, solve_equation
from implicit_solvers.examination import Examination
from implicit_solvers.fit_examination import by_singular_values
from implicit_solvers.foreign_names import explains_names
from implicit_solvers.linear.adjoint_start import AdjointStart
from implicit_solvers.many_starts import one_start
from implicit_solvers.precision import in_full_precision
from implicit_solvers.problem import Equation
from implicit_solvers.robust_loss import check_loss, robust
from implicit_solvers.sharding import telling
from implicit_solvers.solution import OnFailure, Solution
from implicit_solvers.solver import EquationMethod
from implicit_solvers.solvers.levenberg_marquardt import LevenbergMarquardt
from implicit_solvers.structure import Structure
from implicit_solvers.torch_internals import tree_flatten

__all__ = ["GaussNewtonEquation", "LeastSquaresEquation", "least_squares", "read_residuals"]

T = TypeVar("T")


class LeastSquaresEquation(Equation):
    """The condition ``J^T r = 0``; its Jacobian is the full Hessian of ``|r|^2 / 2``."""

    kind: ClassVar[str] = "least_squares"
    fits: ClassVar[bool] = True
    symmetric: ClassVar[bool] = True

    def condition(self, z: Tensor, *operands: Tensor) -> Tensor:
        """Return ``J^T r``."""
        residuals, pull = vjp(lambda u: self.fn(u, *operands), z)
        return pull(residuals)[0]

    def examine(self, problem: Any, z: Tensor, direct: Any) -> Examination:
        """Return Newton's step from ``z (N, n)``, of the full Hessian, and what rounding makes."""
        return by_singular_values(problem, z)


class GaussNewtonEquation(LeastSquaresEquation):
    """The condition ``J(z0)^T r(z) = 0`` at ``z0 = z``; its Jacobian in ``z`` is ``J^T J``.

    In everything but ``z`` it has the derivatives of ``J^T r``.
    """

    biased: ClassVar[str | None] = "least_squares(..., gauss_newton=True)"

    def condition(self, z: Tensor, *operands: Tensor) -> Tensor:
        """Return ``J^T r``, with ``J`` held at the value of ``z``."""
        _, pull = vjp(lambda u: self.fn(u, *operands), z.detach())
        return pull(self.fn(z, *operands))[0]


class BoundedLeastSquaresEquation(Bounded, LeastSquaresEquation):
    """The condition of a fit between bounds."""

    kind: ClassVar[str] = "least_squares with bounds"


class BoundedGaussNewtonEquation(Bounded, GaussNewtonEquation):
    """The same, with ``J^T J`` in the place of the Hessian."""

    kind: ClassVar[str] = "least_squares with bounds"


def read_residuals(out: Any, structure: Structure, lanes: Sequence[int]) -> Tensor:
    """Ravel and check what a function of residuals returned."""
    leaves, k = tree_flatten(out)[0], len(lanes)
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"fn returned a {type(leaf).__name__}: return tensors of residuals")
        if leaf.dtype not in (structure.dtype, structure.flat_dtype):
            raise TypeError(
                f"fn returned {leaf.dtype} where z0 has {structure.dtype}: convert z0 or the "
                "tensors that the function uses, so that all have one dtype"
            )
        if leaf.shape[:k] != tuple(lanes):
            raise ValueError(
                f"fn returned residuals of shape {tuple(leaf.shape)}: they must begin with the "
                f"batch {tuple(lanes)}"
            )
    leaves = [torch.stack((t.real, t.imag), -1) if t.is_complex() else t for t in leaves]
    flat = [leaf.reshape((*lanes, math.prod(leaf.shape[k:]))) for leaf in leaves]
    return torch.cat(flat, dim=-1)


@explains_names("LevenbergMarquardt")
@in_full_precision("z0", body=False)
def least_squares(
    fn: Callable[..., Any],
    z0: T,
    args: tuple[Any, ...] = (),
    *,
    bounds: Any = None,
    solver: EquationMethod | None = None,
    adjoint: Adjoint | None = None,
    gauss_newton: bool = False,
    loss: str | Callable[[Tensor], Tensor] = "linear",
    f_scale: float | Tensor = 1.0,
    batch_dims: int = 0,
    in_dims: Any = None,
    has_aux: bool = False,
    on_failure: OnFailure = "raise",
    adjoint_start: AdjointStart | None = None,
    check: bool = False,
    sync_failures: Any = False,
) -> Solution[T]:
    """Minimize ``|fn(z, *args)|^2 / 2``, differentiable in everything that ``fn`` uses.

    With a ``loss`` it is ``f_scale^2 / 2 sum_i rho((r_i / f_scale)^2)``, in which outliers count
    for less.

    The derivative uses the full Hessian ``H = J^T J + sum_i r_i Hess(r_i)``: ``dz = -H^-1 (d(J^T
    r)/dtheta) dtheta``. The Gauss-Newton part ``J^T J`` alone is cheaper, but wrong unless the
    residuals at the solution are zero.

    Parameters
    ----------
    fn
        ``fn(z, *args)`` returns the residuals: a tensor or pytree of tensors of any shape (with the
        batch in front).
    z0
        The start: a tensor (0-d too) or a pytree of tensors of one floating dtype and
        device. It gets no gradient.
    args
        Further arguments, pytrees; other leaves than tensors are passed on as they are.
    bounds
        A pair ``(lo, hi)`` with ``lo <= z <= hi``: each a number, None, or a pytree like ``z0`` of
        tensors, numbers and None; infinite where there is none. They are differentiable. A start
        outside of them is moved to the nearest point between them.
    solver
        `LevenbergMarquardt`, by default; `Dogleg`, `GaussNewton` (cheaper steps, from nearby, for
        Jacobians of full rank), `LBFGS`, `Newton`, `GradientDescent`. With bounds
        `LevenbergMarquardt`, by default; `LBFGSB`, `GradientDescent`.
    gauss_newton
        Whether the derivative uses ``J^T J`` in place of the full Hessian. It is biased unless
        the residuals vanish, hence of first order only: an error when it is differentiated again.
    loss
        What the squares ``s`` of the residuals over ``f_scale`` count for, as SciPy names it:
        ``"linear"``, ``s``; ``"soft_l1"``, ``2 (sqrt(1 + s) - 1)``; ``"huber"``, ``s`` up to 1 and
        ``2 sqrt(s) - 1`` beyond; ``"cauchy"``, ``log(1 + s)``; ``"arctan"``, ``arctan(s)``. Or a
        function ``rho(s)`` of tensors, entry by entry, smooth, with ``rho'(0) > 0`` and ``rho(s) >
        rho(0)``; tensors that it captures get gradients. A complex residual is one observation:
        its modulus counts.
    f_scale
        How large residuals may be before they count for less: a number, or a tensor, 0-d or one for
        each problem of ``batch_dims``, which gets gradients. A problem whose scale is not positive
        is NONFINITE.
    adjoint, batch_dims, in_dims, has_aux, on_failure, adjoint_start, check, sync_failures
        As in `root`.

    Returns
    -------
    Solution
        The minimum; ``residual`` is the norm of ``J^T r``, the gradient of the objective, with a
        loss too.

    Raises
    ------
    ConvergenceError
        If a problem fails and ``on_failure="raise"``.
    TypeError, ValueError
        If an argument is invalid; the message names it. Among them ``gauss_newton=True`` with
        `UnrolledAdjoint`, which has no Hessian.

    Notes
    -----
    At the end of a solve, a Newton step with the full Hessian gives the error of the fit. A saddle
    is left along its negative curvature (SADDLE, if it is the start); an unknown without influence,
    as on a plateau, makes a fit SINGULAR. Source: Nocedal and Wright, "Numerical Optimization",
    chapter 10.

    With a loss, solvers and derivatives are those of the residuals ``r_i sqrt(rho(s_i) / s_i)``,
    whose squares are the robust objective. So the derivative has its full Hessian, and
    ``gauss_newton=True`` is right where all residuals vanish. Source: Hartley and Zisserman,
    "Multiple View Geometry in Computer Vision" (2004), appendix 6.8.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> t = torch.tensor([0.0, 1.0, 2.0])
    >>> y = torch.tensor([1.0, 2.1, 3.9], requires_grad=True)
    >>> def residuals(z, y):
    ...     return z["scale"] * torch.exp(z["rate"] * t) - y
    >>> z0 = {"scale": torch.tensor(1.0), "rate": torch.tensor(0.0)}
    >>> fit = ims.least_squares(residuals, z0, (y,)).value
    >>> fit["rate"]
    tensor(0.6534, grad_fn=<...>)
    >>> torch.autograd.grad(fit["rate"], y)[0]
    tensor([-0.2639, -0.2070,  0.1791])

    An outlier, which the mean follows and Cauchy's loss does not:

    >>> y = torch.tensor([1.0, 1.1, 0.9, 50.0])
    >>> ims.least_squares(lambda z: z - y, torch.tensor(1.0), loss="cauchy", f_scale=0.1).value
    tensor(1.0002)
    """
    if not isinstance(gauss_newton, bool):
        raise TypeError(f"gauss_newton is a {type(gauss_newton).__name__}: pass True or False")
    if gauss_newton and isinstance(adjoint, UnrolledAdjoint):
        raise ValueError(
            "gauss_newton=True with adjoint=UnrolledAdjoint(), which differentiates the steps and "
            "has no Hessian: leave one of them out"
        )
    check_loss(loss, f_scale, one_start(z0), batch_dims)
    if loss != "linear" and callable(fn) and isinstance(args, tuple):
        fn = robust(fn, loss, has_aux)
        if isinstance(in_dims, int):
            in_dims = (in_dims,) * len(args)
        if isinstance(in_dims, tuple):
            own = isinstance(f_scale, Tensor) and f_scale.dim() > 0
            in_dims = (*in_dims, 0 if own else None)
        args = (*args, f_scale)
    adjoint = ImplicitAdjoint() if adjoint is None else adjoint
    solver = LevenbergMarquardt() if solver is None else solver
    ranks = telling(sync_failures)
    how = adjoint, batch_dims, in_dims, has_aux, on_failure, adjoint_start, check, ranks
    if bounds is None:
        estimate = GaussNewtonEquation if gauss_newton else None
        task = Task(LeastSquaresEquation, fn, read_residuals, solver, *how, estimate)
        return solve_equation(task, z0, args)
    estimate = BoundedGaussNewtonEquation if gauss_newton else None
    task = Task(BoundedLeastSquaresEquation, fn, read_residuals, solver, *how, estimate)
    return solve_equation(task, z0, args, own=read_bounds(bounds, one_start(z0), batch_dims))
