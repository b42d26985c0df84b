"""The figures of the variational autoencoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from implicit_solvers.problems.experiments.imaml.demo_figure import STYLE
from implicit_solvers.problems.experiments.reparameterization.autoencoder import Autoencoder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "LABELS", "draw_decoded", "draw_elbo", "draw_torus"]

LABELS = {"normal": "Normal", "gamma": "Gamma", "beta": "Beta", "von-mises": "von Mises"}
COLOURS = {"normal": "#8a8f98", "gamma": "#2563a8", "beta": "#d9731a", "von-mises": "#2e8b57"}
GRID, GAP = 10, 2
# The torus: radii of its circle and of its tube, and from where it is seen.
RADIUS, TUBE = 2.0, 0.95
ELEVATION, AZIMUTH = 48.0, -60.0


def draw_elbo(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Draw the test ELBO of each seed against the dimensions, and the learning curves.

    Parameters
    ----------
    path
        Where the image goes.
    results
        Each with ``latent``, ``dimensions``, ``seed``, ``elbo`` and the ``test`` curve.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    dimensions = sorted({result["dimensions"] for result in results})
    latents = list(dict.fromkeys(result["latent"] for result in results))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for place, latent in enumerate(latents):
            colour, shift = COLOURS[latent], 0.16 * (place - (len(latents) - 1) / 2)
            values = [
                [r["elbo"] for r in results if (r["latent"], r["dimensions"]) == (latent, d)]
                for d in dimensions
            ]
            x = np.arange(len(dimensions)) + shift
            for column, seeds in zip(x, values, strict=True):
                left.plot([column] * len(seeds), seeds, "o", color=colour, ms=4, alpha=0.5, mew=0)
            means = [np.mean(seeds) for seeds in values]
            left.plot(x, means, "_-", color=colour, ms=14, mew=2, lw=0.8, label=LABELS[latent])
            curves = [r["test"] for r in results if r["latent"] == latent]
            own = [r["test"] for r in results if r["latent"] == latent and r["seed"] == 0]
            for d, curve in zip(dimensions, own or curves, strict=False):
                style = "-" if d == dimensions[0] else (":" if d == dimensions[-1] else "--")
                right.plot(range(1, len(curve) + 1), curve, style, color=colour, lw=1.2)
        left.set_xticks(range(len(dimensions)), [str(d) for d in dimensions])
        left.set(title="Test ELBO, every seed and the mean", xlabel="latent dimensions")
        left.set_ylabel("nats an image")
        left.legend(ncols=2, fontsize=9)
        left.margins(y=0.25)
        right.set(title="Learning, first seed", xlabel="epochs", ylabel="test ELBO, nats an image")
        best = max(max(r["test"]) for r in results)
        lowest = min(r["test"][-1] for r in results)
        right.set_ylim(lowest - 1.5 * (best - lowest) - 1, best + 0.5)
        styles = ["solid", "dashed", "dotted"]
        if len(dimensions) == 3:
            named = ", ".join(f"{s}: {d}" for s, d in zip(styles, dimensions, strict=True))
            note = f"{named} dimensions"
            right.text(0.98, 0.03, note, transform=right.transAxes, ha="right")
        figure.savefig(path, dpi=100)


def draw_decoded(path: Path, models: Mapping[str, Autoencoder], side: int) -> None:
    """Draw what two-dimensional latents decode to, at quantiles of the prior.

    Parameters
    ----------
    path
        Where the image goes.
    models
        For each latent, an autoencoder with two dimensions.
    side
        Pixels of a side.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.2 * len(models), 3.4), layout="constrained")
        axes = figure.subplots(1, len(models), squeeze=False)[0]
        for ax, (latent, model) in zip(axes, models.items(), strict=True):
            z = model.latent.prior_quantile((torch.arange(GRID) + 0.5) / GRID)
            tiles = _decoded(model, z, side)
            ax.imshow(tiles, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
            ax.set_title(LABELS[latent])
            ticks = [0, GRID // 2, GRID - 1]
            places = [(t + 0.5) * (side + GAP) - 0.5 for t in ticks]
            names = [f"{z[t].item():.2g}" for t in ticks]
            ax.set_xticks(places, names)
            ax.set_yticks(places, names)
            ax.set(xlabel="$z_1$", ylabel="$z_2$")
            ax.grid(False)
        figure.savefig(path, dpi=100)


@torch.no_grad()
def _decoded(model: Autoencoder, z: Tensor, side: int) -> np.ndarray:
    """Return one image of the decoded pixels at all pairs of the values ``z``."""
    second, first = torch.meshgrid(z, z, indexing="ij")
    pixels = model.logits(torch.stack([first, second], -1).to(torch.float32)).sigmoid()
    framed = torch.nn.functional.pad(pixels.unflatten(-1, (side, side)), [GAP // 2] * 4)
    return framed.permute(0, 2, 1, 3).reshape([len(z) * (side + GAP)] * 2).numpy()


def draw_torus(path: Path, angles: Tensor, labels: Tensor) -> None:
    """Draw the posterior's mean directions of the test images on the torus, flat and in space.

    Parameters
    ----------
    path
        Where the image goes.
    angles
        ``(images, 2)``, in radians.
    labels
        The digits.
    """
    import matplotlib as mpl
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    first, second = angles.remainder(2 * math.pi).numpy().T
    colours: dict[str, Any] = {"cmap": ListedColormap(mpl.color_sequences["tab10"])}
    colours |= {"c": labels.numpy(), "vmin": -0.5, "vmax": 9.5}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        space: Any = figure.add_subplot(1, 2, 1, projection="3d", computed_zorder=False)
        u, v = np.meshgrid(*[np.linspace(0, 2 * np.pi, 37)] * 2)
        style = {"color": "#f2f3f5", "edgecolor": "#d5d8dc", "linewidth": 0.3, "shade": False}
        space.plot_surface(*_on_torus(u, v, 0.97 * TUBE), **style)
        # what the torus hides would shine through
        seen = _faces_viewer(first, second)
        shown = {**colours, "c": labels.numpy()[seen]}
        space.scatter(*_on_torus(first[seen], second[seen], TUBE), s=14, depthshade=False, **shown)
        space.set_box_aspect((3, 3, 1), zoom=1.5)
        space.set_axis_off()
        space.view_init(ELEVATION, AZIMUTH)
        space.set_title("Test digits on the torus")
        flat: Axes = figure.add_subplot(1, 2, 2)
        points = flat.scatter(first, second, s=14, **colours)
        ticks = [0, np.pi, 2 * np.pi]
        flat.set_xticks(ticks, ["0", "π", "2π"])
        flat.set_yticks(ticks, ["0", "π", "2π"])
        flat.set(title="The same, unrolled: edges meet", xlabel="$z_1$", ylabel="$z_2$")
        flat.set(aspect="equal", xlim=(0, 2 * np.pi), ylim=(0, 2 * np.pi))
        figure.colorbar(points, ax=flat, ticks=range(10), label="digit", shrink=0.85)
        figure.savefig(path, dpi=100)


def _on_torus(around: Any, along: Any, tube: float) -> tuple[Any, Any, Any]:
    distance = RADIUS + tube * np.cos(along)
    return distance * np.cos(around), distance * np.sin(around), tube * np.sin(along)


def _faces_viewer(around: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Return where the torus's outward normal points to the viewer."""
    elevation, azimuth = np.radians(ELEVATION), np.radians(AZIMUTH)
    level = np.cos(elevation) * np.cos(along) * np.cos(around - azimuth)
    return level + np.sin(elevation) * np.sin(along) > 0
