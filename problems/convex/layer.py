"""CVXPY problems as layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.convex.clarabel import Clarabel
from implicit_solvers.problems.convex.cone_program import ConeProgram, ParameterReading
from implicit_solvers.problems.convex.cone_solver import ConeMethod, ConeSolver
from implicit_solvers.problems.convex.cones import at_kink
from implicit_solvers.problems.convex.inputs import (
    as_declared,
    check_problem,
    check_values,
)
from implicit_solvers.problems.convex.normal_map import normal_map
from implicit_solvers.problems.convex.normal_map_jacobian import NormalMapJacobian
from implicit_solvers.problems.convex.normal_map_lu import NormalMapLU
from implicit_solvers.problems.convex.scaling import Units, program_units

if TYPE_CHECKING:
    import cvxpy

__all__ = ["ConvexLayer", "ConvexProgramValue"]

_WITHOUT_SOLUTION = (ims.Status.INFEASIBLE, ims.Status.UNBOUNDED, ims.Status.NONFINITE)


class ConvexProgramValue(NamedTuple):
    """The solution of a convex program; each tensor has the batch dimensions in front.

    All have the dtype and device of the values that the layer was called with. A problem without a
    solution is NaN.

    Attributes
    ----------
    variables
        The values of the variables asked for, in their order, ``(..., *shape)``.
    duals
        The dual variables of the constraints asked for, in their order and with CVXPY's signs: a
        tensor, or a tuple of them where CVXPY has several (all cones but the semidefinite one).
        In a geometric program, those of the constraints between logarithms.
    point
        The solution ``(x, y - s)`` of the cone program, ``(..., n + m)``: the ``start`` of the next
        solve, if it is to be warm. It has no derivatives.
    objective
        The optimal value, ``(...,)``, differentiable as the others are.

    Examples
    --------
    >>> import cvxpy
    >>> x, b = cvxpy.Variable(), cvxpy.Parameter()
    >>> bound = x >= b
    >>> layer = ConvexLayer(cvxpy.Problem(cvxpy.Minimize(x**2), [bound]), [b], [x], duals=[bound])
    >>> layer(torch.tensor(3.0)).value.duals
    (tensor(6.),)
    """

    variables: tuple[Tensor, ...]
    duals: tuple[Any, ...]
    point: Tensor
    objective: Tensor


class ConvexLayer(torch.nn.Module):
    r"""A CVXPY problem as a differentiable function of its parameters.

    CVXPY reduces the problem once to a cone program

    .. math:: \min_x \tfrac12 x^\top P x + c^\top x
              \quad\text{such that}\quad A x + s = b, \; s \in K

    whose ``P``, ``c``, ``A``, ``b`` are affine in the parameters; ``K`` is a product of zero,
    nonnegative, second-order, positive semidefinite, exponential and power cones. Each call applies
    that map in torch, solves the problems of the batch on the CPU in float64, and refines the
    solutions by Newton's method on the `normal_map`. The derivatives are those of that equation, in
    every mode of torch and, where the projections onto the cones have them, to any order.

    Call it as ``layer(*values, start=None)`` with a tensor for each parameter, of its shape.
    Leading dimensions are a batch, as are those of ``torch.func.vmap``. A value without them is
    shared, and gets the sum of the gradients. Symmetric (``PSD``, ``NSD``) parameters: the
    symmetric part is used. ``start`` is the ``point`` of an earlier solution, of a problem nearby:
    where Newton's method gets from there to a solution, the solver does not run; it starts there
    otherwise, if it can.

    A geometric program is solved for the logarithms of its variables, given those of its parameters
    (a parameter that is an exponent is taken as it is).

    Parameters
    ----------
    problem
        A ``cvxpy.Problem``, convex (DCP) and affine in the parameters (DPP); if ``gp``, log-log
        convex (DGP), and DPP in this sense.
    parameters
        All parameters of the problem, in the order in which the layer takes their values.
    variables
        The variables whose values are asked for.
    duals
        The constraints whose dual variables are asked for, objects of ``problem.constraints``.
    gp
        Whether the problem is a geometric program, or another log-log convex one.
    solver
        `Clarabel`, by default, or `SCS`.
    adjoint
        How to differentiate; without a linear solver in it, by `NormalMapLU`.
    on_failure
        As in `implicit_solvers.root`. A problem fails as INFEASIBLE or UNBOUNDED (by a certificate,
        which is checked), NONFINITE (its parameters are not finite, or what their declaration rules
        out: of another sign, not semidefinite, not diagonal), MAX_STEPS or STALLED. In the first
        three cases its value is NaN.

    Raises
    ------
    implicit_solvers.ConvergenceError
        When called, if a problem fails and ``on_failure="raise"``; out of ``backward()`` too, where
        the solution is not unique and a derivative in need of that was asked for.
    TypeError, ValueError
        If the problem, or an input, is invalid; the message names it.
    NotImplementedError
        If ``duals`` has a constraint whose dual variables are no selection of the cone program's.

    Notes
    -----
    A call returns an `implicit_solvers.Solution` whose value is a `ConvexProgramValue` of the
    values' dtype and device. A problem has converged when its relative error, the ``residual``, is
    that of rounding, at most 1e-12, and no error of this size could change which constraints are
    active. Its ``iterations`` are the steps of the cone solver and those of Newton's method after
    it. What the units of the data are does not matter.

    Where a constraint holds with the multiplier zero, or active constraints depend on one another,
    the solution has a derivative to each side: the problem is `degenerate
    <implicit_solvers.Solution>`, which ``on_failure="warn"`` warns about. The derivative is that of
    one side, for a linearly independent choice of inequalities. A problem takes the time and memory
    of an LU factorization, a sparse one if few entries are other than zero.

    Source: Agrawal, Amos, Barratt, Boyd, Diamond and Kolter, "Differentiable Convex Optimization
    Layers" (2019); Agrawal, Barratt, Boyd, Busseti and Moursi, "Differentiating through a cone
    program" (2019).

    Examples
    --------
    Nonnegative least squares, for two right-hand sides at once:

    >>> import cvxpy
    >>> x, A, b = cvxpy.Variable(2), cvxpy.Parameter((3, 2)), cvxpy.Parameter(3)
    >>> problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(A @ x - b)), [x >= 0])
    >>> layer = ConvexLayer(problem, [A, b], [x])
    >>> A_value = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], requires_grad=True)
    >>> b_values = torch.tensor([[1.0, 1.0, 2.0], [3.0, -3.0, 0.0]], requires_grad=True)
    >>> (best,) = layer(A_value, b_values).value.variables
    >>> best.detach().round(decimals=4).abs()
    tensor([[1.0000, 1.0000],
            [1.5000, 0.0000]])
    >>> best.sum().backward()
    >>> b_values.grad[1].round(decimals=4)
    tensor([0.5000, 0.0000, 0.5000])
    """

    def __init__(
        self,
        problem: cvxpy.Problem,
        parameters: Sequence[cvxpy.Parameter],
        variables: Sequence[cvxpy.Variable],
        *,
        duals: Sequence[Any] = (),
        gp: bool = False,
        solver: ConeMethod | None = None,
        adjoint: ims.ImplicitAdjoint | None = None,
        on_failure: Literal["raise", "warn", "mask"] = "raise",
    ) -> None:
        super().__init__()
        check_problem(problem, parameters, variables, duals, gp)
        if solver is not None and not callable(getattr(solver, "solve", None)):
            raise TypeError(f"solver is {solver!r}: pass Clarabel() or SCS()")
        if on_failure not in ("raise", "warn", "mask"):
            raise ValueError(f'on_failure is {on_failure!r}: use "raise", "warn" or "mask"')
        self.declared = tuple(parameters)
        self.program = ConeProgram.of(problem, parameters, variables, duals, gp)
        self.jacobian = NormalMapJacobian.of(self.program.pattern)
        self.solver: ConeMethod = Clarabel() if solver is None else solver
        self.adjoint = ims.ImplicitAdjoint() if adjoint is None else adjoint
        self.on_failure = on_failure

    def forward(self, *values: Tensor, start: Tensor | None = None) -> ims.Solution:
        """Solve the problem at these values of its parameters."""
        program, pattern = self.program, self.program.pattern
        cones, (m, n) = pattern.cones, pattern.A.shape
        grid, dims = check_values(values, self.declared)
        like = values[0] if values else torch.zeros(())
        thetas = [
            self._flatten(values[read.parameter], read, dims[read.parameter])
            for read in program.parameters
        ]
        d = program.d(thetas)  # the objective's constant: a lane where it is NaN has no solution
        c = program.c(thetas) + 0 * d.detach()
        data = program.P(thetas), c, program.A(thetas), program.b(thetas)
        units = program_units(*data, pattern)
        lanes, batched = math.prod(grid), len(grid) > 0
        args = [
            tensor.expand(*grid, size).reshape(lanes, size) if batched else tensor
            for tensor in units.scaled(*data, pattern)
            for size in tensor.shape[-1:]
        ]
        z0 = torch.zeros((*grid, n + m), dtype=torch.float64)
        if start is not None:
            z0 = units.inverse().point(self._read_start(start, grid, n + m), cones)
        linear_solver, adjoint = NormalMapLU(self.jacobian), self.adjoint
        if adjoint.linear_solver is None or isinstance(adjoint.linear_solver, NormalMapLU):
            adjoint = replace(adjoint, linear_solver=linear_solver)
        solution: ims.Solution[Any] = ims.root(
            partial(normal_map, pattern=pattern),
            z0.reshape(lanes, n + m) if batched else z0,
            tuple(args),
            solver=ConeSolver(self.solver, self.jacobian, start is not None),
            adjoint=adjoint,
            batch_dims=int(batched),
            in_dims=(0,) * len(args) if batched else None,
            on_failure=self.on_failure,
        )
        status = solution.status.reshape(grid)
        z = found = solution.value.reshape(*grid, n + m)
        for code in _WITHOUT_SOLUTION:
            z = torch.where((status == int(code)).unsqueeze(-1), torch.nan, z)
        degenerate = at_kink(found.detach()[..., n:], cones) & (status == 0)
        if self.on_failure == "warn":
            ims.warn_degenerate("ConvexLayer", degenerate)
        return replace(
            solution,
            value=self._value(z, units, (data[0], c, d), status, like),
            converged=solution.converged.reshape(grid),
            iterations=solution.iterations.reshape(grid),
            residual=_like(solution.residual.reshape(grid), like),
            status=status,
            degenerate=degenerate,
        )

    def _flatten(self, value: Tensor, read: ParameterReading, dim: int) -> Tensor:
        """Return the entries that CVXPY reads, or their logarithms, in float64 on the CPU."""
        parameter, entries = self.declared[read.parameter], read.entries
        value = as_declared(
            value, parameter, dim, refuse=self.on_failure == "raise", positive=read.logarithm
        ).to("cpu", torch.float64)
        if any(parameter.attributes[name] for name in ("symmetric", "PSD", "NSD")):
            value = (value + value.mT) / 2
        if parameter.attributes["diag"]:
            value = value.diagonal(dim1=-2, dim2=-1).diag_embed()
        if read.logarithm:
            value = torch.where(value > 0, torch.where(value > 0, value, 1.0).log(), torch.nan)
        if entries is not None:
            return value.flatten(dim)[..., torch.from_numpy(entries)]
        own = reversed(range(dim, value.dim()))
        columns = value.permute((*range(dim), *own))
        return columns.reshape(*value.shape[:dim], parameter.size)

    @staticmethod
    def _read_start(start: Any, grid: tuple[int, ...], size: int) -> Tensor:
        if not isinstance(start, Tensor) or not start.is_floating_point():
            raise TypeError("start is no floating tensor: pass the value.point of a solution")
        try:
            near = start.detach().to("cpu", torch.float64).expand(*grid, size)
        except RuntimeError:
            raise ValueError(
                f"start has the shape {tuple(start.shape)}, and the layer needs {(*grid, size)}: "
                "pass the value.point of a solution of this layer"
            ) from None
        return torch.where(near.isfinite().all(-1, keepdim=True), near, 0.0)

    def _value(
        self, z: Tensor, units: Units, costs: tuple[Tensor, ...], status: Tensor, like: Tensor
    ) -> ConvexProgramValue:
        """Read what was asked for off the solution of the cone program."""
        program, cones = self.program, self.program.pattern.cones
        n = program.pattern.A.shape[1]
        x, u = units.variables * z[..., :n], z[..., n:]
        found = [read(x) for read in program.variables]
        objective = self._objective(x, *costs)
        if self.on_failure == "mask":  # lanes that failed have no part in gradients
            failed = status > int(ims.Status.BUDGET)
            kept = self._objective(*(t.detach() for t in (x, *costs)))
            objective = self._objective(torch.where(failed.unsqueeze(-1), torch.nan, x), *costs)
            objective = torch.where(failed, kept, objective)
        if program.logarithms:
            objective, found = objective.exp(), [log.exp() for log in found]
        variables = tuple(_like(value, like) for value in found)
        duals: tuple[Any, ...] = ()
        if program.duals:
            y = units.multipliers(u, cones)
            for reads in program.duals:
                parts = tuple(_like(read(y), like) for read in reads)
                duals = (*duals, parts[0] if len(parts) == 1 else parts)
        return ConvexProgramValue(
            variables, duals, _like(units.point(z, cones), like), _like(objective, like)
        )

    def _objective(self, x: Tensor, P: Tensor, c: Tensor, d: Tensor) -> Tensor:
        """Return the value of the objective; NaN, with no part in gradients, where ``x`` is."""
        missing = x.isnan().any(-1)
        x = torch.where(missing.unsqueeze(-1), 0.0, x)
        slope = self.program.pattern.P.times(P, x) / 2 + c
        value = (slope * x).sum(-1) + d.squeeze(-1)
        return torch.where(missing, torch.nan, self.program.sign * value)


def _like(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.device, like.dtype)
