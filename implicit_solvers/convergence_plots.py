"""Pictures of solves that were recorded. It knows records, and nothing of how they came about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.solution import Status, failed

__all__ = ["draw_convergence", "new_axes", "overview"]

_MOST = 200
_FINE, _BAD = "#2962ff", "#ff6d00"


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as missing:
        raise ImportError("pictures need matplotlib: pip install matplotlib") from missing
    return plt


def new_axes(axes: Any) -> Any:
    """Return ``axes``, or new ones of a figure of their own."""
    return axes if axes is not None else _pyplot().subplots(layout="constrained")[1]


def draw_convergence(records: Sequence[Any], axes: Any) -> None:
    """Draw the residuals of the lanes of all records against steps; those that failed stand out."""
    lines, drawn = 0, 0
    for record in records:
        if record.history is None:
            continue
        steps, residuals = record.history.residuals()
        bad = failed(record.status).flatten().tolist()
        lines += len(bad)
        # those that failed last, so that they are seen
        for lane in sorted(range(len(bad)), key=bad.__getitem__)[-_MOST:]:
            kept = residuals[:, lane].isfinite() & (residuals[:, lane] > 0)
            if not bool(kept.any()):
                continue
            faint = max(0.15, 1 / len(bad) ** 0.5)
            style = {"color": _BAD, "alpha": 1.0} if bad[lane] else {"color": _FINE, "alpha": faint}
            axes.semilogy(steps[kept], residuals[kept, lane], ".-", markersize=3, **style)
            drawn += 1
    title = "residual" if drawn == lines else f"residual ({drawn:,} of {lines:,} problems)"
    axes.set(title=title, xlabel="step")
    if lines == 0:
        none = "no steps (monitor(history=True) keeps them)"
        axes.text(0.5, 0.5, none, ha="center", transform=axes.transAxes)


def draw_iterations(iterations: Tensor, status: Tensor, axes: Any) -> None:
    """Draw how many problems took how many iterations."""
    bad = failed(status)
    parts = {"solved": iterations[~bad], "failed": iterations[bad]}
    there = {name: part for name, part in parts.items() if len(part) > 0}
    most = int(iterations.max()) if len(iterations) else 0
    bins = torch.linspace(-0.5, most + 0.5, min(most + 2, 51)).tolist()
    if there:
        colors = [_BAD if name == "failed" else _FINE for name in there]
        values = [part.tolist() for part in there.values()]
        axes.hist(values, bins, stacked=True, color=colors, label=[*there])
    axes.set(title="iterations", xlabel="iterations", ylabel="problems")
    if len(there) > 1:
        axes.legend(frameon=False)


def draw_lanes(residual: Tensor, status: Tensor, axes: Any) -> None:
    """Draw the residual that each problem ended with; those that failed by their status."""
    place = torch.arange(len(status))
    sizes = residual.double()
    there = sizes[(sizes > 0) & (sizes < torch.inf)]
    # what is zero, or not finite, stands at the edge
    if len(there):
        sizes = sizes.nan_to_num(nan=torch.inf).clamp(there.min() / 10, 10 * there.max())
    names = {status.value: status.name for status in Status}
    codes = sorted(set(status.tolist()))
    shades = iter((_BAD, "#c62828", "#6a1b9a", "#4e342e", "#546e7a") * len(codes))
    colors = {c: next(shades) if bool(failed(torch.tensor(c))) else _FINE for c in codes}
    for code in codes:
        part = status == code
        bad = bool(failed(torch.tensor(code)))
        axes.semilogy(
            place[part],
            sizes[part],
            "x" if bad else ".",
            color=colors[code],
            label=f"{names.get(code, code)}: {int(part.sum()):,}",
        )
    axes.set(title="residual at the end", xlabel="problem")
    if codes:
        axes.legend(frameon=False)


def overview(records: Sequence[Any]) -> Any:
    """Return a figure of all records: their convergence, iterations, and which problems failed."""
    figure, panels = _pyplot().subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    status, iterations, residual = (
        torch.cat([getattr(record, name).flatten().cpu() for record in records] or [torch.zeros(0)])
        for name in ("status", "iterations", "residual")
    )
    draw_convergence(records, panels[0])
    draw_iterations(iterations, status, panels[1])
    draw_lanes(residual, status, panels[2])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure
