"""The figures of the meta-learning experiments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.data.episodes import Tasks
from implicit_solvers.problems.experiments.imaml.configuration import LABELS
from implicit_solvers.problems.experiments.imaml.training import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from implicit_solvers.problems.experiments.imaml.costs import CostRow
    from implicit_solvers.problems.experiments.imaml.sinusoid import WaveResult
    from implicit_solvers.problems.experiments.imaml.truth import TruthRow

COLOURS = {
    "imaml-gd": harness.BLUE,
    "imaml-hf": "#6fa8dc",
    "maml": harness.ORANGE,
    "fomaml": "#f0b37e",
    "reptile": harness.GREY,
    "r2d2": harness.GREEN,
}
COST_LOOKS: dict[str, dict[str, Any]] = {
    "iMAML": {"color": harness.BLUE, "marker": "o", "linewidth": 2.2},
    "MAML": {"color": harness.ORANGE, "marker": "s"},
    "MAML, checkpointed": {"color": harness.GREEN, "marker": "D"},
    "first-order MAML": {"color": harness.GREY, "marker": "^", "linestyle": "--"},
}
COST_LOOKS[LABELS["imaml-gd"]] = COST_LOOKS["iMAML"]
LABEL_GAP = 0.05  # of the height of a panel
BLUES = ("#a9c9e8", "#7fb0dc", "#5596cf", "#2f78b7")


# ---- One run ----


def draw_learning(path: Path, history: History, score_name: str, method: str) -> None:
    """Draw the loss, the score on validation tasks, and the residuals."""
    residuals = [
        (history.inner_residual, harness.BLUE, "inner loop: norm of the gradient"),
        (history.adjoint_residual, harness.ORANGE, "linear solve: relative"),
    ]
    residuals = [entry for entry in residuals if np.isfinite(_floats(entry[0])).any()]
    count = 3 if residuals else 2
    with harness.canvas(path, 4.2 * count, 3.4) as figure:
        axes = figure.subplots(1, count)
        steps = np.arange(1, history.steps + 1)
        loss = _floats(history.loss)
        axes[0].plot(steps, loss, color=harness.BLUE, lw=0.7, alpha=0.45)
        width = max(1, history.steps // 20)
        if width > 1 and np.isfinite(loss).all():
            mean = np.convolve(loss, np.full(width, 1 / width), mode="valid")
            looks = {"color": harness.BLUE, "lw": 1.8, "label": f"mean of {width}"}
            axes[0].plot(steps[width - 1 :], mean, **looks)
            axes[0].legend()
        axes[0].set(title=f"{method}: query loss", xlabel="meta-steps", ylabel="after adaptation")
        x, y = zip(*history.validation, strict=True)
        percent = score_name == "accuracy"
        scores = [100 * value for value in y] if percent else list(y)
        axes[1].plot(x, scores, "o-", color=harness.GREEN, ms=4)
        axes[1].set(title="Validation tasks", xlabel="meta-steps")
        axes[1].set_ylabel(f"{score_name}, %" if percent else score_name)
        for values, colour, label in residuals:
            axes[2].semilogy(steps, _floats(values), color=colour, lw=1, label=label)
        if residuals:
            axes[2].set(title="Residuals, mean over tasks", xlabel="meta-steps")
            axes[2].legend()


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


# ---- Costs ----


def draw_costs(path: Path, rows: Sequence[CostRow]) -> None:
    """Draw memory and time of meta-gradients against inner steps."""
    with harness.canvas(path, 11, 4.4, dpi=150, w_pad=0.12, h_pad=0.1) as figure:
        memory, seconds = figure.subplots(1, 2)
        draw_cost_panels(memory, seconds, rows)


def draw_cost_panels(memory: Axes, seconds: Axes, rows: Sequence[CostRow]) -> None:
    """Draw memory and time into two panels."""
    megabytes = [(row.method, row.inner_steps, row.memory / 1e6) for row in rows]
    times = [(row.method, row.inner_steps, row.seconds) for row in rows]
    _draw_costs(memory, megabytes, "Peak live memory of a meta-gradient", "MB")
    _draw_costs(seconds, times, "Processor time of a meta-gradient", "s")
    memory.legend(loc="upper left")


def _draw_costs(ax: Axes, values: Sequence[tuple[str, int, float]], title: str, unit: str) -> None:
    last = _draw_lines(ax, values, COST_LOOKS)
    ax.set(title=title, ylabel=unit)
    ax.margins(x=0.04, y=0.15)
    place = -math.inf
    low, high = np.log(ax.get_ylim())
    for height, colour in sorted(last.values()):
        place = max(place + LABEL_GAP, (np.log(height) - low) / (high - low))
        given: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        text = f"{height:.3g} {unit}"
        ax.annotate(text, (1, place), xycoords="axes fraction", fontsize=8, color=colour, **given)


def _draw_lines(
    ax: Axes, values: Sequence[tuple[str, int, float]], looks: Mapping[str, dict[str, Any]]
) -> dict[str, tuple[float, Any]]:
    """Draw lines against inner steps; return the last height of each, and its colour."""
    last = {}
    for method in dict.fromkeys(name for name, _, _ in values):
        steps, heights = zip(*[(n, y) for name, n, y in values if name == method], strict=True)
        (line,) = ax.loglog(steps, heights, label=method, ms=5, **looks.get(method, {}))
        last[method] = (heights[-1], line.get_color())
    ticks = sorted({n for _, n, _ in values})
    ticks = ticks[:: 1 + len(ticks) // 10]
    ax.set_xticks(ticks, [str(n) for n in ticks])
    ax.minorticks_off()
    ax.set_xlabel("inner steps")
    return last


# ---- Truth ----


def draw_truth(path: Path, rows: Sequence[TruthRow], titles: Mapping[str, str]) -> None:
    """Draw relative errors of meta-gradients against inner steps, one panel for each spectrum."""
    budgets = [name for name in dict.fromkeys(row.method for row in rows) if "steps" in name]
    shades = [{"color": shade, "marker": "o"} for shade in BLUES]
    looks = {"iMAML, CG to tolerance": COST_LOOKS["iMAML"], **COST_LOOKS}
    looks |= zip(budgets, shades, strict=False)
    with harness.canvas(path, 4.6 * len(titles), 4.6, dpi=150, w_pad=0.1, h_pad=0.1) as figure:
        axes = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
        for ax, (name, title) in zip(axes, titles.items(), strict=True):
            own = [row for row in rows if row.spectrum == name]
            errors = [(row.method, row.inner_steps, max(row.error, 1e-16)) for row in own]
            _draw_lines(ax, errors, looks)
            ax.set_title(title, fontsize=10)
        axes[0].set_ylabel("relative error of the meta-gradient")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)


# ---- All methods ----


def draw_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the accuracy of each method in each setting; rows are those of `table.summarize`."""
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    with harness.canvas(path, 2.2 + 2.3 * len(settings), 1.2 + 0.32 * len(methods)) as figure:
        axes = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
        for row in rows:
            own = axes[settings.index(row["setting"])]
            y = methods.index(row["method"])
            colour = COLOURS.get(row["method"], harness.RED)
            seeds = [100 * value for value in row["seeds"]]
            own.plot(seeds, [y] * len(seeds), "|", color=colour, ms=11, alpha=0.6)
            half = None if row["half"] is None else 100 * row["half"]
            own.errorbar(100 * row["mean"], y, xerr=half, fmt="o", ms=6, color=colour, capsize=3)
        for own, setting in zip(axes, settings, strict=True):
            own.set(title=setting, xlabel="accuracy, %")
            own.margins(x=0.12)
        axes[0].set_yticks(range(len(methods)), [LABELS[method] for method in methods])
        axes[0].set_ylim(len(methods) - 0.5, -0.5)


def draw_steps(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw accuracy and memory against the inner steps that settings fix; rows as above."""
    with harness.canvas(path, 11, 4.4, w_pad=0.12, h_pad=0.1) as figure:
        left, right = figure.subplots(1, 2)
        means = [(LABELS[row["method"]], row["inner_steps"], 100 * row["mean"]) for row in rows]
        last = _draw_lines(left, means, COST_LOOKS)
        for row, (label, *point) in zip(rows, means, strict=True):
            half = None if row["half"] is None else 100 * row["half"]
            left.errorbar(*point, half, fmt="none", color=last[label][1], capsize=3)
        left.set(title="Accuracy, 95% interval", ylabel="%", yscale="linear")
        left.legend()
        memory = [(LABELS[row["method"]], row["inner_steps"], row["memory"] / 1e6) for row in rows]
        _draw_costs(right, memory, "Peak live memory of a meta-step", "MB")


TOP = 1e3  # errors of steps that are too long leave the panel


def draw_sinusoid(
    path: Path,
    results: Sequence[WaveResult],
    curves: Mapping[str, tuple[Tensor, Tensor]],
    example: Tasks,
) -> None:
    """Draw errors against gradient steps, and one wave."""
    from matplotlib.ticker import FuncFormatter

    with harness.canvas(path, 11, 4.4) as figure:
        left, right = figure.subplots(1, 2)
        last = max(len(result.errors) for result in results)
        for result in results:
            colour = COLOURS.get(result.method, harness.RED)
            label = LABELS[result.method]
            if result.errors:
                parts = [[e[key] for key in ("mean", "low", "high")] for e in result.errors]
                mean, low, high = np.array(parts).T
                steps = np.arange(len(mean))
                left.plot(steps, mean, "o-", color=colour, ms=4, lw=1.5, label=label)
                left.fill_between(steps, low, high, high < TOP, color=colour, alpha=0.15, lw=0)
            # beyond the steps: what the method itself does with the points
            own = result.own["mean"]
            half = (result.own["high"] - result.own["low"]) / 2
            place = last + 0.6 + 0.22 * results.index(result)
            looks = {"fmt": "s", "ms": 5, "capsize": 2, "label": None if result.errors else label}
            left.errorbar(place, own, half, color=colour, **looks)
            x, y = curves[result.method]
            right.plot(x.numpy(), y.numpy(), color=colour, lw=1.3)
        left.axvline(last - 0.1, color="#c9ccd1", lw=1)
        ticks = list(range(0, last, 2))
        left.set_xticks([*ticks, last + 1.2], [*map(str, ticks), "own\nadaptation"])
        left.set(title="Squared error on unseen waves, 95% interval", yscale="log")
        left.set_ylim(top=TOP)
        left.set(xlabel="gradient steps", ylabel="mean squared error")
        left.grid(axis="x", visible=False)
        left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        left.yaxis.set_minor_formatter(FuncFormatter(_unless_crowded))
        wave_x = np.concatenate([example.support_x[0, :, 0], example.query_x[0, :, 0]])
        wave_y = np.concatenate([example.support_y[0, :, 0], example.query_y[0, :, 0]])
        right.plot(*_wave(wave_x, wave_y), color="black", lw=1, ls="--", label="the wave")
        points = (example.support_x[0, :, 0].numpy(), example.support_y[0, :, 0].numpy())
        right.plot(*points, "o", color="black", ms=5, label="points to learn from")
        right.set(title="One unseen wave, after each method's own adaptation", xlabel="x")
        figure.legend(loc="outside lower center", ncols=4, fontsize=9)


def _unless_crowded(value: float, _: int) -> str:
    digit = round(value / 10 ** np.floor(np.log10(value)))
    return f"{value:g}" if digit in (2, 5) else ""


def _wave(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sine wave of period 2π through points that lie on one."""
    basis = np.stack([np.sin(x), np.cos(x)], 1)
    sine, cosine = np.linalg.lstsq(basis, y, rcond=None)[0]
    grid = np.linspace(-5, 5, 200)
    return grid, sine * np.sin(grid) + cosine * np.cos(grid)


# ---- The demo ----

QUERY_ROWS = 3


def draw_demo(
    path: Path,
    *,
    example: tuple[Tensor, Tensor, Tensor],
    history: History,
    accuracies: Mapping[str, Mapping[str, float]],
    costs: Sequence[CostRow],
) -> None:
    """Draw a task, the learning curve, accuracies, CG's residuals, and costs; save them."""
    panels: list[Any] = [["task", "learning", "accuracy"]]
    panels += [["residual", "memory", "time"]] if costs else [["residual", ".", "."]]
    with harness.canvas(path, 14, 7.6, dpi=150, w_pad=0.12, h_pad=0.12) as figure:
        axes: dict[Any, Axes] = figure.subplot_mosaic(panels)
        _draw_task(axes["task"], *example)
        _draw_curve(axes["learning"], history, accuracies)
        _draw_accuracies(axes["accuracy"], accuracies)
        _draw_residual(axes["residual"], history)
        if costs:
            draw_cost_panels(axes["memory"], axes["time"], costs)


def _draw_task(ax: Axes, support: Tensor, queries: Tensor, right: Tensor) -> None:
    from matplotlib.patches import Rectangle

    ways, side = len(support), support.shape[-1]
    rows = min(QUERY_ROWS, queries.shape[1])
    cell = side + 4
    page = np.zeros(((rows + 1) * cell + 6, ways * cell))

    def place(image: Tensor, row: int, column: int, colour: str | None) -> None:
        top, left = row * cell + 2 + (6 if row else 0), column * cell + 2
        page[top : top + side, left : left + side] = image.squeeze(0).numpy()
        if colour is not None:
            box = Rectangle((left - 1, top - 1), side + 1, side + 1, fill=False, lw=1.4, ec=colour)
            ax.add_patch(box)

    for column in range(ways):
        place(support[column], 0, column, "black")
        for row in range(rows):
            colour = harness.GREEN if right[column, row] else harness.RED
            place(queries[column, row], row + 1, column, colour)
    ax.imshow(page, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    ax.set_title("A task of unseen characters")
    ax.set_yticks([cell / 2, cell + 6 + rows * cell / 2], ["one example\nof each", "recognized?"])
    ax.tick_params(length=0)
    ax.set_xticks([])
    ax.grid(False)
    ax.spines[:].set_visible(False)


def _draw_curve(ax: Axes, history: History, accuracies: Mapping[str, Mapping[str, float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    steps, values = zip(*history.validation, strict=True)
    ax.plot(steps, 100 * np.array(values), "o-", color=harness.BLUE, ms=4)
    for name, accuracy in list(accuracies.items())[:-1]:
        height = 100 * accuracy["mean"]
        ax.axhline(height, color=harness.GREY, ls="--", lw=1.2)
        ax.text(steps[-1], height - 1, f"{name} (test)", color=harness.GREY, ha="right", va="top")
    ax.set(title="Learning to adapt", xlabel="meta-steps", ylabel="accuracy, validation classes, %")
    ax.set_ylim(15, 100)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_accuracies(ax: Axes, accuracies: Mapping[str, Mapping[str, float]]) -> None:
    for row, (name, accuracy) in enumerate(accuracies.items()):
        mean, low, high = (100 * accuracy[key] for key in ("mean", "low", "high"))
        colour = harness.BLUE if row == len(accuracies) - 1 else harness.GREY
        ax.barh(row, mean, color=colour, height=0.5, alpha=0.85)
        ax.errorbar(mean, row, xerr=[[mean - low], [high - mean]], color="black", capsize=4, lw=1.2)
        ax.text(0, row + 0.31, name, va="bottom")
        ax.text(high + 1.5, row, f"{mean:.1f}", va="center", weight="bold")
    ax.axvline(20, color=harness.GREY, ls=":", lw=1)
    ax.text(20.8, -0.36, "chance", color=harness.GREY, va="center", fontsize=9)
    ax.set(title="Five characters, one example each", xlabel="accuracy, test classes, %")
    ax.set_xlim(0, 105)
    ax.set_ylim(-0.5, len(accuracies) - 0.3)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.grid(False)


def _draw_residual(ax: Axes, history: History) -> None:
    from matplotlib.ticker import MaxNLocator

    residual = np.array(history.task_residuals)
    low, middle, high = np.quantile(residual, (0, 0.5, 1), axis=1)
    steps = np.arange(1, len(residual) + 1)
    ax.fill_between(
        steps, low, high, color=harness.BLUE, alpha=0.18, lw=0, label="all tasks of a step"
    )
    ax.plot(steps, middle, color=harness.BLUE, lw=1.2, label="median")
    ax.set(title="CG's relative residual", xlabel="meta-steps", yscale="log")
    ax.set_ylim(top=2 * high.max())
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="upper left", ncols=2)
