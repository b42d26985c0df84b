"""What a solve returns, and what happens when it fails. It knows no solver and no equation."""

from __future__ import annotations

import enum
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from html import escape
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, TypeVar

import torch
from torch import Tensor

from implicit_solvers.compiling import compiling
from implicit_solvers.evaluations import Evaluations
from implicit_solvers.ranks import Ranks, failures
from implicit_solvers.torch_internals import is_batched, register_pytree_node, tree_leaves

__all__ = [
    "ConvergenceError",
    "ConvergenceWarning",
    "OnFailure",
    "Solution",
    "Status",
    "enforce",
    "failed",
    "warn_degenerate",
]

OnFailure = Literal["raise", "warn", "mask"]
T = TypeVar("T")


class Status(enum.IntEnum):
    """How the solve of a problem ended; `help` says what to change.

    Examples
    --------
    >>> Status(0)
    <Status.CONVERGED: 0>
    >>> print(Status.SINGULAR.help)
    the Jacobian (or matrix) is singular to working precision: ...
    """

    CONVERGED = 0
    BUDGET = 1
    MAX_STEPS = 2
    NONFINITE = 3
    STALLED = 4
    SINGULAR = 5
    INDEFINITE = 6
    BREAKDOWN = 7
    REJECTED = 8
    BRACKET = 9
    INFEASIBLE = 10
    UNBOUNDED = 11
    SADDLE = 12

    @property
    def help(self) -> str:
        """What the status means and what to try."""
        return _HELP[self]


_HELP = {
    Status.CONVERGED: "the estimated error met the tolerance, or is what rounding allows",
    Status.BUDGET: "ran the number of steps asked for with rtol=None; convergence was not judged",
    Status.MAX_STEPS: (
        "the estimated error was above the tolerance after max_steps: raise max_steps, start "
        "nearer to the solution, try another solver, or loosen rtol and atol"
    ),
    Status.NONFINITE: (
        "NaN or inf in the start, in the function's value there, or in every step tried: check "
        "the inputs, or start where the function is defined"
    ),
    Status.STALLED: (
        "no step comes nearer to a solution: start elsewhere, try another solver, or look for "
        "noise in the function"
    ),
    Status.SINGULAR: (
        "the Jacobian (or matrix) is singular to working precision: no digit of a solution can be "
        "had there, and it has no derivative; start elsewhere, use float64, or regularize the "
        "problem"
    ),
    Status.INDEFINITE: (
        "the operator (of a quadratic program, Q) is not positive definite (semidefinite), which "
        "this solver needs: check its signs, add damping, or take a solver that does not need it"
    ),
    Status.BREAKDOWN: (
        "the Krylov space stopped growing before the residual met the tolerance: the operator is "
        "singular or nearly so; use a direct solver or a preconditioner"
    ),
    Status.REJECTED: (
        "the point given, or returned by your solver, does not solve the equation: its estimated "
        "error is above the tolerance; solve more accurately, or loosen rtol and atol"
    ),
    Status.BRACKET: (
        "the function has the same sign at both ends of the bracket, or wherever one was searched "
        "for, or changes it at a pole: pass bracket=(lo, hi) with values of different sign, or use "
        "Newton()"
    ),
    Status.INFEASIBLE: (
        "the bounds or constraints contradict each other: no point meets them all, or, if they are "
        "not convex, none near the start; relax one, or start elsewhere"
    ),
    Status.UNBOUNDED: (
        "the objective falls without end along a direction that the constraints allow: add the "
        "constraints that are missing, or a quadratic term"
    ),
    Status.SADDLE: (
        "the gradient vanishes where the curvature is negative: the point is a maximum or a saddle "
        "and no minimum; start elsewhere"
    ),
}


class ConvergenceError(RuntimeError):
    """The solve of at least one problem failed, and ``on_failure="raise"``."""


class ConvergenceWarning(UserWarning):
    """The solve of at least one problem failed, and ``on_failure`` is ``"warn"`` or ``"mask"``."""


@dataclass(frozen=True, repr=False)
class Solution(Generic[T]):
    """The result of a solve, a pytree; the statistics have one entry for each problem.

    It prints in one line, with the most iterations and the largest error and residual of all
    problems. To a type checker it is generic: ``Solution[Tensor]`` has a tensor for its value.

    Attributes
    ----------
    value
        The solution, with the structure, shapes and dtype of the start.
    converged
        Whether the error met the tolerance; bool, ``(*batch,)``, like all statistics: 0-d where
        there is one problem.
    iterations
        The number of steps taken; int64.
    residual
        The norm (root mean square unless the solver says otherwise) of the optimality condition,
        or of ``b - A x``, at ``value``; in the dtype of the unknown, real where that is complex,
        and float32 where that is in half precision.
    error
        How far ``value`` may be from a solution: an estimate (root mean square), in units of the
        unknown and of its dtype; ``inf`` where nothing is known of it.
    status
        `Status` codes; int64.
    degenerate
        Whether the derivative is one of two, to either side: an unknown is at an inactive bound, or
        next to one, a multiplier and its slack are both zero, or ``prox`` has a kink. Bool; None
        without bounds, constraints or ``prox``.
    multipliers
        The `Multipliers` of constraints, differentiable as the value is; None without constraints.
    evaluations
        How often the function was called, and its Jacobian formed and multiplied with, until the
        problem ended: `Evaluations`. None in compiled graphs, and for solutions of other solvers.
    aux
        What the function returned beside its value (``has_aux=True``), at ``value``; else None.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> sol = ims.root(lambda z: z**2 - 2, torch.tensor(1.0))
    >>> sol.value, sol.status_names()
    (tensor(1.4142), 'CONVERGED')
    >>> sol
    Solution(CONVERGED after 3 iterations; error ..., residual ...)
    >>> ims.root(lambda z: z**2 - 2, torch.tensor([1.0, 2.0, 3.0]), batch_dims=1)
    Solution(3 of 3 converged; at most 4 iterations; error ..., residual ...)
    """

    value: T
    converged: Tensor
    iterations: Tensor
    residual: Tensor
    error: Tensor
    status: Tensor
    degenerate: Tensor | None = None
    evaluations: Evaluations | None = None
    multipliers: Any = None
    aux: Any = None

    @classmethod
    def unjudged(cls, value: T, batch_dims: int = 0) -> Solution[T]:
        """Return what something else found, as after a budget: nothing is known of its error.

        `attach` gives it derivatives, and says how large the residual is, and where it is NaN.

        Parameters
        ----------
        value
            A pytree of floating tensors, whose first ``batch_dims`` dimensions are problems.
        batch_dims
            As in `root`.

        Raises
        ------
        TypeError, ValueError
            If ``value`` has no tensor, or one that is not floating.

        Examples
        --------
        >>> import torch, implicit_solvers as ims
        >>> a = torch.tensor(3.0, requires_grad=True)
        >>> near = ims.Solution.unjudged(torch.tensor(1.5))  # an estimate
        >>> sol = ims.attach(lambda z, a: (z * a - 4) ** 2, near, (a,), equation=ims.minimize)
        >>> sol, torch.autograd.grad(sol.value, a)[0]
        (Solution(BUDGET after 0 iterations; error inf, residual 3), tensor(-0.5556))
        """
        leaves = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        if not leaves:
            raise ValueError("value has no tensor: pass a tensor or a pytree of tensors")
        for leaf in leaves:
            if not (leaf.is_floating_point() or leaf.is_complex()):
                raise TypeError(f"value has a tensor of {leaf.dtype}: make it floating")
        none = leaves[0].new_zeros(leaves[0].shape[:batch_dims], dtype=torch.int64)
        unknown = torch.full_like(none, torch.inf, dtype=leaves[0].real.dtype)
        return cls(value, none > 0, none, unknown, unknown, none + int(Status.BUDGET))

    def status_names(self) -> Any:
        """Return the name of each lane's `Status`: a string, or nested lists of the lanes' shape.

        Raises
        ------
        RuntimeError
            Inside of a transform or a compiled graph, where statuses have no values yet.

        Examples
        --------
        >>> import torch, implicit_solvers as ims
        >>> f, z0 = lambda z, a: z**2 - a, torch.ones(2)
        >>> a = torch.tensor([4.0, -4.0])
        >>> ims.root(f, z0, (a,), batch_dims=1, in_dims=0, on_failure="mask").status_names()
        ['CONVERGED', 'SINGULAR']
        """
        if not _has_values(self.status):
            raise RuntimeError(
                "the status has no values inside of a transform or a compiled graph: ask for "
                "status_names() outside, or return the Solution (a pytree) from inside"
            )
        return _names(self.status.tolist())

    def __repr__(self) -> str:
        if not _has_values(self.status):
            return "Solution(inside a transform)"
        if self.status.numel() == 0:
            return "Solution(no problems)"
        steps = int(self.iterations.max())
        ends = f"error {float(self.error.max()):.2g}, residual {float(self.residual.max()):.2g}"
        taken = f"{steps:,} iteration{'' if steps == 1 else 's'}"
        if self.status.dim() == 0:
            return f"Solution({self.status_names()} after {taken}; {ends})"
        counts = Counter(_names(self.status.flatten().tolist()))
        converged = counts.pop(Status.CONVERGED.name, 0)
        others = "".join(f", {count:,} {name}" for name, count in counts.most_common())
        lanes = f"{converged:,} of {self.status.numel():,} converged{others}"
        return f"Solution({lanes}; at most {taken}; {ends})"

    def _repr_html_(self) -> str:
        """Show the solve in a notebook: how many problems ended how, and what is left of each."""
        if not _has_values(self.status) or self.status.numel() == 0:
            return f"<code>{escape(repr(self))}</code>"
        counts = Counter(_names(self.status.flatten().tolist())).most_common()
        rows = {"status": ", ".join(f"{name}: {count:,}" for name, count in counts)}
        for name in ("iterations", "error", "residual"):
            values = getattr(self, name).flatten().double()
            rows[f"{name}, median and largest"] = f"{values.median():.3g}, {values.max():.3g}"
        shapes = [str(tuple(leaf.shape)) for leaf in tree_leaves(self.value)]
        rows["shape of the value"] = ", ".join(shapes)
        cells = "".join(f"<tr><th>{k}</th><td>{escape(v)}</td></tr>" for k, v in rows.items())
        return f"<table>{cells}</table>"

    if not TYPE_CHECKING:  # a checker knows the attributes

        def __getattr__(self, name):
            if hasattr(Tensor, name):
                raise AttributeError(
                    f"a Solution has no {name}: take that of its value, solution.value.{name}"
                )
            if name in _HERE:
                raise AttributeError(f"a Solution has no {name}: it has {_HERE[name]}")
            raise AttributeError(f"a Solution has no {name}: it has {', '.join(_FIELDS)}")

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            """Refuse to be a tensor."""
            name = getattr(func, "__name__", "a torch function")
            raise TypeError(f"{name} was given a Solution: pass its value, solution.value")


_FIELDS = [field.name for field in fields(Solution)]
# what SciPy, jaxopt and Optimistix call it
_HERE = {
    "x": "value",
    "params": "value",
    "z": "value",
    "root": "value",
    "fun": "residual, the size of the equation there",
    "success": "converged",
    "nit": "iterations",
    "nfev": "evaluations.function",
    "njev": "evaluations.jacobian",
    "message": "status_names(), and Status.help",
    "result": "status, and status_names()",
    "state": "iterations, residual, error and status",
    "stats": "iterations and evaluations",
    "info": "iterations, residual, error and status",
}


def _refuses(name: str) -> Callable[..., NoReturn]:
    def refuse(self: Any, *_: Any) -> NoReturn:
        raise TypeError(f"{name} was given a Solution: take its value, solution.value")

    return refuse


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"):
    setattr(Solution, f"__{_name}__", _refuses(_name))
    setattr(Solution, f"__r{_name}__", _refuses(_name))
for _name in ("neg", "abs", "lt", "le", "gt", "ge", "getitem", "float", "int"):
    setattr(Solution, f"__{_name}__", _refuses(_name))


def _has_values(status: Any) -> bool:
    """Tell whether a tensor has values that can be read here and now."""
    if compiling() or not isinstance(status, Tensor) or is_batched(status):
        return False
    try:
        status.tolist()
    except RuntimeError:  # tensors of other tracers, and of none
        return False
    return True


def _names(codes: Any) -> Any:
    if isinstance(codes, list):
        return [_names(code) for code in codes]
    return {status.value: status.name for status in Status}.get(codes, str(codes))


def _flatten(solution: Solution[Any]) -> tuple[list[Any], tuple[str, ...]]:
    values = {field.name: getattr(solution, field.name) for field in fields(solution)}
    there = {name: value for name, value in values.items() if value is not None}
    return list(there.values()), tuple(there)


def _unflatten(values: Sequence[Any], names: tuple[str, ...]) -> Solution[Any]:
    none = dict.fromkeys(field.name for field in fields(Solution))
    return Solution(**{**none, **dict(zip(names, values, strict=True))})


register_pytree_node(Solution, _flatten, _unflatten, serialized_type_name="ims.Solution")  # type: ignore[arg-type]


_GOING_ON = (
    'To go on all the same: on_failure="warn" keeps the best iterates, and "mask" also leaves what '
    "failed out of every gradient."
)


def failed(status: Tensor) -> Tensor:
    """Tell for each lane whether its status is a failure; a budget is none."""
    return status > int(Status.BUDGET)


def enforce(
    policy: OnFailure,
    what: str,
    status: Tensor,
    iterations: Tensor,
    residual: Tensor,
    *,
    warn_masked: bool = False,
    cause: Callable[[], str] = str,
    ranks: Ranks | None = None,
) -> None:
    """Raise or warn if a lane failed, as ``policy`` says; all tensors have the lanes' shape.

    A ``cause`` is asked what else is to be said, and may have nothing. Where ``ranks`` tell each
    other of failures, one that has none raises with those that have.
    """
    bad = failed(status)
    told = failures(ranks, bad) if policy == "raise" else []
    everywhere = ", ".join(f"{n} on rank {rank}" for rank, n in enumerate(told) if n)
    if not bool(bad.any()):
        if everywhere:
            raise ConvergenceError(
                f"{what} failed on other ranks (problems: {everywhere}). {_GOING_ON}"
            )
        return
    if policy not in ("raise", "warn") and not warn_masked:
        return
    parts = [_describe(what, bad, status, iterations, residual), cause()]
    parts += [f"Problems that failed: {everywhere}."] if everywhere else []
    text = " ".join(filter(None, parts))
    if policy == "raise":
        raise ConvergenceError(f"{text} {_GOING_ON}")
    warnings.warn(text, ConvergenceWarning, stacklevel=2)


def warn_degenerate(what: str, degenerate: Tensor) -> None:
    """Warn of degenerate problems, as ``on_failure="warn"`` does.

    Under a ``torch.func`` transform, where there are no values to look at, it says nothing.

    Parameters
    ----------
    what
        What was solved.
    degenerate
        Bool, for each problem; those that failed are not degenerate.

    Examples
    --------
    >>> import torch
    >>> warn_degenerate("my program", torch.tensor([False, False]))
    """
    if is_batched(degenerate) or not bool(degenerate.any()):
        return
    count, total = int(degenerate.sum()), degenerate.numel()
    where = f" in {count} of {total} problems" if degenerate.dim() else ""
    warnings.warn(
        f"{what} is degenerate{where}: an inequality holds without a multiplier, or next to one; "
        "the derivatives are those of one side",
        ConvergenceWarning,
        stacklevel=2,
    )


def _describe(
    what: str, bad: Tensor, status: Tensor, iterations: Tensor, residual: Tensor, most: int = 5
) -> str:
    index = bad.nonzero()
    lines = []
    for row in index[:most]:
        key = tuple(row.tolist())
        code = Status(int(status[key]))
        lane = f"problem {key[0] if len(key) == 1 else key}: " if key else ""
        lines.append(
            f"{lane}{code.name} after {int(iterations[key])} steps, "
            f"residual {float(residual[key]):.3g}"
        )
    if len(index) > most:
        lines.append(f"and {len(index) - most} more")
    codes = sorted({int(code) for code in status[bad]})
    advice = [f"{Status(code).name}: {Status(code).help}." for code in codes]
    if bad.dim():
        head = f"{what} failed in {len(index)} of {bad.numel()} problems ({'; '.join(lines)})."
    else:
        head = f"{what} failed ({'; '.join(lines)})."
    return " ".join([head, *advice])
