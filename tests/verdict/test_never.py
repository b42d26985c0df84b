"""What has no solution never converges; a maximum or a saddle is no minimum."""

import pytest
import torch

import implicit_solvers as ims

from .systems import CONVERGED, F64, SADDLE, solve

exp, sin, atan, tanh, softplus = (
    torch.exp,
    torch.sin,
    torch.atan,
    torch.tanh,
    torch.nn.functional.softplus,
)
STARTS = torch.tensor([-3.0, -1.0, -0.25, 0.5, 1.0, 2.0, 7.0], dtype=F64)
DOGLEG, LEVENBERG = ims.Dogleg(), ims.LevenbergMarquardt()
ROOT = [None, ims.Newton(), DOGLEG, LEVENBERG, ims.Broyden(), ims.Chord()]
MINIMIZE = [ims.Newton(), ims.NewtonCG(), ims.TrustRegion()]
MINIMIZE += [ims.LBFGS(), ims.BFGS(), ims.NonlinearCG()]
FIXED = [ims.FixedPointIteration(), ims.Anderson(), ims.Aitken()]
FIT = [LEVENBERG, DOGLEG, ims.GaussNewton()]

# Runaways whose function underflows make steps of about one: exp(-z) is 0 from z = 745 on, and
# 746 steps from any start. Only LBFGS may make so many, and goes without those.
NOWHERE = [
    ("root", "1 / z", lambda z: 1 / z, STARTS),
    ("root", "exp(-z)", lambda z: exp(-z), STARTS),
    ("root", "1 / (1 + z^2)", lambda z: 1 / (1 + z**2), STARTS),
    ("root", "z^2 + 1", lambda z: z**2 + 1, STARTS),
    ("root", "sqrt(z^2 + 1)", lambda z: (z**2 + 1).sqrt(), STARTS),
    ("root", "exp(z) + 1", lambda z: exp(z) + 1, STARTS),
    ("root", "atan(z) + 2", lambda z: atan(z) + 2, STARTS),
    ("root", "tanh(z) - 2", lambda z: tanh(z) - 2, STARTS),
    ("root", "softplus(z)", softplus, STARTS),
    ("root", "1 + sin(z) / 2", lambda z: 1 + sin(z) / 2, STARTS),
    ("root", "1e-12 (z^2 + 1)", lambda z: 1e-12 * (z**2 + 1), STARTS),
    ("minimize", "exp(-z)", lambda z: exp(-z), STARTS),
    ("minimize", "z", lambda z: z, STARTS),
    ("minimize", "-z^2", lambda z: -(z**2), STARTS),
    ("minimize", "z^3", lambda z: z**3, STARTS),
    ("minimize", "-log(1 + z^2)", lambda z: -torch.log1p(z**2), STARTS),
    ("minimize", "atan(z)", atan, STARTS),
    ("minimize", "tanh(z)", tanh, STARTS),
    ("minimize", "-sqrt(1 + z^2)", lambda z: -(1 + z**2).sqrt(), STARTS),
    ("fixed_point", "z + 1", lambda z: z + 1, STARTS),
    ("fixed_point", "2 |z| + 1", lambda z: 2 * z.abs() + 1, STARTS),
    ("fixed_point", "z + exp(-z)", lambda z: z + exp(-z), STARTS),
    ("fixed_point", "sqrt(1 + z^2)", lambda z: (1 + z**2).sqrt(), STARTS),
    ("fixed_point", "exp(z)", exp, STARTS),
    ("least_squares", "1 / z", lambda z: torch.stack([1 / z, 1 / z**2], -1), STARTS),
    ("least_squares", "exp(-z)", lambda z: torch.stack([exp(-z), 2 * exp(-z)], -1), STARTS),
    ("least_squares", "atan(z) + 2", lambda z: (atan(z) + 2)[..., None], STARTS),
]
SOLVERS = {"root": ROOT, "minimize": MINIMIZE, "fixed_point": FIXED, "least_squares": FIT}


def named(solver):
    return type(solver).__name__ if solver else "default"


CASES = [
    pytest.param(*case, solver, id=f"{case[0]}-{named(solver)}-{case[1]}")
    for case in NOWHERE
    for solver in SOLVERS[case[0]]
    if (named(solver), case[1]) != ("LBFGS", "exp(-z)")
]


@pytest.mark.parametrize("entry, name, fn, starts, solver", CASES)
def test_what_has_no_solution_never_converges(entry, name, fn, starts, solver):
    sol = solve(entry, fn, starts, (), solver)
    assert not (sol.status == CONVERGED).any(), (sol, sol.value, sol.error)


def saddle(z):
    return z[..., 0] ** 2 - z[..., 1] ** 2 + z[..., 1] ** 4


def wells(z):
    return (z**2 - 1).square().sum(-1)


def small_wells(z):
    return 1e-12 * wells(1e3 * z)


def saddle_fit(z):
    return torch.stack([z[..., 0], z[..., 1] ** 2 - 1], -1)


def wells_fit(z):
    return z**2 - 1


# The starts, with whether the gradient is zero there, and the minimum (up to signs).
STARTS_OF_TWO = {(0.0, 0.0): True, (1.0, 0.0): False, (0.5, 1e-9): False, (2.0, 0.3): False}
FLAT = {**STARTS_OF_TWO, (0.0, 1.0): True, (1.0, 0.0): True}
STATIONARY = [
    ("minimize", saddle, STARTS_OF_TWO, (0.0, 0.5**0.5)),
    ("minimize", wells, FLAT, (1.0, 1.0)),
    ("minimize", small_wells, {(0.0, 0.0): True, (2e-3, 0.0): False}, (1e-3, 1e-3)),
    ("least_squares", saddle_fit, STARTS_OF_TWO, (0.0, 1.0)),
    ("least_squares", wells_fit, FLAT, (1.0, 1.0)),
]
LEAVE = {"minimize": MINIMIZE, "least_squares": FIT[:2]}


@pytest.mark.parametrize(
    "entry, fn, starts, minimum, solver",
    [
        pytest.param(entry, fn, starts, minimum, solver, id=f"{fn.__name__}-{named(solver)}")
        for entry, fn, starts, minimum in STATIONARY
        for solver in LEAVE[entry]
    ],
)
def test_a_saddle_is_left_or_said(entry, fn, starts, minimum, solver):
    sol = solve(entry, fn, torch.tensor(list(starts), dtype=F64), (), solver)
    flat = torch.tensor(list(starts.values()))
    left = sol.status == CONVERGED
    # where the gradient vanishes nothing is downhill: the solver may say so
    assert bool((left | (flat & (sol.status == SADDLE))).all()), (sol, sol.value)
    near = torch.tensor(minimum, dtype=F64)
    # a tolerance of 2e-12 with room for the largest of two entries, in units of z
    close = (sol.value.abs() - near).abs().amax(-1) <= 1e-9 * near.max()
    assert bool(close[left].all()), sol.value
