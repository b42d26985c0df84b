"""A sequence that fails leaves the others alone, and is named."""

import math

import pytest
import torch

import implicit_solvers as ims
from implicit_solvers.problems import ernn
from implicit_solvers.problems.ernn import ERNN, LEAKY, Equilibrium, ERNNCell, Unrolled
from implicit_solvers.problems.ernn.baselines import FastRNN, ImplicitEulerRNN
from tests.problems.ernn.networks import TIGHT, double

NAN = math.nan
MASKED = Equilibrium(**TIGHT, on_failure="mask")
FAILING = {
    "parallel": {"mode": MASKED},
    "sequential": {"mode": Equilibrium(**TIGHT, on_failure="mask", parallel=False)},
    "default": {"mode": Equilibrium(on_failure="mask")},
    "leaky": {"mode": MASKED, "leak": LEAKY},
    "two layers": {"mode": MASKED, "num_layers": 2},
}


def finite_sum(output):
    return torch.where(torch.isfinite(output), output, 0.0).square().sum()


@pytest.mark.parametrize("bad", [NAN, math.inf])
@pytest.mark.parametrize("name", FAILING)
def test_a_sequence_that_fails_leaves_the_others_alone(name, bad):
    net = ERNN(2, 3, dtype=torch.float64, **FAILING[name])
    x, h0, others = double(5, 4, 2), double(len(net.cells), 4, 3), [0, 2, 3]
    broken = x.clone()
    broken[2, 1, 0] = bad

    def outcome(x, h0):
        x, h0 = x.clone().requires_grad_(), h0.clone().requires_grad_()
        output, h_n = net(x, h0)
        slopes = torch.autograd.grad(finite_sum(output), (x, h0, *net.parameters()))
        return output.detach(), h_n.detach(), *slopes

    output, h_n, dx, dh0, *slopes = outcome(broken, h0)
    alone = outcome(x[:, others], h0[:, others])
    before = outcome(x[:2, [1]], h0[:, [1]])
    assert torch.isnan(output[2:, 1]).all() and torch.isnan(h_n[-1, 1]).all()
    # the defaults stop at 1.8e-12, and adjoints at 3.7e-11
    tolerance = 1e-9 if name == "default" else 1e-11
    same = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close([t[:, others] for t in (output, h_n, dx, dh0)], alone[:4], **same)
    # up to the failure the sequence has its states, and its part in the gradients
    torch.testing.assert_close((output[:2, [1]], dx[:2, [1]]), (before[0], before[2]), **same)
    assert (dx[2:, 1] == 0).all()
    both = [one + other for one, other in zip(alone[4:], before[4:], strict=True)]
    torch.testing.assert_close(slopes, both, rtol=1e-9, atol=1e-9)
    start = h0.clone()
    start[0, 1, 2] = NAN  # a bad start fails from the first step
    output, _ = net(x, start)
    assert torch.isnan(output[:, 1]).all() and torch.isfinite(output[:, others]).all()


@pytest.mark.parametrize("options", [{}, TIGHT, {"parallel": False}])
def test_a_failure_raises_unless_told_otherwise(options):
    x = double(4, 2, 2)
    net = ERNN(2, 3, mode=Equilibrium(**options), dtype=torch.float64)
    output, _ = net(x)
    with pytest.raises(ims.ConvergenceError, match="adjoint"):
        torch.autograd.grad(output, [*net.parameters()], torch.full_like(output, NAN))
    x[1, 0, 0] = NAN
    with pytest.raises(ims.ConvergenceError, match="NONFINITE"):
        net(x)
    warns = Equilibrium(**options, on_failure="warn")
    with pytest.warns(ims.ConvergenceWarning, match="NONFINITE"):
        output, _ = ERNN(2, 3, mode=warns, dtype=torch.float64)(x)
    assert torch.isfinite(output[:, 1]).all()


def test_a_nan_in_steps_stays_in_its_sequence():
    euler = ImplicitEulerRNN(2, 3, mode=Equilibrium(on_failure="mask"))
    for net in (ERNN(2, 3, mode=Unrolled(steps=2)), FastRNN(2, 3), euler):
        x = torch.randn(4, 2, 2)
        clean, _ = net(x)
        x[1, 0, 0] = NAN
        output, _ = net(x)
        # float32 solves of one batch and another stop at 6e-6
        torch.testing.assert_close(output[:, 1], clean[:, 1], rtol=1e-4, atol=1e-5)
        assert output[1:, 0].isnan().all() and not output[:1].isnan().any()


def test_an_unchecked_matrix_is_the_solver_s_affair():
    options = {"nonlinearity": torch.relu, "well_posed": ernn.Unconstrained(check=False)}
    told = pytest.raises(ims.ConvergenceError), pytest.warns(ims.ConvergenceWarning)
    for on_failure, expected in zip(("raise", "warn"), told, strict=True):
        cell = ERNNCell(1, 1, mode=Equilibrium(on_failure=on_failure), **options)
        for weight, value in [(cell.weight_input, 1), (cell.bias, 1), (cell.recurrent.weight, 2)]:
            weight.data.fill_(value)
        with expected:  # h = relu(2 h + 2) has no solution
            cell(torch.ones(1))
