"""The figure of the sine waves: errors against gradient steps, and one wave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from implicit_solvers.problems.experiments.data.episodes import Tasks
from implicit_solvers.problems.experiments.imaml.configuration import LABELS
from implicit_solvers.problems.experiments.imaml.demo_figure import RED, STYLE
from implicit_solvers.problems.experiments.imaml.table_figure import COLOURS

if TYPE_CHECKING:
    from implicit_solvers.problems.experiments.imaml.sinusoid import WaveResult

__all__ = ["draw_sinusoid"]


def draw_sinusoid(
    path: Path,
    results: Sequence[WaveResult],
    curves: Mapping[str, tuple[Tensor, Tensor]],
    example: Tasks,
) -> None:
    """Draw them and save the image.

    Parameters
    ----------
    path
        Where the image goes.
    results
        What each method came to.
    curves
        Inputs and predictions ``(points,)`` of one wave, by the method.
    example
        That wave's task.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        last = max(len(result.errors) for result in results)
        for result in results:
            colour = COLOURS.get(result.method, RED)
            label = LABELS[result.method]
            if result.errors:
                mean, low, high = (
                    np.array([entry[key] for entry in result.errors])
                    for key in ("mean", "low", "high")
                )
                steps = np.arange(len(mean))
                left.plot(steps, mean, "o-", color=colour, ms=4, lw=1.5, label=label)
                left.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
            # beyond the steps: what the method itself does with the points
            own = result.own["mean"]
            half = (result.own["high"] - result.own["low"]) / 2
            left.errorbar(
                last + 0.6 + 0.22 * results.index(result),
                own,
                half,
                fmt="s",
                ms=5,
                color=colour,
                capsize=2,
                label=None if result.errors else label,
            )
            x, y = curves[result.method]
            right.plot(x.numpy(), y.numpy(), color=colour, lw=1.3)
        left.axvline(last - 0.1, color="#c9ccd1", lw=1)
        ticks = list(range(0, last, 2))
        left.set_xticks([*ticks, last + 1.2], [*map(str, ticks), "own\nadaptation"])
        left.set(title="Squared error on unseen waves, 95% interval", yscale="log")
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
        figure.savefig(path, dpi=100)


def _unless_crowded(value: float, _: int) -> str:
    digit = round(value / 10 ** np.floor(np.log10(value)))
    return f"{value:g}" if digit in (2, 5) else ""


def _wave(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sine wave of period 2π through points that lie on one."""
    basis = np.stack([np.sin(x), np.cos(x)], 1)
    sine, cosine = np.linalg.lstsq(basis, y, rcond=None)[0]
    grid = np.linspace(-5, 5, 200)
    return grid, sine * np.sin(grid) + cosine * np.cos(grid)
