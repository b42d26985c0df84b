"""CONVERGED means solved, up to the error that is said, at every condition; failures are owned."""

import pytest
import torch

import implicit_solvers as ims

from .systems import CONVERGED, F32, F64, SOLVERS, measure, roots

cubes = lambda z: z + z**3 - 2
UNVERIFIED = [
    ("root", cubes, 8, ims.Newton(linear_solver=ims.GMRES())),
    ("root", cubes, 600, None),
    ("root", cubes, 600, ims.Broyden()),
    ("minimize", lambda z: (z**2 / 2 + z**4 / 4 - 2 * z).sum(), 600, None),
    ("least_squares", cubes, 600, None),
]
SIZES = [200, pytest.param(1000, marks=pytest.mark.nightly)]


@pytest.mark.parametrize("lanes", SIZES)
@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
@pytest.mark.parametrize("row", SOLVERS, ids=str)
def test_converged_is_solved(row, dtype, lanes):
    problems = row.problems(lanes if row.problems is roots else min(lanes, 300), dtype)
    found = measure(problems, row.solver)
    # a hundred estimates: they are samples, and of rounding; 1e3 rtol: what a test of steps allows
    assert not found.false.any(), found
    # a tenth of the solution is no digit, and a thousand times too much is no estimate; the sample
    # of noise, which counts as error, may be five tenths
    known = found.converged & found.error.isfinite()
    assert bool((found.error <= 0.6 * found.size)[known].all()), found
    assert not found.error.isnan().any()
    off = (found.off / found.error)[known & (found.off > 8 * torch.finfo(dtype).eps * found.size)]
    assert not len(off) or float(off.median()) >= 1e-3, found
    # nor is a solver honest that gives up
    reach = row.reach if dtype == F64 else min(row.reach, 1e4)
    assert bool(found.converged[problems.condition <= reach].all()), found
    if row.flags:
        flags = torch.tensor([CONVERGED, *row.flags])
        assert bool(torch.isin(found.status, flags).all()), found


@pytest.mark.parametrize("kind, fn, n, solver", UNVERIFIED)
def test_of_an_end_that_nothing_verified_no_error_is_said(kind, fn, n, solver):
    sol = getattr(ims, kind)(fn, torch.full((n,), 2.0, dtype=F64), solver=solver)
    assert bool(sol.converged) and float(sol.error) == torch.inf
    assert float((sol.value - 1).abs().max()) < 1e-6


@pytest.mark.parametrize("solver", [None, ims.LBFGS()], ids=["default", "LBFGS"])
def test_a_mean_over_a_million_pixels_is_not_least_at_once(solver):
    """Its gradient is 1e-6 of each pixel's, less than ``eps`` of float32 would let pass."""
    image = torch.linspace(-1, 1, 1_000_000)
    mean = lambda z: ((z - image) ** 2 + 0.1 * (z - image) ** 4).mean()
    sol = ims.minimize(mean, torch.zeros_like(image), solver=solver)
    assert int(sol.iterations) > 0 and float((sol.value - image).abs().max()) < 1e-3
