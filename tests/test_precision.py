"""Half precision and autocast around a solve: what is solved is in float32 at least."""

import pytest
import torch

from tests.cases import CASES, assert_agree

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
# products of the rounding of z, of p and of cotangents, thrice in the cube of a solution and once
# in each order of its derivative; the cases' conditions are below 3
ROUNDINGS = {F16: 2**-11 * 40, BF16: 2**-8 * 40}
# rtol of float32, 6.4e-6, over the residual's smallest slope, and thrice in the cube
SINGLE = 2e-4


def autocast(dtype=BF16):
    return torch.autocast("cpu", dtype=dtype)


def under_autocast(fn, dtype=F32):
    """Return ``fn`` of a parameter in ``dtype``, called under autocast."""

    def call(p):
        with autocast():
            return fn(p.to(dtype)).double()

    return call


MODES = [
    "value",
    "vmap of values",
    "backward",
    "double backward",
    "dual",
    "vmap rev",
    "of_vmap fwd",
]


def modes_of(case):
    """Return modes for a case; a SciPy solver is called lane by lane."""
    return ["value", "backward"] if case.name.startswith("custom") else MODES


@pytest.mark.parametrize("case", CASES, ids=str)
def test_autocast_changes_nothing(case):
    assert_agree(under_autocast(case.solve), case.oracle, modes_of(case), SINGLE)


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_unknowns_in_half_precision_are_solved_in_float32(case, dtype):
    def solve(p):
        p = p.to(dtype)
        value = case.solve(p)
        assert value.dtype == dtype
        return value.double()

    assert_agree(solve, case.oracle, modes_of(case), ROUNDINGS[dtype])
