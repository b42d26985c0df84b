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
    """Some classes, each with its images.

    Parameters
    ----------
    images
        One uint8 ``(instances, channels, side, side)`` for each class.
    names
        The classes' names, in the same order.

    Raises
    ------
    ValueError
        If there are not as many names as classes, or two classes have one name.

    Examples
    --------
    >>> ink = torch.zeros(3, 1, 28, 28, dtype=torch.uint8)
    >>> ClassImages([ink, ink], ["Greek/character01", "Greek/character02"]).names[1]
    'Greek/character02'
    """

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
    """Return an image, scaled to a square by Lanczos's filter.

    Parameters
    ----------
    path
        A file of any format that Pillow reads.
    side
        Pixels of a side.
    colour
        Whether to return red, green and blue, or grey.

    Returns
    -------
    Tensor
        uint8 ``(3, side, side)`` or ``(1, side, side)``: 0 is black.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no image, or only a part of one.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "grey.png"
    ...     Image.new("L", (8, 8), 51).save(path)
    ...     read_image(path, 2, colour=False)
    tensor([[[51, 51],
             [51, 51]]], dtype=torch.uint8)
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
