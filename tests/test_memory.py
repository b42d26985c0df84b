"""Memory does not grow with the number of iterations, counted by live storages."""

import pytest
import torch

import implicit_solvers as ims
from implicit_solvers.testing.live_memory import LiveMemory

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
