"""Averages over tasks, how tasks are batched, and how many fit into memory."""

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from implicit_solvers.problems import imaml
from implicit_solvers.testing.live_memory import LiveMemory, lanes_that_fit
from tests.problems.imaml.meta_tasks import assert_same, curves, normal, one, ravel


@pytest.mark.filterwarnings("ignore:.* tasks so far")
@given(
    left_out=st.lists(st.sampled_from([None, "loss", "gradient"]), min_size=1, max_size=12),
    tasks_at_once=st.none() | st.integers(1, 13),
    batching=st.sampled_from(imaml.Batching),
    seed=st.integers(0, 10**6),
)
def test_the_mean_is_that_of_the_tasks_kept(left_out, tasks_at_once, batching, seed):
    """At zero, the loss is the constant c and its slope the product of two factors."""
    count = len(left_out)
    bad = np.array([reason is not None for reason in left_out])
    c, slopes = normal(count, seed=seed), normal(count, 2, 3, seed=seed + 1)
    factor = torch.ones(count).double()
    c[[reason == "loss" for reason in left_out]] = torch.nan
    overflow = [reason == "gradient" for reason in left_out]
    factor[overflow], slopes[overflow] = 1e200, 1e200
    got = imaml.FirstOrderMaml(0.1, 0).meta_gradient(
        lambda theta, x: (theta["w"] * x[0]).sum() * x[1] + theta["b"] * x[1],
        lambda out, c: out + c,
        {"w": torch.zeros(2, 3).double(), "b": torch.zeros(()).double()},
        supports=((slopes, factor), c),
        queries=((slopes, factor), c),
        tasks_at_once=tasks_at_once,
        batching=batching,
    )
    for name, value in {"w": slopes, "b": factor}.items():
        expected = value.numpy()[~bad].mean(0) if not bad.all() else np.zeros(value.shape[1:])
        # sums of a dozen numbers of order 1
        np.testing.assert_allclose(got.gradient[name], expected, atol=1e-14)
    assert got.left_out.tolist() == bad.tolist()
    np.testing.assert_array_equal(got.loss, np.where(bad, np.nan, c))
    # the root mean square over theta's entries, of the tasks in their order
    squares = (slopes.numpy()[~bad] ** 2).sum((1, 2)) + 1
    np.testing.assert_allclose(got.inner_residual[~bad], np.sqrt(squares / 7), rtol=1e-12)


@pytest.mark.parametrize("faster", imaml.Batching)
def test_the_faster_batching_is_chosen(faster):
    calls = []

    def work(supports, queries, batching):
        calls.append(batching)
        time.sleep(0.002 if batching is faster else 0.02)

    data = torch.zeros(4, 1), torch.zeros(4, 1)
    choice = imaml.faster_batching(work, *data, rounds=3)
    assert choice.batching is faster
    assert len(calls) == 8
    seconds = dict(zip(imaml.Batching, choice[1:], strict=True))
    assert 0.0005 <= seconds[faster] < seconds[next(b for b in imaml.Batching if b is not faster)]


def test_a_convolutional_network_by_loop_and_by_vmap():
    """Grouped convolutions of the tasks' own weights, and batch statistics of each task."""
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(27, 2),
    ).double()
    model, theta = imaml.functional_model(network)
    supports, queries = (
        (torch.randn(3, n, 1, 8, 8).double(), torch.arange(n).remainder(2).expand(3, n))
        for n in (4, 6)
    )
    arguments = (model, F.cross_entropy, theta, supports, queries)
    for method in (imaml.Imaml(5.0), imaml.Maml(0.1, 2), imaml.FirstOrderMaml(0.1, 2)):
        looped = method.meta_gradient(*arguments, batching=imaml.Batching.LOOP)
        assert not looped.left_out.any()
        # convolutions in another order, and five steps of CG
        assert_same(method.meta_gradient(*arguments), looped, rtol=1e-8, atol=1e-10)

    def call(supports, queries, batching):
        return imaml.Maml(0.1, 2).meta_gradient(
            *arguments[:3], supports, queries, batching=batching
        )

    assert imaml.faster_batching(call, supports, queries, rounds=1).batching in imaml.Batching


def peak_of(method, arguments, tasks, **options):
    """Return the memory of a meta-gradient of the first tasks."""
    *shared, supports, queries = arguments
    data = (one(part, slice(tasks)) for part in (supports, queries))
    with LiveMemory() as memory:
        got = method.meta_gradient(*shared, *data, **options)
    assert ravel(got.gradient).isfinite().all()
    return memory.peak


@pytest.mark.parametrize(
    "method", [imaml.Imaml(3.0), imaml.Maml(0.1, 4), imaml.FirstOrderMaml(0.1, 4)]
)
def test_the_tasks_that_fit_do_fit(method):
    *shared, supports, queries = arguments = curves(tasks=40)

    def call(supports, queries):
        return method.meta_gradient(*shared, supports, queries)

    limit = 1.05 * peak_of(method, arguments, 20)
    fits = lanes_that_fit(limit, call, supports, queries)
    assert 18 <= fits <= 22
    assert peak_of(method, arguments, fits) <= 1.1 * limit < peak_of(method, arguments, fits + 4)
    assert lanes_that_fit(peak_of(method, arguments, 1), call, supports, queries) == 1


def test_memory_grows_with_the_tasks_held_together_only():
    method, arguments = imaml.Maml(0.1, 8), curves(tasks=32)
    few, all_of_them = (peak_of(method, arguments, 32, tasks_at_once=n) for n in (4, 32))
    assert few < all_of_them / 5


def test_vmap_draws_other_noise_for_each_task():
    model, criterion, theta, *data = curves(tasks=2)

    def noisy(theta, x):
        return model(theta, x) + torch.randn(x.shape, dtype=x.dtype)

    same = [one(part, [0, 0]) for part in data]
    losses = imaml.Maml(0.1, 1).meta_gradient(noisy, criterion, theta, *same).loss
    assert losses[0] != losses[1]
