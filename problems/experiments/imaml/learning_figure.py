"""The figure of a run: loss, score on validation tasks, and residuals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from implicit_solvers.problems.experiments.imaml.demo_figure import BLUE, GREEN, ORANGE, STYLE
from implicit_solvers.problems.experiments.imaml.training import History

__all__ = ["draw_learning"]


def draw_learning(path: Path, history: History, score_name: str, method: str) -> None:
    """Draw the learning curves and save them.

    Parameters
    ----------
    path
        Where the image goes.
    history
        The meta-training.
    score_name
        What the validation score is.
    method
        Goes into the title.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    residuals = [
        (history.inner_residual, BLUE, "inner loop: norm of the gradient"),
        (history.adjoint_residual, ORANGE, "linear solve: relative"),
    ]
    residuals = [entry for entry in residuals if np.isfinite(_floats(entry[0])).any()]
    with mpl.rc_context(STYLE):
        count = 3 if residuals else 2
        figure = Figure(figsize=(4.2 * count, 3.4), layout="constrained")
        axes = figure.subplots(1, count)
        steps = np.arange(1, history.steps + 1)
        loss = _floats(history.loss)
        axes[0].plot(steps, loss, color=BLUE, lw=0.7, alpha=0.45)
        width = max(1, history.steps // 20)
        if width > 1 and np.isfinite(loss).all():
            mean = np.convolve(loss, np.full(width, 1 / width), mode="valid")
            axes[0].plot(steps[width - 1 :], mean, color=BLUE, lw=1.8, label=f"mean of {width}")
            axes[0].legend()
        axes[0].set(title=f"{method}: query loss", xlabel="meta-steps", ylabel="after adaptation")
        x, y = zip(*history.validation, strict=True)
        percent = score_name == "accuracy"
        scores = [100 * value for value in y] if percent else list(y)
        axes[1].plot(x, scores, "o-", color=GREEN, ms=4)
        axes[1].set(title="Validation tasks", xlabel="meta-steps")
        axes[1].set_ylabel(f"{score_name}, %" if percent else score_name)
        for values, colour, label in residuals:
            axes[2].semilogy(steps, _floats(values), color=colour, lw=1, label=label)
        if residuals:
            axes[2].set(title="Residuals, mean over tasks", xlabel="meta-steps")
            axes[2].legend()
        figure.savefig(path, dpi=100)


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)
