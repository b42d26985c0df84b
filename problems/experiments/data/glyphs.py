"""Few-shot classification of real glyphs: the pen strokes of the package ``Hershey-Fonts``.

Its 32 fonts hold 3,170 glyphs. 103 are empty (spaces); the other 3,067 are called drawings here.
Many fonts repeat a drawing, so drawings that overlap are one class: `load_glyphs`. From there,
`split_classes`, `render_instances` and `Episodes` lead to batches of few-shot `Tasks`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Generator, Tensor

from implicit_solvers.problems.experiments.data.episodes import (
    Episodes,
    Tasks,
    require_positive,
    split_classes,
)

__all__ = [
    "Episodes",
    "Glyphs",
    "Tasks",
    "load_glyphs",
    "load_strokes",
    "overlap",
    "rasterize",
    "render_instances",
    "split_classes",
]

Stroke = Sequence[tuple[float, float]]

IMAGE_SIDE = 28
# Resolution and pen width (the drawing's longer side is 2) at which drawings are compared: 1,006
# classes. The resolution hardly matters (20 to 48 pixels: 987 to 1,014 classes). A wider pen hides
# differences (0.35: 811 classes), a finer one misses near-copies (0.10: 1,106 classes).
GROUPING_RESOLUTION = 32
GROUPING_PEN_WIDTH = 0.18
SAME_CLASS_OVERLAP = 0.8


@dataclass(frozen=True, eq=False)
class Glyphs:
    """Drawings, and the class of each.

    ``names`` are the font and the character of each. ``points``, float32 ``(drawings, points, 2)``,
    are the pen's positions (x to the right, y downwards): the bounding box has its centre at 0 and
    a longer side of 2; padded with the last point. ``pen_down``, bool ``(drawings, points - 1)``,
    tells whether the pen draws from point i to point i + 1.

    Examples
    --------
    >>> glyphs = load_glyphs()
    >>> len(glyphs.names), glyphs.class_count
    (3067, 1006)
    """

    names: tuple[tuple[str, str], ...]
    points: Tensor
    pen_down: Tensor
    labels: Tensor

    @property
    def class_count(self) -> int:
        """The number of classes."""
        return int(self.labels.max()) + 1


def load_strokes() -> dict[tuple[str, str], list[Stroke]]:
    """Return the strokes of each drawing, by font and character; y points downwards.

    Raises ``ImportError`` if ``Hershey-Fonts`` is not installed.

    Examples
    --------
    >>> load_strokes()["futural", "L"]
    [[(-6, -12), (-6, 9)], [(-6, 9), (6, 9)]]
    """
    try:
        from HersheyFonts import HersheyFonts
    except ImportError as error:
        raise ImportError(
            "glyphs need the package Hershey-Fonts: pip install 'implicit-solvers[problems]'"
        ) from error
    reader = HersheyFonts()
    strokes: dict[tuple[str, str], list[Stroke]] = {}
    for font in reader.default_font_names:
        reader.load_default_font(font)
        for character, glyph in reader.all_glyphs.items():
            if glyph.strokes:
                strokes[font, character] = glyph.strokes
    return strokes


def load_glyphs(strokes: Mapping[tuple[str, str], Sequence[Stroke]] | None = None) -> Glyphs:
    """Normalize drawings and give those that overlap by more than 0.8 the same class.

    The classes are the connected components (single linkage): no two drawings of different
    classes overlap by more than 0.8. A stroke of one point is a dot.

    Examples
    --------
    >>> line, corner = [[(0, 0), (4, 0)]], [[(0, 0), (0, 4)], [(0, 4), (4, 4)]]
    >>> load_glyphs({("a", "-"): line, ("a", "L"): corner, ("b", "-"): line}).labels
    tensor([0, 1, 0])
    """
    strokes = load_strokes() if strokes is None else strokes
    points, pen_down = _normalize(strokes)
    fit = 1 / (1 + GROUPING_PEN_WIDTH / 2)
    pen_width = torch.full((len(points),), GROUPING_PEN_WIDTH * fit)
    ink = rasterize(points * fit, pen_down, pen_width, GROUPING_RESOLUTION) >= 0.5
    _, labels = connected_components((overlap(ink) > SAME_CLASS_OVERLAP).numpy(), directed=False)
    return Glyphs(tuple(strokes), points, pen_down, torch.from_numpy(labels).long())


def _normalize(drawings: Mapping[tuple[str, str], Sequence[Stroke]]) -> tuple[Tensor, Tensor]:
    """Return `Glyphs.points` and `Glyphs.pen_down`."""
    paths, ends = [], []
    for name, strokes in drawings.items():
        if not strokes or not all(map(len, strokes)):
            raise ValueError(f"strokes[{name}] = {strokes} has no points: leave it out")
        lines = [np.array(s if len(s) > 1 else [*s, *s], dtype=np.float64) for s in strokes]
        path = np.concatenate(lines)
        low, high = path.min(axis=0), path.max(axis=0)
        paths.append((path - (low + high) / 2) / ((high - low).max() / 2 or 1))
        ends.append(np.cumsum([len(line) for line in lines]) - 1)
    points = np.empty((len(paths), max(map(len, paths)), 2), dtype=np.float32)
    pen_down = np.zeros(points.shape[:2], dtype=bool)
    for i, (path, end) in enumerate(zip(paths, ends, strict=True)):
        points[i, : len(path)], points[i, len(path) :] = path, path[-1]
        pen_down[i, : len(path)] = True
        pen_down[i, end] = False
    return torch.from_numpy(points), torch.from_numpy(pen_down)[:, :-1]


def rasterize(points: Tensor, pen_down: Tensor, pen_width: Tensor, resolution: int) -> Tensor:
    """Draw with a round pen on the square ``[-1, 1]²``, anti-aliased.

    ``points`` and ``pen_down`` are those of `Glyphs`, ``pen_width (drawings,)`` is in the same
    units. The ink is float32 ``(drawings, resolution, resolution)``, the top row first, from 0 to
    1. It falls over one pixel around the pen's edge, and is at least 0.5 where the pixel's centre
    is under the pen.
    """
    require_positive(resolution=resolution)
    pixel = 2 / resolution
    centres = (torch.arange(resolution) + 0.5) * pixel - 1
    lengths = torch.where(pen_down, torch.arange(1, pen_down.shape[1] + 1), 0).amax(1)
    ink = points.new_empty(len(points), resolution, resolution)
    # Drawings of similar length go together, so that little work is spent on padding.
    for chunk in torch.split(lengths.argsort(), 32):
        segments = int(lengths[chunk].max())
        start, end = points[chunk, :segments], points[chunk, 1 : segments + 1]
        half_length = (end - start).norm(dim=2)[..., None, None] / 2
        angle = torch.atan2(*(end - start).flip(2).unbind(2))[..., None]
        cosine, sine = angle.cos(), angle.sin()
        x, y = (centres - ((start + end) / 2)[..., None]).unbind(2)
        along = (x * cosine)[..., None, :] + (y * sine)[..., :, None]
        across = (y * cosine)[..., :, None] - (x * sine)[..., None, :]
        beyond = along.abs_().sub_(half_length).clamp_min_(0)
        squared = across.square_().add_(beyond.square_())
        squared.masked_fill_(~pen_down[chunk, :segments, None, None], torch.inf)
        margin = pen_width[chunk, None, None] / 2 - squared.amin(1).sqrt_()
        ink[chunk] = (0.5 + margin / pixel).clamp_(0, 1)
    return ink


def overlap(ink: Tensor) -> Tensor:
    """Return the intersection over union of every pair of binary images.

    ``ink`` is bool ``(drawings, height, width)``, the result float32 ``(drawings, drawings)``.
    """
    flat = ink.flatten(1).float()
    intersection, area = flat @ flat.T, flat.sum(1)
    return intersection / (area[:, None] + area - intersection)


def render_instances(
    glyphs: Glyphs, classes: Tensor, instances: int, generator: Generator
) -> Tensor:
    """Draw varied instances of classes, each after a random drawing of its class.

    The points are jittered, then mapped by a random affine map (rotation by up to 20 degrees,
    scale, shear, translation) and shrunk if they reach the border; the pen width is random.
    Returned is the ink, float32 ``(classes, instances, 1, 28, 28)`` from 0 to 1.
    """
    require_positive(instances=instances)
    count = len(classes) * instances

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(size, generator=generator)

    class_sizes = glyphs.labels.bincount()
    class_starts = class_sizes.cumsum(0) - class_sizes
    wanted = classes.repeat_interleave(instances)
    position = class_starts[wanted] + (uniform(0, 1, count) * class_sizes[wanted]).long()
    drawing = glyphs.labels.argsort(stable=True)[position]

    points = glyphs.points[drawing]
    points = points + 0.04 * torch.randn(points.shape, generator=generator)
    angle = uniform(-math.pi / 9, math.pi / 9, count)
    cosine, sine = angle.cos(), angle.sin()
    rotation = torch.stack([cosine, -sine, sine, cosine], 1).view(count, 2, 2)
    scale_and_shear = torch.diag_embed(uniform(0.55, 0.8, count, 2))
    scale_and_shear[:, 0, 1] = uniform(-0.2, 0.2, count)
    points = points @ (rotation @ scale_and_shear).mT + uniform(-0.15, 0.15, count, 1, 2)
    pen_width = uniform(0.09, 0.18, count)
    limit = 1 - pen_width / 2 - 1 / IMAGE_SIDE
    points = points * (limit / points.abs().amax((1, 2)).maximum(limit))[:, None, None]
    images = rasterize(points, glyphs.pen_down[drawing], pen_width, IMAGE_SIDE)
    return images.view(len(classes), instances, 1, IMAGE_SIDE, IMAGE_SIDE)
