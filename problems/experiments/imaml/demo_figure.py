"""The demo's figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.imaml.costs import CostRow
from implicit_solvers.problems.experiments.imaml.figures import draw_cost_panels
from implicit_solvers.problems.experiments.imaml.training import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
        _draw_learning(axes["learning"], history, accuracies)
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


def _draw_learning(
    ax: Axes, history: History, accuracies: Mapping[str, Mapping[str, float]]
) -> None:
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
