"""Jacobians of a function that handles its batch itself, from the evaluation of the batch."""

import pytest
import torch

import implicit_solvers as ims

F64 = torch.float64
LANES, SIZE = 60, 40  # more entries than are made row by row


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


W, X = 0.5 * drawn(SIZE, SIZE) / SIZE**0.5, drawn(LANES, SIZE, seed=1)
SEEN = []  # the shapes with which a function is called


def plain(z, W, x=X):
    SEEN.append(tuple(z.shape))
    return torch.tanh(z @ W.T) + z**3 + z - x


def branching(z, W, x):
    """A branch on values, which no ``vmap`` can follow."""
    return plain(z, W, x) if bool(z.abs().sum() < 1e9) else z


def for_batches_only(z, W, x):
    """A function that says what its batch may be: not one lane."""
    if z.shape[0] == 1:
        raise ValueError("a batch of one")
    return plain(z, W, x)


def capturing(z, W, x):
    """It answers for all lanes when it is asked for one, which would take their square."""
    return plain(z, W)


def solve(fn, batch=(LANES,), in_dims=(None, 0)):
    SEEN.clear()
    x = X.reshape(*batch, SIZE).clone().requires_grad_()
    matrix = W.clone().requires_grad_()
    lanes = {"batch_dims": len(batch), "in_dims": in_dims}
    solver = ims.Newton(compact=False, halvings=0)
    sol = ims.root(fn, torch.zeros_like(x), (matrix, x), solver=solver, **lanes)
    loss = sol.value.square().sum()
    return sol, torch.autograd.grad(loss, (matrix, x), materialize_grads=True)


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


EXPECTED = expected()


@pytest.mark.parametrize("batch", [(LANES,), (6, 10)], ids=str)
@pytest.mark.parametrize("fn", [plain, branching, for_batches_only, capturing])
def test_one_evaluation_of_the_batch_serves_a_step(fn, batch):
    if fn is capturing and batch != (LANES,):
        return  # its tensor has one dimension of lanes
    sol, (dW, dx) = solve(fn, batch)
    # the start, each step, the verdict's sample of rounding, and the solution with its graph
    assert [(*batch, SIZE)] * (3 + int(sol.iterations.max())) == SEEN
    z = sol.value.reshape(LANES, SIZE)
    # Newton's last step squares an error of 1e-8 or so; the condition is below 100
    torch.testing.assert_close(z, EXPECTED[0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(dW, EXPECTED[1], rtol=1e-9, atol=1e-9)
    if fn is not capturing:
        torch.testing.assert_close(dx.reshape(LANES, SIZE), EXPECTED[2], rtol=1e-9, atol=1e-9)


def test_an_error_of_the_function_is_its_own_and_ends_the_solve():
    def fails_later(z, W, x):
        if len(SEEN) > 2:
            raise ZeroDivisionError(f"after {SEEN.append(0) or len(SEEN)} calls")
        return plain(z, W, x)

    with pytest.raises(ZeroDivisionError, match="after 4"):
        solve(fails_later)
    assert len(SEEN) == 4
