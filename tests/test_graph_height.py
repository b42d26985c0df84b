"""No pullback of a solve walks through what the function's tensors were made of."""

import contextlib
from unittest import mock

import pytest
import torch
from torch.autograd.graph import GradientEdge

import implicit_solvers as ims
from implicit_solvers.problems.ernn import ERNN, LEAKY

STEPS = 60  # of the history: how many nodes come before a solve


def heights(tensors):
    """Return the longest way from each node of a graph to a leaf."""
    found, stack = {}, [t.grad_fn for t in tensors if t.grad_fn is not None]
    while stack:
        node = stack[-1]
        below = [after for after, _ in node.next_functions if after is not None]
        if missing := [after for after in below if after not in found]:
            stack += missing
        else:
            found[stack.pop()] = 1 + max((found[after] for after in below), default=-1)
    return found


def walked(outputs, inputs):
    """Return how many nodes torch's engine walks through to find the way to the inputs."""
    height = heights([*outputs, *inputs])
    least = min(height.get(t.grad_fn, 0) for t in inputs)
    seen, stack = set(), [t.grad_fn for t in outputs]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack += [after for after, _ in node.next_functions] if height[node] >= least else []
    return len(seen)


@contextlib.contextmanager
def walks():
    """Collect how many nodes each pullback inside walks through."""
    found, plain = [], torch.autograd.grad

    def watched(outputs, inputs, *args, **options):
        if not isinstance(outputs[0], GradientEdge):
            found.append(walked(outputs, inputs))
        return plain(outputs, inputs, *args, **options)

    with mock.patch("torch.autograd.grad", watched):
        yield found


W = torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=torch.float64)


def by_args(solve, solver):
    return lambda h: solve(lambda z, h: solve_for(solve, z, h), h.detach(), (h,), solver=solver)


def by_closure(solve, solver):
    return lambda h: solve(lambda z: solve_for(solve, z, h), h.detach(), solver=solver)


def solve_for(solve, z, h):
    """State one equation as each of the three functions takes it."""
    if solve is ims.fixed_point:
        return torch.tanh(W @ z + h)
    if solve is ims.root:
        return z - torch.tanh(W @ z + h)
    return (z - h).square().sum() + z.pow(4).sum()


def bound_method(h):
    class Cell:
        state = h

        def step(self, z, state=h):
            return torch.tanh(W @ z + state)

    return ims.fixed_point(Cell().step, torch.zeros_like(h))


def nested(h):
    def outer(z):
        return z - 0.5 * ims.root(lambda y: y - torch.tanh(W @ y + h + z), z.detach()).value

    return ims.root(outer, torch.zeros_like(h))


def linear(h):
    operator = ims.JacobianOperator(lambda z, h: z + torch.tanh(W @ z + h), h.detach(), (h,))
    return ims.linear_solve(operator, torch.ones_like(h), solver=ims.GMRES())


WAYS = {
    "fixed_point, args": by_args(ims.fixed_point, ims.FixedPointIteration()),
    "fixed_point, closure": by_closure(ims.fixed_point, ims.FixedPointIteration()),
    "fixed_point by Newton, closure": by_closure(ims.fixed_point, ims.Newton()),
    "root, args": by_args(ims.root, None),
    "root, closure": by_closure(ims.root, None),
    "root by products, closure": by_closure(ims.root, ims.Newton(linear_solver=ims.GMRES())),
    "minimize, closure": by_closure(ims.minimize, None),
    "a default of a method": bound_method,
    "a solve inside of another's function": nested,
    "linear_solve": linear,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_pullback_leaves_the_history_out(way):
    h = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
    for _ in range(STEPS):
        h = h.sin()
    with walks() as found:
        way(h).value.sum().backward()
    assert found and max(found) < STEPS


def test_a_recurrent_network_walks_through_one_step_at_a_time():
    net = ERNN(2, 3, leak=LEAKY, dtype=torch.float64)
    with walks() as found:
        net(torch.randn(STEPS, 4, 2, dtype=torch.float64))[1].sum().backward()
    assert found and max(found) < STEPS
