"""What a layer requires of its problem and of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import implicit_solvers as ims

if TYPE_CHECKING:
    import cvxpy

__all__ = ["check_problem", "check_values", "without_wrong_signs"]

_DPP = "https://www.cvxpy.org/tutorial/dpp"
_SIGN_TOLERANCE = 1e-8


def check_problem(
    problem: cvxpy.Problem,
    parameters: Sequence[cvxpy.Parameter],
    variables: Sequence[cvxpy.Variable],
    duals: Sequence[Any],
) -> None:
    """Refuse a problem that is no convex program, and parameters or variables that are not its."""
    import cvxpy

    if not isinstance(problem, cvxpy.Problem):
        raise TypeError(f"problem is a {type(problem).__name__}: pass a cvxpy.Problem")
    _check_list("parameters", parameters, cvxpy.Parameter, problem.parameters())
    _check_list("variables", variables, cvxpy.Variable, problem.variables())
    given = {p.id for p in parameters}
    missing = [p.name() for p in problem.parameters() if p.id not in given]
    if missing:
        raise ValueError(f"parameters lacks {', '.join(missing)}: name every one of the problem's")
    own = {id(constraint) for constraint in problem.constraints}
    for constraint in duals:
        if id(constraint) not in own:
            raise ValueError(
                f"duals has {constraint}, which is no constraint of the problem: pass the very "
                "objects that the problem was made of"
            )
    for leaf in (*problem.variables(), *problem.parameters()):
        if leaf.is_complex():
            raise ValueError(f"{leaf.name()} is complex: write its real and imaginary parts")
    if problem.is_mixed_integer():
        raise ValueError(
            "problem has integer or boolean variables: its solution has no derivatives; relax them"
        )
    if not problem.is_dcp():
        raise ValueError(
            "problem is not convex by CVXPY's rules (DCP): problem.is_dcp() must hold; "
            f"quadratic forms must be positive semidefinite, to be minimized. {_reason(problem)}"
        )
    if not problem.is_dpp():
        raise ValueError(
            "problem is not DPP: its data are not affine in the parameters. Multiply parameters "
            f"with variables only, and not with one another; see {_DPP}"
        )


def _reason(problem: cvxpy.Problem) -> str:
    parts = [f"Constraint {c} is not." for c in problem.constraints if not c.is_dcp()]
    if not problem.objective.is_dcp():
        parts.insert(0, f"The objective {problem.objective} is not.")
    return " ".join(parts)


def _check_list(name: str, given: Any, kind: type[Any], own: Sequence[Any]) -> None:
    what = f"cvxpy.{kind.__name__}"
    if not isinstance(given, Sequence):
        raise TypeError(f"{name} is a {type(given).__name__}: pass a list of {what}")
    known: set[int] = {leaf.id for leaf in own}
    seen: set[int] = set()
    leaf: Any
    for leaf in given:
        if not isinstance(leaf, kind):
            raise TypeError(f"{name} has a {type(leaf).__name__}: pass a list of {what}")
        if leaf.id not in known:
            raise ValueError(f"{name} has {leaf.name()}, which is not in the problem")
        if leaf.id in seen:
            raise ValueError(f"{name} has {leaf.name()} twice")
        seen.add(leaf.id)


def check_values(
    values: Sequence[Any], parameters: Sequence[cvxpy.Parameter]
) -> tuple[tuple[int, ...], list[int]]:
    """Return the shape of the grid of lanes, and the lanes' dimensions of each value."""
    names = [p.name() for p in parameters]
    if len(values) != len(parameters):
        raise ValueError(
            f"the layer was given {len(values)} tensors for {len(parameters)} parameters: pass one "
            f"for each of {', '.join(names) or 'none'}, in this order"
        )
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}: pass a tensor")
        if not value.is_floating_point():
            raise TypeError(f"{name} is {value.dtype}: pass float32 or float64")
        first = values[0]
        if value.dtype != first.dtype or value.device != first.device:
            raise TypeError(
                f"{name} is {value.dtype} on {value.device}, and {names[0]} is {first.dtype} on "
                f"{first.device}: use one dtype and device"
            )
    leading, dims = {}, []
    for name, value, parameter in zip(names, values, parameters, strict=True):
        shape = tuple(parameter.shape)
        dim = value.dim() - len(shape)
        if dim < 0 or tuple(value.shape[dim:]) != shape:
            raise ValueError(
                f"{name} has the shape {tuple(value.shape)}, and the parameter has {shape}: pass "
                "that, lanes in front"
            )
        dims.append(dim)
        if dim:
            leading[name] = tuple(value.shape[:dim])
    try:
        return tuple(torch.broadcast_shapes(*leading.values())), dims
    except RuntimeError:
        shown = ", ".join(f"{name} {lanes}" for name, lanes in leading.items())
        raise ValueError(f"the lanes do not broadcast: {shown}") from None


def without_wrong_signs(
    value: Tensor, parameter: cvxpy.Parameter, dim: int, refuse: bool
) -> Tensor:
    """Put NaN into lanes of a value ``(*lanes, ...)`` with a sign that was ruled out, or raise."""
    attributes = parameter.attributes
    positive = attributes["nonneg"] or attributes["pos"]
    if not (positive or attributes["nonpos"] or attributes["neg"]):
        return value
    found = value.detach().reshape(*value.shape[:dim], parameter.size)
    worst = found.amin(-1) if positive else found.amax(-1)
    bad = worst < -_SIGN_TOLERANCE if positive else worst > _SIGN_TOLERANCE
    if refuse and not ims.transformed() and bool(bad.any()):
        sign = "nonnegative" if positive else "nonpositive"
        shown = float(worst[bad].flatten()[0])
        raise ValueError(
            f"{parameter.name()} was declared {sign} and holds {shown:.3g}: with another sign the "
            "problem need not be convex"
        )
    return torch.where(bad.reshape(bad.shape + (1,) * (value.dim() - dim)), torch.nan, value)
