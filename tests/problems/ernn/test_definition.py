"""The cell's equation against SciPy, closed forms, and loops written out."""

import ast
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacrev, vmap

import implicit_solvers as ims
from implicit_solvers.problems.ernn import (
    Equilibrium,
    ERNNCell,
    Leak,
    Monotone,
    Unconstrained,
    Unrolled,
    definition,
)
from implicit_solvers.problems.ernn.definition import Coefficients, equilibrium, evolution, scan
from implicit_solvers.testing import assert_implicit_gradients
from tests.problems.ernn.networks import ADJOINT, PHIS, SLOPES, SOLVER
from tests.problems.imaml.test_definition import logic_lines

TIGHT = {"solver": SOLVER, "adjoint": ADJOINT}
NUMPY = {
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float)),
}
leaks = st.tuples(st.floats(-3, 3), st.floats(-2, 2))


def drawn(seed, hidden, share, gamma, leak, phi="tanh"):
    """A drive, a state before, and coefficients with ``slope |U| = share gamma``."""
    g = torch.Generator().manual_seed(seed)
    U = torch.randn(hidden, hidden, generator=g, dtype=torch.float64)
    U = U * share * gamma / (SLOPES[phi] * torch.linalg.matrix_norm(U, 2))
    drive, previous = torch.randn(2, hidden, generator=g, dtype=torch.float64)
    return drive, previous, Coefficients(U, *torch.tensor([gamma, *leak], dtype=torch.float64))


def scipy_state(drive, previous, c, phi):
    """The root of the evolution, by MINPACK."""
    f, slope = NUMPY[phi]
    U, d, p = c.U.numpy(), drive.numpy(), previous.numpy()
    gamma, a, b = float(c.gamma), float(c.a), float(c.b)

    def equation(h):
        return f(U @ (h + a * p) + d) - gamma * (h + b * p)

    def jacobian(h):
        return slope(U @ (h + a * p) + d)[:, None] * U - gamma * np.eye(len(d))

    root = scipy.optimize.root(equation, np.zeros(len(d)), jac=jacobian, tol=1e-14)
    assert np.abs(equation(root.x)).max() < 1e-10
    return root.x, jacobian(root.x)


@pytest.mark.parametrize("phi", PHIS)
@given(
    seed=st.integers(0, 10**6),
    hidden=st.integers(1, 5),
    share=st.floats(0, 0.9),
    gamma=st.floats(0.3, 3),
    leak=leaks,
)
def test_equilibrium_and_its_jacobian(phi, seed, hidden, share, gamma, leak):
    drive, previous, c = drawn(seed, hidden, share, gamma, leak, phi)
    expected, slopes = scipy_state(drive, previous, c, phi)

    def state(previous):
        return equilibrium(drive, previous, c, PHIS[phi], torch.zeros_like(drive), **TIGHT)

    h, J = state(previous), jacrev(state)(previous)
    # SciPy's residual is below 1e-10, and |(Phi U - gamma)^-1| below 1 / (0.1 gamma)
    np.testing.assert_allclose(h.numpy(), expected, atol=1e-8)
    assert evolution(h, previous, drive, c, PHIS[phi]).abs().max() < 1e-13 * max(1, gamma * 10)

    # -(Phi U - gamma)^-1 (a Phi U - b gamma)
    a, b, eye = leak[0], leak[1], np.eye(hidden)
    PhiU = slopes + gamma * eye
    formula = -np.linalg.solve(slopes, a * PhiU - b * gamma * eye)
    np.testing.assert_allclose(J.numpy(), formula, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@given(seed=st.integers(0, 10**6), hidden=st.integers(1, 6), share=st.floats(0, 0.9))
def test_published_coefficients_give_minus_and_plus_the_identity(sign, seed, hidden, share):
    drive, previous, c = drawn(seed, hidden, share, 1.0, (sign, sign))
    J = jacrev(lambda p: equilibrium(drive, p, c, torch.tanh, torch.zeros_like(drive), **TIGHT))(
        previous
    )
    np.testing.assert_allclose(J.numpy(), -sign * np.eye(hidden), atol=1e-12)


def test_no_regularity_of_u_is_needed():
    # U of rank one: Phi U - gamma is regular, and so the Jacobian is -I
    cell = ERNNCell(2, 4, rank=1, mode=Equilibrium(**TIGHT), dtype=torch.float64)
    x, h = torch.randn(2, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    assert np.linalg.matrix_rank(cell.coefficients().U.detach().numpy()) == 1
    J = torch.autograd.functional.jacobian(lambda h: cell(x, h), h)
    np.testing.assert_allclose(J.numpy(), -np.eye(4), atol=1e-12)


@pytest.mark.parametrize(("steps", "distance"), [(1, 0.7), (5, 0.16)])
def test_a_few_steps_are_far_from_minus_the_identity(steps, distance):
    # one Gaussian U of norm 0.7, drive 0, state before 0: J + I = (U)^K exactly
    torch.manual_seed(0)
    U = torch.randn(16, 16, dtype=torch.float64)
    U = U * 0.7 / torch.linalg.matrix_norm(U, 2)
    zeros = torch.zeros(16, dtype=torch.float64)
    c = Coefficients(U, *torch.ones(3, dtype=torch.float64))
    ones = torch.ones(steps, dtype=torch.float64)
    J = jacrev(lambda p: definition.unrolled(zeros, p, c, torch.tanh, ones))(zeros)
    powers = np.linalg.matrix_power(U.numpy(), steps)
    np.testing.assert_allclose(J.numpy() + np.eye(16), powers, atol=1e-12)
    assert np.linalg.norm(powers, 2) <= 0.7**steps + 1e-12 <= distance + 0.02


def test_small_steps_make_the_jacobian_vanish():
    drive, previous, c = drawn(0, 6, 0.7, 1.0, (1.0, 1.0))
    steps = torch.full((3,), 1e-3, dtype=torch.float64)
    J = jacrev(lambda p: definition.unrolled(drive, p, c, torch.tanh, steps))(previous)
    assert torch.linalg.matrix_norm(J, 2) < 0.01


@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.floats(0.05, 1.5), min_size=1, max_size=5),
    leak=leaks,
    gamma=st.floats(0.3, 3),
)
def test_unrolled_steps_against_a_loop(seed, sizes, leak, gamma):
    drive, previous, c = drawn(seed, 3, 0.9, gamma, leak)
    tensors = [t.clone().requires_grad_() for t in (drive, previous, *c, torch.tensor(sizes))]
    drive, previous, U, gamma, a, b, steps = tensors
    steps.data = steps.data.double()
    c = Coefficients(U, gamma, a, b)
    ours = definition.unrolled(drive, previous, c, torch.tanh, steps)

    h = torch.zeros(3, dtype=torch.float64)
    for eta in steps.unbind():
        inside = torch.stack([(U[i] * (h + a * previous)).sum() + drive[i] for i in range(3)])
        h = (1 - eta * gamma) * h + eta * torch.tanh(inside) - eta * gamma * b * previous
    torch.testing.assert_close(ours, h, rtol=1e-12, atol=1e-12)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    wanted = (drive, previous, U, gamma, a, b, steps)
    for mine, theirs in zip(
        torch.autograd.grad(ours @ weights, wanted),
        torch.autograd.grad(h @ weights, wanted),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@given(
    seed=st.integers(0, 10**6),
    time=st.integers(1, 40),
    factor=st.sampled_from([1.0, -1.0, 0.0, 0.5, -1.3]),
    span=st.integers(1, 16),
)
def test_scan_against_a_loop(seed, time, factor, span):
    rng = np.random.default_rng(seed)
    s, h = rng.normal(size=(time, 2, 3)), rng.normal(size=(2, 3))
    ours = scan(torch.from_numpy(s), torch.from_numpy(h), factor, span).numpy()
    expected = []
    for row in s:
        h = row - factor * h
        expected.append(h)
    # |factor|^T at most 1.3^40 = 4e4
    np.testing.assert_allclose(ours, np.stack(expected), rtol=1e-10, atol=1e-9)


def test_scan_is_exact_over_a_thousand_steps():
    s = torch.ones(1001, 1, dtype=torch.float64)
    plus = scan(s, torch.zeros(1, dtype=torch.float64), -1.0)
    minus = scan(s, torch.zeros(1, dtype=torch.float64), 1.0)
    assert plus.squeeze(1).tolist() == list(range(1, 1002))
    assert minus.squeeze(1).tolist() == [(k + 1) % 2 for k in range(1001)]


@pytest.mark.parametrize("leak", [(1.0, 1.0), (-1.0, -1.0), (2.0, -0.25)], ids=str)
def test_the_library_s_own_check_of_an_equilibrium(leak):
    drive, previous, c = drawn(3, 3, 0.6, 1.2, leak)

    def layer(drive, previous, U, gamma, a, b):
        c = Coefficients(U, gamma, a, b)
        return equilibrium(drive, previous, c, torch.tanh, torch.zeros_like(drive))

    assert_implicit_gradients(layer, args=(drive, previous, *c), order=2)


@pytest.mark.parametrize("phi", ["tanh", "sigmoid"])
@pytest.mark.parametrize("well_posed", [None, Monotone(), Unconstrained()], ids=str)
def test_the_library_s_own_check_of_a_cell(well_posed, phi):
    cell = ERNNCell(2, 3, nonlinearity=PHIS[phi], well_posed=well_posed, leak=Leak(2, 0.5, True))
    x, h = torch.randn(2), torch.randn(3)
    assert_implicit_gradients(cell, args=(x, h), double=True, order=1)


@pytest.mark.parametrize("mode", [Equilibrium(**TIGHT), Unrolled(steps=3)], ids=["implicit", "K=3"])
def test_vmap_over_the_cell_equals_the_loop(mode):
    cell = ERNNCell(2, 3, mode=mode, leak=Leak(1.5, -0.2), dtype=torch.float64)
    x, h = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    looped = torch.stack([cell(x[i], h[i]) for i in range(4)])
    torch.testing.assert_close(vmap(cell)(x, h), looped, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cell(x, h), looped, rtol=1e-12, atol=1e-12)
    jacobians = torch.stack([jacrev(cell, argnums=1)(x[i], h[i]) for i in range(4)])
    torch.testing.assert_close(
        vmap(jacrev(cell, argnums=1))(x, h), jacobians, rtol=1e-10, atol=1e-12
    )


def test_vmap_over_parameters():
    cell = ERNNCell(
        2, 3, mode=Equilibrium(**TIGHT), well_posed=Unconstrained(), dtype=torch.float64
    )
    x, h = torch.randn(2, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    scales = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    state = dict(cell.named_parameters())

    def scaled(scale):
        inner = {**state, "recurrent.weight": scale * state["recurrent.weight"]}
        return torch.func.functional_call(cell, inner, (x, h))

    looped = torch.stack([scaled(scale) for scale in scales])
    torch.testing.assert_close(vmap(scaled)(scales), looped, rtol=1e-10, atol=1e-12)


def test_the_definition_fits_on_a_page():
    assert logic_lines(Path(definition.__file__).read_text()) <= 60


def test_the_definition_uses_public_names_only():
    tree = ast.parse(Path(definition.__file__).read_text())
    imports = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    modules = [node.module for node in imports if isinstance(node, ast.ImportFrom)]
    modules += [a.name for node in imports if isinstance(node, ast.Import) for a in node.names]
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "ims"
    }
    ours = {name for name in modules if name.split(".")[0] == "implicit_solvers"}
    assert ours == {"implicit_solvers"}
    assert used and used <= set(ims.__all__)
