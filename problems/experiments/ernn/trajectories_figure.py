"""The figure of the command ``trajectories``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from implicit_solvers.problems.experiments.imaml.demo_figure import BLUE, GREY, ORANGE, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_trajectories"]

COLOURS = (ORANGE, BLUE)


def draw_trajectories(
    path: Path,
    x: Tensor,
    y: Tensor,
    paths: Mapping[str, Tensor],
    scores: Mapping[str, float],
    names: Mapping[str, str],
) -> None:
    """Draw two inputs, and the states of each network in the plane of its first two units.

    Parameters
    ----------
    path
        Where the image goes.
    x
        Clockwise inputs ``(count, T, 2)``.
    y
        The class of each path, ``(paths,)``.
    paths
        The states ``(paths, T + 1, H)`` of each model.
    scores
        The share of right classes.
    names
        What titles say of a model.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    count = len(paths) + 1
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(3.1 * count, 3.5), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
        )
        first, *rest = figure.subplots(1, count)
        _draw_inputs(first, x[0])
        for ax, (name, states) in zip(rest, paths.items(), strict=True):
            for one, label in zip(states[..., :2], y.tolist(), strict=True):
                style: dict[str, Any] = {"color": COLOURS[label], "alpha": 0.75}
                ax.plot(*one.T, "o-", lw=1, ms=2.5, **style)
                ax.plot(*one[-1], "s", ms=6, **style)
            ax.plot(0, 0, "+", color="black", ms=9, mew=1.6)
            ax.set(title=f"{names[name]}\n{100 * scores[name]:.0f} % right")
            ax.set(xlabel="first unit", ylabel="second unit")
        figure.savefig(path, dpi=110)


def _draw_inputs(ax: Axes, x: Tensor) -> None:
    for points, place, colour, text in (
        (x, 1.0, COLOURS[0], "clockwise"),
        (x.flip(0), 0.72, COLOURS[1], "counterclockwise"),
    ):
        ring = place * points
        ax.plot(*ring.T, "o-", color=colour, lw=1, ms=3)
        ax.annotate(
            "",
            xy=(ring[3, 0].item(), ring[3, 1].item()),
            xytext=(ring[2, 0].item(), ring[2, 1].item()),
            arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.6},
        )
        ax.text(0, 0.18 if place == 1.0 else -0.18, text, color=colour, ha="center", va="center")
    ax.set(title="Inputs\n", xlabel="first channel", ylabel="second channel")
    ax.set_aspect("equal")
    ax.set_anchor("N")
    ax.tick_params(colors=GREY)
