"""The in-place loop against the library's general path."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import implicit_solvers as ims
from implicit_solvers.problems.ernn import ERNN, Equilibrium
from implicit_solvers.problems.ernn.definition import memoryless
from implicit_solvers.problems.ernn.fused import FUSED, fused_memoryless
from tests.problems.ernn.networks import ADJOINT, SOLVER

TIGHT = {"solver": SOLVER, "adjoint": ADJOINT}
PHIS = {"sigmoid": torch.sigmoid, "relu": torch.relu}


def drawn(seed, lanes, hidden, slope, q=0.5):
    """A drive and a G such that the iteration contracts by q at least."""
    g = torch.Generator().manual_seed(seed)
    G = torch.randn(hidden, hidden, generator=g, dtype=torch.float64)
    G = G * q / (torch.linalg.matrix_norm(G, 2) * slope / 2)
    return torch.randn(lanes, hidden, generator=g, dtype=torch.float64), G


def both(drive, G, phi, share):
    """Values and gradients of the fused and the general path."""
    found = []
    for path in ("fused", "general"):
        d, M = (t.clone().requires_grad_() for t in (drive, G))
        if path == "fused":
            y = fused_memoryless(d, M, phi, share, solver=ims.FixedPointIteration(max_steps=0))
        else:
            y = phi(memoryless(d, M, phi, share, **TIGHT))
        weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
        found.append((y.detach(), *torch.autograd.grad((y * weights).sum(), (d, M))))
    return found


@pytest.mark.parametrize("name", PHIS)
@given(seed=st.integers(0, 10**6), lanes=st.integers(1, 6), hidden=st.integers(1, 5))
@settings(max_examples=15)
def test_values_and_gradients_equal_those_of_the_general_path(name, seed, lanes, hidden):
    # the solver that is given to the fused path makes no step: the general path would raise
    slope = {"sigmoid": 0.25, "relu": 1.0}[name]
    drive, G = drawn(seed, lanes, hidden, slope)
    fused, general = both(drive, G, PHIS[name], slope / 2)
    for ours, theirs in zip(fused, general, strict=True):
        # the defaults, 1.8e-12 and 3.7e-11 relative, of sums over up to 6 lanes
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PHIS)
def test_slopes_are_those_of_autograd(name):
    z = torch.randn(50, dtype=torch.float64, requires_grad=True)
    y = PHIS[name](z)
    expected = torch.autograd.grad(y.sum(), z)[0]
    in_place, slope = FUSED[PHIS[name]]
    torch.testing.assert_close(slope(y.detach()), expected, rtol=1e-13, atol=1e-15)
    assert torch.equal(in_place(z.detach(), out=torch.empty(50, dtype=torch.float64)), y.detach())


def test_second_order_goes_through_the_general_path():
    drive, G = drawn(0, 2, 2, 0.25)
    sizes = (drive.shape, G.shape)

    def value(flat):
        d, M = flat[:4].reshape(sizes[0]), flat[4:].reshape(sizes[1])
        return fused_memoryless(d, M, torch.sigmoid, 0.125, **TIGHT).square().sum()

    flat = torch.cat([drive.flatten(), G.flatten()])
    assert torch.autograd.gradcheck(value, flat.clone().requires_grad_(), atol=1e-8)
    assert torch.autograd.gradgradcheck(value, flat.clone().requires_grad_(), atol=1e-7)
    plain = torch.autograd.functional.hessian(value, flat)
    transformed = torch.func.hessian(value)(flat)
    torch.testing.assert_close(plain, transformed, rtol=1e-8, atol=1e-9)


def test_transforms_and_forward_mode_go_through_the_general_path():
    drive, G = drawn(1, 3, 2, 0.25)

    def state(d):
        return fused_memoryless(d, G, torch.sigmoid, 0.125, **TIGHT)

    reverse = torch.autograd.functional.jacobian(state, drive)
    forward = torch.func.jacfwd(state)(drive)
    torch.testing.assert_close(forward, reverse, rtol=1e-9, atol=1e-9)
    tangent = torch.randn_like(drive)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(drive, tangent)
        pushed = torch.autograd.forward_ad.unpack_dual(state(dual)).tangent
    expected = torch.einsum("abcd,cd->ab", reverse, tangent)
    torch.testing.assert_close(pushed, expected, rtol=1e-9, atol=1e-9)
    batch = torch.stack([drive, 2 * drive])
    one_by_one = torch.stack([state(d) for d in batch])
    torch.testing.assert_close(torch.func.vmap(state)(batch), one_by_one, rtol=1e-9, atol=1e-10)


def test_a_lane_that_fails_is_left_to_the_general_path():
    drive, G = drawn(2, 3, 2, 0.25)
    drive[1, 0] = torch.nan
    with pytest.raises(ims.ConvergenceError, match="NONFINITE"):
        fused_memoryless(drive, G, torch.sigmoid, 0.125)
    masked = fused_memoryless(drive, G, torch.sigmoid, 0.125, on_failure="mask")
    clean = fused_memoryless(drive[[0, 2]], G, torch.sigmoid, 0.125)
    torch.testing.assert_close(masked[[0, 2]], clean, rtol=1e-10, atol=1e-10)
    # z = 2 relu(z) + 1 has no solution that an iteration finds
    with pytest.raises(ims.ConvergenceError):
        diverging = 2 * torch.eye(1, dtype=torch.float64)
        fused_memoryless(torch.ones(1, 1).double(), diverging, torch.relu, 0.0)


def test_a_gradient_that_fails_is_left_to_the_general_path():
    drive, G = (t.requires_grad_() for t in drawn(3, 2, 2, 0.25))
    y = fused_memoryless(drive, G, torch.sigmoid, 0.125)
    g = torch.ones_like(y)
    g[0, 0] = torch.nan
    with pytest.raises(ims.ConvergenceError, match="adjoint"):
        torch.autograd.grad(y, (drive, G), g)


@pytest.mark.parametrize("nonlinearity", [torch.tanh, torch.sigmoid, torch.relu])
@pytest.mark.parametrize("learned", [True, False])
def test_networks_take_it_by_default(nonlinearity, learned, monkeypatch):
    torch.manual_seed(0)
    options = {"nonlinearity": nonlinearity, "learn_gamma": learned, "dtype": torch.float64}
    net = ERNN(2, 3, **options)
    general = ERNN(2, 3, mode=Equilibrium(**TIGHT), **options)
    general.load_state_dict(net.state_dict())
    x = torch.randn(5, 2, 2, dtype=torch.float64)
    slopes = [
        torch.autograd.grad(n(x)[0].square().sum(), [*n.parameters()]) for n in (net, general)
    ]
    for ours, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    calls = []
    monkeypatch.setattr(ims, "fixed_point", lambda *_, **__: calls.append(1))
    net(x)
    assert not calls
    with pytest.raises(AttributeError):
        general(x)
    assert calls
