"""Averages over tasks, how tasks are batched, and how many fit into memory."""

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import vmap

from implicit_solvers.problems import imaml
from implicit_solvers.problems.imaml.meta_gradient import (
    TaskGradients,
    average_over_tasks,
    gradient_of_each,
    task_count,
)
from implicit_solvers.problems.live_memory import LiveMemory
from tests.problems.imaml.meta_tasks import assert_same, curves, quadratics, ravel


@given(
    left_out=st.lists(st.booleans(), min_size=1, max_size=12),
    tasks_at_once=st.none() | st.integers(1, 13),
    loop=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_the_mean_is_that_of_the_tasks_kept(left_out, tasks_at_once, loop, seed):
    g = torch.Generator().manual_seed(seed)
    count = len(left_out)
    slopes = {
        "w": torch.randn(count, 2, 3, generator=g, dtype=torch.float64),
        "b": torch.randn(count, generator=g, dtype=torch.float64),
    }
    losses = torch.randn(count, generator=g, dtype=torch.float64)
    # a task is left out for one of three reasons
    bad = torch.tensor(left_out)
    reason = torch.randint(3, (count,), generator=g)
    slopes["w"][:, 1, 1] = torch.where(bad & (reason == 0), torch.inf, slopes["w"][:, 1, 1])
    losses = torch.where(bad & (reason == 1), torch.nan, losses)
    failed = bad & (reason == 2)

    def evaluate(over_tasks, supports, queries):
        def task(support, query):
            w, b, loss, status = support
            return {"w": w, "b": b}, loss, status, loss + 1, query

        return TaskGradients(*over_tasks(task)(supports, queries))

    supports = (slopes["w"], slopes["b"], losses, failed)
    got = average_over_tasks(
        evaluate,
        {"w": torch.zeros(2, 3).double(), "b": torch.zeros(()).double()},
        supports,
        torch.arange(count).double(),
        tasks_at_once=tasks_at_once,
        batching=imaml.Batching.LOOP if loop else imaml.Batching.VMAP,
    )
    kept = ~np.array(left_out)
    for name, value in slopes.items():
        expected = value.numpy()[kept].mean(0) if kept.any() else np.zeros(value.shape[1:])
        np.testing.assert_allclose(got.gradient[name], expected, atol=1e-14)
    assert got.left_out.tolist() == left_out
    np.testing.assert_array_equal(got.loss, np.where(kept, losses, np.nan))
    np.testing.assert_array_equal(got.inner_residual, losses + 1)
    np.testing.assert_array_equal(got.adjoint_residual, np.arange(count))


@pytest.mark.parametrize("batching", imaml.Batching)
def test_the_gradient_of_each_task(batching):
    theta = {"w": torch.randn(3, dtype=torch.float64), "unused": torch.zeros(2).double()}
    x, y = torch.randn(2, 4, 3, dtype=torch.float64)

    def fn(theta, support, query):
        return (theta["w"] * support).sum() ** 3 + query.sum(), query * 2

    gradient, loss, more = gradient_of_each(batching.over_tasks, fn, theta, x, y)
    products = x @ theta["w"]
    torch.testing.assert_close(gradient["w"], 3 * products[:, None] ** 2 * x)
    assert (gradient["unused"] == torch.zeros(4, 2)).all()
    torch.testing.assert_close(loss, products**3 + y.sum(1))
    torch.testing.assert_close(more, 2 * y)

    own = {"w": torch.randn(4, 3, dtype=torch.float64), "unused": torch.zeros(4, 2).double()}
    gradient, *_ = gradient_of_each(batching.over_tasks, fn, own, x, y, shared=False)
    products = (x * own["w"]).sum(1)
    torch.testing.assert_close(gradient["w"], 3 * products[:, None] ** 2 * x)


def test_task_count_reads_the_first_dimension():
    assert task_count({"x": torch.zeros(0, 3)}, [torch.zeros(0)]) == 0
    assert task_count((torch.zeros(5, 3), torch.zeros(5)), torch.zeros(5, 1, 1)) == 5
    with pytest.raises(ValueError, match=r"\(5, 3\), \(4,\)"):
        task_count(torch.zeros(5, 3), torch.zeros(4))


@pytest.mark.parametrize("batching", imaml.Batching)
def test_over_tasks(batching):
    x, y = torch.randn(2, 4, 3)

    def fn(pair, factor):
        return {"sum": pair[0] + pair[1], "product": (factor * pair[0]).sum()}

    got = batching.over_tasks(fn)((x, y), torch.arange(4.0))
    torch.testing.assert_close(got["sum"], x + y)
    torch.testing.assert_close(got["product"], torch.arange(4.0) * x.sum(1))


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


def test_rounds_must_be_positive():
    with pytest.raises(ValueError, match="rounds=0"):
        imaml.faster_batching(lambda *a, **k: None, torch.zeros(1), torch.zeros(1), rounds=0)
    with pytest.raises(ValueError, match="supports have no tensor"):
        imaml.faster_batching(lambda *a, **k: None, [1, 2], torch.zeros(1))


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
        assert_same(method.meta_gradient(*arguments), looped, rtol=1e-8, atol=1e-10)

    def call(supports, queries, batching):
        return imaml.Maml(0.1, 2).meta_gradient(
            *arguments[:3], supports, queries, batching=batching
        )

    assert imaml.faster_batching(call, supports, queries, rounds=1).batching in imaml.Batching


@pytest.mark.parametrize(
    "method", [imaml.Imaml(3.0), imaml.Maml(0.1, 4), imaml.FirstOrderMaml(0.1, 4)]
)
def test_the_tasks_that_fit_do_fit(method):
    model, criterion, theta, supports, queries = curves(tasks=40)

    def call(supports, queries):
        return method.meta_gradient(model, criterion, theta, supports, queries)

    def peak(tasks):
        with LiveMemory() as memory:
            call(*(tuple(t[:tasks] for t in data) for data in (supports, queries)))
        return memory.peak

    limit = 1.05 * peak(20)
    fits = imaml.tasks_that_fit(limit, call, supports, queries)
    assert 18 <= fits <= 22
    assert peak(fits) <= 1.1 * limit < peak(fits + 4)
    assert imaml.tasks_that_fit(peak(1), call, supports, queries) == 1


def test_a_task_that_does_not_fit():
    problem = quadratics()

    def call(supports, queries):
        return imaml.Maml(0.1, 4).meta_gradient(*problem.arguments[:3], supports, queries)

    with pytest.raises(ValueError, match="memory_limit=100 bytes, and one task needs"):
        imaml.tasks_that_fit(100, call, *problem.data)
    nothing = [tuple(t[:0] for t in data) for data in problem.data]
    with pytest.raises(ValueError, match="at least one"):
        imaml.tasks_that_fit(1e9, call, *nothing)


def test_memory_grows_with_the_tasks_held_together_only():
    model, criterion, theta, supports, queries = curves(tasks=32)

    def peak(tasks_at_once):
        with LiveMemory() as memory:
            got = imaml.Maml(0.1, 8).meta_gradient(
                model, criterion, theta, supports, queries, tasks_at_once=tasks_at_once
            )
        assert ravel(got.gradient).isfinite().all()
        return memory.peak

    assert peak(4) < peak(32) / 5


def test_vmap_draws_other_noise_for_each_task():
    model, criterion, theta, supports, queries = curves(tasks=2)

    def noisy(theta, x):
        return model(theta, x) + torch.randn(x.shape, dtype=x.dtype)

    same = [tuple(t[:1].expand(2, *t.shape[1:]) for t in data) for data in (supports, queries)]
    losses = imaml.Maml(0.1, 1).meta_gradient(noisy, criterion, theta, *same).loss
    assert losses[0] != losses[1]
    assert vmap(lambda x: x)(losses).shape == (2,)
