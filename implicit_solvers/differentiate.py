"""The implicit-function rule: derivatives of a solution from the equation, not from the solver.

At ``F(z, theta) = 0`` with ``A = dF/dz``: backward ``w = A^-T z'`` and
``theta' = -vjp of (theta -> F(z, theta)) at w``; forward ``dz = -A^-1 (dF/dtheta dtheta)``. Here
``z`` is the rule's own output, so that the rule differentiates itself, to any order. Nothing here
knows a concrete solver.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.autodiff import (
    asked,
    needs_backward,
    nested_jvp,
    no_saved_tensor_hooks,
    recorded_if_asked,
    some,
)
from implicit_solvers.capture import Captured
from implicit_solvers.causes import cause
from implicit_solvers.evaluations import Counter, as_tensor, counted
from implicit_solvers.iterate import Outcome
from implicit_solvers.lanes import Lanes, lifted
from implicit_solvers.linear.rule import solve_linear
from implicit_solvers.linear.solve_memory import SolveMemory
from implicit_solvers.linear.specification import LinearSolveSpec
from implicit_solvers.masking import pull_back, push_forward
from implicit_solvers.monitoring import observe
from implicit_solvers.problem import Equation, EquationProblem
from implicit_solvers.ranks import alone, over
from implicit_solvers.solution import OnFailure, enforce, failed
from implicit_solvers.structure import replaced
from implicit_solvers.tolerance import largest
from implicit_solvers.torch_internals import Function, forward_mode_disabled

__all__ = ["AttachSpec", "SolveSpec", "attach_derivatives", "solve_lanes", "solve_plainly"]


@dataclass(frozen=True)
class SolveSpec:
    """A solve without its tensors: ``run`` finds the solutions of a problem from a start."""

    equation: Equation
    run: Callable[[EquationProblem, Tensor], Outcome]
    solver: object
    lanes: Lanes
    label: str
    on_failure: OnFailure
    counter: Counter
    memory: SolveMemory | None = None


class Solve(Function):
    """Run a solver; nothing that comes out is differentiable.

    Outputs: ``z``; the status, iterations, residual and error of each lane, what was evaluated
    until it ended, of no numbers if that is not known, and whether it is degenerate, if it can be;
    the factors of the last linear solve, if the solver keeps them.
    """

    @staticmethod
    def forward(spec: SolveSpec, z: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        """Solve in all lanes, on plain tensors."""
        with over(spec.lanes.ranks):
            return _run(spec, z, operands)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Mark every output as constant."""
        ctx.mark_non_differentiable(*output)
        ctx.set_materialize_grads(False)
        ctx.outputs = len(output)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[None, ...]:
        """Have no derivative; that of the solution is `Attach`'s."""
        return (None,) * len(ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> tuple[None, ...]:
        """Have none in forward mode either."""
        return (None,) * ctx.outputs

    @staticmethod
    def vmap(info: Any, in_dims: Any, spec: SolveSpec, z: Tensor, *operands: Tensor) -> Any:
        """Move the new lanes to the front and solve in all."""
        _, dim, *dims = in_dims
        lanes, rest = spec.lanes.lift(info.batch_size, dims, operands)
        z = lifted(info.batch_size, dim, z)
        out = Solve.apply(replace(spec, lanes=lanes), z, *rest)
        return out, (0,) * len(out)


def _run(spec: SolveSpec, z: Tensor, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    watch = observe(spec.label, spec.solver)
    shape, n = z.shape[:-1], z.shape[-1]
    if z.numel() == 0 and (alone() or 0 in shape):
        lanes = torch.zeros(shape, dtype=torch.int64, device=z.device)
        none, counts = z.new_zeros(shape), lanes.new_zeros(*shape, 3)
        idle = [lanes > 0] if spec.equation.own else []
        enforce(spec.on_failure, spec.label, lanes, lanes, none, ranks=spec.lanes.ranks)
        return z.clone(), lanes, lanes.clone(), none, none.clone(), counts, *idle
    flat = z.reshape((math.prod(shape), n))
    start = largest(spec.equation.measured(flat))
    places = None if spec.memory is None else torch.arange(len(flat), device=z.device)
    of = spec.equation, spec.lanes, shape, operands, start
    problem = EquationProblem(*of, counter=spec.counter, memory=spec.memory, places=places)
    problem.history = watch.history(len(flat))
    out = spec.run(problem, flat)
    status, iterations = out.status.reshape(shape), out.iterations.reshape(shape)
    residual, error = out.residual.reshape(shape), out.error.reshape(shape)
    counts = as_tensor(out.evaluations, status)
    counts = counts.expand((*shape, -1)) if counts.dim() == 1 else counts.reshape((*shape, -1))
    watch.done(iterations, residual, error, status, counted(counts))
    why = partial(cause, problem, out.z, out.status)
    how: Any = {"cause": why, "ranks": spec.lanes.ranks}
    enforce(spec.on_failure, spec.label, status, iterations, residual, **how)
    degenerate = spec.equation.degenerate(problem, out.z, out.error)
    more = out.factors if degenerate is None else (degenerate, *out.factors)
    factors = tuple(t.reshape((*shape, *t.shape[1:])) for t in more)
    z = out.z.reshape((*shape, -1)).clone()
    return z, status, iterations, residual, error, counts, *factors


def solve_plainly(spec: SolveSpec, z: Tensor, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Solve, where no ``torch.func`` transform is active, without derivatives."""
    with torch.no_grad(), forward_mode_disabled(), no_saved_tensor_hooks(), over(spec.lanes.ranks):
        return _run(spec, z.detach(), [t.detach() for t in operands])


def solve_lanes(spec: SolveSpec, z: Tensor, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Solve, under whatever transforms are active, without derivatives."""
    if torch.is_inference_mode_enabled():
        # inference tensors cannot be saved for the pullbacks that solvers use: work on copies
        with torch.inference_mode(False):
            return solve_plainly(spec, z.clone(), [t.clone() for t in operands])
    return Solve.apply(spec, z.detach(), *(t.detach() for t in operands))


@dataclass(frozen=True)
class AttachSpec:
    """How to differentiate a solution.

    ``solve`` is the linear solve with the Jacobian, its lanes aside; without one, the Jacobian is
    taken to be the identity. ``biased`` names an adjoint whose derivatives are of first order only.

    The operands are, in this order, ``lead`` tensors that the solve takes besides (factors, and
    the preconditioner's) and the equation's own, among them what the function ``captured``.
    """

    equation: Equation
    solve: LinearSolveSpec | None
    lead: int
    lanes: Lanes
    label: str
    on_failure: OnFailure
    biased: str | None
    captured: Captured

    @property
    def masked(self) -> bool:
        """Whether lanes that failed are left out of every derivative."""
        return self.on_failure == "mask"

    @property
    def own_lanes(self) -> Lanes:
        """The lanes of the equation's own operands."""
        return self.lanes.keep(range(self.lead, len(self.lanes.carried)))

    def linear(self, transposed: bool) -> LinearSolveSpec:
        """Return the solve with ``dF/dz`` at the solution; transposed, for a gradient."""
        assert self.solve is not None
        return replace(
            self.solve,
            lanes=self.lanes.prepend(self.lead),
            transposed=transposed and not self.equation.symmetric,
            memory=self.solve.memory or SolveMemory(),
            adjoint_start=self.solve.adjoint_start if transposed else None,
        )


class Attach(Function):
    """Return the solution ``z`` as it is, with the derivatives of the equation.

    In plain autograd the ``condition`` comes with the graph of its evaluation at ``z``: a gradient
    of first order goes through that, and so through all that plain autograd goes through. Any
    other derivative is one of the operands.
    """

    @staticmethod
    def forward(
        spec: AttachSpec, z: Tensor, bad: Tensor, condition: Tensor | None, *operands: Tensor
    ) -> Tensor:
        """Return ``z``."""
        return z.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the solution that is returned: it is connected to the graph."""
        ctx.spec, z, bad, condition, *operands = inputs
        point = None if condition is None else z
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output, bad, point, condition, *operands)
        ctx.save_for_forward(output, bad, point, condition, *operands)

    @recorded_if_asked
    def backward(ctx: Any, saved: tuple[Tensor, ...], gz: Tensor | None) -> tuple[Any, ...]:
        """Solve with the transposed Jacobian, then pull back through the equation."""
        spec, inputs = ctx.spec, len(ctx.needs_input_grad)
        z, bad, point, value, *operands = saved
        if gz is None:
            return (None,) * inputs
        spec.captured.check_unchanged(f"the function of {spec.label}")
        lead, theta = operands[: spec.lead], operands[spec.lead :]
        first = value is not None and not torch.is_grad_enabled()
        graph = (point, value) if first else None
        w, also_bad = _inverse_times(spec, True, gz, bad, z, lead, theta, graph)
        if first and not (spec.masked and some(bad | also_bad)):
            return (None, None, None, -w, *(None,) * (inputs - 4))
        spec.captured.check_globals(f"the function of {spec.label}")
        if value is not None:
            spec.captured.check_seen(value, (point, *theta), f"the function of {spec.label}")
        needed = ctx.needs_input_grad[inputs - len(theta) :]
        places = asked(theta, needed)
        keep = ~(bad | also_bad) if spec.masked else None
        condition, lanes = spec.equation.condition, spec.own_lanes
        slopes = pull_back(condition, lanes, keep, [(z, -w)], theta, places)
        slopes = [_first_order_only(spec.biased, g) for g in slopes]
        nothing = (None,) * inputs
        return tuple(replaced(nothing, [inputs - len(theta) + i for i in places], slopes))

    @nested_jvp
    def jvp(spec: AttachSpec, saved: tuple[Tensor, ...], tangents: tuple[Any, ...]) -> Any:
        """Push the tangents through the equation, then solve with the Jacobian."""
        z, bad, _, _, *operands = saved
        spec.captured.check_unchanged(f"the function of {spec.label}")
        lead, theta = operands[: spec.lead], operands[spec.lead :]
        moved = tangents[len(tangents) - len(theta) :]
        places = asked(theta, [t is not None for t in moved])
        if not places:
            return torch.zeros_like(z)
        keep = ~bad if spec.masked else None
        condition, lanes = spec.equation.condition, spec.own_lanes
        rhs = -push_forward(condition, lanes, keep, z, z, theta, moved, places)
        dz, _ = _inverse_times(spec, False, rhs, bad, z, lead, theta)
        return _first_order_only(spec.biased, dz)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Any,
        spec: AttachSpec,
        z: Tensor,
        bad: Tensor,
        condition: None,
        *operands: Tensor,
    ) -> Any:
        """Move the new lanes to the front and apply the rule again."""
        _, dim, bad_dim, _, *dims = in_dims
        lanes, rest = spec.lanes.lift(info.batch_size, dims, operands)
        z, bad = lifted(info.batch_size, dim, z), lifted(info.batch_size, bad_dim, bad)
        return Attach.apply(replace(spec, lanes=lanes), z, bad, condition, *rest), 0


class FirstOrderOnly(Function):
    """The identity, whose derivative is an error."""

    @staticmethod
    def forward(what: str, tensor: Tensor) -> Tensor:
        """Return the tensor."""
        return tensor.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the words of the error."""
        ctx.what = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        """Refuse."""
        raise RuntimeError(
            f"{ctx.what} gives a biased derivative, which is of first order only, and it was "
            "differentiated again: use ImplicitAdjoint() with an unbiased linear solver, and no "
            "gauss_newton=True"
        )

    jvp = backward

    @staticmethod
    def vmap(info: Any, in_dims: Any, what: str, tensor: Tensor) -> Any:
        """Lanes change nothing."""
        return FirstOrderOnly.apply(what, tensor), in_dims[1]


def _first_order_only(what: str | None, tensor: Tensor) -> Tensor:
    """Return ``tensor``; it raises when it is differentiated, if ``what`` made it is biased."""
    return tensor if what is None else FirstOrderOnly.apply(what, tensor)


def _inverse_times(
    spec: AttachSpec,
    transposed: bool,
    rhs: Tensor,
    bad: Tensor,
    z: Tensor,
    lead: Sequence[Tensor],
    theta: Sequence[Tensor],
    graph: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return ``A^-1 rhs`` or ``A^-T rhs``, and in which lanes that failed.

    ``graph`` is a point and the condition there, where the graph of that may be used.
    """
    if spec.solve is None:
        # where, not a product: a lane that failed may hold anything
        return (torch.where(bad.unsqueeze(-1), 0.0, rhs) if spec.masked else rhs), bad
    skip = bad if spec.masked else None
    solve, operands = spec.linear(transposed), (*lead, z, *theta)
    try:
        x, status, *_ = solve_linear(replace(solve, graph=graph), rhs, None, skip, operands)
    except RuntimeError as error:
        if graph is None or not needs_backward(error):
            raise
        x, status, *_ = solve_linear(solve, rhs, None, skip, operands)
    return x, failed(status)


def attach_derivatives(
    spec: AttachSpec,
    z: Tensor,
    status: Tensor,
    condition: Tensor | None,
    operands: Sequence[Tensor],
) -> Tensor:
    """Return ``z`` with the derivatives of the equation with respect to the operands.

    In plain autograd, ``condition`` is the equation's at ``z``, with its graph.
    """
    point = z.detach() if condition is None else z
    return Attach.apply(spec, point, failed(status), condition, *operands)
