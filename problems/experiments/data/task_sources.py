"""Where the tasks of meta-learning come from: glyphs, sine waves, or folders of images."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from implicit_solvers.problems.experiments.data.class_images import Splits
from implicit_solvers.problems.experiments.data.episodes import Tasks, split_classes
from implicit_solvers.problems.experiments.data.glyphs import load_glyphs, render_instances
from implicit_solvers.problems.experiments.data.mini_imagenet import load_mini_imagenet
from implicit_solvers.problems.experiments.data.omniglot import load_omniglot

__all__ = ["OnDevice", "TaskSource", "images_of_classes"]


class TaskSource(Protocol):
    """Where tasks come from, by number."""

    def batch(self, tasks: Sequence[int]) -> Tasks:
        """Return the tasks with these numbers."""


@dataclass(frozen=True)
class OnDevice:
    """Tasks of floats from 0 to 1 on a device, from tasks of bytes."""

    source: TaskSource
    device: str

    def batch(self, tasks: Sequence[int]) -> Tasks:
        """Return the tasks with these numbers."""
        return Tasks(*(_floats(part).to(self.device) for part in self.source.batch(tasks)))


def _floats(values: Tensor) -> Tensor:
    return values.float() / 255 if values.dtype == torch.uint8 else values


Images = tuple[Any, Sequence[str] | None]


@functools.lru_cache(maxsize=2)
def images_of_classes(
    data: str, side: int, instances: int, split: Any, seed: int, class_seed: int
) -> tuple[Images, Images, Images]:
    """Return the images of the classes of each part, and the classes' names."""
    if data == "glyphs":
        glyphs = load_glyphs()
        parts = []
        for i, classes in enumerate(split_classes(glyphs.class_count, class_seed)):
            generator = Generator().manual_seed(3 * seed + i)
            images = render_instances(glyphs, classes, instances, generator)
            small = F.avg_pool2d(images.flatten(0, 1), images.shape[-1] // side)
            parts.append((small.unflatten(0, images.shape[:2]), None))
        return parts[0], parts[1], parts[2]
    kind, folder = data.split(":", 1)
    if kind == "omniglot":
        splits = load_omniglot(Path(folder), side=side, split=split, seed=class_seed)
    else:
        splits = load_mini_imagenet(Path(folder), side=side)
    return _named(splits)


def _named(splits: Splits) -> tuple[Images, Images, Images]:
    train, validation, test = ((part.images, part.names) for part in splits)
    return train, validation, test
