"""The figure of `costs`: memory and time of meta-gradients against inner steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from implicit_solvers.problems.experiments.imaml.costs import CostRow
from implicit_solvers.problems.experiments.imaml.demo_figure import BLUE, GREEN, GREY, ORANGE, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_costs_figure"]

LOOKS: dict[str, dict[str, Any]] = {
    "iMAML": {"color": BLUE, "marker": "o", "linewidth": 2.2},
    "MAML": {"color": ORANGE, "marker": "s"},
    "MAML, checkpointed": {"color": GREEN, "marker": "D"},
    "first-order MAML": {"color": GREY, "marker": "^", "linestyle": "--"},
}


def draw_costs_figure(path: Path, rows: Sequence[CostRow]) -> None:
    """Draw memory and time and save them.

    Parameters
    ----------
    path
        Where the image goes.
    rows
        The measurements.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.4), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
        memory, seconds = figure.subplots(1, 2)
        megabytes = [(row.method, row.inner_steps, row.memory / 1e6) for row in rows]
        times = [(row.method, row.inner_steps, row.seconds) for row in rows]
        _draw(memory, megabytes, "Peak live memory of a meta-gradient", "MB")
        _draw(seconds, times, "Processor time of a meta-gradient", "s")
        memory.legend(loc="upper left")
        figure.savefig(path, dpi=150)


def _draw(ax: Axes, values: Sequence[tuple[str, int, float]], title: str, unit: str) -> None:
    labelled: list[float] = []
    for method in dict.fromkeys(name for name, _, _ in values):
        steps, heights = zip(*[(n, y) for name, n, y in values if name == method], strict=True)
        ax.loglog(steps, heights, label=method, markersize=5, **LOOKS.get(method, {}))
        if any(abs(heights[-1] - other) < 0.05 * other for other in labelled):
            continue
        labelled.append(heights[-1])
        ax.annotate(
            f" {heights[-1]:.3g} {unit}",
            (steps[-1], heights[-1]),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            annotation_clip=False,
        )
    ticks = sorted({n for _, n, _ in values})
    ax.set_xticks(ticks, [str(n) for n in ticks])
    ax.minorticks_off()
    ax.set(title=title, xlabel="inner steps", ylabel=unit)
    ax.margins(x=0.04, y=0.15)
