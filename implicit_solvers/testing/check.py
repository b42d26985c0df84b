"""The check of a layer's derivatives: every comparison, in one call.

It knows no comparison from within.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.testing.batches import check_failed_lane, check_native_lanes, check_vmap
from implicit_solvers.testing.captured import prepared
from implicit_solvers.testing.convergence import check_conditioning, check_residual, check_starts
from implicit_solvers.testing.first_order import (
    check_forward,
    check_reverse,
    explain_exception,
    measure,
)
from implicit_solvers.testing.higher_order import check_order
from implicit_solvers.testing.partials import check_partials, check_purity
from implicit_solvers.testing.point import point_at
from implicit_solvers.testing.report import Entry, Report, publish
from implicit_solvers.testing.subject import Subject, subject_of

__all__ = ["GradientCheckError", "assert_implicit_gradients", "check_implicit_gradients"]


_DERIVATIVES = "derivatives"


class GradientCheckError(AssertionError):
    """A check of `assert_implicit_gradients` failed; ``report`` is what it found."""

    def __init__(self, report: Report) -> None:
        super().__init__(f"\n{report}")
        self.report = report


def check_implicit_gradients(
    equation_or_layer: Callable[..., Any],
    z0: Any = None,
    args: tuple[Any, ...] = (),
    *,
    kind: str = "root",
    equation: Callable[..., Any] | None = None,
    parameters: Any = None,
    double: bool = False,
    order: int = 2,
    forward: bool = True,
    vmap: bool = True,
    starts: int = 4,
    unique: bool = False,
    seed: int = 0,
    **options: Any,
) -> Report:
    """Solve, and compare every derivative of the solution with central differences.

    First derivatives, by reverse and by forward mode, are compared with differences of the
    solution; those of order k with differences of those of order k - 1; ``vmap`` with a loop. The
    differences are Richardson-extrapolated, with a step from ``finfo(dtype)`` and the size of each
    tensor. Each tolerance is an estimate, of the differences' own error, of what the error of the
    solution changes, and of what a linear solve is asked for. Moreover, the equation's own
    derivatives are compared with its differences, the error of the solution and the conditioning of
    ``df/dz`` are examined, other starts are tried, and one problem of a batch is changed, and
    filled with NaN, to see whether the others change.

    Parameters
    ----------
    equation_or_layer
        With ``z0``: an equation ``fn(z, *args)``, solved by `root`, or as ``kind`` says. Without:
        a layer ``layer(*args)``, any function or module that returns a tensor, a pytree of
        tensors or a `Solution`; of `nn.Root`, `nn.FixedPoint`, `nn.Minimize` the equation is
        known.
    z0
        The start of an equation's solve, tensors of any shapes and one floating dtype; None for a
        layer.
    args
        The arguments: pytrees; the derivatives are checked with respect to each floating tensor, of
        whatever shape.
    kind
        ``"root"``, ``"fixed_point"``, ``"minimize"`` or ``"least_squares"``: what the equation is.
    equation
        For a layer: the equation ``fn(z, *args)`` that it solves, if known. Without it the
        residual, the conditioning and some causes of errors cannot be told.
    parameters
        The captured tensors to check: a sequence or a dict by name. Left out, those that require
        gradients among the parameters and attributes of modules, the closure, the defaults, and the
        globals that the function names.
    double
        Whether to convert everything to float64 for the check, modules too, and back afterwards.
        Otherwise the dtype stays, and float32 has wider bounds.
    order
        The highest order of derivatives: 1, 2 or 3.
    forward, vmap
        Whether to check forward mode, and ``vmap``.
    starts
        From how many other starts to solve.
    unique
        Whether another root is a failure; otherwise it is a warning.
    seed
        Of the random directions, cotangents and starts: the check draws from a generator of its
        own.
    **options
        Those of the solve: ``solver``, ``adjoint``, ``batch_dims``, ``in_dims``, ``has_aux``,
        ``on_failure``, ``bracket`` (then no other starts are tried). For a layer, ``batch_dims``
        and ``in_dims`` say what its problems are.

    Returns
    -------
    Report
        Entries with error, tolerance, and, where they failed, the likely cause and what to
        change. ``report.passed`` tells whether none failed; printed, it is a table.

    Raises
    ------
    TypeError, ValueError
        If an argument of the check is invalid. What the layer raises becomes an entry.

    Notes
    -----
    A check passes by comparison at one point: check at several, and at those that matter. Source
    of the differences: Ridders, "Accurate computation of F'(x) and F'(x) F''(x)" (1982); of the
    comparison along random directions: Griewank and Walther, "Evaluating Derivatives" (2008),
    chapter 2.

    Examples
    --------
    >>> import torch
    >>> from implicit_solvers.testing import check_implicit_gradients
    >>> def kepler(E, M, e):
    ...     return E - e * torch.sin(E) - M
    >>> M, e = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    >>> check_implicit_gradients(kepler, M, (M, e)).passed
    True
    >>> def cut(E, M, e):
    ...     return E - e.item() * torch.sin(E) - M
    >>> check_implicit_gradients(cut, M, (M, e)).failures[0].cause
    'the residual depends on args[1] (e) but the derivative with respect to it is zero: ...'
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order is {order!r}: use 1, 2 or 3")
    if not isinstance(starts, int) or starts < 0:
        raise ValueError(f"starts is {starts!r}: pass how many other starts to try, 0 for none")
    if options.get("bracket") is not None:
        starts = 0
    subject = subject_of(
        equation_or_layer,
        z0,
        args,
        kind=kind,
        equation=equation,
        parameters=parameters,
        dtype=torch.float64 if double else None,
        options=options,
    )
    captured = [given.tensor for given in subject.captured]
    generator = torch.Generator().manual_seed(seed)
    with (
        warnings.catch_warnings(),
        prepared(subject.known, captured, torch.float64 if double else None),
    ):
        # an entry of the report says it
        warnings.filterwarnings("ignore", message="the function of .* reads a value out of")
        entries, dtype = _entries(subject, generator, order, forward, vmap, starts, unique)
    return publish(Report(subject.name, subject.kind, dtype, tuple(entries)))


def assert_implicit_gradients(*args: Any, **options: Any) -> Report:
    """Call `check_implicit_gradients` with the same arguments, and raise if an entry failed.

    Parameters
    ----------
    *args, **options
        As there, of the same shapes and dtypes.

    Returns
    -------
    Report
        What was found, if all is well; there may be warnings.

    Raises
    ------
    GradientCheckError
        An AssertionError with the table; ``error.report`` is the report.
    TypeError, ValueError
        If an argument of the check is invalid.

    Examples
    --------
    >>> import torch
    >>> from implicit_solvers.testing import assert_implicit_gradients
    >>> a = torch.tensor(2.0, dtype=torch.float64)
    >>> _ = assert_implicit_gradients(lambda z, a: z**3 - a, a, (a,))
    """
    report = check_implicit_gradients(*args, **options)
    if not report.passed:
        raise GradientCheckError(report)
    return report


def _entries(
    subject: Subject,
    generator: torch.Generator,
    order: int,
    forward: bool,
    vmap: bool,
    starts: int,
    unique: bool,
) -> tuple[list[Entry], str]:
    entries: list[Entry] = []
    start = _start_of(subject)
    if start is not None:
        try:
            entries += check_purity(subject, start)
        except Exception as error:
            return [explain_exception("equation alone", "at the start", error)], _dtype(start)
        if any(entry.result == "failed" for entry in entries):
            return entries, _dtype(start)
    try:
        tensors = subject.arguments()
        with torch.no_grad():
            returned = subject.solve(tensors)
    except Exception as error:
        entries.append(explain_exception("solve", "z", error))
        return entries + _equation_alone(subject, start, generator), _dtype(start)

    dtype = _dtype(returned.z)
    changed = [
        given.name
        for given, t in zip(subject.in_args, tensors, strict=True)
        if not torch.equal(given.tensor.nan_to_num(), t.nan_to_num())
    ]
    if changed:
        cause = f"the layer writes into {', '.join(changed)} in place"
        change = "compute a new tensor"
        return [Entry("in-place writes", changed[0], "failed", cause=cause, change=change)], dtype
    if not returned.z.numel():
        why = "the solution has no entries"
        return [*entries, Entry("derivatives", "all inputs", "skipped", cause=why)], dtype
    finite = bool(torch.isfinite(returned.z).all())
    alone = _equation_alone(subject, returned.z if finite else start, generator)
    entries += alone
    if any(entry.of == _DERIVATIVES for entry in alone):
        return entries, dtype
    broken = frozenset(entry.of.split(" ", 1)[-1] for entry in alone if entry.result == "failed")
    point = point_at(subject, returned, generator, broken)
    entries.append(check_residual(point))
    if not finite:
        return entries, dtype
    converged = entries[-1].result != "failed"
    entries.append(check_conditioning(point))
    if entries[-1].result == "failed":
        why = "there is no derivative at a singular point"
        entries.append(Entry("derivatives", "all inputs", "skipped", cause=why))
        return [*entries, check_starts(point, starts, unique)], dtype
    if not subject.inputs:
        why = "no floating tensor in args, and none captured that requires a gradient"
        entries.append(Entry("derivatives", "all inputs", "skipped", cause=why))
        return [*entries, check_starts(point, starts, unique)], dtype
    truths = measure(point, converged)
    first = check_reverse(point, truths)
    if forward:
        first += check_forward(point, truths)
    entries += first
    sound = all(entry.result != "failed" for entry in first)
    for k in range(2, order + 1):
        higher = check_order(point, k, forward=forward, sound=sound)
        entries += higher
        sound = sound and all(entry.result != "failed" for entry in higher)
    if vmap:
        entries += check_vmap(point, forward=forward)
    entries += check_native_lanes(point)
    runs = vmap and not any(e.check == "vmap" and e.error is None for e in entries)
    if subject.batch_dims or runs:
        entries += check_failed_lane(point)
    entries.append(check_starts(point, starts, unique))
    return entries, dtype


def _start_of(subject: Subject) -> Tensor | None:
    if subject.statement is None:
        return None
    return subject.statement.structure.ravel(subject.start).detach()


def _dtype(z: Tensor | None) -> str:
    return "unknown dtype" if z is None else str(z.dtype).removeprefix("torch.")


def _equation_alone(subject: Subject, z: Tensor | None, generator: torch.Generator) -> list[Entry]:
    if z is None or subject.statement is None:
        return []
    try:
        return check_partials(subject, z, generator)
    except Exception as error:
        return [explain_exception("equation alone", _DERIVATIVES, error)]
