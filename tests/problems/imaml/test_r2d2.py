"""`R2D2` against scikit-learn's ridge regression, and differences."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from implicit_solvers.problems import imaml
from implicit_solvers.problems.imaml.r2d2 import ridge_weights
from tests.problems.imaml.meta_tasks import assert_slope, normal, one


def sklearns(X, Y, ridge):
    fitted = Ridge(alpha=ridge, fit_intercept=False, solver="svd").fit(X.numpy(), Y.numpy())
    return fitted.coef_.T


def features(theta, x):
    return torch.tanh(x @ theta["w"])


def tasks(width, ways=None, shots=6, count=3):
    """Return (theta, supports, queries); with ``ways``, of integer classes."""
    theta = {"w": normal(2, width, seed=1)}
    supports, queries = (
        (x := normal(count, shots, 2, seed=s), torch.sin(x.sum(-1, keepdim=True))) for s in (2, 3)
    )
    if ways is not None:
        labels = torch.arange(shots).remainder(ways).expand(count, shots)
        supports, queries = (supports[0], labels), (queries[0], labels)
    return theta, supports, queries


@given(
    n=st.integers(1, 8),
    d=st.integers(1, 8),
    k=st.integers(1, 3),
    ridge=st.floats(0.01, 100),
    seed=st.integers(0, 10**6),
)
def test_ridge_weights_are_those_of_scikit_learn(n, d, k, ridge, seed):
    X, Y = normal(n, d, seed=seed), normal(n, k, seed=seed + 1)
    expected = sklearns(X, Y, ridge).reshape(d, k)
    np.testing.assert_allclose(ridge_weights(X, Y, ridge), expected, atol=1e-10)
    by_tensor = ridge_weights(X, Y, torch.tensor(ridge, dtype=torch.float64))
    np.testing.assert_allclose(by_tensor, expected, atol=1e-10)


@pytest.mark.parametrize("width", [3, 10])
@pytest.mark.parametrize("ways", [None, 3])
def test_the_whole_pipeline(width, ways):
    """Regression, or classification; features fewer or more than examples."""
    theta, supports, queries = tasks(width, ways)
    method = imaml.R2D2(ways, ridge=0.3, scale=1.5, bias=0.2)
    criterion = F.mse_loss if ways is None else F.cross_entropy
    got = method.meta_gradient(features, criterion, theta, supports, queries)
    for i in range(3):
        (x, y), (query_x, query_y) = one(supports, i), one(queries, i)
        targets = y if ways is None else torch.eye(3).double()[y]
        W = sklearns(features(theta, x), targets, 0.3).reshape(width, -1)
        out = 1.5 * features(theta, query_x).numpy() @ W + 0.2
        predict = method.adapt(features, criterion, theta, (x, y))
        # ridge systems of condition below 1e3
        np.testing.assert_allclose(predict(query_x), out, atol=1e-10)
        if ways is None:
            loss = (out - query_y.numpy()) ** 2
            flat = method.adapt(features, criterion, theta, (x, y[:, 0]))
            np.testing.assert_allclose(flat(query_x), out[:, 0], atol=1e-10)
        else:
            loss = np.log(np.exp(out).sum(1)) - out[np.arange(6), query_y.numpy()]
        assert float(got.loss[i]) == pytest.approx(loss.mean())


@pytest.mark.parametrize("ways", [None, 3])
@pytest.mark.parametrize("width", [3, 10])
@pytest.mark.parametrize("learned", [False, True])
def test_the_gradient_is_the_slope_of_the_loss(ways, width, learned):
    theta, supports, queries = tasks(width, ways)
    method = imaml.R2D2(ways, ridge=0.5, scale=2.0, bias=0.1)
    if learned:
        theta = method.extend(theta)
    criterion = F.mse_loss if ways is None else F.cross_entropy
    arguments = (features, criterion, theta, supports, queries)
    got = assert_slope(method, arguments, rtol=1e-7, atol=1e-8)
    assert set(got.gradient) == set(theta)
    assert got.adjoint_residual.isnan().all() and got.inner_residual.isnan().all()


def test_what_extend_adds_holds_the_fields_values():
    theta, supports, queries = tasks(4)
    method = imaml.R2D2(ridge=0.5, scale=2.0, bias=0.1)
    extended = method.extend(theta)
    assert float(extended["r2d2.log_ridge"].exp()) == pytest.approx(0.5)
    assert extended["r2d2.scale"] == 2.0 and extended["r2d2.bias"] == pytest.approx(0.1)
    got = imaml.R2D2().meta_gradient(features, F.mse_loss, extended, supports, queries)
    expected = method.meta_gradient(features, F.mse_loss, theta, supports, queries)
    torch.testing.assert_close(got.loss, expected.loss)
    torch.testing.assert_close(got.gradient["w"], expected.gradient["w"])
