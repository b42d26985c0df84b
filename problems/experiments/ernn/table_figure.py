"""The figure of all networks on all tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from implicit_solvers.problems.experiments.ernn.models import LABELS
from implicit_solvers.problems.experiments.ernn.results import measures_error, score_text
from implicit_solvers.problems.experiments.ernn.tasks import TASKS
from implicit_solvers.problems.experiments.imaml.demo_figure import BLUE, GREY, ORANGE, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_table"]

COLUMNS = 3
# What a constant prediction reaches on the adding task.
CONSTANT_ERROR = 1 / 6


def draw_table(path: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Draw the test score of every seed, and the score after shuffling time.

    Parameters
    ----------
    path
        Where the image goes.
    rows
        What `trials.summary` returned for each task.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    lines = math.ceil(len(rows) / COLUMNS)
    height = 1.1 + 0.27 * max(len(own) for own in rows.values())
    with mpl.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
        figure = Figure(figsize=(13, height * lines + 0.5), layout=layout)
        axes = figure.subplots(lines, COLUMNS, squeeze=False).flatten()
        for ax, (task, own) in zip(axes, rows.items(), strict=False):
            _draw_task(ax, task, own)
        for ax in axes[len(rows) :]:
            ax.set_axis_off()
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))
        figure.savefig(path, dpi=110)


def _draw_task(ax: Axes, task: str, rows: Sequence[Mapping[str, Any]]) -> None:
    error = measures_error(task)
    scale = 1 if error else 100
    places = range(len(rows), 0, -1)
    for place, row in zip(places, rows, strict=True):
        first = place == len(rows)
        values = [scale * score for score in row["scores"]]
        ax.plot(
            values,
            [place] * len(values),
            "o",
            color=BLUE,
            ms=6,
            alpha=0.55,
            mew=0,
            label="test, each seed" if first else None,
        )
        for key, marker, colour, label in (
            ("parity_shuffled", "D", ORANGE, "steps shuffled, even and odd apart"),
            ("shuffled", "x", GREY, "steps shuffled"),
        ):
            if row[key] is not None:
                ax.plot(
                    scale * row[key],
                    place,
                    marker,
                    color=colour,
                    mfc="none",
                    ms=8 if marker == "D" else 6,
                    label=label if first else None,
                    ls="",
                )
        if row["mean"] is not None:
            text = score_text(task, row)
            ax.annotate(
                text,
                (1.02, place),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=9,
            )
    ax.set_yticks(list(places), [LABELS[row["model"]] for row in rows])
    ax.set_ylim(0.4, len(rows) + 0.6)
    if error:
        ax.set_xscale("log")
        ax.axvline(CONSTANT_ERROR, color=GREY, ls=":", lw=1)
        ax.set(xlabel="mean squared error (dotted: a constant); right: · 1000")
    else:
        ax.set_xlim(0, 102)
        ax.set(xlabel="right classes, %")
    ax.set_title(TASKS[task].title)
