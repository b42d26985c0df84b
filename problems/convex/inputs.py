"""What a layer requires of its problem and of its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.convex.cone_program import entries_of

if TYPE_CHECKING:
    import cvxpy

__all__ = ["as_declared", "check_problem", "check_values"]

_DPP = "https://www.cvxpy.org/tutorial/dpp"
_TOLERANCE = 1e-8


def check_problem(
    problem: cvxpy.Problem,
    parameters: Sequence[cvxpy.Parameter],
    variables: Sequence[cvxpy.Variable],
    duals: Sequence[Any],
    gp: bool,
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
    if gp:
        _check_geometric(problem)
        return
    if not problem.is_dcp():
        raise ValueError(
            "problem is not convex by CVXPY's rules (DCP): problem.is_dcp() must hold; "
            f"quadratic forms must be positive semidefinite, to be minimized. {_reason(problem)}"
        )
    if not _is_affine(problem):
        raise ValueError(
            "problem is not DPP: its data are not affine in the parameters. Multiply parameters "
            f"with variables only, and not with one another; see {_DPP}"
        )


def _is_affine(problem: cvxpy.Problem) -> bool:
    """Tell whether the data are affine in the parameters: matrices of quadratic forms, too."""
    try:
        return bool(problem.is_dpp("dcp", quad_form_dpp="qp"))  # type: ignore[call-arg]
    except TypeError:  # older CVXPY
        return bool(problem.is_dpp())


def _check_geometric(problem: cvxpy.Problem) -> None:
    if not problem.is_dgp():
        raise ValueError(
            "problem is not log-log convex by CVXPY's rules (DGP): problem.is_dgp() must hold; "
            f"variables and parameters need pos=True. {_reason(problem, 'is_dgp')}"
        )
    if not problem.is_dpp("dgp"):  # type: ignore[call-arg]
        raise ValueError(
            "problem is not DPP as a geometric program: the logarithms of its data are not affine "
            f'in those of the parameters: problem.is_dpp("dgp") must hold; see {_DPP}'
        )


def _reason(problem: cvxpy.Problem, holds: str = "is_dcp") -> str:
    parts = [f"Constraint {c} is not." for c in problem.constraints if not getattr(c, holds)()]
    if not getattr(problem.objective, holds)():
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
                "that, with the batch in front"
            )
        dims.append(dim)
        if dim:
            leading[name] = tuple(value.shape[:dim])
    try:
        return tuple(torch.broadcast_shapes(*leading.values())), dims
    except RuntimeError:
        shown = ", ".join(f"{name} {lanes}" for name, lanes in leading.items())
        raise ValueError(f"the batches do not broadcast: {shown}") from None


def as_declared(
    value: Tensor, parameter: cvxpy.Parameter, dim: int, *, refuse: bool, positive: bool
) -> Tensor:
    """Put NaN into lanes of a value ``(*lanes, ...)`` that its declaration rules out, or raise.

    ``positive`` rules out zero too.
    """
    found = value.detach()
    for bad, worst, said in _departures(found, parameter, dim, positive):
        if refuse and not ims.transformed() and bool(bad.any()):
            shown = float(worst[bad].flatten()[0])
            raise ValueError(f"{parameter.name()} was declared {said.format(f'{shown:.3g}')}")
        value = torch.where(bad.reshape(bad.shape + (1,) * (value.dim() - dim)), torch.nan, value)
    return value


def _departures(
    value: Tensor, parameter: cvxpy.Parameter, dim: int, positive: bool
) -> Iterator[tuple[Tensor, Tensor, str]]:
    """Yield where a declaration does not hold, by how much, and what is wrong then."""
    attributes, entries = parameter.attributes, value.reshape(*value.shape[:dim], parameter.size)
    convex = "with another sign the problem need not be convex"
    if positive:
        least = entries.amin(-1)
        yield least <= 0, least, "positive and holds {}: its logarithm is taken"
    elif attributes["nonneg"] or attributes["pos"]:
        least = entries.amin(-1)
        yield least < -_TOLERANCE, least, f"nonnegative and holds {{}}: {convex}"
    elif attributes["nonpos"] or attributes["neg"]:
        most = entries.amax(-1)
        yield most > _TOLERANCE, most, f"nonpositive and holds {{}}: {convex}"
    if attributes["PSD"] or attributes["NSD"]:
        name, sign = ("PSD", 1) if attributes["PSD"] else ("NSD", -1)
        finite = entries.isfinite().all(-1)[..., None, None]
        roots = torch.linalg.eigvalsh(torch.where(finite, (value + value.mT) / 2, 0.0).double())
        rounding = max(_TOLERANCE, 10 * roots.shape[-1] * torch.finfo(value.dtype).eps)
        worst = (sign * roots).amin(-1)
        bad = worst < -rounding * roots.abs().amax(-1)
        yield bad, sign * worst, f"{name} and has the eigenvalue {{}}: {convex}"
    kept = entries_of(parameter) if attributes["diag"] or attributes.get("sparsity") else None
    if kept is not None:
        elsewhere = entries.abs().index_fill(-1, torch.from_numpy(kept).to(value.device), 0.0)
        bad = elsewhere.amax(-1) > _TOLERANCE * entries.abs().amax(-1)
        name = "diagonal" if attributes["diag"] else "sparse"
        yield bad, elsewhere.amax(-1), f"{name} and holds {{}} elsewhere, which is not read: pass 0"
