"""How far a gradient can be trusted. It knows the solution, not the solver that found it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.adjoint import Adjoint
from implicit_solvers.autodiff import differentiable, vjp
from implicit_solvers.bounds import read_bounds
from implicit_solvers.capture import Substitution, capture
from implicit_solvers.custom_solvers import stated
from implicit_solvers.driver import name_of, solve_equation
from implicit_solvers.iterate import Outcome, iterate
from implicit_solvers.linear.lu import LU
from implicit_solvers.precision import in_full_precision
from implicit_solvers.problem import EquationProblem
from implicit_solvers.root_finding import root
from implicit_solvers.solution import Solution, Status
from implicit_solvers.solver import DENSE_LIMIT
from implicit_solvers.solvers.newton import Newton
from implicit_solvers.structure import Structure, replaced, split_tensors
from implicit_solvers.tolerance import rms
from implicit_solvers.torch_internals import tree_flatten, tree_unflatten

__all__ = ["gradient_error"]

_CORRECTION = Newton(max_steps=1, rtol=None, halvings=0)


def _as_given(problem: EquationProblem, z: Tensor) -> Outcome:
    status = torch.full((len(z),), int(Status.BUDGET), device=z.device)
    residual = rms(problem.residual(z))
    return Outcome(
        z, status, torch.zeros_like(status), residual, torch.full_like(residual, torch.inf)
    )


def _moved(problem: EquationProblem, pairs: Tensor) -> Outcome:
    """Go to Newton's next point as rounding makes it, and as far as ``z`` is said to be off."""
    z, error = pairs.chunk(2, dim=-1)
    if z.shape[-1] <= DENSE_LIMIT:
        seen = problem.equation.examine(problem, z, LU())
        step = seen.step + seen.noise[0]
    else:
        step = z - iterate(_CORRECTION, problem, z).z
    longer = error / rms(step).unsqueeze(-1)
    known = (longer > 1) & (longer < torch.inf)
    free = problem.free(z)
    step = step if free is None else step * free
    return _as_given(problem, z - step * torch.where(known, longer, 1.0))


@in_full_precision("solution", body=False)
def gradient_error(
    solution: Solution,
    fn: Callable[..., Any],
    args: tuple[Any, ...] = (),
    *,
    equation: Callable[..., Solution] = root,
    bounds: Any = None,
    cotangent: Any = None,
    adjoint: Adjoint | None = None,
) -> Tensor:
    """Estimate the relative error of the gradient of a solution that is not exact.

    The gradient of ``solution``, ``g``, is compared with the one after one more Newton step,
    ``g+``, whose adjoint is solved to tolerance: ``|g - g+| / |g+|``. Where Newton's method
    converges, ``g+`` is correct to second order in the distance to the solution, so the estimate
    covers the residual at the point, the conditioning of the Jacobian, and the residual of the
    adjoint. The step is at least as long as ``solution.error``, so that the rounding of ``z``
    counts, too. It costs one linear solve and two adjoints. The bound that it estimates: Blondel et
    al., "Efficient and Modular Implicit Differentiation" (2022), theorem 1.

    Parameters
    ----------
    solution
        What ``equation`` returned.
    fn, args
        What was solved.
    equation
        By which function: `root` (default), `fixed_point`, `minimize`, `least_squares`.
    bounds
        The bounds of the solve, if any; which of them are active is taken as known.
    cotangent
        The derivative of the loss with respect to ``solution.value``, of its structure, shapes and
        dtype; ones if left out.
    adjoint
        The adjoint in use: `ImplicitAdjoint` (default), a budgeted one, `OneStepAdjoint`.

    Returns
    -------
    Tensor
        0-d, real (one for each problem under ``torch.func.vmap``), over the gradients with respect
        to all floating tensors in ``args`` and captured; NaN if there is no estimate at the point.

    Raises
    ------
    TypeError, ValueError
        If ``solution`` is no `Solution`, ``equation`` none of the four, ``bounds`` are missing, or
        ``cotangent`` is not like the solution's value.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> f = lambda z, a: z**2 - a
    >>> a = torch.tensor(2.0, dtype=torch.float64)
    >>> rough = ims.root(f, a, (a,), solver=ims.Newton(max_steps=2, rtol=None))
    >>> round(float(ims.gradient_error(rough, f, (a,))), 4)  # z is 0.17% off
    0.0017
    """
    stated(equation, fn, adjoint)
    if not isinstance(solution, Solution):
        raise TypeError(
            f"solution is a {type(solution).__name__}: pass the Solution that the solve returned, "
            "with its statuses"
        )
    if bounds is None and solution.degenerate is not None:
        raise ValueError("the solution lies between bounds, and bounds is None: pass them")
    own = () if bounds is None else read_bounds(bounds, solution.value, 0)
    structure = Structure.of(solution.value, "solution.value").as_real()
    tensors, join = split_tensors(args)
    leaves, tree = tree_flatten(solution.value)
    leaves = [leaf.detach() for leaf in leaves]
    point = tree_unflatten(leaves, tree)

    def evaluate(*given: Tensor) -> Any:
        return fn(tree_unflatten(list(given[: len(leaves)]), tree), *join(given[len(leaves) :]))

    with torch.enable_grad():
        captured = capture(evaluate, (*leaves, *tensors), f"the function {name_of(fn)}", fn)

    def explicit(z: Any, *operands: Tensor) -> Any:
        with Substitution(captured, (*tree_flatten(z)[0], *operands)):
            return fn(z, *join(operands[: len(tensors)]))

    operands = [t.detach() for t in (*tensors, *captured.tensors)]
    places = [i for i, t in enumerate(operands) if differentiable(t)]
    if cotangent is None:
        weight = torch.ones_like(structure.ravel(point))
    else:
        weight = structure.check_like(cotangent, (), "cotangent", "solution.value")

    def gradient(run: Callable[..., Outcome], adjoint: Adjoint | None, pair: Any = None) -> Tensor:
        task = stated(equation, explicit, adjoint, on_failure="mask", bounded=bounds is not None)

        def value(*free: Tensor) -> Tensor:
            filled = tuple(replaced(operands, places, free))
            return structure.ravel(solve_equation(task, point, filled, run, pair, own).value)

        slopes = vjp(value, *(operands[i] for i in places))[1](weight)
        return torch.cat([slope.reshape(-1) for slope in slopes])

    off = rms(solution.error.detach().reshape(-1))
    given = gradient(_as_given, adjoint)
    better = gradient(_moved, None, (point, structure.unravel(off * torch.ones_like(weight))))
    size = torch.linalg.vector_norm(better)
    error = torch.linalg.vector_norm(given - better)
    return torch.where(error == 0, 0.0, error / size).detach()
