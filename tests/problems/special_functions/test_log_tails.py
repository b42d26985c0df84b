"""Both tails of distributions and of arcs, in logarithms."""

import math

import mpmath as mp
import pytest
import torch
from torch import distributions as td

from implicit_solvers.problems.reparameterization import VonMises
from implicit_solvers.problems.reparameterization.distributions.von_mises import log_arc_tails
from implicit_solvers.problems.reparameterization.tails import log_tails
from tests.problems.reparameterization.cases import double


@pytest.mark.parametrize("loc", [0.0, 0.7, -2.5])
@pytest.mark.parametrize("kind", [VonMises, td.VonMises], ids=["ours", "torch"])
def test_a_von_mises_variable_in_the_tail(kind, loc):
    """Where the tail itself underflows, at angles on both sides of the location."""
    k, x = 1e3, 1.5
    # the second side of P(Z > x) = C int_x^pi exp(k cos t) dt, by mpmath
    with mp.workdps(40):
        whole = 2 * mp.pi * mp.besseli(0, k)
        tail = mp.quad(lambda t: mp.exp(k * mp.cos(t)), mp.linspace(x, x + 0.1, 9))
        log_tail = torch.tensor(float(mp.log(tail / whole)), dtype=torch.float64)
    q = kind(*double(loc, k), validate_args=False)
    near, far = (
        torch.remainder(double(loc + s * x + math.pi)[0], 2 * math.pi) - math.pi for s in (1, -1)
    )
    for z, place in ((near, 1), (far, 0)):
        tails = log_tails(q, z)
        torch.testing.assert_close(tails[place], log_tail, rtol=1e-12, atol=1e-15 * k)
        assert float(tails[1 - place]) == 0


def test_arcs_from_the_opposite_of_zero():
    """Against a trapezoidal rule on a fine grid, exact for periodic functions but for its ends."""
    loc, k = 2.0, 1.5
    x = torch.linspace(-math.pi, math.pi, 200_001, dtype=torch.float64)
    density = (k * (x - loc).cos()).exp()
    mass = torch.cumulative_trapezoid(density, x)
    mass = mass / mass[-1]
    some = torch.tensor([10_000, 50_000, 100_000, 160_000, 195_000])
    below, above = log_arc_tails(x[some], *double(loc, k))
    torch.testing.assert_close(below.exp(), mass[some - 1], rtol=1e-8, atol=0)
    torch.testing.assert_close(above.exp(), 1 - mass[some - 1], rtol=1e-8, atol=1e-10)
