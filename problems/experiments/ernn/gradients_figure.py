"""The figure of the command ``gradients``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from implicit_solvers.problems.experiments.imaml.demo_figure import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_gradients"]

LOWEST = 1e-20


def draw_gradients(
    path: Path,
    steps: int,
    trainings: Sequence[Mapping[str, Any]],
    curves: Sequence[Mapping[str, Any]],
    distances: Sequence[Mapping[str, float]],
    names: Mapping[str, str],
) -> None:
    """Draw norms during training and along a sequence, and distances from ``-I``.

    Parameters
    ----------
    path
        Where the image goes.
    steps
        The length of the sequences of the training.
    trainings
        ``model``, ``initial``, ``test``: norms before training and after each epoch.
    curves
        ``model`` and ``norms``, along a sequence.
    distances
        ``steps``, ``step_size``, ``distance``.
    names
        What the legend says of a model.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    colours = dict(zip((t["model"] for t in trainings), mpl.color_sequences["tab10"], strict=False))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13.5, 4.3), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        left, middle, right = figure.subplots(1, 3)
        for training in trainings:
            norms = [training["initial"], *training["test"]]
            style = {"color": colours[training["model"]], "label": names[training["model"]]}
            left.plot(range(len(norms)), norms, "o-", ms=3.5, lw=1.4, **style)
        left.set(title=rf"$\|\partial h_{{{steps}}} / \partial h_1\|$ in training")
        left.set(xlabel="epochs", yscale="log")
        _cut(left, [[t["initial"], *t["test"]] for t in trainings])
        for curve in curves:
            k = np.arange(2, len(curve["norms"]) + 2)
            middle.plot(k, curve["norms"], lw=1.4, color=colours[curve["model"]])
        middle.set(title=r"$\|\partial h_k / \partial h_1\|$ after training")
        middle.set(xlabel="k", yscale="log", xscale="log")
        _cut(middle, [curve["norms"] for curve in curves])
        _draw_distances(right, distances)
        figure.legend(
            *left.get_legend_handles_labels(), loc="outside lower center", ncols=len(trainings)
        )
        figure.savefig(path, dpi=110)


def _draw_distances(ax: Axes, distances: Sequence[Mapping[str, float]]) -> None:
    sizes = list(dict.fromkeys(d["step_size"] for d in distances))
    for size, shade in zip(sizes, np.linspace(0.9, 0.35, len(sizes)), strict=True):
        own = [d for d in distances if d["step_size"] == size]
        k, values = [d["steps"] for d in own], [d["distance"] for d in own]
        ax.plot(k, values, "o-", ms=3.5, lw=1.4, color=(0.1, 0.3, 0.6, shade))
        ax.annotate(
            rf"$\eta$ = {size:g}",
            (k[-1], values[-1]),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    ax.set(title=r"$\|J + I\|$ after K steps of size $\eta$", xlabel="K", yscale="log")
    ax.set_xlim(right=max(d["steps"] for d in distances) * 1.2)


def _cut(ax: Axes, curves: Sequence[Sequence[float]]) -> None:
    """End the axis where what vanishes or explodes would make the rest flat."""
    values = np.concatenate([np.asarray(curve, float) for curve in curves])
    values = values[np.isfinite(values)]
    ax.set_ylim(max(LOWEST, 0.3 * values.min()), min(1 / LOWEST, 5 * values.max()))
