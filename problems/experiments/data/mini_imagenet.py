"""Mini-ImageNet: 100 classes of photographs, from a folder of images and three lists."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor

from implicit_solvers.problems.experiments.data.class_images import ClassImages, Splits, read_image
from implicit_solvers.problems.experiments.data.episodes import require_positive

__all__ = ["load_mini_imagenet"]

COLUMNS = ("filename", "label")


def load_mini_imagenet(folder: Path, *, side: int = 84) -> Splits:
    """Read the images that three lists name, and check that the parts share no class.

    ``folder`` holds ``train.csv``, ``val.csv`` and ``test.csv``, with the columns ``filename`` and
    ``label``, and the images in ``images``. The published lists have 64, 16 and 20 classes with 600
    images each. Those of a class are uint8 ``(images, 3, side, side)``, in the order of the list;
    with a side of 84, all take 1.3 GB.

    Source: Vinyals et al., "Matching networks for one shot learning" (2016); the lists are those
    of Ravi and Larochelle, "Optimization as a model for few-shot learning" (2017).
    """
    require_positive(side=side)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not (folder / "images").is_dir():
        raise FileNotFoundError(f"there is no folder {folder / 'images'}: the images belong there")
    lists = {part: _listed(folder / f"{part}.csv") for part in ("train", "val", "test")}
    list_of_class: dict[str, str] = {}
    list_of_file: dict[str, str] = {}
    for part, classes in lists.items():
        for label, files in classes.items():
            first = list_of_class.setdefault(label, part)
            if first != part:
                raise ValueError(
                    f"the class {label} is in {first}.csv and in {part}.csv of {folder}: the "
                    "parts may not share a class"
                )
            for file in files:
                first = list_of_file.setdefault(file, f"{part}.csv")
                if first != f"{part}.csv":
                    raise ValueError(f"{file} is in {first} and in {part}.csv of {folder}")
                # before minutes of reading
                if not (folder / "images" / file).is_file():
                    raise FileNotFoundError(
                        f"there is no image {folder / 'images' / file}, which {first} lists"
                    )
    train, validation, test = (
        ClassImages([_images(folder, files, side) for files in classes.values()], list(classes))
        for classes in lists.values()
    )
    return Splits(train, validation, test)


def _listed(path: Path) -> dict[str, list[str]]:
    """Return the files of each class."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no list {path}: copy train.csv, val.csv and test.csv next to the images"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text file ({error})") from error
    reader = csv.DictReader(text.splitlines())
    if not set(COLUMNS) <= set(reader.fieldnames or ()):
        raise ValueError(
            f"{path} begins with {text.splitlines()[:1]}: its first line must be filename,label"
        )
    classes: dict[str, list[str]] = {}
    seen: set[str] = set()
    for row in reader:
        file, label = (row[column] for column in COLUMNS)
        if not file or not label:
            raise ValueError(f"line {reader.line_num} of {path} lacks a filename or a label")
        if file in seen:
            raise ValueError(f"line {reader.line_num} of {path} lists {file} again")
        seen.add(file)
        classes.setdefault(label, []).append(file)
    if not classes:
        raise ValueError(f"{path} lists no images")
    return classes


def _images(folder: Path, files: list[str], side: int) -> Tensor:
    return torch.stack([read_image(folder / "images" / file, side, colour=True) for file in files])
