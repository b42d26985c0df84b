"""The figure of gradient variances."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from implicit_solvers.problems.experiments.imaml.demo_figure import STYLE
from implicit_solvers.problems.experiments.reparameterization.variance_measurements import (
    FAMILIES,
    Measurement,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_figure"]

# RSVI, without lines: it covers the implicit estimator
LINES = [("#2563a8", "o-"), ("#8a8f98", "s--"), ("#d9731a", "^"), ("#8e44ad", "x")]
LINES += [("#2e8b57", "D"), ("#c0392b", "+")]


def draw_figure(path: Path, measurements: Sequence[Measurement]) -> None:
    """Draw the variance of every estimator along each family, and save it.

    Parameters
    ----------
    path
        Where the image goes.
    measurements
        All of a run.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    names = list(dict.fromkeys(m.estimator for m in measurements))
    styles = {name: LINES[i % len(LINES)] for i, name in enumerate(names)}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12, 7), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
        axes: Any = figure.subplots(2, 3)
        for ax, name in zip(axes.flat, FAMILIES, strict=False):
            _draw_family(ax, name, [m for m in measurements if m.family == name], styles)
        legend = axes.flat[len(FAMILIES)]
        legend.set_axis_off()
        handles: dict[str, Any] = {}
        for ax in axes.flat[: len(FAMILIES)]:
            handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        legend.legend(
            handles.values(),
            handles.keys(),
            loc="center left",
            title="Variance of one sample's gradient,\nsummed over the parameters",
            alignment="left",
        )
        figure.savefig(path, dpi=120)


def _draw_family(
    ax: Axes, name: str, measurements: Sequence[Measurement], styles: dict[str, tuple[str, str]]
) -> None:
    family = FAMILIES[name]
    for estimator, (colour, line) in styles.items():
        own = sorted((m.place, m.variance) for m in measurements if m.estimator == estimator)
        if own:
            ax.loglog(*zip(*own, strict=True), line, color=colour, ms=5, label=estimator)
    if family.high < 100 * family.low:
        ticks = family.places(5)
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_xticks([], minor=True)
    ax.set(title=family.title, xlabel=family.axis)
