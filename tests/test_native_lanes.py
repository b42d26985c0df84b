"""Jacobians of a function that handles its batch itself: from each lane by itself, or together."""

import pytest
import torch

import implicit_solvers as ims
from implicit_solvers.linear.jacobian_template import JacobianTemplate

F64 = torch.float64
LANES, SIZE = 60, 40  # more entries than are made row by row


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


W, X = 0.5 * drawn(SIZE, SIZE) / SIZE**0.5, drawn(LANES, SIZE, seed=1)


def plain(z, W, x):
    return torch.tanh(z @ W.T) + z**3 + z - x


def branching(z, W, x):
    """A branch on values, which no ``vmap`` can follow."""
    return plain(z, W, x) if bool(z.abs().sum() < 1e9) else z


def for_batches_only(z, W, x):
    """A function that says what its batch may be: not one lane."""
    if z.shape[0] == 1:
        raise ValueError("a batch of one")
    return plain(z, W, x)


@pytest.fixture
def columns(monkeypatch):
    """The shapes of the points at which Jacobians were formed."""
    shapes, original = [], JacobianTemplate.dense

    def noted(template, like, *tensors):
        shapes.append(tuple(tensors[0].shape))
        return original(template, like, *tensors)

    monkeypatch.setattr(JacobianTemplate, "dense", noted)
    return shapes


def solve(fn, batch=(LANES,), in_dims=(None, 0)):
    x = X.reshape(*batch, SIZE).clone().requires_grad_()
    matrix = W.clone().requires_grad_()
    lanes = {"batch_dims": len(batch), "in_dims": in_dims}
    solver = ims.Newton(compact=False)
    sol = ims.root(fn, torch.zeros_like(x), (matrix, x), solver=solver, **lanes)
    return sol, torch.autograd.grad(sol.value.square().sum(), (matrix, x))


def expected():
    """Newton's method and the adjoint by dense algebra, lane by lane."""
    eye, z = torch.eye(SIZE, dtype=F64), torch.zeros_like(X)

    def jacobian(z):
        slope = 1 - torch.tanh(z @ W.T) ** 2
        return slope.unsqueeze(-1) * W + (3 * z**2 + 1).unsqueeze(-1) * eye

    for _ in range(30):
        z = z - torch.linalg.solve(jacobian(z), plain(z, W, X))
    w = torch.linalg.solve(jacobian(z).mT, 2 * z)
    return z, -(w * (1 - torch.tanh(z @ W.T) ** 2)).T @ z, w


@pytest.mark.parametrize("batch", [(LANES,), (6, 10)], ids=str)
def test_each_lane_by_itself(columns, batch):
    sol, (dW, dx) = solve(plain, batch)
    assert columns and set(columns) == {(*(1,) * len(batch), SIZE)}
    z, exact_dW, exact_dx = expected()
    torch.testing.assert_close(sol.value.reshape(LANES, SIZE), z, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(dW, exact_dW, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(dx.reshape(LANES, SIZE), exact_dx, rtol=1e-9, atol=1e-9)
    columns.clear()
    together, _ = solve(plain, batch, in_dims=None)
    assert set(columns) == {(*batch, SIZE)}
    assert torch.equal(together.iterations, sol.iterations)


@pytest.mark.parametrize("fn", [branching, for_batches_only])
def test_a_function_that_wants_its_batch_gets_it(columns, fn):
    sol, (dW, _) = solve(fn)
    assert columns[-1] == (LANES, SIZE)
    z, exact_dW, _ = expected()
    torch.testing.assert_close(sol.value, z, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(dW, exact_dW, rtol=1e-9, atol=1e-9)


def test_a_captured_tensor_of_all_lanes_is_not_paired_with_each(columns):
    """It answers for all lanes when it is asked for one, which would take their square."""

    def capturing(z, W):
        return plain(z, W, X)

    matrix = W.clone().requires_grad_()
    lanes = {"batch_dims": 1, "in_dims": (None,), "solver": ims.Newton(compact=False)}
    sol = ims.root(capturing, torch.zeros_like(X), (matrix,), **lanes)
    (dW,) = torch.autograd.grad(sol.value.square().sum(), matrix)
    assert set(columns) == {(LANES, SIZE)}
    z, exact_dW, _ = expected()
    torch.testing.assert_close(sol.value, z, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(dW, exact_dW, rtol=1e-9, atol=1e-9)


def test_an_error_of_the_function_is_its_own():
    calls = []

    def fails_later(z, W, x):
        calls.append(1)
        if len(calls) > 2:
            raise ZeroDivisionError("in the third call")
        return plain(z, W, x)

    with pytest.raises(ZeroDivisionError, match="third"):
        solve(fails_later)
