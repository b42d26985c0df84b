"""Whether the point is a solution, an isolated one, the only one. It knows no solver."""

from __future__ import annotations

import torch
from torch import Tensor

from implicit_solvers.outcome import ROUNDINGS
from implicit_solvers.solution import Status
from implicit_solvers.testing.point import Point
from implicit_solvers.testing.report import Entry, Result
from implicit_solvers.testing.statement import DENSE_LIMIT
from implicit_solvers.testing.subject import Solved
from implicit_solvers.torch_internals import tree_map_only

__all__ = ["check_conditioning", "check_residual", "check_starts"]

_SINGULAR = (
    "singular Jacobian: the solution is not isolated (a double root, a fold, a flat valley), and "
    "has no derivative there"
)
_LESS_SINGULAR = "regularize the equation, remove redundant unknowns, or move away from the fold"
_SPREADS = (0.5, 1.0, 2.0, 3.0)


def check_residual(point: Point) -> Entry:
    """Estimate the error of the point returned, in units of ``z``, and hold it to the criterion."""
    subject, returned = point.subject, point.returned
    if not bool(torch.isfinite(returned.z).all()) and returned.solution is None:
        cause = "not converged: NaN or inf in what the layer returned"
        return Entry("residual", "z", "failed", cause=cause, change="check the inputs")
    if subject.statement is None:
        return Entry("residual", "z", "skipped", cause="the layer's equation was not given")
    index = subject.lane_index
    off, rounding = (subject.norm(v[index]) for v in point.off)
    allowed = 2 * subject.tolerance(returned.z.detach()[index]) + ROUNDINGS * rounding
    worst = int(torch.where(off <= allowed, off / allowed, torch.inf).argmax())
    error, tolerance = float(off[worst]), float(allowed[worst])
    failed = None if returned.solution is None else _status(returned.solution.status)
    if error <= tolerance and failed in (None, Status.CONVERGED, Status.BUDGET):
        return Entry("residual", "z", "ok", error, tolerance)
    lane = f" in lane {worst}" if len(index) > 1 else ""
    if failed is not None and failed > Status.BUDGET:
        cause = f"not converged: the solve ended as {failed.name}{lane}; {failed.help}"
        return Entry("residual", "z", "failed", error, tolerance, cause)
    if failed == Status.BUDGET:
        cause = (
            f"not converged: the budget of steps (rtol=None) ended{lane} before the error was "
            "small, and the derivative is an estimate"
        )
        change = "give the solver a tolerance, or more steps"
        return Entry("residual", "z", "failed", error, tolerance, cause, change)
    claim = "is reported as converged" if returned.solution is not None else "was returned"
    cause = (
        f"not converged: the solution {claim}, and its error{lane} is about {error:.1e}; "
        "its derivative is that of another point"
    )
    change = "judge the step of Newton's method, not the last step; tighten the solver's tolerances"
    return Entry("residual", "z", "failed", error, tolerance, cause, change)


def _status(status: Tensor) -> Status:
    return Status(int(status.max())) if status.numel() else Status.CONVERGED


def check_conditioning(point: Point) -> Entry:
    """Tell how near to singular ``A = dF/dz`` is, and whether the root is a simple one."""
    statement, name = point.subject.statement, "dF/dz"
    if statement is None:
        return Entry("conditioning", name, "skipped", cause="the layer's equation was not given")
    if not statement.dense:
        why = f"{statement.size} unknowns; Jacobians are formed up to {DENSE_LIMIT}"
        return Entry("conditioning", name, "skipped", cause=why)
    at = point.exact
    if at is None or not bool(torch.isfinite(at.A).all()):
        return Entry(
            "conditioning",
            name,
            "failed",
            cause="non-differentiable point: the Jacobian of the equation is not finite at the "
            "solution",
            change="keep away from square roots and norms at zero, and from divisions by zero",
        )
    number, limit = point.condition, 0.1 / point.eps
    change_of_step = _relative_change(point)
    if change_of_step > 0.2:
        name = "dF/dz at a Newton step"
        return Entry("conditioning", name, "failed", change_of_step, 0.2, _SINGULAR, _LESS_SINGULAR)
    if number > limit:
        return Entry("conditioning", name, "failed", number, limit, _SINGULAR, _LESS_SINGULAR)
    if number > point.eps**-0.5:
        cause = "nearly singular Jacobian: half of the digits of a derivative are lost"
        change = "scale the unknowns and the equations alike, or use float64"
        return Entry("conditioning", name, "warning", number, point.eps**-0.5, cause, change)
    return Entry("conditioning", name, "ok", number, limit)


def _relative_change(point: Point) -> float:
    """Return how much a Newton step from the point returned changes the Jacobian, relatively.

    At a simple root the change vanishes with the step; at a root of multiplicity k, ``A`` is
    multiplied by about ``1 - 1/k`` however near the point is.
    """
    given, statement = point.given, point.subject.statement
    assert given is not None and statement is not None
    A, z = given.A, point.returned.z.detach()
    lu, pivots, info = torch.linalg.lu_factor_ex(A)
    if int(info.max()) != 0:
        return 1.0 if bool((given.F != 0).any()) else 0.0
    steps = [-point.off[0]]
    if not float(steps[0].abs().max()) > 8 * point.eps * float(z.abs().max()):
        # a step of the size of rounding tells nothing; half of the digits do, unless at a kink
        steps = [point.eps**0.5 * z, -(point.eps**0.5) * z]
    found = []
    for step in steps:
        change = statement.linearize(z + step, point.subject.arguments()).A - A
        relative = torch.linalg.lu_solve(lu, pivots, (change @ step).unsqueeze(-1)).abs().max()
        found.append(float(relative) / max(float(step.abs().max()), torch.finfo(z.dtype).tiny))
    return min(found)


def check_starts(point: Point, starts: int, unique: bool) -> Entry:
    """Solve from other starts, and tell whether they lead elsewhere."""
    subject = point.subject
    again, start = subject.resolve, subject.start
    if again is None or starts == 0:
        why = "the layer chooses its own start" if again is None else "starts=0, or a bracket"
        return Entry("other starts", "z", "skipped", cause=why)
    reached, missed, farthest = 0, 0, 0.0
    index = subject.lane_index
    base = point.returned.z.detach()
    allowed = 20 * point.accuracy
    for k in range(starts):
        moved = _moved(start, base, _SPREADS[k % len(_SPREADS)], point.generator)
        try:
            with torch.no_grad():
                solution = again(moved, subject.join(subject.arguments()), on_failure="mask")
        except ValueError as error:  # a solver that refuses the start, as one with a bracket
            return Entry("other starts", "z", "skipped", cause=f"other starts are refused: {error}")
        there = Solved(_ravel(solution.value), solution)
        done = (solution.status <= Status.BUDGET).reshape(-1)
        missed += int((~done).any())
        gaps = (there.z[index] - base[index]).abs().amax(-1)[done]
        if len(gaps) and float(gaps.max()) > allowed:
            reached += 1
            farthest = max(farthest, float(gaps.max()))
    of = f"{starts} starts"
    if not reached:
        note = f"{missed} of {starts} starts did not converge" if missed else ""
        return Entry("other starts", of, "ok", farthest, allowed, note)
    cause = (
        f"more than one root: {reached} of {starts} other starts led to another solution, "
        f"{farthest:.1e} away; the derivative is that of the root returned, and jumps where the "
        "solver goes to another"
    )
    change = "start near the root wanted, or add the condition that singles it out"
    result: Result = "failed" if unique else "warning"
    return Entry("other starts", of, result, farthest, allowed, cause, change)


def _ravel(value: object) -> Tensor:
    leaves: list[Tensor] = []
    tree_map_only(Tensor, lambda t: leaves.append(t.detach().reshape(-1)), value)
    return torch.cat(leaves)


def _moved(start: object, z: Tensor, spread: float, generator: torch.Generator) -> object:
    size = max(float(z.abs().max()) if z.numel() else 0.0, 1e-3)

    def move(t: Tensor) -> Tensor:
        noise = torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)
        return t.detach() + spread * max(size, float(t.abs().max())) * noise

    return tree_map_only(Tensor, move, start)
