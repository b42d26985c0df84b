"""FastRNN, antisymmetric and implicit Euler networks against formulas and SciPy's flow."""

import numpy as np
import scipy.integrate
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from implicit_solvers.problems.ernn import Nonlinearity
from implicit_solvers.problems.ernn.baselines import AntisymmetricRNN, FastRNN, ImplicitEulerRNN
from tests.problems.ernn.networks import PHIS, SEQUENTIAL, double

DRAWN = {
    "phi": st.sampled_from(sorted(PHIS)),
    "inputs": st.integers(1, 3),
    "hidden": st.integers(1, 5),
    "norm": st.one_of(st.just(0.0), st.floats(0.1, 0.9)),
    "seed": st.integers(0, 999),
}


def run(kind, phi, inputs, hidden, norm, seed, **options):
    """Steps of a network: the state before, ``phi``'s argument, and the state after."""
    torch.manual_seed(seed)
    own = {"nonlinearity": PHIS[phi], "initial_norm": norm, "dtype": torch.float64}
    net = kind(inputs, hidden, **own, **options)
    x, h, cell = double(4, 2, inputs), double(1, 2, hidden), net.cells[0]
    output, h_n = net(x, h)
    assert torch.equal(h_n[0], output[-1])
    before = torch.cat([h, output[:-1]])
    W, U = cell.weight_input, cell.coefficients().U
    return before, lambda state: state @ U.T + x @ W.T + cell.bias, output


@given(**DRAWN, logits=st.tuples(st.floats(-4, 4, width=32), st.floats(-4, 4, width=32)))
def test_fastrnn_is_its_formula(phi, logits, **drawn):
    before, inner, after = run(FastRNN, phi, **drawn, alpha=logits[0], beta=logits[1])
    a, b = torch.tensor(logits, dtype=torch.float64).sigmoid()
    expected = a * PHIS[phi](inner(before)) + b * before
    torch.testing.assert_close(after, expected, rtol=1e-12, atol=1e-13)


@given(**DRAWN, step_size=st.floats(0.05, 4), diffusion=st.floats(0, 2))
def test_antisymmetric_rnn_is_its_formula(phi, step_size, diffusion, **drawn):
    options = {"step_size": step_size, "diffusion": diffusion}
    before, inner, after = run(AntisymmetricRNN, phi, **drawn, **options)
    expected = before + step_size * PHIS[phi](inner(before))
    torch.testing.assert_close(after, expected, rtol=1e-12, atol=1e-13)


def test_a_linear_antisymmetric_network_is_a_rotation():
    """With phi = id, no input and diffusion, many small steps are exp(t (M - M^T - d I))."""
    torch.manual_seed(0)
    phi = Nonlinearity(lambda z: 1.0 * z, slope=1.0)
    options = {"nonlinearity": phi, "step_size": 1e-4, "bias": False, "dtype": torch.float64}
    net = AntisymmetricRNN(1, 3, diffusion=0.5, **options)
    M, h = net.cells[0].recurrent.weight.detach(), double(1, 1, 3)
    _, h_n = net(torch.zeros(1000, 1, 1, dtype=torch.float64), h)
    A = (M - M.T).numpy()
    expected = scipy.linalg.expm(0.1 * (A - 0.5 * np.eye(3))) @ h[0, 0].numpy()
    np.testing.assert_allclose(h_n[0, 0].detach().numpy(), expected, rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(expected), np.exp(-0.05) * h.norm().item())


@given(**DRAWN, step_size=st.floats(0.05, 4))
def test_a_step_of_implicit_euler_solves_its_equation(phi, step_size, **drawn):
    options = {"step_size": step_size, "mode": SEQUENTIAL}
    before, inner, after = run(ImplicitEulerRNN, phi, **drawn, **options)
    expected = before + step_size * (PHIS[phi](inner(after)) - after)
    # the solver's tolerance, 3e-14, times steps of up to 4
    torch.testing.assert_close(after, expected, rtol=1e-11, atol=1e-11)


def test_fastrnn_begins_as_the_authors_code():
    net = FastRNN(3, 4)
    assert (net.cells[0].alpha.item(), net.cells[0].beta.item()) == (-3, 3)
    assert sum(p.numel() for p in net.parameters()) == 4 * 4 + 4 * 3 + 4 + 2


def test_implicit_euler_converges_to_the_flow_of_first_order():
    x, errors = double(2), []
    for steps in (10, 20, 40):
        torch.manual_seed(0)  # the same weights
        options = {"step_size": 2 / steps, "mode": SEQUENTIAL, "initial_norm": 0.9}
        net = ImplicitEulerRNN(2, 3, **options, dtype=torch.float64)
        cell = net.cells[0]
        U, d = cell.coefficients().U.detach().numpy(), cell.drive(x).detach().numpy()
        right = lambda _, h, U=U, d=d: np.tanh(U @ h + d) - h
        flow = scipy.integrate.solve_ivp(right, (0, 2), np.zeros(3), rtol=1e-11, atol=1e-12).y
        _, h_n = net(x.expand(steps, 1, 2))
        errors.append(np.abs(h_n[0, 0].detach().numpy() - flow[:, -1]).max())
    ratios = np.divide(errors[:-1], errors[1:])
    assert errors[0] < 0.1 and (abs(ratios - 2) < 0.3).all()
