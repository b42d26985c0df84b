"""A log of every solve inside a ``with`` block, forward and backward.

It knows no solver: solves report to it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any, TextIO

from torch import Tensor

from implicit_solvers.compiling import compiling
from implicit_solvers.convergence_plots import draw_convergence, new_axes, overview
from implicit_solvers.evaluations import Evaluations
from implicit_solvers.history import History
from implicit_solvers.solution import Status

__all__ = ["Monitor", "SolveRecord", "monitor", "monitors", "observe"]


@dataclass(frozen=True)
class SolveRecord:
    """One solve that a `monitor` saw.

    Attributes
    ----------
    equation
        What was solved, such as ``"root of kepler"`` or ``"adjoint of root of kepler"``.
    solver
        The class name of the solver.
    lanes
        The number of problems.
    iterations, residual, error, status
        Tensors with one entry for each problem, as in `Solution`: int64, twice of the unknown's
        dtype, and int64. For a linear solve, and so for every adjoint, the residual is
        ``norm(b - A x) / norm(b)``.
    evaluations
        As in `Solution`; None where it is not counted, as in linear solves.
    seconds
        Wall-clock time.
    history
        The `History` of the residuals, step by step; None unless it was asked for by
        ``monitor(history=True)``, and where nothing stepped.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> with ims.monitor() as log:
    ...     _ = ims.root(lambda z: z**2 - 4, torch.tensor([1.0, 2.0]), batch_dims=1)
    >>> record = log.records[0]
    >>> record.equation, record.solver, record.lanes, record.status
    ('root of <lambda>', 'NewtonDogleg', 2, tensor([0, 0]))
    """

    equation: str
    solver: str
    lanes: int
    iterations: Tensor
    residual: Tensor
    error: Tensor
    status: Tensor
    seconds: float
    evaluations: Evaluations | None = None
    history: History | None = field(default=None, repr=False)

    def plot(self, axes: Any = None) -> Any:
        """Draw the convergence of this solve: the residual of each lane against steps.

        Lanes that failed are orange.

        Parameters
        ----------
        axes
            A matplotlib ``Axes``; a new one if left out.

        Returns
        -------
        Axes
            What was drawn in.

        Raises
        ------
        ImportError
            Without matplotlib.

        Examples
        --------
        >>> import torch, implicit_solvers as ims
        >>> with ims.monitor(history=True) as log:
        ...     _ = ims.root(lambda z: z**2 - 4, torch.tensor([1.0, 2.0]), batch_dims=1)
        >>> log.records[0].plot().get_xlabel()
        'step'
        """
        axes = new_axes(axes)
        draw_convergence([self], axes)
        return axes


@dataclass(eq=False)
class Monitor:
    """The log that `monitor` fills: a list of `SolveRecord`, with a table.

    Attributes
    ----------
    records
        The solves, in the order in which they ended. A solve inside of another, and each adjoint,
        has its own record.
    history
        Whether records keep the residual of every step.
    last
        How many records are kept, the newest; all if None.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> a = torch.tensor(2.0, requires_grad=True)
    >>> with ims.monitor() as log:
    ...     ims.root(lambda z, a: z**2 - a, torch.tensor(1.0), (a,)).value.backward()
    >>> [record.equation for record in log.adjoints()]
    ['adjoint of root of <lambda>']
    >>> log.table()
    equation...
    """

    records: list[SolveRecord] = field(default_factory=list)
    history: bool = False
    last: int | None = None
    open: bool = field(default=True, init=False, repr=False)

    def adjoints(self) -> list[SolveRecord]:
        """Return the records of the backward (and tangent) solves."""
        return [record for record in self.records if record.equation.startswith("adjoint of ")]

    def plot(self) -> Any:
        """Draw all records: residuals against steps, iterations, and which problems failed.

        Returns
        -------
        Figure
            Of matplotlib, with three panels. A notebook shows it.

        Raises
        ------
        ImportError
            Without matplotlib.

        Examples
        --------
        >>> import torch, implicit_solvers as ims
        >>> with ims.monitor(history=True) as log:
        ...     _ = ims.root(lambda z: z**2 - 4, torch.tensor([1.0, 2.0]), batch_dims=1)
        >>> len(log.plot().axes)
        3
        """
        return overview(self.records)

    def table(self, file: TextIO | None = None) -> None:
        """Print a line for each solve: the most of all lanes, their statuses, and the time.

        ``f``, ``J`` and ``Jv`` are calls of the function, Jacobians, and products with one.
        It goes to ``file``, or to the standard output.
        """
        rows = [_HEAD, *map(_row, self.records)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            print("  ".join(cells).rstrip(), file=file)

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        head = "".join(f"<th>{name}</th>" for name in _HEAD)
        lines = ("".join(f"<td>{escape(c)}</td>" for c in _row(r)) for r in self.records)
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


_HEAD = "equation", "solver", "lanes", "steps", "f/J/Jv", "residual", "error", "status", "ms"


def _row(record: SolveRecord) -> tuple[str, ...]:
    codes = record.status.flatten().tolist()
    counts = {Status(code).name: codes.count(code) for code in sorted(set(codes))}
    single, empty = len(counts) == 1, record.lanes == 0
    calls = None if empty else record.evaluations
    return (
        record.equation,
        record.solver,
        str(record.lanes),
        "-" if empty else str(int(record.iterations.max())),
        "-" if calls is None else "/".join(str(int(count.max())) for count in calls),
        *("-" if empty else f"{float(v.max()):.2e}" for v in (record.residual, record.error)),
        ", ".join(n if single else f"{n}: {c}" for n, c in counts.items()),
        f"{1e3 * record.seconds:.2f}",
    )


class _Thread(threading.local):
    """The monitors that are open in this thread."""

    def __init__(self) -> None:
        self.monitors: tuple[Monitor, ...] = ()


_THREAD = _Thread()


def monitors() -> tuple[Monitor, ...]:
    """Return the monitors that are open in this thread.

    A backward pass may run in another one, as autograd's on CUDA do: its solves are theirs too.
    """
    return _THREAD.monitors


@contextlib.contextmanager
def monitor(*, history: bool = False, last: int | None = None) -> Iterator[Monitor]:
    """Record every solve inside the block, forward and backward, in a `Monitor`.

    It shows the residuals of adjoints, too: ``norm(b - A x) / norm(b)`` for each problem. Outside
    of such a block nothing is recorded, at no cost. Blocks may be nested: each records all solves
    inside of it. Solves of other threads are not recorded, except the backward passes of what was
    solved inside, while the block is open. What ``torch.compile`` traces is not recorded.

    Parameters
    ----------
    history
        Keep the residual of each problem at each step (`SolveRecord.history`), which ``plot``
        draws. Else a record has seven numbers for each problem, however many steps there were.
    last
        Keep the newest ``last`` records only: for a block around a long training, whose memory
        else grows with every solve.

    Yields
    ------
    Monitor
        The log, whose ``records`` fill while the block runs.

    Raises
    ------
    ValueError
        If ``last`` is not a positive integer.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> a = torch.tensor(2.0, requires_grad=True)
    >>> with ims.monitor() as log:
    ...     ims.root(lambda z, a: z**2 - a, torch.tensor(1.0), (a,)).value.backward()
    >>> [record.solver for record in log.records]
    ['NewtonDogleg', 'LU']
    >>> bool(log.adjoints()[0].residual < 1e-6)
    True
    """
    if last is not None and (not isinstance(last, int) or last < 1):
        raise ValueError(f"monitor has last={last!r}: pass how many records to keep, or None")
    log = Monitor(history=history, last=last)
    _THREAD.monitors = (*_THREAD.monitors, log)
    try:
        yield log
    finally:
        log.open = False
        _THREAD.monitors = tuple(other for other in _THREAD.monitors if other is not log)


class observe:
    """Time a solve and hand its record to every open monitor, of this thread and ``others``."""

    def __init__(self, equation: str, solver: object, others: Sequence[Monitor] = ()) -> None:
        self.active: list[Monitor] = []
        if not compiling():
            here = _THREAD.monitors
            self.active = [*here, *(log for log in others if log.open and log not in here)]
        self.equation, self.solver = equation, type(solver).__name__
        self.start = time.perf_counter() if self.active else 0.0
        self._history: History | None = None

    def history(self, *lanes: Any) -> History | None:
        """Return what the loop is to fill, if somebody asks; the arguments are `History`'s."""
        if any(log.history for log in self.active):
            self._history = History(*lanes)
        return self._history

    def done(
        self,
        iterations: Tensor,
        residual: Tensor,
        error: Tensor,
        status: Tensor,
        evaluations: Evaluations | None = None,
    ) -> None:
        """Close the record with the statistics of the lanes."""
        if not self.active:
            return
        seconds = time.perf_counter() - self.start
        of = self.equation, self.solver, status.numel()
        # (a part of a larger tensor would keep all of it)
        kept = (t.detach().clone() for t in (iterations, residual, error, status))
        iterations, residual, error, status = kept
        if evaluations is not None:
            evaluations = Evaluations(*(count.clone() for count in evaluations))
        ends = iterations, residual, error, status
        record = SolveRecord(*of, *ends, seconds, evaluations, self._history)
        plain = replace(record, history=None)
        for log in self.active:
            log.records.append(record if log.history else plain)
            if log.last is not None:
                del log.records[: -log.last]
