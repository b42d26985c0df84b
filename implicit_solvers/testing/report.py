"""What a check found: entries, and the report that prints them as a table. It knows no tensors."""

from __future__ import annotations

import contextlib
import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

__all__ = ["Entry", "Report", "Result", "publish", "record_reports"]

Result = Literal["ok", "warning", "skipped", "failed"]

_WIDTH = 100
_WORDS = {"ok": "ok", "warning": "warning", "skipped": "skipped", "failed": "FAILED"}


@dataclass(frozen=True)
class Entry:
    """One comparison of a check.

    Attributes
    ----------
    check
        What was compared, such as ``"reverse mode"``.
    of
        For which tensor, such as ``"args[0] (M)"``, or of what.
    result
        ``"ok"``, ``"failed"``, ``"warning"`` (to be read, no failure), or ``"skipped"``.
    error, tolerance
        The largest absolute difference and what it may be; None where there is not a number.
    cause
        The likely cause of a failure or warning; why it was skipped.
    change
        What to change.

    Examples
    --------
    >>> from implicit_solvers.testing import Entry
    >>> Entry("reverse mode", "args[0]", "ok", error=1e-12, tolerance=1e-10).result
    'ok'
    """

    check: str
    of: str
    result: Result
    error: float | None = None
    tolerance: float | None = None
    cause: str = ""
    change: str = ""


@dataclass(frozen=True)
class Report:
    """The entries of one check; ``str`` makes a table of fixed width.

    Attributes
    ----------
    name
        What was checked.
    kind
        ``"root"``, ``"fixed_point"``, ``"minimize"``, ``"least_squares"``, or ``"layer"``.
    dtype
        The dtype of the solution.
    entries
        Every comparison, in the order in which they were made.

    Examples
    --------
    >>> from implicit_solvers.testing import Entry, Report
    >>> report = Report("kepler", "root", "float64", (Entry("residual", "z", "ok", 0.0, 2e-12),))
    >>> report.passed
    True
    >>> print(report)
    kepler (root, float64): passed, 1 check
    check                of                               error  tolerance  result
    ------------------------------------------------------------------------------
    residual             z                              0.0e+00    2.0e-12  ok
    """

    name: str
    kind: str
    dtype: str
    entries: tuple[Entry, ...]

    @property
    def passed(self) -> bool:
        """Whether no entry failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Entry, ...]:
        """The entries that failed."""
        return tuple(entry for entry in self.entries if entry.result == "failed")

    @property
    def causes(self) -> tuple[str, ...]:
        """The likely causes of the failures, each once."""
        return tuple(dict.fromkeys(entry.cause for entry in self.failures))

    def __str__(self) -> str:
        """Return the table, with cause and remedy below each line that needs them."""
        head = f"{'check':<20} {'of':<26} {'error':>11} {'tolerance':>10}  result"
        lines = [self._title(), head, "-" * 78]
        told: set[str] = set()
        for entry in self.entries:
            error, tolerance = _number(entry.error), _number(entry.tolerance)
            lines.append(
                f"{_cut(entry.check, 20):<20} {_cut(entry.of, 26):<26} {error:>11} "
                f"{tolerance:>10}  {_WORDS[entry.result]}"
            )
            if not entry.cause:
                continue
            if entry.cause in told:
                lines.append("    cause:  as above")
                continue
            told.add(entry.cause)
            lines += _paragraph("    cause:  ", entry.cause)
            if entry.change:
                lines += _paragraph("    change: ", entry.change)
        return "\n".join(lines)

    def _title(self) -> str:
        made = [entry for entry in self.entries if entry.result != "skipped"]
        count = f"{len(made)} check{'' if len(made) == 1 else 's'}"
        warned = sum(entry.result == "warning" for entry in made)
        tail = f", {warned} warning{'' if warned == 1 else 's'}" if warned else ""
        what = f"{self.name} ({self.kind}, {self.dtype})"
        if self.passed:
            return f"{what}: passed, {count}{tail}"
        return f"{what}: FAILED, {len(self.failures)} of {count}{tail}"

    def to_json(self) -> str:
        """Return name, kind, dtype, whether it passed, and the entries, as JSON.

        A number that is not finite becomes the string ``"nan"``, ``"inf"`` or ``"-inf"``.

        Examples
        --------
        >>> from implicit_solvers.testing import Report
        >>> Report("kepler", "root", "float64", ()).to_json()
        '{"name": "kepler", "kind": "root", "dtype": "float64", "passed": true, "entries": []}'
        """
        entries = [
            {key: _plain(value) for key, value in asdict(entry).items()} for entry in self.entries
        ]
        fields = {"name": self.name, "kind": self.kind, "dtype": self.dtype}
        return json.dumps({**fields, "passed": self.passed, "entries": entries})


def _plain(value: str | float | None) -> str | float | None:
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    return value


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _paragraph(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=label, subsequent_indent=" " * len(label)
    ) or [label]


# The lists of those that record; the pytest plugin is one.
_RECORDS: list[list[Report]] = []


@contextlib.contextmanager
def record_reports() -> Iterator[list[Report]]:
    """Collect every report that is made inside the block.

    Examples
    --------
    >>> import torch
    >>> from implicit_solvers.testing import check_implicit_gradients
    >>> with record_reports() as reports:
    ...     _ = check_implicit_gradients(lambda z: z**3 - 2, torch.tensor(1.0))
    >>> len(reports)
    1
    """
    reports: list[Report] = []
    _RECORDS.append(reports)
    try:
        yield reports
    finally:
        _RECORDS[:] = [other for other in _RECORDS if other is not reports]


def publish(report: Report) -> Report:
    """Hand a report to whoever records, and return it."""
    for reports in _RECORDS:
        reports.append(report)
    return report
