"""The figures of the experiments on reparameterization."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.reparameterization.models.autoencoder import Autoencoder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from implicit_solvers.problems.experiments.reparameterization.variance import (
        Family,
        Measurement,
    )

# RSVI, without lines: it covers the implicit estimator
LINES = [
    (harness.BLUE, "o-"),
    (harness.GREY, "s--"),
    (harness.ORANGE, "^"),
    ("#8e44ad", "x"),
    (harness.GREEN, "D"),
    (harness.RED, "+"),
]

LATENT_LABELS = {"normal": "Normal", "gamma": "Gamma", "beta": "Beta", "von-mises": "von Mises"}
LATENT_COLOURS = {
    "normal": harness.GREY,
    "gamma": harness.BLUE,
    "beta": harness.ORANGE,
    "von-mises": harness.GREEN,
}
GRID, GAP = 10, 2
# The torus: radii of its circle and of its tube, and from where it is seen.
RADIUS, TUBE = 2.0, 0.95
ELEVATION, AZIMUTH = 48.0, -60.0

POSTERIOR_LABELS = {
    "unigram": "unigram",
    "dirichlet": "Dirichlet",
    "logistic-normal": "logistic-normal",
}
POSTERIOR_COLOURS = {"dirichlet": harness.BLUE, "logistic-normal": harness.ORANGE}
TOPICS, WORDS = 12, 7


# ---- Variances ----


def draw_variance(
    path: Path, measurements: Sequence[Measurement], families: Mapping[str, Family]
) -> None:
    """Draw the variance of every estimator along each family."""
    names = list(dict.fromkeys(m.estimator for m in measurements))
    styles = {name: LINES[i % len(LINES)] for i, name in enumerate(names)}
    with harness.canvas(path, 12, 7, dpi=120, w_pad=0.12, h_pad=0.12) as figure:
        axes: Any = figure.subplots(2, 3)
        for ax, name in zip(axes.flat, families, strict=False):
            _draw_family(ax, families[name], [m for m in measurements if m.family == name], styles)
        legend = axes.flat[len(families)]
        legend.set_axis_off()
        handles: dict[str, Any] = {}
        for ax in axes.flat[: len(families)]:
            handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        legend.legend(
            handles.values(),
            handles.keys(),
            loc="center left",
            title="Variance of one sample's gradient,\nsummed over the parameters",
            alignment="left",
        )


def _draw_family(
    ax: Axes,
    family: Family,
    measurements: Sequence[Measurement],
    styles: dict[str, tuple[str, str]],
) -> None:
    for estimator, (colour, line) in styles.items():
        own = sorted((m.place, m.variance) for m in measurements if m.estimator == estimator)
        if own:
            ax.loglog(*zip(*own, strict=True), line, color=colour, ms=5, label=estimator)
    if family.high < 100 * family.low:
        ticks = family.places(5)
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_xticks([], minor=True)
    ax.set(title=family.title, xlabel=family.axis)


# ---- Autoencoders ----


def draw_elbo(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Draw the test ELBO of each seed against the dimensions, and the learning curves.

    Results have ``latent``, ``dimensions``, ``seed``, ``elbo`` and the ``test`` curve.
    """
    dimensions = sorted({result["dimensions"] for result in results})
    latents = list(dict.fromkeys(result["latent"] for result in results))
    with harness.canvas(path, 10, 4) as figure:
        left, right = figure.subplots(1, 2)
        for place, latent in enumerate(latents):
            colour, shift = LATENT_COLOURS[latent], 0.16 * (place - (len(latents) - 1) / 2)
            values = [
                [r["elbo"] for r in results if (r["latent"], r["dimensions"]) == (latent, d)]
                for d in dimensions
            ]
            x = np.arange(len(dimensions)) + shift
            for column, seeds in zip(x, values, strict=True):
                left.plot([column] * len(seeds), seeds, "o", color=colour, ms=4, alpha=0.5, mew=0)
            means = [np.mean(seeds) for seeds in values]
            label = LATENT_LABELS[latent]
            left.plot(x, means, "_-", color=colour, ms=14, mew=2, lw=0.8, label=label)
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


def draw_decoded(path: Path, models: Mapping[str, Autoencoder], side: int) -> None:
    """Draw what two-dimensional latents decode to, at quantiles of the prior."""
    with harness.canvas(path, 3.2 * len(models), 3.4) as figure:
        axes = figure.subplots(1, len(models), squeeze=False)[0]
        for ax, (latent, model) in zip(axes, models.items(), strict=True):
            z = model.latent.prior_quantile((torch.arange(GRID) + 0.5) / GRID)
            tiles = _decoded(model, z, side)
            ax.imshow(tiles, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
            ax.set_title(LATENT_LABELS[latent])
            ticks = [0, GRID // 2, GRID - 1]
            places = [(t + 0.5) * (side + GAP) - 0.5 for t in ticks]
            names = [f"{z[t].item():.2g}" for t in ticks]
            ax.set_xticks(places, names)
            ax.set_yticks(places, names)
            ax.set(xlabel="$z_1$", ylabel="$z_2$")
            ax.grid(False)


@torch.no_grad()
def _decoded(model: Autoencoder, z: Tensor, side: int) -> np.ndarray:
    """Return one image of the decoded pixels at all pairs of the values ``z``."""
    second, first = torch.meshgrid(z, z, indexing="ij")
    pixels = model.logits(torch.stack([first, second], -1).to(torch.float32)).sigmoid()
    framed = torch.nn.functional.pad(pixels.unflatten(-1, (side, side)), [GAP // 2] * 4)
    return framed.permute(0, 2, 1, 3).reshape([len(z) * (side + GAP)] * 2).numpy()


def draw_torus(path: Path, angles: Tensor, labels: Tensor) -> None:
    """Draw the posterior's mean directions of the test images on the torus, flat and in space."""
    import matplotlib as mpl
    from matplotlib.colors import ListedColormap

    first, second = angles.remainder(2 * math.pi).numpy().T
    colours: dict[str, Any] = {"cmap": ListedColormap(mpl.color_sequences["tab10"])}
    colours |= {"c": labels.numpy(), "vmin": -0.5, "vmax": 9.5}
    with harness.canvas(path, 10, 4.6) as figure:
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


def _on_torus(around: Any, along: Any, tube: float) -> tuple[Any, Any, Any]:
    distance = RADIUS + tube * np.cos(along)
    return distance * np.cos(around), distance * np.sin(around), tube * np.sin(along)


def _faces_viewer(around: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Return where the torus's outward normal points to the viewer."""
    elevation, azimuth = np.radians(ELEVATION), np.radians(AZIMUTH)
    level = np.cos(elevation) * np.cos(along) * np.cos(around - azimuth)
    return level + np.sin(elevation) * np.sin(along) > 0


# ---- Topics ----


def draw_topics(
    path: Path,
    results: Sequence[Mapping[str, Any]],
    baseline: float,
    topics: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Draw the held-out perplexity of each epoch, and the largest topics of the first posterior."""
    with harness.canvas(path, 11, 4.4) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
        named = set()
        for result in results:
            name, curve = result["posterior"], result["test"]
            label = None if name in named else f"{POSTERIOR_LABELS[name]} posterior, each seed"
            named.add(name)
            epochs, colour = range(1, len(curve) + 1), POSTERIOR_COLOURS[name]
            left.plot(epochs, curve, color=colour, lw=1.3, label=label)
        left.axhline(baseline, color=harness.GREY, ls="--", lw=1.2, label="unigram")
        left.set(title="Held-out perplexity", xlabel="epochs", ylabel="perplexity of scored words")
        left.legend()
        name, largest = next(iter(topics.items()))
        for row, topic in enumerate(largest[:TOPICS]):
            share = 100 * topic["share"]
            right.barh(row, share, color=POSTERIOR_COLOURS[name], alpha=0.3)
            words = " ".join(topic["words"][:WORDS])
            right.text(0.3, row, words, va="center", fontsize=8.5)
        right.set_ylim(min(TOPICS, len(largest)) - 0.4, -0.6)
        right.set_yticks([])
        right.spines["left"].set_visible(False)
        right.grid(False)
        title = f"Largest topics, {POSTERIOR_LABELS[name]} posterior"
        right.set(title=title, xlabel="share of all words, %")
