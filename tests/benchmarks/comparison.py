"""Sides that compute the same thing: checked against a reference, then timed in turns.

A side whose answer is wrong gets no time, one whose library is not installed says so. Sides take
turns within a round, so that other load on the machine falls on all of them; a time is the median
over rounds, of the clock and of the processor, and a ratio the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import processor

__all__ = [
    "Call",
    "Counted",
    "Row",
    "Task",
    "alternate",
    "compare",
    "medians",
    "relative_error",
    "run_as_script",
]

Call = Callable[[], Sequence[Any]]
Times = list[tuple[float, float]]


class Counted:
    """A function that counts its calls."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn, self.calls = fn, 0

    def __call__(self, *args: Any) -> Any:
        """Count and call."""
        self.calls += 1
        return self.fn(*args)

    def since(self) -> int:
        """Return the calls since the last time this was asked."""
        calls, self.calls = self.calls, 0
        return calls


@dataclass(frozen=True)
class Task:
    """What is computed, its reference, and how far from it is near enough to be timed.

    ``reference()`` returns the value and the gradients, named by ``outputs``. ``sides`` are ways to
    compute them, by label, which begins with "ours" for this library: one prepares, and returns
    what computes, once a call. ``limit`` bounds the largest error of an output, relative to its
    largest entry.
    """

    name: str
    title: str
    outputs: tuple[str, ...]
    reference: Callable[[], Sequence[Any]]
    sides: Mapping[str, Callable[[], Call]]
    limit: float = 1e-8
    rounds: int = 21


@dataclass
class Row:
    """What came of a side: ``status`` is timed, inaccurate, missing or failed.

    ``first_s`` are the seconds to the first answer, imports and compilation included.
    """

    label: str
    ours: bool
    status: str
    detail: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    wall_ms: float | None = None
    cpu_ms: float | None = None
    best_ms: float | None = None
    ratio: float | None = None
    first_s: float | None = None


def relative_error(found: Any, exact: Any) -> float:
    """Return the largest deviation, relative to the largest entry; NaN where shapes differ."""
    import numpy as np

    found, exact = to_numpy(found), np.asarray(exact)
    if found.shape != exact.shape:
        return float("nan")
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def to_numpy(array: Any) -> Any:
    """Return a torch or JAX array as NumPy's."""
    import numpy as np

    return np.asarray(array.detach() if hasattr(array, "detach") else array, dtype=np.float64)


def check(task: Task, label: str, exact: Sequence[Any]) -> tuple[Row, Call | None]:
    """Prepare a side and judge its first answer; return its call if it may be timed."""
    row = Row(label, label.startswith("ours"), "timed")
    start = time.perf_counter()
    try:
        call = task.sides[label]()
        answer = call()
    except ImportError as error:
        row.status, row.detail = "missing", f"{error.name or error} is not installed"
        return row, None
    except Exception as error:
        traceback.print_exc()
        row.status, row.detail = "failed", f"{type(error).__name__}: {error}".splitlines()[0]
        return row, None
    row.first_s = time.perf_counter() - start
    pairs = zip(task.outputs, answer, exact, strict=True)
    row.errors = {name: relative_error(a, e) for name, a, e in pairs}
    wrong = {name: e for name, e in row.errors.items() if not e <= task.limit}
    if wrong:
        name = max(wrong, key=lambda name: (wrong[name] != wrong[name], wrong[name]))
        row.status, row.detail = "inaccurate", f"{name} is off by {wrong[name]:.0e}"
        return row, None
    return row, call


def alternate(
    calls: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds, of the clock and of the processor, of every call in every round.

    Each is called once before that.
    """
    seconds: dict[str, Times] = {name: [] for name in calls}
    if not calls:
        return seconds
    for call in calls.values():
        call()
    *_, last = calls.values()
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            last()  # the first call after a collection takes longer, and counts for no side
            for name, call in calls.items():
                wall, cpu = time.perf_counter(), time.process_time()
                call()
                cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
                seconds[name].append((wall, cpu))
            gc.collect()
    finally:
        gc.enable()
    return seconds


def medians(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median processor seconds of each call; they take turns."""
    seconds = alternate(calls, rounds)
    return {name: statistics.median(cpu for _, cpu in own) for name, own in seconds.items()}


def compare(task: Task, rounds: int | None = None, only: Sequence[str] = ()) -> list[Row]:
    """Check every side, then time in turns those that are right. The first of them is ratio 1."""
    exact = task.reference()
    rows: list[Row] = []
    calls: dict[str, Call] = {}
    for label in task.sides:
        if only and not any(part in label for part in only):
            continue
        row, call = check(task, label, exact)
        rows.append(row)
        if call is not None:
            calls[label] = call
        print(f"  {label}: {row.status} {row.detail}", file=sys.stderr, flush=True)
    seconds = alternate(calls, task.rounds if rounds is None else rounds)
    timed = [row for row in rows if row.status == "timed"]
    for row in timed:
        own, base = seconds[row.label], seconds[timed[0].label]
        row.wall_ms = 1e3 * statistics.median(wall for wall, _ in own)
        row.cpu_ms = 1e3 * statistics.median(cpu for _, cpu in own)
        row.best_ms = 1e3 * min(wall for wall, _ in own)
        row.ratio = statistics.median(a[1] / b[1] for a, b in zip(own, base, strict=True))
    return rows


def markdown(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table: what is not timed says why."""
    lines = [
        "| side | ms | of the processor | ratio | first, s | error of the value | of gradients |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        first, *rest = list(row.errors.values()) or [float("nan")]
        worst = max(rest, default=float("nan"))
        shown = (f"{first:.0e}", f"{worst:.0e}") if row.errors else ("", "")
        if row.status == "timed":
            times = (f"{row.wall_ms:.3g}", f"{row.cpu_ms:.3g}", f"{row.ratio:.2f}")
            cells = (*times, f"{row.first_s:.2g}", *shown)
        else:
            cells = ("not timed", row.detail.replace("|", "/"), "", "", *shown)
        lines.append(f"| {row.label} | " + " | ".join(cells) + " |")
    return lines


def run_as_script(*tasks: Task) -> int:
    """Compare the sides of each task, print the tables, and write the results where told."""
    parser = argparse.ArgumentParser(description=tasks[-1].title)
    parser.add_argument("--rounds", type=int, help="how often each side is timed")
    parser.add_argument(
        "--quick", action="store_true", help="three rounds, without what torch compiles"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="sides, by label")
    parser.add_argument("--out", type=Path, help="a folder for a JSON file of each task")
    parser.add_argument("--allocator", choices=["raised", "default"], default="raised")
    options = parser.parse_args()
    start_measuring(options.allocator)
    for task in tasks:
        if options.quick and not options.only:
            sides = {label: make for label, make in task.sides.items() if "compiled" not in label}
            task = replace(task, sides=sides)
        rows = compare(task, 3 if options.quick else options.rounds, options.only)
        print(f"\n{task.title}\n")
        print("\n".join(markdown(rows)), flush=True)
        result = {"task": task.name, "title": task.title, "limit": task.limit}
        result |= {"allocator": options.allocator, "rows": [asdict(row) for row in rows]}
        write(options.out, result)
    return 0


def start_measuring(allocator: str = "raised") -> None:
    """Set this process up for a measurement: one thread, and the allocator as asked."""
    import torch

    torch.set_num_threads(1)
    if allocator == "raised":
        processor.raise_allocator_thresholds()


def write(folder: Path | None, result: dict[str, Any]) -> None:
    """Write a result with the description of the machine."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['task']}.json"
    path.write_text(json.dumps({**result, "machine": processor.describe()}, indent=1) + "\n")
