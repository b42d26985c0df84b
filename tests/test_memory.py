"""Memory does not grow with the number of iterations, counted by live storages."""

import pytest
import torch

import implicit_solvers as ims
from implicit_solvers.testing.live_memory import LiveMemory, lanes_that_fit

N = 1 << 20  # a state of 8 MiB in float64
STATE = 8 * N


def cell(z, x):
    return 0.5 * torch.tanh(z) + x


def layer(x, steps):
    solver = ims.FixedPointIteration(max_steps=steps, rtol=None)
    return ims.fixed_point(cell, torch.zeros_like(x), (x,), solver=solver).value


def captured_layer(x, steps):
    solver = ims.FixedPointIteration(max_steps=steps, rtol=None)
    return ims.fixed_point(lambda z: cell(z, x), torch.zeros_like(x), solver=solver).value


def unrolled(x, steps):
    z = torch.zeros_like(x)
    for _ in range(steps):
        z = cell(z, x)
    return z


def peak(fn, steps):
    x = torch.full((N,), 0.1, dtype=torch.float64, requires_grad=True)
    with LiveMemory() as memory:
        fn(x, steps).sum().backward()
    # dz/dx = 1 / (1 - 0.5 (1 - tanh(z)^2)), whatever the number of steps beyond the tenth
    assert 1 < float(x.grad[0]) < 2.2
    return memory.peak


def check_flat(fn, few, many):
    first, second = peak(fn, few), peak(fn, many)
    assert first > 2 * STATE
    assert abs(second - first) < 0.05 * first


@pytest.mark.slow
@pytest.mark.parametrize(
    "fn",
    [layer, pytest.param(captured_layer, marks=pytest.mark.nightly)],
    ids=lambda fn: fn.__name__,
)
def test_the_layer_is_flat_from_10_to_1000_iterations(fn):
    check_flat(fn, 10, 1000)


def test_the_same_check_fails_on_an_unrolled_loop():
    with pytest.raises(AssertionError):
        check_flat(unrolled, 10, 40)


def dense(z, A, b):
    return torch.tanh((A * z.unsqueeze(-2)).sum(-1)) + z - b


def many_lanes(count):
    torch.manual_seed(0)
    A = torch.randn(count, 4, 4, dtype=torch.float64) / 10
    return A, torch.randn(count, 4, dtype=torch.float64, requires_grad=True)


def solve_many(A, b, **options):
    solver = ims.NewtonDogleg(**options)
    return ims.root(dense, torch.zeros_like(b), (A, b), solver=solver, batch_dims=1, in_dims=(0, 0))


def peak_of_many(count, **options):
    A, b = many_lanes(count)
    with LiveMemory() as memory:
        solve_many(A, b, **options).value.sum().backward()
    return memory.peak


def test_memory_is_linear_in_lanes_and_as_large_as_the_docs_say():
    few, many = peak_of_many(2_000), peak_of_many(20_000)
    assert (many - few) / 18_000 == pytest.approx(1500, rel=0.05)
    assert many == pytest.approx(10 * few, rel=0.01)


@pytest.mark.nightly
def test_a_million_lanes_fit_in_8_gb():
    assert peak_of_many(1_000_000) < 2e9
    A, b = many_lanes(1_000_000)
    solution = solve_many(A, b)
    assert solution.converged.all()
    solution.value.sum().backward()
    z = solution.value.detach()[::1000]
    slope = 1 - torch.tanh((A[::1000] * z.unsqueeze(-2)).sum(-1)) ** 2
    J = slope.unsqueeze(-1) * A[::1000] + torch.eye(4)
    torch.testing.assert_close(b.grad[::1000], torch.linalg.inv(J).sum(-2), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("way", ["in_dims", "vmap"])
def test_chunks_change_nothing_but_the_memory(way):
    A, b = many_lanes(1000)
    b.data[7], b.data[993] = torch.nan, 1e3  # what fails, and what takes longer, in some chunks

    def solve(size):
        options = {"solver": ims.NewtonDogleg(chunk_size=size), "on_failure": "mask"}
        if way == "vmap":
            one = lambda A, b: ims.root(dense, torch.zeros_like(b), (A, b), **options)
            return torch.func.vmap(one)(A, b)
        options |= {"batch_dims": 1, "in_dims": (0, 0)}
        return ims.root(dense, torch.zeros_like(b), (A, b), **options)

    whole, chunked = solve(None), solve(64)
    for name in ("value", "status", "iterations", "residual", "error"):
        parts = getattr(whole, name).detach(), getattr(chunked, name).detach()
        torch.testing.assert_close(*parts, rtol=1e-10, atol=1e-13, equal_nan=True)
    (before,) = torch.autograd.grad(whole.value.sum(), b)
    (after,) = torch.autograd.grad(chunked.value.sum(), b)
    torch.testing.assert_close(before, after, rtol=1e-9, atol=0)
    assert before[7].abs().max() == 0 < before.abs().sum(-1).median()


def test_chunks_of_a_linear_system_and_of_a_minimum():
    A, b = many_lanes(100)
    P = A @ A.mT + torch.eye(4)

    def system(size):
        one = lambda P, b: ims.linear_solve(
            ims.MatrixOperator(P, positive_definite=True), b, solver=ims.CG(chunk_size=size)
        )
        return torch.func.vmap(one)(P, b).value

    def least(size):
        f = lambda z, b: ((z - b) ** 2).sum(-1) + (z**4).sum(-1)
        options = {"solver": ims.LBFGS(chunk_size=size), "batch_dims": 1, "in_dims": (0,)}
        return ims.minimize(f, torch.zeros_like(b), (b,), **options).value

    for solve in (system, least):
        torch.testing.assert_close(solve(None), solve(9), rtol=1e-8, atol=1e-10)


def test_a_chunk_is_what_a_limit_in_bytes_allows():
    A, b = many_lanes(3)
    work = lambda A, b: solve_many(A, b.detach().requires_grad_()).value.sum().backward()
    count = lanes_that_fit(3e6, work, A, b)
    assert peak_of_many(count) < 1.1 * 3e6 < peak_of_many(int(1.3 * count))
    # what is left of 20,000 lanes, a chunk at a time: their solutions, and one evaluation's graph
    assert peak_of_many(20_000, chunk_size=1_000) < 0.6 * peak_of_many(20_000)
