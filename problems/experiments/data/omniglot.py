"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from implicit_solvers.problems.experiments.data.class_images import ClassImages, Splits, read_image
from implicit_solvers.problems.experiments.data.episodes import require_positive, split_classes

__all__ = ["load_omniglot"]

BACKGROUND, EVALUATION = "images_background", "images_evaluation"
# Of 1,623 characters: 1,200 to learn from, 100 of which are for validation, and 423 for the test.
CHARACTERS, TRAIN, VALIDATION = 1623, 1100, 100


def load_omniglot(
    folder: Path,
    *,
    side: int = 28,
    split: Literal["characters", "alphabets"] = "characters",
    rotations: bool = True,
    seed: int = 0,
) -> Splits:
    """Read the released folders of drawings and split the characters.

    ``folder`` holds the two archives of the release, unpacked:
    ``images_background/ALPHABET/characterNN/*.png`` and ``images_evaluation`` alike. A class is
    uint8 ``(drawings, 1, side, side)``: ink is 255, paper 0. It is named like
    ``images_background/Greek/character01`` and, turned, ``.../character01 turned by 90``.

    The split ``"characters"`` has all in a random order: of the release's 1,623, 1,100 are to learn
    from, 100 for validation and 423 for the test. With ``"alphabets"`` the test has the alphabets
    of ``images_evaluation``, as its authors intended; one in twelve characters of
    ``images_background`` is for validation. With ``rotations``, the characters turned by 90, 180
    and 270 degrees are classes of their own, in the same part as the character.

    Source: Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic
    program induction" (2015). The split with rotations is that of Santoro et al.,
    "Meta-learning with memory-augmented neural networks" (2016), section 4.1; the validation part
    that of Finn et al., "Model-agnostic meta-learning" (2017).
    """
    require_positive(side=side)
    if split not in ("characters", "alphabets"):
        raise ValueError(f"split={split!r} is unknown: pass 'characters' or 'alphabets'")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    background = _characters(folder / BACKGROUND)
    evaluation = _characters(folder / EVALUATION)
    if split == "characters":
        both, shares = background + evaluation, (TRAIN / CHARACTERS, VALIDATION / CHARACTERS)
        parts = [[both[int(i)] for i in part] for part in split_classes(len(both), seed, *shares)]
    else:
        share = VALIDATION / (TRAIN + VALIDATION)
        count = max(1, round(len(background) * share))
        order = torch.randperm(len(background), generator=torch.Generator().manual_seed(seed))
        validation, train = order[:count].sort().values, order[count:].sort().values
        parts = [[background[int(i)] for i in part] for part in (train, validation)] + [evaluation]
        if not parts[0]:
            raise ValueError(f"{folder / BACKGROUND} has one character: it needs two or more")
    return Splits(*(_read(folder, part, side, rotations) for part in parts))


def _characters(part: Path) -> list[Path]:
    """Return the characters' folders."""
    if not part.is_dir():
        raise FileNotFoundError(
            f"there is no folder {part}: unpack {part.name}.zip of Omniglot's release there"
        )
    characters = sorted(path for path in part.glob("*/character*") if path.is_dir())
    if not characters:
        raise ValueError(
            f"{part} has no folders ALPHABET/characterNN: unpack {part.name}.zip again"
        )
    return characters


def _read(folder: Path, characters: Sequence[Path], side: int, rotations: bool) -> ClassImages:
    images, names = [], []
    for character in characters:
        drawings = _drawings(character, side)
        name = character.relative_to(folder).as_posix()
        for quarters in range(4 if rotations else 1):
            images.append(drawings.rot90(quarters, (2, 3)))
            names.append(f"{name} turned by {90 * quarters}" if quarters else name)
    return ClassImages(images, names)


def _drawings(character: Path, side: int) -> Tensor:
    paths = sorted(character.glob("*.png"))
    if not paths:
        raise ValueError(f"{character} has no drawings *.png: unpack the archive again")
    return torch.stack([255 - read_image(path, side, colour=False) for path in paths])
