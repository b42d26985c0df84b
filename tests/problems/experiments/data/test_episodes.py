"""Episodes of unequal classes and sine waves, against counting, NumPy and SciPy."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from implicit_solvers.problems.experiments.data.episodes import Episodes, split_classes
from implicit_solvers.problems.experiments.data.sinusoid import Sinusoids


@given(
    sizes=st.lists(st.integers(3, 9), min_size=3, max_size=8),
    ways=st.integers(1, 3),
    shots=st.integers(1, 2),
    seed=st.integers(0, 100),
    task=st.integers(0, 10**6),
)
def test_classes_are_distinct_and_support_and_query_separate(sizes, ways, shots, seed, task):
    """Images that hold 100 * class + instance: classes apart, no image twice, labels right."""
    images = [100 * c + torch.arange(n)[:, None] for c, n in enumerate(sizes)]
    queries = min(sizes) - shots
    tasks = Episodes(images, ways, shots, queries, seed).batch([task])
    assert tasks.support_y[0].bincount().tolist() == [shots] * ways
    assert tasks.query_y[0].bincount().tolist() == [queries] * ways
    numbers = torch.cat([tasks.support_x, tasks.query_x], 1)[0, :, 0]
    labels = torch.cat([tasks.support_y, tasks.query_y], 1)[0]
    assert len(set(numbers.tolist())) == ways * (shots + queries)
    pairs = set(zip(labels.tolist(), (numbers // 100).tolist(), strict=True))
    assert len(pairs) == len({c for _, c in pairs}) == ways
    assert all(int(n) % 100 < sizes[int(n) // 100] for n in numbers)


@given(seed=st.integers(0, 1000), tasks=st.lists(st.integers(0, 10**6), min_size=1, max_size=4))
def test_equal_classes_as_a_tensor_or_a_sequence_make_the_same_tasks(seed, tasks):
    images = torch.arange(6 * 5).view(6, 5, 1)
    together = Episodes(images, 3, 1, 2, seed).batch(tasks)
    apart = Episodes(list(images), 3, 1, 2, seed).batch(tasks)
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


@given(count=st.integers(5, 2000), seed=st.integers(0, 1000))
def test_splits_share_no_class_and_lose_none(count, seed):
    parts = split_classes(count, seed)
    assert torch.cat(parts).sort().values.tolist() == list(range(count))
    assert all(map(torch.equal, parts, split_classes(count, seed)))
    assert count < 20 or not torch.equal(parts[0], split_classes(count, seed + 1)[0])


CLASSES, INSTANCES = 12, 7
# images that contain 10 * class + instance
NUMBERED = (10 * torch.arange(CLASSES)[:, None] + torch.arange(INSTANCES))[..., None]


def test_classes_labels_and_instances_are_drawn_evenly():
    tasks = Episodes(NUMBERED, ways=3, shots=1, queries=1).batch(range(4000))
    for x, y in [(tasks.support_x, tasks.support_y), (tasks.query_x, tasks.query_y)]:
        number = x[..., 0]
        cells = (number // 10 * INSTANCES + number % 10) * 3 + y
        counts = cells.flatten().bincount(minlength=CLASSES * INSTANCES * 3)
        expected = 4000 * 3 / len(counts)
        assert len(counts) == CLASSES * INSTANCES * 3
        assert ((counts - expected).abs() < 5 * expected**0.5).all()


def test_a_task_does_not_depend_on_order_or_batch():
    whole = Episodes(NUMBERED, ways=4, shots=1, queries=2, seed=5).batch(range(10))
    resumed = Episodes(NUMBERED, ways=4, shots=1, queries=2, seed=5)
    order = [7, 2, 9, 0]
    for there, here in zip(whole, resumed.batch(order), strict=True):
        assert torch.equal(there[order], here)
    assert torch.equal(whole.query_x[4:5], resumed.batch([4]).query_x)


def test_tasks_differ_between_numbers_and_between_seeds():
    drawn = {
        tuple(row.tolist())
        for seed in range(5)
        for row in Episodes(NUMBERED, 4, 1, 2, seed).batch(range(5)).query_x[..., 0]
    }
    assert len(drawn) == 25


# ---- Sine waves ----


@given(
    shots=st.integers(1, 6),
    queries=st.integers(1, 6),
    seed=st.integers(0, 1000),
    tasks=st.lists(st.integers(0, 10**6), min_size=1, max_size=4),
)
def test_targets_lie_on_the_waves(shots, queries, seed, tasks):
    sinusoids = Sinusoids(shots, queries, seed)
    amplitude, phase = sinusoids.waves(tasks)
    batch = sinusoids.batch(tasks)
    assert batch.support_x.shape == batch.support_y.shape == (len(tasks), shots, 1)
    assert batch.query_x.shape == batch.query_y.shape == (len(tasks), queries, 1)
    for x, y in [(batch.support_x, batch.support_y), (batch.query_x, batch.query_y)]:
        angle = x[..., 0].double().numpy() - phase.numpy()[:, None]
        expected = amplitude.numpy()[:, None] * np.sin(angle)
        # float32 targets of float64 inputs
        np.testing.assert_allclose(y[..., 0], expected, rtol=0, atol=5e-6)
    alone = sinusoids.batch(tasks[-1:])
    assert all(torch.equal(a, b[-1:]) for a, b in zip(alone, batch, strict=True))


def test_amplitudes_phases_and_inputs_are_uniform():
    sinusoids = Sinusoids(shots=3, queries=2)
    amplitude, phase = sinusoids.waves(range(4000))
    batch = sinusoids.batch(range(4000))
    assert kstest(amplitude.numpy(), "uniform", (0.1, 4.9)).pvalue > 1e-3
    assert kstest(phase.numpy(), "uniform", (0, np.pi)).pvalue > 1e-3
    for x in (batch.support_x, batch.query_x):
        assert kstest(x.flatten().numpy(), "uniform", (-5, 10)).pvalue > 1e-3
    assert abs(np.corrcoef(amplitude, phase)[0, 1]) < 0.05


def test_waves_differ_between_seeds_and_numbers():
    values = torch.cat([Sinusoids(2, 2, seed).waves(range(50))[0] for seed in range(4)])
    assert len(values.unique()) == 200
