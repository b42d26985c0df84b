"""`Reptile` on linear regressions, whose steps numpy makes too."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from implicit_solvers.problems import imaml


def model(theta, x):
    return x @ theta["w"] + theta["b"]


def criterion(out, y):
    return (out - y).square().mean()


def regressions(seed=0, tasks=3, shots=4, queries=3):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    theta = {"w": normal(2), "b": normal()}
    supports = (normal(tasks, shots, 2), normal(tasks, shots))
    return theta, supports, (normal(tasks, queries, 2), normal(tasks, queries))


def descend(theta, X, Y, lr, steps):
    """Return w and b after gradient steps, the k-th on the examples X[k], Y[k]."""
    w, b = theta["w"].numpy(), theta["b"].numpy()
    for step in range(steps):
        x, y = X(step), Y(step)
        error = x @ w + b - y
        w, b = w - lr * 2 * x.T @ error / len(y), b - lr * 2 * error.mean()
    return w, b


@given(seed=st.integers(0, 10**6), lr=st.floats(0.01, 0.3), steps=st.integers(0, 6))
def test_it_moves_towards_the_parameters_of_gradient_steps(seed, lr, steps):
    theta, supports, queries = regressions(seed)
    got = imaml.Reptile(lr, steps).meta_gradient(model, criterion, theta, supports, queries)
    moves, losses = [], []
    for i in range(3):
        x, y = (torch.cat([s[i], q[i]]).numpy() for s, q in zip(supports, queries, strict=True))
        w, b = descend(theta, lambda _, x=x: x, lambda _, y=y: y, lr, steps)
        moves.append(np.append(theta["w"].numpy() - w, theta["b"].numpy() - b))
        error = queries[0][i].numpy() @ w + b - queries[1][i].numpy()
        losses.append(np.mean(error**2))
    expected = np.mean(moves, 0)
    np.testing.assert_allclose(got.gradient["w"], expected[:2], atol=1e-10)
    np.testing.assert_allclose(got.gradient["b"], expected[2], atol=1e-10)
    np.testing.assert_allclose(got.loss, losses, atol=1e-10)
    assert got.inner_residual.isnan().all() and got.adjoint_residual.isnan().all()


def test_adaptation_sees_the_support_alone():
    theta, supports, queries = regressions()
    x, y = supports[0][0], supports[1][0]
    predict = imaml.Reptile(0.1, 5).adapt(model, criterion, theta, (x, y))
    w, b = descend(theta, lambda _: x.numpy(), lambda _: y.numpy(), 0.1, 5)
    np.testing.assert_allclose(predict(queries[0][0]), queries[0][0].numpy() @ w + b, atol=1e-12)


@pytest.mark.parametrize("minibatch", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_minibatches_visit_every_example_once_in_a_pass(minibatch, seed):
    """The gradient of the k-th step tells which examples it saw: they are powers of two."""
    examples, steps = 6, 12 // minibatch
    powers = 2.0 ** torch.arange(examples, dtype=torch.float64)
    seen = []

    def identity(theta, x):
        return theta * x

    def count(out, y):
        seen.append(y)
        return out.sum()

    support = (torch.ones(1, 4).double(), powers[None, :4])
    query = (torch.ones(1, 2).double(), powers[None, 4:])
    method = imaml.Reptile(1.0, steps, minibatch, seed)
    start = torch.zeros((), dtype=torch.float64)
    got = method.meta_gradient(identity, count, start, support, query, batching=imaml.Batching.LOOP)
    drawn = torch.cat(seen[:steps])
    for half in drawn.split(examples):
        assert sorted(half.tolist()) == powers.tolist()
    assert drawn[:6].tolist() != drawn[6:].tolist()
    # every step moves by the number of its examples
    assert float(got.gradient) == 12


def test_minibatches_are_those_of_the_seed_and_may_be_everything():
    theta, supports, queries = regressions()

    def move(*options):
        method = imaml.Reptile(0.1, 4, *options)
        return method.meta_gradient(model, criterion, theta, supports, queries).gradient["w"]

    assert torch.equal(move(3, 1), move(3, 1))
    assert not torch.allclose(move(3, 1), move(3, 2))
    for minibatch in (7, 100):
        torch.testing.assert_close(move(minibatch), move())
