"""CONVERGED means solved, up to the error that is said, at every condition; failures are owned."""

import pytest
import torch

from .systems import CONVERGED, F32, F64, SOLVERS, measure, roots

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
