"""Omniglot and Mini-ImageNet from small folders in the published layout."""

import numpy as np
import pytest
import torch
from PIL import Image

from implicit_solvers.problems.experiments.data.class_images import read_image
from implicit_solvers.problems.experiments.data.mini_imagenet import load_mini_imagenet
from implicit_solvers.problems.experiments.data.omniglot import load_omniglot
from tests.problems.experiments.data import made_folders
from tests.problems.experiments.data.made_folders import (
    CLASSES,
    DRAWERS,
    SIZES,
    draw,
    make_omniglot,
)


@pytest.fixture(scope="module")
def omniglot(tmp_path_factory):
    return make_omniglot(tmp_path_factory.mktemp("omniglot"))


def characters(classes):
    return {name.split(" turned")[0] for name in classes.names}


@pytest.mark.parametrize("split", ["characters", "alphabets"])
@pytest.mark.parametrize("rotations", [False, True])
def test_omniglot_splits_share_no_character(omniglot, split, rotations):
    splits = load_omniglot(omniglot, split=split, rotations=rotations)
    parts = [characters(classes) for classes in splits]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 21
    assert [len(classes.names) for classes in splits] == [
        (4 if rotations else 1) * len(part) for part in parts
    ]
    if split == "alphabets":
        # one in twelve of the 14 background characters
        assert [len(part) for part in parts] == [13, 1, 7]
        assert all(name.startswith("images_evaluation/") for name in splits.test.names)
        assert all(name.startswith("images_background/") for name in parts[0] | parts[1])
    else:
        # 1,100, 100 and 423 of 1,623
        assert [len(part) for part in parts] == [14, 1, 6]


def test_no_image_is_in_two_splits(omniglot):
    """By pixels: a rotation of a character to learn from is in no other part either."""
    splits = load_omniglot(omniglot, side=105)
    seen = [{i.numpy().tobytes() for images in part.images for i in images} for part in splits]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 4 * 21 * DRAWERS


def test_drawings_are_those_of_the_files_with_ink_255(omniglot):
    splits = load_omniglot(omniglot, split="alphabets", side=105)
    name = "images_evaluation/Tifinagh/character02"
    index = splits.test.names.index(name)
    for drawer, image in enumerate(splits.test.images[index]):
        expected = 255 - np.array(draw(9 + 5 + 1, drawer).convert("L"))
        np.testing.assert_array_equal(image[0], expected)
        for quarters in (1, 2, 3):
            turned = splits.test.images[index + quarters][drawer, 0]
            assert splits.test.names[index + quarters] == f"{name} turned by {90 * quarters}"
            np.testing.assert_array_equal(turned, np.rot90(expected, quarters))


def lanczos(size, side):
    """The matrix (side, size) of Lanczos's filter with three lobes, in float64."""
    scale = size / side
    centres = (np.arange(side)[:, None] + 0.5) * scale
    distance = (np.arange(size) + 0.5 - centres) / scale
    weights = np.where(abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    return weights / weights.sum(1, keepdims=True)


def test_drawings_are_scaled(omniglot):
    splits = load_omniglot(omniglot, split="alphabets")
    index = splits.test.names.index("images_evaluation/Glagolitic/character01")
    for drawer, image in enumerate(splits.test.images[index]):
        assert image.shape == (1, 28, 28) and image.dtype == torch.uint8
        paper = np.array(draw(9 + 5 + 4, drawer).convert("L"), dtype=float)
        rows = (paper @ lanczos(105, 28).T).round().clip(0, 255)
        expected = 255 - (lanczos(105, 28) @ rows).round().clip(0, 255)
        assert abs(image[0].numpy() - expected).max() <= 1
        assert expected.max() > 100


def test_the_seed_decides_the_split(omniglot):
    first, again, other = (load_omniglot(omniglot, seed=seed) for seed in (0, 0, 1))
    assert first.test.names == again.test.names != other.test.names


# ---- Mini-ImageNet ----


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return made_folders.make_mini_imagenet(tmp_path_factory.mktemp("photographs"))


def test_mini_imagenet_follows_its_lists(photographs):
    splits = load_mini_imagenet(photographs, side=12)
    assert [classes.names for classes in splits] == list(CLASSES.values())
    for classes in splits:
        for name, images in zip(classes.names, classes.images, strict=True):
            assert images.shape == (SIZES[name], 3, 12, 12) and images.dtype == torch.uint8
            grey = 20 * int(name[1:]) + torch.arange(SIZES[name])
            expected = torch.stack([grey, 255 - grey, torch.full_like(grey, 60)], 1)
            # JPEG rounds
            assert (images.float().mean((2, 3)) - expected).abs().max() < 4


# ---- What they share ----


def test_read_image(tmp_path):
    path = tmp_path / "image.png"
    Image.new("RGB", (7, 5), (200, 100, 50)).save(path)
    assert read_image(path, 3, colour=True).float().mean((1, 2)).tolist() == [200, 100, 50]
    grey = read_image(path, 3, colour=False)
    # the luma of ITU-R 601
    assert abs(float(grey.float().mean()) - (0.299 * 200 + 0.587 * 100 + 0.114 * 50)) < 1
