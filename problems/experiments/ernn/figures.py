"""The figures of the recurrent networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.ernn.models import LABELS
from implicit_solvers.problems.experiments.ernn.tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]

COLUMNS = 3
# What a constant prediction reaches on the adding task.
CONSTANT_ERROR = 1 / 6
LOWEST = 1e-20
LEVEL = 0.05
CLASS_COLOURS = (harness.ORANGE, harness.BLUE)


def measures_error(task: str) -> bool:
    """Return whether a task's score is a mean squared error, and smaller is better."""
    return task.startswith("adding")


def score_text(task: str, row: Mapping[str, Any]) -> str:
    """Return a row of `trials.summary` as percent, or thousandths of an error, with a verdict.

    Examples
    --------
    >>> row = {"mean": 0.953, "half": 0.012, "seeds": [0, 1, 2], "failed": 1, "p_holm": None}
    >>> score_text("digits", row)
    '95.3 ± 1.2 (3, 1 failed)'
    """
    if row["mean"] is None:
        return "failed"
    scale, digits = (1000, 2) if measures_error(task) else (100, 1)
    text = f"{scale * row['mean']:.{digits}f}"
    if row["half"] is not None:
        text += f" ± {scale * row['half']:.{digits}f}"
    failed = f", {row['failed']} failed" if row["failed"] else ""
    text += f" ({len(row['seeds'])}{failed})"
    if row["p_holm"] is None or row["p_holm"] >= LEVEL:
        return text
    return f"{text} {'▲' if row['above'] != measures_error(task) else '▼'}"


# ---- Trainings on one task ----


def draw_learning(path: Path, title: str, results: Rows, rows: Rows) -> None:
    """Draw the loss and the validation score after every epoch, for each model's best rate.

    ``results`` and ``rows`` are those of `trials.run_trials` and `trials.summary`.
    """
    import matplotlib as mpl
    from matplotlib.ticker import MaxNLocator

    colours = mpl.color_sequences["tab10"]
    with harness.canvas(path, 11, 4) as figure:
        left, right = figure.subplots(1, 2)
        for number, row in enumerate(rows):
            own = [r for r in results if r["model"] == row["model"]]
            own = [r for r in own if r["rate"] == row["rates"][r["fold"]]]
            style: dict[str, Any] = {"color": colours[number % 10]}
            style["ls"] = "-" if number < 10 else "--"
            for ax, key in ((left, "train"), (right, "test")):
                curves = [r[key] for r in own if len(r[key]) == len(own[0][key])]
                epochs = np.arange(1, len(curves[0]) + 1)
                for curve in curves:
                    ax.plot(epochs, curve, lw=0.6, alpha=0.4, **style)
                mean = np.mean(curves, axis=0)
                ax.plot(epochs, mean, lw=1.6, label=LABELS[row["model"]], **style)
        left.set(title=f"{title}: training loss", xlabel="epochs", yscale="log")
        right.set(title="Score on the validation part", xlabel="epochs")
        for ax in (left, right):
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*right.get_legend_handles_labels(), loc="outside right center")


# ---- All networks on all tasks ----


def draw_table(path: Path, rows: Mapping[str, Rows]) -> None:
    """Draw the test score of every seed, and the score after shuffling time, for each task."""
    lines = math.ceil(len(rows) / COLUMNS)
    height = 1.1 + 0.27 * max(len(own) for own in rows.values())
    with harness.canvas(path, 13, height * lines + 0.5, dpi=110, w_pad=0.12, h_pad=0.08) as figure:
        axes = figure.subplots(lines, COLUMNS, squeeze=False).flatten()
        for ax, (task, own) in zip(axes, rows.items(), strict=False):
            _draw_task(ax, task, own)
        for ax in axes[len(rows) :]:
            ax.set_axis_off()
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))


def _draw_task(ax: Axes, task: str, rows: Rows) -> None:
    error = measures_error(task)
    scale = 1 if error else 100
    places = range(len(rows), 0, -1)
    for place, row in zip(places, rows, strict=True):
        named = place == len(rows)
        values = [scale * score for score in row["scores"]]
        style: dict[str, Any] = {"color": harness.BLUE, "ms": 6, "alpha": 0.55, "mew": 0}
        label = "test, each seed" if named else None
        ax.plot(values, [place] * len(values), "o", label=label, **style)
        for key, marker, size, colour, label in (
            ("parity_shuffled", "D", 8, harness.ORANGE, "steps shuffled, even and odd apart"),
            ("shuffled", "x", 6, harness.GREY, "steps shuffled"),
        ):
            if row[key] is not None:
                style = {"color": colour, "mfc": "none", "ms": size, "ls": ""}
                label = label if named else None
                ax.plot(scale * row[key], place, marker, label=label, **style)
        if row["mean"] is not None:
            beside: Any = ("axes fraction", "data")
            text = score_text(task, row)
            ax.annotate(text, (1.02, place), xycoords=beside, va="center", fontsize=9)
    ax.set_yticks(list(places), [LABELS[row["model"]] for row in rows])
    ax.set_ylim(0.4, len(rows) + 0.6)
    if error:
        ax.set_xscale("log")
        ax.axvline(CONSTANT_ERROR, color=harness.GREY, ls=":", lw=1)
        ax.set(xlabel="mean squared error (dotted: a constant); right: · 1000")
    else:
        ax.set_xlim(0, 102)
        ax.set(xlabel="right classes, %")
    ax.set_title(TASKS[task].title)


# ---- Jacobians through time ----


def draw_gradients(
    path: Path, steps: int, trainings: Rows, curves: Rows, distances: Rows, names: Mapping[str, str]
) -> None:
    """Draw norms during training and along a sequence, and distances from ``-I``."""
    import matplotlib as mpl

    colours = dict(zip((t["model"] for t in trainings), mpl.color_sequences["tab10"], strict=False))
    with harness.canvas(path, 13.5, 4.3, dpi=110, w_pad=0.1, h_pad=0.1) as figure:
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
        handles = left.get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=len(trainings))


def _draw_distances(ax: Axes, distances: Rows) -> None:
    sizes = list(dict.fromkeys(d["step_size"] for d in distances))
    for size, shade in zip(sizes, np.linspace(0.9, 0.35, len(sizes)), strict=True):
        own = [d for d in distances if d["step_size"] == size]
        k, values = [d["steps"] for d in own], [d["distance"] for d in own]
        ax.plot(k, values, "o-", ms=3.5, lw=1.4, color=(0.1, 0.3, 0.6, shade))
        place: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(rf"$\eta$ = {size:g}", (k[-1], values[-1]), fontsize=9, **place)
    ax.set(title=r"$\|J + I\|$ after K steps of size $\eta$", xlabel="K", yscale="log")
    ax.set_xlim(right=max(d["steps"] for d in distances) * 1.2)


def _cut(ax: Axes, curves: Sequence[Sequence[float]]) -> None:
    """End the axis where what vanishes or explodes would make the rest flat."""
    values = np.concatenate([np.asarray(curve, float) for curve in curves])
    values = values[np.isfinite(values)]
    ax.set_ylim(max(LOWEST, 0.3 * values.min()), min(1 / LOWEST, 5 * values.max()))


# ---- Paths of states ----


def draw_trajectories(
    path: Path,
    x: Tensor,
    y: Tensor,
    paths: Mapping[str, Tensor],
    scores: Mapping[str, float],
    names: Mapping[str, str],
) -> None:
    """Draw two inputs, and the states of each network in the plane of its first two units."""
    count = len(paths) + 1
    with harness.canvas(path, 3.1 * count, 3.5, dpi=110, w_pad=0.08, h_pad=0.08) as figure:
        first, *rest = figure.subplots(1, count)
        _draw_inputs(first, x[0])
        for ax, (name, states) in zip(rest, paths.items(), strict=True):
            for one, label in zip(states[..., :2], y.tolist(), strict=True):
                style: dict[str, Any] = {"color": CLASS_COLOURS[label], "alpha": 0.75}
                ax.plot(*one.T, "o-", lw=1, ms=2.5, **style)
                ax.plot(*one[-1], "s", ms=6, **style)
            ax.plot(0, 0, "+", color="black", ms=9, mew=1.6)
            ax.set(title=f"{names[name]}\n{100 * scores[name]:.0f} % right")
            ax.set(xlabel="first unit", ylabel="second unit")


def _draw_inputs(ax: Axes, x: Tensor) -> None:
    for points, size, height, colour, text in (
        (x, 1.0, 0.18, CLASS_COLOURS[0], "clockwise"),
        (x.flip(0), 0.72, -0.18, CLASS_COLOURS[1], "counterclockwise"),
    ):
        ring = size * points
        ax.plot(*ring.T, "o-", color=colour, lw=1, ms=3)
        arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.6}
        ax.annotate("", tuple(ring[3].tolist()), tuple(ring[2].tolist()), arrowprops=arrow)
        ax.text(0, height, text, color=colour, ha="center", va="center")
    ax.set(title="Inputs\n", xlabel="first channel", ylabel="second channel")
    ax.set_aspect("equal")
    ax.set_anchor("N")
    ax.tick_params(colors=harness.GREY)
