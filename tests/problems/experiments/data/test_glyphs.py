"""The glyph data against independent computations: numpy in float64, sets, and counting."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from implicit_solvers.problems.experiments.data import glyphs as drawn
from implicit_solvers.problems.experiments.data.glyphs import (
    load_glyphs,
    overlap,
    rasterize,
    render_instances,
)


@pytest.fixture(scope="module")
def strokes():
    return drawn.load_strokes()


@pytest.fixture(scope="module")
def glyphs():
    return load_glyphs()


@pytest.fixture(scope="module")
def test_images(glyphs):
    _, _, test_classes = drawn.split_classes(glyphs.class_count)
    return render_instances(glyphs, test_classes, 20, torch.Generator().manual_seed(0))


def distances(segments, resolution):
    """Distances of pixel centres (rows, columns) from the nearest of the segments (n, 2, 2)."""
    centres = (2 * np.arange(resolution) + 1) / resolution - 1
    pixels = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 1, 2)
    a, b = segments[:, 0], segments[:, 1]
    squared_length = ((b - a) ** 2).sum(1)
    foot = ((pixels - a) * (b - a)).sum(2) / np.where(squared_length > 0, squared_length, 1)
    nearest = a + foot.clip(0, 1)[..., None] * (b - a)
    squared = ((pixels - nearest) ** 2).sum(2).min(1)
    return np.sqrt(squared).reshape(resolution, resolution)


def binary_images(strokes, resolution=32, pen_width=0.18):
    """Each drawing with a longer side of 2 and its pen, in a box of 2 + pen width."""
    images = []
    for drawing in strokes.values():
        points = np.concatenate([np.asarray(stroke, dtype=float) for stroke in drawing])
        centre = (points.max(0) + points.min(0)) / 2
        half_box = np.ptp(points, axis=0).max() / 2 * (1 + pen_width / 2)
        pairs = [pair for stroke in drawing for pair in pairwise(stroke)]
        distance = distances((np.array(pairs) - centre) / half_box, resolution)
        images.append(distance <= pen_width / 2 / (1 + pen_width / 2))
    return np.array(images)


def intersection_over_union(rows, columns):
    rows, columns = (x.reshape(len(x), -1).astype(float) for x in (rows, columns))
    intersection = rows @ columns.T
    return intersection / (rows @ np.ones_like(columns).T + (1 - rows) @ columns.T)


# ---- Rasterization ----


@pytest.mark.parametrize("resolution", [1, 7, 28])
def test_rasterize_is_the_distance_to_the_nearest_drawn_segment(resolution):
    generator = torch.Generator().manual_seed(0)
    points = 2 * torch.rand(70, 9, 2, generator=generator) - 1
    pen_down = torch.rand(70, 8, generator=generator) < 0.4
    pen_down[:, 2] = True
    points[:10, 3] = points[:10, 2]  # a dot
    points[10:20, 3, 0] = points[10:20, 2, 0]  # a vertical line
    pen_width = 0.05 + 0.3 * torch.rand(70, generator=generator)
    ink = rasterize(points, pen_down, pen_width, resolution)
    assert ink.dtype == torch.float32
    for i in range(70):
        path, down = points[i].double().numpy(), pen_down[i].numpy()
        distance = distances(np.stack([path[:-1][down], path[1:][down]], axis=1), resolution)
        inside = (pen_width[i].item() / 2 - distance) * resolution / 2
        np.testing.assert_allclose(ink[i].numpy(), np.clip(0.5 + inside, 0, 1), atol=1e-5)


def test_total_ink_of_a_segment_is_the_area_of_its_capsule():
    points = torch.tensor([[[-0.5, -0.3], [0.4, 0.35]]])
    ink = rasterize(points, torch.tensor([[True]]), torch.tensor([0.3]), 64)
    area = float(np.hypot(0.9, 0.65) * 0.3 + np.pi * 0.15**2)
    assert ink.sum().item() * (2 / 64) ** 2 == pytest.approx(area, rel=2e-3)


def test_rows_go_down_and_columns_go_right(strokes):
    letter = load_glyphs({("futural", "L"): strokes["futural", "L"]})
    (ink,) = rasterize(0.8 * letter.points, letter.pen_down, torch.tensor([0.2]), 28)
    half = 14
    assert ink[:half, half:].max() == 0  # an L is empty at the top right only
    assert min(q.max() for q in (ink[:half, :half], ink[half:, :half], ink[half:, half:])) == 1


# ---- Classes ----


def test_overlap_is_intersection_over_union_of_pixel_sets():
    ink = torch.rand(6, 5, 4, generator=torch.Generator().manual_seed(0)) < 0.4
    pixels = [set(map(tuple, image.nonzero().tolist())) for image in ink]
    expected = [[len(a & b) / len(a | b) for b in pixels] for a in pixels]
    torch.testing.assert_close(overlap(ink), torch.tensor(expected))


def test_every_glyph_of_every_font_is_a_drawing_or_empty(strokes, glyphs):
    from HersheyFonts import HersheyFonts

    reader, total, empty = HersheyFonts(), 0, 0
    for font in reader.default_font_names:
        reader.load_default_font(font)
        total += len(reader.all_glyphs)
        empty += sum(not list(glyph.lines) for glyph in reader.all_glyphs.values())
    assert (total, empty) == (3170, 103)
    assert glyphs.names == tuple(strokes)
    assert len(glyphs.names) == len(glyphs.labels) == total - empty


def test_points_and_pen_reproduce_the_strokes_up_to_shift_and_scale(strokes, glyphs):
    for i in range(0, len(glyphs.names), 101):
        drawing = strokes[glyphs.names[i]]
        corners = np.concatenate([np.array(stroke) for stroke in drawing])
        scale = np.ptp(corners, axis=0).max() / 2
        expected = [np.subtract(b, a) / scale for s in drawing for a, b in pairwise(s)]
        steps = glyphs.points[i].diff(dim=0)[glyphs.pen_down[i]]
        np.testing.assert_allclose(steps.numpy(), expected, atol=1e-6)
        low, high = glyphs.points[i].amin(0), glyphs.points[i].amax(0)
        torch.testing.assert_close(low, -high)
        assert high.max() == 1


def test_classes_are_the_components_of_the_overlap_graph(strokes, glyphs):
    """And no test class overlaps a train or validation class by more than 0.8."""
    images = binary_images(strokes)
    similarity = intersection_over_union(images, images)
    _, components = connected_components(similarity > 0.8, directed=False)
    pairs = set(zip(components.tolist(), glyphs.labels.tolist(), strict=True))
    assert len(pairs) == components.max() + 1 == glyphs.class_count == 1006

    parts = [np.isin(glyphs.labels, part) for part in drawn.split_classes(glyphs.class_count)]
    assert sum(part.sum() for part in parts) == len(images)
    for i, j in [(2, 0), (2, 1), (1, 0)]:
        assert similarity[np.ix_(parts[i], parts[j])].max() <= 0.8
    drawings = np.random.default_rng(0).permutation(len(images))  # split by drawings: copies
    assert similarity[np.ix_(drawings[:1500], drawings[1500:])].max() == 1


@settings(deadline=None, max_examples=25)
@given(
    strokes=st.lists(
        st.lists(st.tuples(*[st.integers(-20, 20)] * 2), min_size=1, max_size=4),
        min_size=1,
        max_size=4,
    ),
    shift=st.integers(-50, 50),
    scale=st.sampled_from([0.25, 2, 8]),
)
def test_a_shifted_and_scaled_drawing_is_the_same(strokes, shift, scale):
    moved = [[(scale * x + shift, scale * y - shift) for x, y in stroke] for stroke in strokes]
    glyphs = load_glyphs({("a", "x"): strokes, ("b", "x"): moved})
    assert glyphs.labels.tolist() == [0, 0]
    torch.testing.assert_close(glyphs.points[0], glyphs.points[1])
    assert torch.equal(glyphs.pen_down[0], glyphs.pen_down[1])
    assert glyphs.pen_down[0].sum() == sum(max(len(stroke) - 1, 1) for stroke in strokes)


# ---- Instances ----


def test_instances_are_reproducible_from_the_generator(glyphs):
    classes = torch.tensor([5, 0, 1005])
    generator = torch.Generator().manual_seed(1)
    first, second = (render_instances(glyphs, classes, 4, generator) for _ in range(2))
    again = render_instances(glyphs, classes, 4, torch.Generator().manual_seed(1))
    assert first.shape == (3, 4, 1, 28, 28)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_instances_vary_and_are_neither_empty_nor_clipped(test_images):
    assert test_images.min() == 0
    assert test_images.max() == 1
    assert (test_images.flatten(2).amax(2) > 0.5).all()
    border = torch.ones(28, 28, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert test_images[..., border].max() < 0.5 + 1e-5  # the pen ends inside
    for images in test_images:
        between_instances = overlap(images[:, 0] >= 0.5)
        assert between_instances.fill_diagonal_(0).max() < 1
        assert between_instances.mean() < 0.8


def test_instances_are_upright_and_not_mirrored(glyphs):
    """Each resembles the plain drawing of its class more than the turned or mirrored one."""
    index = [glyphs.names.index(("futural", letter)) for letter in "FJLPRbh2457"]
    plain = rasterize(
        0.68 * glyphs.points[index], glyphs.pen_down[index], torch.full((11,), 0.2), 28
    )
    views = torch.stack([plain, plain.flip(1), plain.flip(2), plain.rot90(2, (1, 2))])
    images = render_instances(
        glyphs, glyphs.labels[index], 50, torch.Generator().manual_seed(0)
    ).mean(1)
    similarity = torch.cosine_similarity(views.flatten(2), images.flatten(1), dim=2)
    assert (similarity.argmax(0) == 0).all()


def test_every_instance_is_of_its_class_and_every_drawing_is_used():
    bar, ring = [[(0, 0), (8, 0)]], [[(0, 0), (8, 0), (8, 8), (0, 8), (0, 0)]]
    hook = [[(0, 0), (8, 0), (8, 0.05)]]  # overlaps the bar
    glyphs = load_glyphs({("a", "o"): ring, ("a", "-"): bar, ("b", "-"): hook})
    assert glyphs.labels.tolist() == [0, 1, 1]
    distinct = load_glyphs({("a", "-"): bar, ("a", "o"): ring})
    merged = type(glyphs)(
        distinct.names, distinct.points, distinct.pen_down, torch.zeros(2, dtype=torch.int64)
    )
    generator = torch.Generator().manual_seed(0)
    pure = render_instances(glyphs, torch.tensor([1, 0, 1]), 100, generator).sum((2, 3, 4))
    mixed = render_instances(merged, torch.tensor([0]), 1000, generator).sum((2, 3, 4))
    threshold = 80  # the ring has four sides
    assert pure[[0, 2]].max() < threshold < pure[1].min()
    assert 400 < (mixed < threshold).sum() < 600


def test_pixels_alone_solve_about_half_of_the_test_queries(test_images):
    """A one-nearest-neighbour classifier: the data are neither trivial nor noise (chance: 0.2)."""
    tasks = drawn.Episodes(test_images, ways=5, shots=1, queries=5).batch(range(600))
    distance = torch.cdist(tasks.query_x.flatten(2), tasks.support_x.flatten(2))
    predicted = tasks.support_y.gather(1, distance.argmin(2))
    accuracy = (predicted == tasks.query_y).float().mean().item()
    assert 0.5 < accuracy < 0.62
