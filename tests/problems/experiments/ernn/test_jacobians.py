"""The commands gradients and trajectories: what they measure."""

import copy
import functools
import itertools

import numpy as np
import pytest
import torch
from torch import Generator, nn

from implicit_solvers.problems.ernn import ERNN, LEAKY, Equilibrium, ERNNCell, Unrolled, jacobians
from implicit_solvers.problems.experiments.data.rings import rings
from implicit_solvers.problems.experiments.ernn import trajectories
from tests.problems.ernn.networks import double


@pytest.mark.nightly  # (one of fewer steps is among the runs of the command)
def test_an_exact_network_keeps_the_norm_over_many_steps():
    torch.manual_seed(0)
    cell = ERNNCell(2, 4, dtype=torch.float64)
    h = first = double(3, 4).requires_grad_()
    for row in double(250, 3, 2):
        h = cell(row, h)
    g = double(3, 4)
    # J = (-I)^250: what comes back is what went in, by a linear solve, to 4e-11, in each step
    (back,) = torch.autograd.grad(h, first, g)
    torch.testing.assert_close(back, g, rtol=1e-7, atol=1e-7)
    step = jacobians.step_of(ERNN(2, 4, initial_norm=0.9))
    norms = jacobians.norms_along(step, double(20, 2), 4)
    assert max(abs(norm - 1) for norm in norms) < 1e-8


NETS = {
    "rnn": lambda: nn.RNN(2, 3),
    "leaky": lambda: ERNN(2, 3, leak=LEAKY),
    "exact": lambda: ERNN(2, 3, mode=Equilibrium()),
    "unrolled": lambda: ERNN(2, 3, mode=Unrolled(steps=2)),
}


@pytest.mark.parametrize("name", NETS)
def test_jacobians_against_differences(name):
    torch.manual_seed(1)
    net = NETS[name]()
    before = copy.deepcopy(net.state_dict())
    step, x = jacobians.step_of(net), double(6, 2)
    zero, e = torch.zeros(3).double(), 1e-6 * torch.eye(3).double()
    last = lambda h: functools.reduce(lambda h, row: step(row, h), x[1:], h)
    first = step(x[0], zero)
    columns = [(last(first + d) - last(first - d)) / 2e-6 for d in e]
    expected = torch.stack(columns, 1).numpy()
    J = jacobians.end_to_end(step, x, 3).numpy()
    np.testing.assert_allclose(J, expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(
        jacobians.norms_along(step, x, 3)[-1], np.linalg.norm(J, 2), rtol=1e-8
    )
    # the step is the network's own, which is left as it was
    states = torch.stack([*itertools.accumulate(x, lambda h, row: step(row, h), initial=zero)])
    found = net(x.float().unsqueeze(1))[0].squeeze(1)
    torch.testing.assert_close(found.double(), states[1:], rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_distances_from_minus_the_identity():
    far = functools.partial(jacobians.distances_from_identity, norm=0.7)
    assert 0.6 < far(1, 1.0)[0] <= 0.7 and 0.03 < far(5, 1.0)[0] < 0.17
    assert far(5, 1e-3)[1] < 0.01
    distances = [far(k, 0.5)[0] for k in (1, 3, 9, 27)]
    assert distances == sorted(distances, reverse=True)


def test_rings_differ_in_their_order_alone():
    x, y = rings(200, 8, 0.0, Generator().manual_seed(0))
    cross = x[:, 0, 0] * x[:, 1, 1] - x[:, 0, 1] * x[:, 1, 0]
    assert torch.equal((cross > 0).long(), y)
    assert 60 < int(y.sum()) < 140
    drawn, labels = trajectories._drawn(trajectories.Configuration(steps=8, drawn=3))
    one, other = drawn[labels == 0], drawn[labels == 1]
    back = torch.cat([one[:, :1], one[:, 1:].flip(1)], 1)
    torch.testing.assert_close(back, other, rtol=1e-5, atol=1e-5)


def test_trajectories_are_the_states_of_the_network():
    net, x = ERNN(2, 3, batch_first=True), torch.randn(4, 5, 2)
    states = trajectories.trajectories(net, x, 3)
    assert (states[:, 0] == 0).all()
    torch.testing.assert_close(states[:, 1:], net(x)[0].double(), rtol=1e-4, atol=1e-4)
