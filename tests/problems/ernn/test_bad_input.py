"""Wrong arguments have clear errors; a sequence that fails leaves the others alone."""

import math

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import implicit_solvers as ims
from implicit_solvers.problems.ernn import (
    ERNN,
    LEAKY,
    Equilibrium,
    ERNNCell,
    Leak,
    Monotone,
    Nonlinearity,
    SpectralNorm,
    Unrolled,
)
from tests.problems.ernn.networks import ADJOINT, SOLVER

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: ERNN(0, 3), ValueError, "input_size=0"),
        (lambda: ERNN(2, -1), ValueError, "hidden_size=-1"),
        (lambda: ERNN(2, 2.0), ValueError, "hidden_size=2.0"),
        (lambda: ERNN(2, 3, num_layers=0), ValueError, "num_layers=0"),
        (lambda: ERNN(2, 3, num_layers=True), ValueError, "num_layers=True"),
        (lambda: ERNN(2, 3, dropout=1.5), ValueError, "dropout=1.5"),
        (lambda: ERNN(2, 3, dropout=True), ValueError, "dropout=True"),
        (lambda: ERNN(2, 3, mode="equilibrium"), TypeError, "mode is 'equilibrium'.*Equilibrium"),
        (lambda: ERNN(2, 3, gamma=0.0), ValueError, "gamma=0.0"),
        (lambda: ERNN(2, 3, gamma=NAN), ValueError, "gamma=nan"),
        (lambda: ERNN(2, 3, nonlinearity="tanh"), TypeError, "nonlinearity is 'tanh'.*torch.tanh"),
        (lambda: ERNN(2, 3, nonlinearity=torch.sin), TypeError, "Nonlinearity"),
        (lambda: ERNN(2, 3, nonlinearity=[1]), TypeError, "Nonlinearity"),
        (lambda: Nonlinearity(torch.sin, slope=0.0), ValueError, "slope=0.0"),
        (lambda: ERNN(2, 3, well_posed="norm"), TypeError, "well_posed is 'norm'.*SpectralNorm"),
        (lambda: ERNN(2, 3, rank=4), ValueError, "rank=4 is not between 1 and hidden_size=3"),
        (lambda: ERNN(2, 3, rank=1, well_posed=Monotone()), ValueError, "rank=1 with Monotone"),
        (lambda: ERNN(2, 3, input_rank=3), ValueError, "input_rank=3 is not between 1 and 2"),
        (lambda: ERNN(2, 3, initial_norm=1.0), ValueError, "initial_norm=1.0.*0.95"),
        (lambda: ERNN(2, 3, initial_norm=-0.1), ValueError, "initial_norm=-0.1"),
        (lambda: ERNN(2, 3, leak=(NAN, 1.0)), ValueError, "leak has a=nan"),
        (lambda: Leak(1.0, INF), ValueError, "b=inf"),
        (lambda: Unrolled(steps=0), ValueError, "steps=0"),
        (lambda: Unrolled(steps=True), ValueError, "steps=True"),
        (lambda: Unrolled(step_size=-1.0), ValueError, "step_size=-1.0"),
        (lambda: Equilibrium(block=0), ValueError, "block=0"),
        (lambda: Equilibrium(on_failure="ignore"), ValueError, "on_failure is 'ignore'.*mask"),
        (
            lambda: ERNN(2, 3, leak=LEAKY, mode=Equilibrium(parallel=True)),
            ValueError,
            "parallel=True.*fix a = b",
        ),
    ],
)
def test_constructors_say_what_is_wrong(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.fixture
def net():
    return ERNN(2, 3, dtype=torch.float64)


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("x", "h0", "error", "message"),
    [
        (double(4, 2, 3), None, ValueError, r"input has the shape \(4, 2, 3\).*time, batch, 2"),
        (double(2), None, ValueError, r"input has the shape \(2,\)"),
        (double(4, 2, 1, 2), None, ValueError, "input has the shape"),
        (torch.randn(4, 2, 2), None, TypeError, "input is torch.float32.*torch.float64"),
        (torch.ones(4, 2, 2, dtype=torch.int64), None, TypeError, "input is torch.int64"),
        ([[1.0, 2.0]], None, TypeError, "input is a list"),
        (double(0, 2, 2), None, ValueError, r"\(0, 2, 2\), sequences of length 0"),
        (double(0, 2), None, ValueError, "length 0"),
        (double(4, 2, 2), double(2, 3), ValueError, r"h0 has the shape \(2, 3\).*\(1, 2, 3\)"),
        (double(4, 2), double(1, 1, 3), ValueError, r"h0 has the shape"),
        (double(4, 2, 2), torch.zeros(1, 2, 3), TypeError, "h0 is torch.float32"),
        (pack_sequence([double(3, 5)]), None, ValueError, "input packs data of the shape"),
        (pack_sequence([torch.zeros(3, 2)]), None, TypeError, "input is torch.float32"),
    ],
)
def test_networks_say_what_is_wrong(net, x, h0, error, message):
    with pytest.raises(error, match=message):
        net(x, h0)


@pytest.mark.parametrize(
    ("x", "h", "error", "message"),
    [
        (double(4, 3), None, ValueError, r"input has the shape \(4, 3\): pass \(batch, 2\)"),
        (double(4, 5, 2), None, ValueError, "input has the shape"),
        (torch.randn(2), None, TypeError, "input is torch.float32"),
        (double(4, 2), double(3), ValueError, r"hx has the shape \(3,\) where \(4, 3\)"),
        (double(2), torch.zeros(3), TypeError, "hx is torch.float32"),
        (None, None, TypeError, "input is a NoneType"),
    ],
)
def test_cells_say_what_is_wrong(x, h, error, message):
    with pytest.raises(error, match=message):
        ERNNCell(2, 3, dtype=torch.float64)(x, h)


def test_a_batch_without_sequences():
    out, h_n = ERNN(2, 3, mode=Equilibrium(parallel=False))(torch.zeros(4, 0, 2))
    assert out.shape == (4, 0, 3) and h_n.shape == (1, 0, 3)
    out, h_n = ERNN(2, 3)(torch.zeros(4, 0, 2))
    assert out.shape == (4, 0, 3) and h_n.shape == (1, 0, 3)


MASKED = Equilibrium(solver=SOLVER, adjoint=ADJOINT, on_failure="mask")
FAILING = {
    "parallel": {"mode": MASKED},
    "sequential": {
        "mode": Equilibrium(solver=SOLVER, adjoint=ADJOINT, on_failure="mask", parallel=False)
    },
    "leaky": {"mode": MASKED, "leak": LEAKY},
    "two-layers": {"mode": MASKED, "num_layers": 2},
}


def finite_sum(output):
    return torch.where(torch.isfinite(output), output, 0.0).square().sum()


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("name", FAILING)
def test_a_sequence_that_fails_leaves_the_others_alone(name, bad):
    torch.manual_seed(0)
    net = ERNN(2, 3, dtype=torch.float64, **FAILING[name])
    x, h0 = double(5, 4, 2), double(len(net.cells), 4, 3)
    broken = x.clone()
    broken[2, 1, 0] = bad
    others = [0, 2, 3]

    def outcome(x, h0):
        x, h0 = x.clone().requires_grad_(), h0.clone().requires_grad_()
        output, h_n = net(x, h0)
        slopes = torch.autograd.grad(finite_sum(output), (x, h0, *net.parameters()))
        return output.detach(), h_n.detach(), *slopes

    output, h_n, dx, dh0, *slopes = outcome(broken, h0)
    alone = outcome(x[:, others], h0[:, others])
    before = outcome(x[:2, [1]], h0[:, [1]])
    assert torch.isnan(output[2:, 1]).all() and torch.isnan(h_n[-1, 1]).all()
    same = {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close(output[:, others], alone[0], **same)
    torch.testing.assert_close(h_n[:, others], alone[1], **same)
    torch.testing.assert_close(dx[:, others], alone[2], **same)
    torch.testing.assert_close(dh0[:, others], alone[3], **same)
    # up to the failure the sequence has its states, and its part in the gradients
    torch.testing.assert_close(output[:2, 1], before[0].squeeze(1), **same)
    torch.testing.assert_close(dx[:2, [1]], before[2], **same)
    assert (dx[2:, 1] == 0).all()
    for ours, one, other in zip(slopes, alone[4:], before[4:], strict=True):
        torch.testing.assert_close(ours, one + other, rtol=1e-9, atol=1e-10)


def test_a_bad_start_fails_from_the_first_step(net):
    net = ERNN(2, 3, mode=MASKED, dtype=torch.float64)
    h0 = torch.zeros(1, 2, 3, dtype=torch.float64)
    h0[0, 1, 2] = NAN
    output, _ = net(double(4, 2, 2), h0)
    assert torch.isnan(output[:, 1]).all() and torch.isfinite(output[:, 0]).all()


@pytest.mark.parametrize("name", ["parallel", "leaky"])
def test_a_cell_masks_too(name):
    options = {k: v for k, v in FAILING[name].items() if k != "num_layers"}
    cell = ERNNCell(2, 3, dtype=torch.float64, **options)
    x = double(3, 2)
    clean = cell(x[[0, 2]])
    x[1, 1] = NAN
    x.requires_grad_()
    h = cell(x)
    torch.testing.assert_close(h[[0, 2]], clean, rtol=1e-12, atol=1e-12)
    assert torch.isnan(h[1]).all()
    slopes = torch.autograd.grad(finite_sum(h), (x, *cell.parameters()))
    assert all(torch.isfinite(g).all() for g in slopes) and (slopes[0][1] == 0).all()


@pytest.mark.parametrize("parallel", [True, False])
def test_a_failure_raises_unless_told_otherwise(parallel):
    x = double(4, 2, 2)
    x[1, 0, 0] = NAN
    with pytest.raises(ims.ConvergenceError, match="NONFINITE"):
        ERNN(2, 3, mode=Equilibrium(parallel=parallel), dtype=torch.float64)(x)
    warns = Equilibrium(parallel=parallel, on_failure="warn")
    with pytest.warns(ims.ConvergenceWarning, match="NONFINITE"):
        output, _ = ERNN(2, 3, mode=warns, dtype=torch.float64)(x)
    assert torch.isfinite(output[:, 1]).all()


def test_nan_in_one_sequence_of_unrolled_steps_stays_in_it():
    net = ERNN(2, 3, mode=Unrolled(steps=2), dtype=torch.float64)
    x = double(4, 2, 2)
    clean, _ = net(x)
    x[1, 0, 0] = NAN
    output, _ = net(x)
    assert torch.equal(output[:, 1], clean[:, 1])
    assert torch.isnan(output[1:, 0]).any(-1).all()


def test_spectral_norm_with_a_tiny_margin_still_converges():
    cell = ERNNCell(2, 4, well_posed=SpectralNorm(0.01), initial_norm=0.99, dtype=torch.float64)
    assert torch.isfinite(cell(double(2))).all()
