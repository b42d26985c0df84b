"""Parametrizations, margins, projection, against NumPy's singular values and eigenvalues."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import implicit_solvers as ims
from implicit_solvers.problems.ernn import (
    ERNN,
    Equilibrium,
    ERNNCell,
    Monotone,
    SpectralNorm,
    Unconstrained,
    Unrolled,
)
from implicit_solvers.problems.ernn.initialization import factors_of, nearly_orthogonal
from tests.problems.ernn.networks import PHIS, SLOPES


def scrambled(cell, seed, size):
    """Replace the free matrices by random ones of any size."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in cell.recurrent.parameters():
            weight.copy_(size * torch.randn(weight.shape, generator=g))
    return cell.coefficients().U.detach().numpy(), cell.gamma.item()


def symmetric_part(U):
    return np.linalg.eigvalsh((U + U.T) / 2)


@given(
    seed=st.integers(0, 10**6),
    size=st.one_of(st.just(0.0), st.floats(1e-3, 30)),
    margin=st.floats(0.01, 0.9),
    gamma=st.floats(0.3, 3),
    rank=st.sampled_from([None, 1, 2]),
    phi=st.sampled_from(list(PHIS)),
)
def test_spectral_norm_stays_below_gamma(seed, size, margin, gamma, rank, phi):
    cell = ERNNCell(
        2,
        4,
        nonlinearity=PHIS[phi],
        gamma=gamma,
        rank=rank,
        well_posed=SpectralNorm(margin),
        initial_norm=0.0,
        dtype=torch.float64,
    )
    U, gamma = scrambled(cell, seed, size)
    weights = [w.detach().numpy() for w in cell.recurrent.parameters()]
    V = weights[0] @ weights[1] if rank else weights[0]
    norms = [np.linalg.svd(M, compute_uv=False)[0] for M in (U, V)]
    bound = (1 - margin) * gamma / SLOPES[phi]
    np.testing.assert_allclose(norms[0], min(norms[1], bound), rtol=1e-10, atol=1e-12)
    if norms[1] > 0:
        np.testing.assert_allclose(U * norms[1], V * norms[0], rtol=1e-9, atol=1e-9)
    assert np.linalg.matrix_rank(U) <= (rank or 4)
    lower = 1 - SLOPES[phi] * norms[0] / gamma
    reported = cell.margin()
    expected = 1 - SLOPES[phi] * symmetric_part(U)[-1] / gamma
    np.testing.assert_allclose(reported, expected, rtol=1e-9, atol=1e-9)
    assert reported >= lower - 1e-9 >= margin - 2e-9


@given(
    seed=st.integers(0, 10**6),
    size=st.floats(1e-3, 5),
    margin=st.floats(0.01, 0.9),
    gamma=st.floats(0.3, 3),
)
@settings(max_examples=15)
def test_monotone_bounds_the_symmetric_part(seed, size, margin, gamma):
    well_posed = Monotone(margin)
    cell = ERNNCell(2, 4, gamma=gamma, well_posed=well_posed, initial_norm=0.0, dtype=torch.float64)
    U, gamma = scrambled(cell, seed, size)
    A, B = cell.recurrent.weight_a.detach().numpy(), cell.recurrent.weight_b.detach().numpy()
    expected = (1 - margin) * gamma * np.eye(4) - A.T @ A + B - B.T
    np.testing.assert_allclose(U, expected, rtol=1e-12, atol=1e-12)
    assert symmetric_part(U)[-1] <= (1 - margin) * gamma + 1e-9
    np.testing.assert_allclose(
        cell.margin(), 1 - symmetric_part(U)[-1] / gamma, rtol=1e-9, atol=1e-9
    )
    # whatever the slopes, Phi U - gamma is regular, and the equilibrium found the only one
    rng = np.random.default_rng(seed)
    Phi = np.diag(rng.random(4))
    assert np.linalg.svd(Phi @ U - gamma * np.eye(4), compute_uv=False)[-1] > 0
    x = torch.randn(2, dtype=torch.float64)
    h = cell(x)
    c = cell.coefficients()
    assert (torch.tanh(c.U @ h + cell.drive(x)) - c.gamma * h).abs().max() < 1e-9


@pytest.mark.parametrize("well_posed", [SpectralNorm(), Monotone(), Unconstrained()], ids=str)
def test_training_begins_at_the_norm_asked_for(well_posed):
    cell = ERNNCell(3, 6, well_posed=well_posed, initial_norm=0.4, dtype=torch.float64)
    U = cell.coefficients().U.detach().numpy()
    values = np.linalg.svd(U, compute_uv=False)
    np.testing.assert_allclose(values[0], 0.4, rtol=1e-5)
    assert values[-1] > 0.35


def test_training_against_the_bound_keeps_the_margin():
    torch.manual_seed(0)
    net = ERNN(2, 4, batch_first=True, well_posed=SpectralNorm(0.1), learn_gamma=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=5.0)
    x = torch.randn(8, 3, 2)
    for _ in range(10):
        loss = -net(x)[0].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert net.margin() >= 0.1 - 1e-5
    norm = np.linalg.norm(net.cells[0].recurrent.weight.detach().numpy(), 2)
    assert norm > 1  # what is trained has left the ball


def test_a_matrix_that_breaks_regularity_is_an_error_with_margin_and_fix():
    cell = ERNNCell(2, 3, well_posed=Unconstrained(), dtype=torch.float64)
    with torch.no_grad():
        cell.recurrent.weight.copy_(1.25 * torch.eye(3))
    x = torch.randn(4, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"margin -0\.25.*SpectralNorm.*project_"):
        cell(x)
    net = ERNN(2, 3, well_posed=Unconstrained(), dtype=torch.float64)
    net.cells[0].load_state_dict(cell.state_dict())
    assert net.margin() == pytest.approx(-0.25)
    with pytest.raises(ValueError, match=r"margin -0\.25"):
        net(x)
    net.project_(margin=0.2)
    U = net.cells[0].coefficients().U.detach().numpy()
    np.testing.assert_allclose(U, 0.8 * np.eye(3), rtol=1e-12)
    assert net.margin() == pytest.approx(0.2)
    net(x)
    before = U.copy()
    net.project_(margin=0.1)  # inside already
    assert np.array_equal(net.cells[0].coefficients().U.detach().numpy(), before)


def test_projection_of_a_low_rank_matrix():
    cell = ERNNCell(2, 4, rank=2, well_posed=Unconstrained(), initial_norm=3.0, dtype=torch.float64)
    with pytest.raises(ValueError, match="margin"):
        cell(torch.randn(2, dtype=torch.float64))
    cell.project_()
    U = cell.coefficients().U.detach().numpy()
    np.testing.assert_allclose(np.linalg.svd(U, compute_uv=False)[0], 0.95, rtol=1e-9)
    assert np.linalg.matrix_rank(U) == 2


@pytest.mark.parametrize("margin", [0.0, 1.0, -1.0, math.nan])
def test_margins_lie_between_zero_and_one(margin):
    for kind in (SpectralNorm, Monotone):
        with pytest.raises(ValueError, match="margin"):
            kind(margin)
    with pytest.raises(ValueError, match="margin"):
        ERNNCell(2, 3).project_(margin)


def test_an_unchecked_matrix_is_the_solver_s_affair():
    # relu and U = 2: h = relu(2 h + d) has no solution for d > 0
    cell = ERNNCell(
        1, 1, nonlinearity=torch.relu, well_posed=Unconstrained(check=False), dtype=torch.float64
    )
    with torch.no_grad():
        cell.recurrent.weight.fill_(2.0)
        cell.weight_input.fill_(1.0)
        cell.bias.fill_(1.0)
    with pytest.raises(ims.ConvergenceError):
        cell(torch.ones(1, dtype=torch.float64))
    with pytest.warns(ims.ConvergenceWarning):
        other = ERNNCell(
            1,
            1,
            mode=Equilibrium(on_failure="warn"),
            nonlinearity=torch.relu,
            well_posed=Unconstrained(check=False),
            dtype=torch.float64,
        )
        other.load_state_dict(cell.state_dict())
        other(torch.ones(1, dtype=torch.float64))


def test_published_steps_need_no_margin():
    cell = ERNNCell(2, 3, mode=Unrolled(steps=3), initial_norm=5.0)
    assert cell.margin() < 0
    assert torch.isfinite(cell(torch.randn(4, 2))).all()


@given(n=st.integers(1, 6), norm=st.floats(0.01, 5), data=st.data())
@settings(max_examples=10)
def test_initial_matrices_and_factors(n, norm, data):
    rank = data.draw(st.integers(1, n))
    M = nearly_orthogonal(n, norm, rank).double()
    values = np.linalg.svd(M.numpy(), compute_uv=False)
    np.testing.assert_allclose(values[:rank], norm * np.linspace(1, 0.9, rank), rtol=1e-4)
    np.testing.assert_allclose(values[rank:], 0, atol=1e-5 * norm)
    left, right = factors_of(M, rank)
    assert left.shape == (n, rank) and right.shape == (rank, n)
    np.testing.assert_allclose((left @ right).numpy(), M.numpy(), atol=1e-5 * norm)
    np.testing.assert_allclose(left.norm(), right.norm(), rtol=1e-6)
    # a lower rank gives the nearest matrix: what is left out has the next singular value as norm
    wide = torch.randn(n, n + 1, dtype=torch.float64)
    left, right = factors_of(wide, rank)
    rest = np.linalg.svd(wide.numpy(), compute_uv=False)[rank:]
    error = np.linalg.norm((wide - left @ right).numpy(), 2)
    np.testing.assert_allclose(error, rest[0] if len(rest) else 0, atol=1e-9)
