"""Images by class, split for meta-learning, and how their files are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["ClassImages", "Splits", "read_image"]


@dataclass(frozen=True, eq=False)
class ClassImages:
    """Some classes, and the images of each, uint8 ``(instances, channels, side, side)``."""

    images: Sequence[Tensor]
    names: Sequence[str]

    def __post_init__(self) -> None:
        """Check that each class has a name of its own."""
        if not len(self.images) == len(self.names) == len(set(self.names)):
            raise ValueError(
                f"{len(self.images)} classes have {len(set(self.names))} different names: name "
                "each class once"
            )


class Splits(NamedTuple):
    """The classes to learn from, those to choose hyperparameters on, and those of the test."""

    train: ClassImages
    validation: ClassImages
    test: ClassImages


def read_image(path: Path, side: int, *, colour: bool) -> Tensor:
    """Return an image, of any format that Pillow reads, scaled to a square by Lanczos's filter.

    It is uint8, ``(3, side, side)`` in ``colour``, ``(1, side, side)`` in grey: 0 is black.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            image = file.convert("RGB" if colour else "L")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except Exception as error:  # Pillow raises whatever the bytes make it raise
        raise ValueError(
            f"{path} is no image, or a part of one ({error}): copy the file again"
        ) from error
    scaled = image.resize((side, side), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(scaled, dtype=np.uint8))
    return pixels.permute(2, 0, 1) if colour else pixels[None]
