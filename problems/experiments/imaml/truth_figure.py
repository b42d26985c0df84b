"""The figure of `truth`: relative errors of meta-gradients against inner steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from implicit_solvers.problems.experiments.imaml.demo_figure import BLUE, GREY, ORANGE, STYLE
from implicit_solvers.problems.experiments.imaml.truth import SPECTRA, TruthRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_truth_figure"]

BLUES = ("#a9c9e8", "#7fb0dc", "#5596cf", "#2f78b7")


def draw_truth_figure(path: Path, rows: Sequence[TruthRow]) -> None:
    """Draw one panel for each spectrum and save them.

    Parameters
    ----------
    path
        Where the image goes.
    rows
        The measurements, of one or more spectra.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    spectra = list(dict.fromkeys(row.spectrum for row in rows))
    with mpl.rc_context(STYLE):
        size = (4.6 * len(spectra), 4.6)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        axes = figure.subplots(1, len(spectra), sharey=True, squeeze=False)[0]
        for ax, name in zip(axes, spectra, strict=True):
            _draw_panel(ax, name, [row for row in rows if row.spectrum == name])
        axes[0].set_ylabel("relative error of the meta-gradient")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.savefig(path, dpi=150)


def _draw_panel(ax: Axes, name: str, rows: Sequence[TruthRow]) -> None:
    shades = iter(BLUES)
    for method in dict.fromkeys(row.method for row in rows):
        steps, errors = zip(
            *[(row.inner_steps, max(row.error, 1e-16)) for row in rows if row.method == method],
            strict=True,
        )
        style: dict[str, Any]
        if "steps" in method:
            style = {"color": next(shades, BLUES[-1]), "marker": "o"}
        elif method.startswith("iMAML"):
            style = {"color": BLUE, "marker": "o", "linewidth": 2.2}
        elif method == "MAML":
            style = {"color": ORANGE, "marker": "s"}
        else:
            style = {"color": GREY, "marker": "^"}
        ax.loglog(steps, errors, label=method, markersize=4, **style)
    if name in SPECTRA:
        s = SPECTRA[name]
        name = f"{name}: curvatures {s.lowest:g} to {s.highest:g}, λ = {s.strength:g}"
    ticks = sorted({row.inner_steps for row in rows})
    ax.set_xticks(ticks[::2], [str(n) for n in ticks[::2]])
    ax.minorticks_off()
    ax.set_title(name, fontsize=10)
    ax.set_xlabel("inner steps")
