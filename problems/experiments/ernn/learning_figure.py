"""The figure of trainings on one task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from implicit_solvers.problems.experiments.ernn.models import LABELS
from implicit_solvers.problems.experiments.imaml.demo_figure import STYLE

__all__ = ["draw_learning"]


def draw_learning(
    path: Path,
    title: str,
    results: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Draw the loss and the validation score after every epoch, for each model's best rate.

    Parameters
    ----------
    path
        Where the image goes.
    title
        The task's name.
    results, rows
        Of `trials.run_trials` and `trials.summary`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    colours = mpl.color_sequences["tab10"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for number, row in enumerate(rows):
            own = [r for r in results if (r["model"], r["rate"]) == (row["model"], row["rate"])]
            style = {"color": colours[number % 10], "ls": "-" if number < 10 else "--"}
            for ax, key in ((left, "train"), (right, "test")):
                curves = [r[key] for r in own if len(r[key]) == len(own[0][key])]
                epochs = np.arange(1, len(curves[0]) + 1)
                for curve in curves:
                    ax.plot(epochs, curve, lw=0.6, alpha=0.4, **style)
                ax.plot(
                    epochs, np.mean(curves, axis=0), lw=1.6, label=LABELS[row["model"]], **style
                )
        left.set(title=f"{title}: training loss", xlabel="epochs", yscale="log")
        right.set(title="Score on the validation part", xlabel="epochs")
        for ax in (left, right):
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*right.get_legend_handles_labels(), loc="outside right center")
        figure.savefig(path, dpi=100)
