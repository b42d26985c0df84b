"""The cell's equation against SciPy, closed forms, and loops written out."""

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call, jacrev, vmap

import implicit_solvers.problems.ernn.definition as definition
from implicit_solvers.problems.ernn import ERNNCell, Leak, Monotone, Unconstrained, Unrolled
from implicit_solvers.problems.ernn.definition import Coefficients, equilibrium
from implicit_solvers.testing import assert_implicit_gradients
from tests.problems.ernn.networks import EXACT, PHIS, SLOPES, TIGHT, double

NUMPY = {
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float)),
}
seeds = st.integers(0, 10**6)
gammas = st.floats(0.3, 3)
leaks = st.one_of(
    st.tuples(st.floats(-3, 3), st.floats(-2, 2)), st.sampled_from([(1.0, 1.0), (-1.0, -1.0)])
)


def drawn(seed, hidden, share, gamma, leak, phi="tanh", rank=9):
    """A drive, a state before, and coefficients with ``slope |U| = share gamma``."""
    g = torch.Generator().manual_seed(seed)
    U = torch.randn(hidden, hidden, generator=g, dtype=torch.float64)
    U[rank:] = 0
    U = U * share * gamma / (SLOPES[phi] * torch.linalg.matrix_norm(U, 2))
    drive, previous = torch.randn(2, hidden, generator=g, dtype=torch.float64)
    return drive, previous, Coefficients(U, *torch.tensor([gamma, *leak], dtype=torch.float64))


def scipy_state(drive, previous, c, phi):
    """The root of the evolution, by MINPACK, and the matrix ``Phi U`` there."""
    f, slope = NUMPY[phi]
    U, d, p, gamma, a, b = (t.numpy() for t in (c.U, drive, previous, c.gamma, c.a, c.b))
    slopes = lambda h: slope(U @ (h + a * p) + d)[:, None] * U
    equation = lambda h: f(U @ (h + a * p) + d) - gamma * (h + b * p)
    jacobian = lambda h: slopes(h) - gamma * np.eye(len(d))
    root = scipy.optimize.root(equation, np.zeros(len(d)), jac=jacobian, tol=1e-14)
    assert np.abs(equation(root.x)).max() < 1e-10
    return root.x, slopes(root.x)


@pytest.mark.parametrize("phi", PHIS)
@given(
    seed=seeds,
    hidden=st.integers(1, 5),
    rank=st.integers(1, 5),
    share=st.floats(0, 0.9),
    gamma=gammas,
    leak=leaks,
)
def test_equilibrium_and_its_jacobian(phi, seed, hidden, rank, share, gamma, leak):
    drive, previous, c = drawn(seed, hidden, share, gamma, leak, phi, rank)
    expected, PhiU = scipy_state(drive, previous, c, phi)
    state = lambda p: equilibrium(drive, p, c, PHIS[phi], torch.zeros_like(drive), **TIGHT)
    h, J = state(previous), jacrev(state)(previous)
    # SciPy's residual is below 1e-10, and |(Phi U - gamma)^-1| below 1 / (0.1 gamma)
    np.testing.assert_allclose(h.numpy(), expected, atol=1e-8)
    assert definition.evolution(h, previous, drive, c, PHIS[phi]).abs().max() < 1e-13 * max(
        1, gamma * 10
    )
    (a, b), eye = leak, np.eye(hidden)
    formula = -np.linalg.solve(PhiU - gamma * eye, a * PhiU - b * gamma * eye)
    np.testing.assert_allclose(J.numpy(), formula, rtol=1e-7, atol=1e-7)
    if a == b:  # as published: minus or plus the identity, and U need not be regular
        np.testing.assert_allclose(J.numpy(), -a * eye, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 5])
def test_a_few_steps_are_far_from_minus_the_identity(steps):
    # one Gaussian U of norm 0.7, drive 0, state before 0: J + I = (U)^K exactly
    c, zeros = drawn(0, 16, 0.7, 1.0, (1.0, 1.0), rank=16)[2], torch.zeros(16).double()
    ones = torch.ones(steps, dtype=torch.float64)
    J = jacrev(lambda p: definition.unrolled(zeros, p, c, torch.tanh, ones))(zeros)
    powers = np.linalg.matrix_power(c.U.numpy(), steps)
    np.testing.assert_allclose(J.numpy() + np.eye(16), powers, atol=1e-12)


@given(
    seed=seeds,
    sizes=st.lists(st.floats(0.05, 1.5), min_size=1, max_size=5),
    leak=leaks,
    gamma=gammas,
)
def test_unrolled_steps_against_a_loop(seed, sizes, leak, gamma):
    drive, previous, c = drawn(seed, 3, 0.9, gamma, leak)
    wanted = (drive, previous, *c, torch.tensor(sizes, dtype=torch.float64))
    wanted = drive, previous, U, gamma, a, b, steps = [t.clone().requires_grad_() for t in wanted]
    ours = definition.unrolled(drive, previous, Coefficients(U, gamma, a, b), torch.tanh, steps)
    h = torch.zeros(3, dtype=torch.float64)
    for eta in steps.unbind():
        inside = torch.stack([(U[i] * (h + a * previous)).sum() + drive[i] for i in range(3)])
        h = (1 - eta * gamma) * h + eta * torch.tanh(inside) - eta * gamma * b * previous
    torch.testing.assert_close(ours, h, rtol=1e-12, atol=1e-12)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    mine, theirs = (torch.autograd.grad(state @ weights, wanted) for state in (ours, h))
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@given(
    seed=seeds,
    time=st.integers(1, 40),
    factor=st.sampled_from([1.0, -1.0, 0.0, 0.5, -1.3]),
    span=st.integers(1, 16),
)
def test_scan_against_a_loop(seed, time, factor, span):
    rng = np.random.default_rng(seed)
    s, h = rng.normal(size=(time, 2, 3)), rng.normal(size=(2, 3))
    ours = definition.scan(torch.from_numpy(s), torch.from_numpy(h), factor, span).numpy()
    expected = []
    for row in s:
        h = row - factor * h
        expected.append(h)
    # |factor|^T at most 1.3^40 = 4e4
    np.testing.assert_allclose(ours, np.stack(expected), rtol=1e-10, atol=1e-9)


def test_scan_is_exact_over_a_thousand_steps():
    s, zero = torch.ones(1001, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    assert definition.scan(s, zero, -1.0).tolist() == list(range(1, 1002))
    assert definition.scan(s, zero, 1.0).tolist() == [(k + 1) % 2 for k in range(1001)]


def test_a_traced_scan_alternates_too():
    traced = torch.compile(definition.scan, backend="eager")
    assert traced(torch.ones(3), torch.tensor(5.0), 1.0).tolist() == [-4.0, 5.0, -4.0]


CHECKED = [(None, leak, 2) for leak in [(1.0, 1.0), (-1.0, -1.0), (2.0, -0.25)]]
CHECKED += [(well_posed, (2.0, 0.5), 1) for well_posed in (Monotone(), Unconstrained())]


@pytest.mark.parametrize("phi", ["tanh", "sigmoid"])
@pytest.mark.parametrize(("well_posed", "leak", "order"), CHECKED, ids=str)
def test_the_library_s_own_check(phi, well_posed, leak, order):
    options = {"nonlinearity": PHIS[phi], "well_posed": well_posed, "leak": Leak(*leak, True)}
    cell, args = ERNNCell(2, 3, **options), (torch.randn(2), torch.randn(3))
    assert_implicit_gradients(cell, args=args, double=True, order=order)


@pytest.mark.parametrize("mode", [EXACT, Unrolled(steps=3)], ids=["implicit", "K=3"])
def test_vmap_over_states_and_over_parameters_equals_the_loop(mode):
    options = {"mode": mode, "leak": Leak(1.5, -0.2), "well_posed": Unconstrained()}
    cell = ERNNCell(2, 3, **options, dtype=torch.float64)
    x, h, close = double(4, 2), double(4, 3), {"rtol": 1e-10, "atol": 1e-12}
    looped = torch.stack([cell(x[i], h[i]) for i in range(4)])
    for whole in (vmap(cell)(x, h), cell(x, h)):
        torch.testing.assert_close(whole, looped, rtol=1e-12, atol=1e-12)
    slope = jacrev(cell, argnums=1)
    jacobians = torch.stack([slope(x[i], h[i]) for i in range(4)])
    torch.testing.assert_close(vmap(slope)(x, h), jacobians, **close)
    state = dict(cell.named_parameters())

    def scaled(scale):
        inner = {**state, "recurrent.weight": scale * state["recurrent.weight"]}
        return functional_call(cell, inner, (x[0], h[0]))

    scales = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    torch.testing.assert_close(vmap(scaled)(scales), torch.stack([*map(scaled, scales)]), **close)
