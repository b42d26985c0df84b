"""The style of the figures, and how one is saved."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from implicit_solvers.problems.experiments.harness.run_folder import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


@contextlib.contextmanager
def canvas(
    path: Path, width: float, height: float, *, dpi: int = 100, **pads: Any
) -> Iterator[Figure]:
    """Give a figure to draw on, and save it when all is drawn.

    Sizes are in inches, and so are ``pads``, ``w_pad`` and ``h_pad`` between panels.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(**pads))
        yield figure
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=dpi)
    write_whole(path, image.getvalue())
