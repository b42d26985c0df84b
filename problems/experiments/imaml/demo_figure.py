"""The demo's figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from implicit_solvers.problems.experiments.imaml.inner_steps import Cost
from implicit_solvers.problems.experiments.imaml.meta_training import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_figure"]

BLUE, ORANGE, GREY, GREEN, RED = "#2563a8", "#d9731a", "#8a8f98", "#2e8b57", "#c0392b"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
QUERY_ROWS = 3


def draw_figure(
    path: Path,
    *,
    example: tuple[Tensor, Tensor, Tensor],
    history: History,
    accuracies: Mapping[str, Mapping[str, float]],
    costs: Sequence[Cost],
) -> None:
    """Draw a task, the learning curve, accuracies, CG's residuals, and costs; save them.

    Parameters
    ----------
    path
        Where the image goes.
    example
        Of one task, the support ``(ways, 1, height, width)``, some queries
        ``(ways, queries, 1, height, width)``, and whether each was recognized ``(ways, queries)``.
    history
        The meta-training.
    accuracies
        ``mean``, ``low`` and ``high`` for each method, by its name; the last is meta-trained.
    costs
        Memory and time; may be empty.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels: list[Any] = [["task", "learning", "accuracy"]]
    panels += [["residual", "memory", "time"]] if costs else [["residual", ".", "."]]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(14, 7.6), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
        axes: dict[Any, Axes] = figure.subplot_mosaic(panels)
        _draw_task(axes["task"], *example)
        _draw_learning(axes["learning"], history, accuracies)
        _draw_accuracies(axes["accuracy"], accuracies)
        _draw_residual(axes["residual"], history)
        if costs:
            megabytes = [(c.method, c.inner_steps, c.memory / 1e6) for c in costs]
            seconds = [(c.method, c.inner_steps, c.seconds) for c in costs]
            _draw_costs(axes["memory"], megabytes, "Peak live memory of a meta-gradient", "MB")
            _draw_costs(axes["time"], seconds, "Time of a meta-gradient", "s")
        figure.savefig(path, dpi=150)


def _draw_task(ax: Axes, support: Tensor, queries: Tensor, right: Tensor) -> None:
    from matplotlib.patches import Rectangle

    ways, side = len(support), support.shape[-1]
    rows = min(QUERY_ROWS, queries.shape[1])
    cell = side + 4
    canvas = np.zeros(((rows + 1) * cell + 6, ways * cell))

    def place(image: Tensor, row: int, column: int, colour: str | None) -> None:
        top, left = row * cell + 2 + (6 if row else 0), column * cell + 2
        canvas[top : top + side, left : left + side] = image.squeeze(0).numpy()
        if colour is not None:
            box = Rectangle((left - 1, top - 1), side + 1, side + 1, fill=False, lw=1.4, ec=colour)
            ax.add_patch(box)

    for column in range(ways):
        place(support[column], 0, column, "black")
        for row in range(rows):
            colour = GREEN if right[column, row] else RED
            place(queries[column, row], row + 1, column, colour)
    ax.imshow(canvas, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
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
    ax.plot(steps, 100 * np.array(values), "o-", color=BLUE, ms=4)
    for name, accuracy in list(accuracies.items())[:-1]:
        height = 100 * accuracy["mean"]
        ax.axhline(height, color=GREY, ls="--", lw=1.2)
        ax.text(steps[-1], height - 1, f"{name} (test)", color=GREY, ha="right", va="top")
    ax.set(title="Learning to adapt", xlabel="meta-steps", ylabel="accuracy, validation classes, %")
    ax.set_ylim(15, 100)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_accuracies(ax: Axes, accuracies: Mapping[str, Mapping[str, float]]) -> None:
    for row, (name, accuracy) in enumerate(accuracies.items()):
        mean, low, high = (100 * accuracy[key] for key in ("mean", "low", "high"))
        colour = BLUE if row == len(accuracies) - 1 else GREY
        ax.barh(row, mean, color=colour, height=0.5, alpha=0.85)
        ax.errorbar(mean, row, xerr=[[mean - low], [high - mean]], color="black", capsize=4, lw=1.2)
        ax.text(0, row + 0.31, name, va="bottom")
        ax.text(high + 1.5, row, f"{mean:.1f}", va="center", weight="bold")
    ax.axvline(20, color=GREY, ls=":", lw=1)
    ax.text(20.8, -0.36, "chance", color=GREY, va="center", fontsize=9)
    ax.set(title="Five characters, one example each", xlabel="accuracy, test classes, %")
    ax.set_xlim(0, 105)
    ax.set_ylim(-0.5, len(accuracies) - 0.3)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.grid(False)


def _draw_residual(ax: Axes, history: History) -> None:
    from matplotlib.ticker import MaxNLocator

    residual = np.array(history.residual)
    low, middle, high = np.quantile(residual, (0, 0.5, 1), axis=1)
    steps = np.arange(1, len(residual) + 1)
    ax.fill_between(steps, low, high, color=BLUE, alpha=0.18, lw=0, label="all tasks of a step")
    ax.plot(steps, middle, color=BLUE, lw=1.2, label="median")
    ax.set(title="CG's relative residual", xlabel="meta-steps", yscale="log")
    ax.set_ylim(top=2 * high.max())
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="upper left", ncols=2)


def _draw_costs(ax: Axes, values: Sequence[tuple[str, int, float]], title: str, unit: str) -> None:
    named = {"iMAML": ("iMAML (implicit)", BLUE, "o-"), "MAML": ("MAML (unrolled)", ORANGE, "s-")}
    for method, (label, colour, style) in named.items():
        steps, heights = zip(*[(n, y) for name, n, y in values if name == method], strict=True)
        ax.loglog(steps, heights, style, color=colour, label=label)
        ax.annotate(
            f"{heights[-1]:.3g} {unit}",
            (steps[-1], heights[-1]),
            xytext=(0, 7),
            textcoords="offset points",
            ha="right",
            color=colour,
        )
    ticks = sorted({n for _, n, _ in values})
    ax.set_xticks(ticks, [str(n) for n in ticks])
    ax.minorticks_off()
    ax.set(title=title, xlabel="inner steps", ylabel=unit)
    ax.margins(y=0.15)
    ax.legend(loc="upper left")
