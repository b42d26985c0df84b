"""The counter of live memory: views, what autograd keeps, transforms."""

import torch
from torch.func import grad, vmap

from implicit_solvers.testing.live_memory import LiveMemory


def test_live_memory_counts_what_is_alive():
    outside = torch.ones(1000)
    with LiveMemory() as memory:
        outside.view(10, 100).add_(1)
        assert (memory.live, memory.peak) == (0, 0)
        a = torch.zeros(1000)
        b = (2 * a).view(10, 100)
        assert (memory.live, memory.peak) == (8000, 8000)
        parts = b.t().unbind()
        del a, b
        assert memory.live == 4000
        del parts
        assert (memory.live, memory.peak) == (0, 8000)
        c = torch.ones(500, dtype=torch.float64)
    assert memory.live == 4000
    del c
    assert (memory.live, memory.peak) == (0, 8000)


def test_live_memory_counts_what_autograd_keeps():
    x = torch.ones(1000, requires_grad=True)
    with LiveMemory() as memory:
        y = x.exp().exp().exp()
        # each exponential keeps its result
        assert memory.live == 3 * 4000
        z = y.sum()
        del y
        assert memory.live == 3 * 4000 + 4
        z.backward()
        # what was kept is gone, the gradient has come
        assert memory.live == 4000 + 4


def test_live_memory_sees_through_transforms():
    def chain(x):
        return x.exp().exp().exp().sum()

    with LiveMemory() as memory:
        gradient = grad(chain)(torch.ones(1000))
    assert memory.live == 4000 == gradient.nbytes
    assert memory.peak >= 4 * 4000

    with LiveMemory() as memory:
        values = vmap(torch.exp)(torch.ones(10, 100))
    assert (memory.live, memory.peak) == (4000, 8000)
    assert values.shape == (10, 100)
