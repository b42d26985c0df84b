"""The figure of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from implicit_solvers.problems.experiments.imaml.demo_figure import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    STYLE,
)

__all__ = ["COLOURS", "draw_table"]

COLOURS = {
    "imaml-gd": BLUE,
    "imaml-hf": "#6fa8dc",
    "maml": ORANGE,
    "fomaml": "#f0b37e",
    "reptile": GREY,
    "r2d2": GREEN,
}


def draw_table(path: Path, rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> None:
    """Draw the accuracy of each method in each setting.

    Parameters
    ----------
    path
        Where the image goes.
    rows
        As `table.summarize` returns them.
    labels
        The methods' names.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings = list(dict.fromkeys(row["setting"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    with mpl.rc_context(STYLE):
        size = (2.2 + 2.3 * len(settings), 1.2 + 0.32 * len(methods))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
        for row in rows:
            own = axes[settings.index(row["setting"])]
            y = methods.index(row["method"])
            colour = COLOURS.get(row["method"], RED)
            seeds = [100 * value for value in row["seeds"]]
            own.plot(seeds, [y] * len(seeds), "|", color=colour, ms=11, alpha=0.6)
            mean, half = 100 * row["mean"], 100 * row["half"]
            own.errorbar(mean, y, xerr=half, fmt="o", ms=6, color=colour, capsize=3)
        for own, setting in zip(axes, settings, strict=True):
            own.set(title=setting, xlabel="accuracy, %")
            own.margins(x=0.12)
        axes[0].set_yticks(range(len(methods)), [labels[method] for method in methods])
        axes[0].set_ylim(len(methods) - 0.5, -0.5)
        figure.savefig(path, dpi=100)
