"""Parametrizations, margins, projection, against NumPy's singular values and eigenvalues."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from implicit_solvers.problems import ernn
from implicit_solvers.problems.ernn import ERNN, ERNNCell, Monotone, SpectralNorm, Unconstrained
from tests.problems.ernn.networks import PHIS, SLOPES, double

DRAWN = {"seed": st.integers(0, 10**6), "margin": st.floats(0.01, 0.9), "gamma": st.floats(0.3, 3)}


def matrix(cell):
    return cell.coefficients().U.detach().numpy()


def singular_values(M):
    return np.linalg.svd(M, compute_uv=False)


def largest_symmetric(U):
    return np.linalg.eigvalsh((U + U.T) / 2)[-1]


def scrambled(seed, size, **options):
    """A cell whose recurrent matrix is made of random numbers of any size."""
    cell = ERNNCell(2, 4, initial_norm=0.0, dtype=torch.float64, **options)
    g = torch.Generator().manual_seed(seed)
    weights = [*cell.recurrent.parameters()]
    for weight in weights:
        weight.data.copy_(size * torch.randn(weight.shape, generator=g))
    return cell, matrix(cell), cell.gamma.item(), [w.detach().numpy() for w in weights]


@given(
    **DRAWN,
    size=st.one_of(st.just(0.0), st.floats(1e-3, 30)),
    rank=st.sampled_from([None, 1, 2]),
    phi=st.sampled_from(list(PHIS)),
)
def test_spectral_norm_stays_below_gamma(seed, size, margin, gamma, rank, phi):
    options = {"nonlinearity": PHIS[phi], "gamma": gamma, "rank": rank}
    cell, U, gamma, weights = scrambled(seed, size, well_posed=SpectralNorm(margin), **options)
    V = weights[0] @ weights[1] if rank else weights[0]
    norm, free = singular_values(U)[0], singular_values(V)[0]
    bound = (1 - margin) * gamma / SLOPES[phi]
    np.testing.assert_allclose(norm, min(free, bound), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(U * free, V * norm, rtol=1e-9, atol=1e-9)
    assert np.linalg.matrix_rank(U) <= (rank or 4)
    expected = 1 - SLOPES[phi] * largest_symmetric(U) / gamma
    np.testing.assert_allclose(cell.margin(), expected, rtol=1e-9, atol=1e-9)
    assert cell.margin() >= 1 - SLOPES[phi] * norm / gamma - 1e-9 >= margin - 2e-9


@given(**DRAWN, size=st.floats(1e-3, 5))
@settings(max_examples=15)
def test_monotone_bounds_the_symmetric_part(seed, size, margin, gamma):
    cell, U, gamma, (A, B) = scrambled(seed, size, gamma=gamma, well_posed=Monotone(margin))
    expected = (1 - margin) * gamma * np.eye(4) - A.T @ A + B - B.T
    np.testing.assert_allclose(U, expected, rtol=1e-12, atol=1e-12)
    assert largest_symmetric(U) <= (1 - margin) * gamma + 1e-9
    expected = 1 - largest_symmetric(U) / gamma
    np.testing.assert_allclose(cell.margin(), expected, rtol=1e-9, atol=1e-9)
    # whatever the slopes, Phi U - gamma is regular, and the equilibrium found the only one
    Phi = np.diag(np.random.default_rng(seed).random(4))
    assert singular_values(Phi @ U - gamma * np.eye(4))[-1] > 0
    x, c = double(2), cell.coefficients()
    h = cell(x)
    assert (torch.tanh(c.U @ h + cell.drive(x)) - c.gamma * h).abs().max() < 1e-9


@pytest.mark.parametrize("well_posed", [SpectralNorm(), Monotone(), Unconstrained()], ids=str)
@given(n=st.integers(1, 6), norm=st.floats(0.01, 0.94), rank=st.integers(1, 6))
@settings(max_examples=10)
def test_training_begins_at_the_norm_and_rank_asked_for(well_posed, n, norm, rank):
    given = None if rank > n or well_posed == Monotone() else rank
    options = {"well_posed": well_posed, "initial_norm": norm, "dtype": torch.float64}
    cell = ERNNCell(3, n, rank=given, input_rank=1, **options)
    values, rank = singular_values(matrix(cell)), given or n
    # made in float32
    np.testing.assert_allclose(values[:rank], norm * np.linspace(1, 0.9, rank), rtol=1e-4)
    np.testing.assert_allclose(values[rank:], 0, atol=1e-5 * norm)
    factors = [(cell.weight_input_left, cell.weight_input_right)]
    factors += [tuple(cell.recurrent.parameters())] if given else []
    for left, right in factors:  # alike in size
        torch.testing.assert_close(left.norm(), right.norm(), rtol=1e-5, atol=0)


def test_training_against_the_bound_keeps_the_margin():
    net = ERNN(2, 4, batch_first=True, well_posed=SpectralNorm(0.1), learn_gamma=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=5.0)
    x = torch.randn(8, 3, 2)
    for _ in range(10):
        loss = -net(x)[0].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert net.margin() >= 0.1 - 1e-5
    # what is trained has left the ball
    assert singular_values(net.cells[0].recurrent.weight.detach().numpy())[0] > 1


def test_a_matrix_that_breaks_regularity_is_an_error_until_it_is_projected():
    net = ERNN(2, 3, well_posed=Unconstrained(), dtype=torch.float64)
    net.cells[0].recurrent.weight.data.copy_(1.25 * torch.eye(3))
    for module in (net, net.cells[0]):
        with pytest.raises(ValueError, match=r"margin -0\.25.*SpectralNorm.*project_"):
            module(double(4, 2))
    assert net.margin() == pytest.approx(-0.25)
    net.project_(margin=0.2)
    U = matrix(net.cells[0]).copy()
    np.testing.assert_allclose(U, 0.8 * np.eye(3), rtol=1e-12)
    assert net.margin() == pytest.approx(0.2)
    net(double(4, 2))
    net.project_(margin=0.1)  # inside already
    assert np.array_equal(matrix(net.cells[0]), U)


def test_projection_of_a_low_rank_matrix():
    options = {"nonlinearity": torch.sigmoid, "well_posed": Unconstrained(), "initial_norm": 9.0}
    cell = ERNNCell(2, 4, rank=2, dtype=torch.float64, **options)
    cell.project_()  # to 0.95 / 0.25, sigmoid's slope
    np.testing.assert_allclose(singular_values(matrix(cell))[[0, 2, 3]], [3.8, 0, 0], atol=1e-8)
    cell(double(2))


def test_the_ends_of_the_range_of_margins():
    cell = ERNNCell(2, 3, mode=ernn.Unrolled(steps=3), initial_norm=5.0)
    assert cell.margin() < 0  # published steps need none
    assert torch.isfinite(cell(torch.randn(4, 2))).all()
    cell = ERNNCell(2, 4, well_posed=SpectralNorm(0.01), initial_norm=0.99, dtype=torch.float64)
    assert torch.isfinite(cell(double(2))).all()
