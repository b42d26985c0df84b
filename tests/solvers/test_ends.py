"""How lanes end that do not converge, and how solvers come back from where nothing is defined."""

import math

import pytest
import scipy.optimize
import torch
from torch.func import grad, jacfwd

import implicit_solvers as ims
from implicit_solvers import Status
from implicit_solvers.testing import problems
from tests.solvers.systems import error, numpy_function, tensor
from tests.solvers.table import SOLVERS

# by the names of their rows
SOLVER = {row.name: row.solver for row in SOLVERS}
picard, descent = ims.FixedPointIteration, ims.GradientDescent
double, square = lambda z: 2 * z + 1, lambda z: z**2
no_root = lambda z: z**2 + 1
saddle = lambda z: torch.stack([z[0] * z[1] - 1, z[0] ** 2 - z[1] ** 2])
parallel = lambda z: torch.stack([z.sum() - 1, 2 * z.sum() - 3])
island = lambda z: torch.where(z == 1, z, math.nan)  # every step leads to NaN
rank_one = lambda z: torch.stack([z.sum() - 1, z.sum() + 1, z.sum()])
hidden_rank_one = lambda z: tensor([[0.1, 0.3], [0.2, 0.6], [0.3, 0.9]]) @ z - 1
chebyquad_8 = lambda z: problems.CHEBYQUAD_8.fn(z, problems.CHEBYQUAD_8.theta())
freudenstein = lambda z: problems.FREUDENSTEIN_ROTH.fn(z, problems.FREUDENSTEIN_ROTH.theta())
GMRES = ims.Newton(linear_solver=ims.GMRES())
BROYDEN_LU = ims.Broyden(linear_solver=ims.LU())
TRUST = (ims.NewtonDogleg(), ims.Dogleg(), ims.LevenbergMarquardt())

# the equation, the function, the start, the solver, and how it may end
ENDS = {
    # wrong answer 5 of the design: the fixed point exists, and the iteration runs away from it
    "divergent-map-short": ("fixed_point", double, 0.0, picard(max_steps=50), "MAX_STEPS"),
    "divergent-map": ("fixed_point", double, 0.0, picard(max_steps=5000), "NONFINITE"),
    "no-fixed-point": ("fixed_point", lambda z: z + 1, 0.0, picard(max_steps=50), "MAX_STEPS"),
    "no-root": ("root", no_root, 1.3, ims.Newton(), "STALLED MAX_STEPS SINGULAR"),
    "no-root-full-steps": ("root", no_root, 1.3, ims.Newton(halvings=0), "MAX_STEPS"),
    "no-root-gmres": ("root", no_root, 1.3, GMRES, "STALLED MAX_STEPS"),
    "no-root-steffensen": ("root", no_root, 1.3, ims.Steffensen(), "STALLED MAX_STEPS SINGULAR"),
    "no-bracket": ("root", no_root, 0.5, ims.Chandrupatla(), "BRACKET"),
    "singular": ("root", lambda z: z**2 - 1, 0.0, ims.Newton(), "SINGULAR"),
    "singular-map": ("fixed_point", lambda z: z + 1, 0.0, ims.Newton(), "SINGULAR"),
    "singular-2d": ("root", saddle, [0.0, 0.0], ims.Newton(), "SINGULAR"),
    "singular-broyden": ("root", saddle, [0.0, 0.0], BROYDEN_LU, "SINGULAR"),
    "singular-reuse": ("root", lambda z: z**2 - 1, 0.0, ims.Newton(reuse=0.5), "SINGULAR"),
    "singular-chord": ("root", lambda z: z**2 - 1, 0.0, ims.Chord(), "SINGULAR"),
    "singular-everywhere": ("root", parallel, [0.0, 1.0], ims.Newton(), "SINGULAR"),
    "flat-steffensen": ("root", lambda z: 0 * z + 1, 1.0, ims.Steffensen(), "SINGULAR"),
    # the chord climbs towards the local maximum at -1/sqrt(3)
    "wrong-sign": ("root", lambda z: z**3 - z - 6, 0.0, ims.Chord(), "STALLED"),
    "island-steffensen": ("root", island, 1.0, ims.Steffensen(), "STALLED"),
    "island-broyden": ("root", island, [1.0, 1.0], ims.Broyden(), "STALLED NONFINITE"),
    "nan": ("root", lambda z: z * math.nan, 1.0, ims.Newton(), "NONFINITE"),
    "nan-anderson": ("fixed_point", lambda z: z * math.nan, 1.0, ims.Anderson(), "NONFINITE"),
    "nan-objective": ("minimize", lambda z: z * math.nan, 1.0, ims.NewtonCG(), "NONFINITE"),
    "infinite-objective": ("minimize", lambda z: z**2 + math.inf, 1.0, ims.LBFGS(), "NONFINITE"),
    "descent-diverges": ("minimize", square, 1.0, descent(1.1, max_steps=100), "MAX_STEPS"),
    "descent-overflows": ("minimize", square, 1.0, descent(2.0), "NONFINITE"),
    "rank-deficient": ("least_squares", rank_one, [1.0, 2.0], ims.GaussNewton(), "SINGULAR"),
    "rank-deficient-by-rounding": (
        "least_squares", hidden_rank_one, [1.0, 2.0], ims.GaussNewton(), "SINGULAR",
    ),
}  # fmt: skip
# minima of |f| that are no roots
for name, fn, start in (
    ("square-plus-one", no_root, 1.3),
    ("parallel-lines", parallel, [0.0, 1.0]),
    ("chebyquad-8", chebyquad_8, problems.CHEBYQUAD_8.z0),
    ("freudenstein", freudenstein, problems.FREUDENSTEIN_ROTH.z0),
    ("freudenstein-far", freudenstein, problems.FREUDENSTEIN_ROTH_FAR.z0),
    ("infinite-slope", lambda z: torch.sqrt(z.abs()) + 1, [0.0, 4.0]),
):
    ends = "STALLED SINGULAR NONFINITE" if name == "infinite-slope" else "STALLED SINGULAR"
    ENDS |= {f"{name}-{type(s).__name__}": ("root", fn, start, s, ends) for s in TRUST}


@pytest.mark.parametrize("kind, fn, start, solver, ends", ENDS.values(), ids=ENDS)
def test_failure(kind, fn, start, solver, ends):
    solve, names = getattr(ims, kind), ends.split()
    with pytest.raises(ims.ConvergenceError, match="|".join(names)):
        solve(fn, tensor(start), solver=solver)
    sol = solve(fn, tensor(start), solver=solver, on_failure="mask")
    assert Status(int(sol.status)).name in names and not bool(sol.converged)
    assert int(sol.iterations) <= solver.max_steps and bool(torch.isfinite(sol.value).all())


TRAPS = [
    name
    for name, case in ENDS.items()
    if case[3] in TRUST and case[4] == "STALLED SINGULAR" and "stationary" not in name
]


@pytest.mark.parametrize("name", TRAPS)
def test_minimum_that_is_no_root(name):
    """The steps are not used up, and SciPy cannot reduce ``|f|`` from there either."""
    _, fn, start, solver, _ = ENDS[name]
    sol = ims.root(fn, tensor(start), solver=solver, on_failure="mask")
    assert int(sol.iterations) < solver.max_steps
    flat = numpy_function(lambda z: fn(z).reshape(-1), sol.value.shape)
    at = sol.value.reshape(-1).numpy()
    further = scipy.optimize.least_squares(flat, at)
    assert 2 * further.cost > 0.999 * (flat(at) @ flat(at)) > 1e-4


def test_failed_lane_keeps_its_best_iterate_and_a_budget_its_last():
    """A map that runs away has been nearest to its fixed point at the start."""
    masked = {"solver": picard(max_steps=9), "on_failure": "mask"}
    sol = ims.fixed_point(double, tensor([0.0]), **masked)
    assert torch.equal(sol.value, tensor([0.0])) and float(sol.residual) == 1
    sol = ims.fixed_point(double, tensor(0.0), solver=picard(rtol=None, max_steps=3))
    assert float(sol.value) == 7 and float(sol.residual) == 8
    # down a hill, a trial beyond the edge has next to no slope, and is none of its iterates
    edge = lambda z: torch.where(z < 2, -(z**2) / 2, 5 + 1e-3 * z)
    searching = descent(1.0, line_search=ims.Backtracking(), max_trials=5)
    sol = ims.minimize(edge, tensor(0.1), solver=searching, on_failure="mask")
    assert float(sol.value) == float(sol.residual) == 0.1


def test_double_root():
    """It is found, half of the error a step; where its Jacobian is zero, no digit is known."""
    c, fn = tensor(0.0).requires_grad_(), lambda z, c: (z - 1) ** 2 + c
    sol = ims.root(fn, tensor(3.0), (c,))
    assert bool(sol.converged) and error(sol.value, tensor(1.0)) < 4e-12
    with pytest.raises(ims.ConvergenceError, match="root.*SINGULAR"):
        ims.root(fn, tensor(1.0), (c,))


@pytest.mark.parametrize("solver", TRUST, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    "fn, start",
    [
        (lambda z: torch.stack([z[0] * z[1] - 6, z[0] + z[1] ** 2 - 7]), [2.0, 1.0]),
        # these are stationary, and left by a kick
        (lambda z: (z**2 - 1).reshape(1), [0.0]),
        (lambda z: z**2 - 9e-16, [0.0, 1e-8]),
        (saddle, [0.0, 0.0]),
    ],
)
def test_singular_jacobian_on_the_way_does_not_end_a_trust_region(fn, start, solver):
    start = tensor(start)
    assert float(torch.linalg.det(jacfwd(fn)(start))) == 0
    assert int(ims.root(fn, start, solver=ims.Newton(), on_failure="mask").status) != 0
    sol = ims.root(fn, start, solver=solver)
    assert float(fn(sol.value).abs().max()) < 1e-10 * float(fn(start).abs().max())


# -- domains -------------------------------------------------------------------------------------

DOMAINS = {
    "log-far-right": (torch.log, 20.0, 1.0),
    "log-near-zero": (lambda z: torch.log(z) + 5, 0.05, math.exp(-5)),
    "log-plus": (lambda z: torch.log(z) + z - 1, 10.0, 1.0),
    "sqrt": (lambda z: torch.sqrt(z) - 0.1, 4.0, 0.01),
    "log-sqrt": (lambda z: torch.sqrt(z) + torch.log(z) - 1, 30.0, 1.0),
    "reciprocal": (lambda z: torch.where(z > 0, 1 / z - 2, math.nan), 1.5, 0.5),
    "atan": (torch.atan, 30.0, 0.0),  # full steps overshoot by more each time
}
BROYDENS = ("Broyden", "Broyden-LU", "Broyden-short", "Broyden-bad", "Broyden-bad-LU")
RETURNING = ("Newton", "NewtonDogleg", "Dogleg", "LevenbergMarquardt", "Steffensen", *BROYDENS[:3])


@pytest.mark.parametrize("name", RETURNING)
@pytest.mark.parametrize("fn, start, exact", DOMAINS.values(), ids=DOMAINS)
def test_steps_out_of_the_domain_are_shortened(name, fn, start, exact):
    """The full step leads to NaN (or away), or the increment of a quotient does."""
    sol = ims.root(fn, tensor(start), solver=SOLVER[name])
    assert error(sol.value, tensor(exact)) < 1e-10


@pytest.mark.parametrize("fn, start, exact", DOMAINS.values(), ids=DOMAINS)
def test_without_halvings_a_step_out_of_the_domain_is_the_end(fn, start, exact):
    z0 = tensor(start)
    full = z0 - fn(z0) / grad(fn)(z0)
    assert not bool(fn(full).abs() < fn(z0).abs())
    stuck = ims.root(fn, z0, solver=ims.Newton(halvings=0), on_failure="mask")
    if not bool(torch.isfinite(fn(full))):
        assert int(stuck.status) == Status.NONFINITE and bool(torch.isfinite(stuck.value))


@pytest.mark.parametrize("name", BROYDENS)
def test_nan_in_a_trial_of_a_system_shortens_the_step(name):
    f = lambda z: torch.stack([torch.log(z[0]) + 0.1 * z[1], z[1] - 0.1 * z[0]])
    newton = ims.root(f, tensor([1.0, 0.1]))
    assert error(ims.root(f, tensor([8.0, 1.0]), solver=SOLVER[name]).value, newton.value) < 1e-9


both_domains = lambda z: torch.stack([torch.log(z), torch.sqrt(z) - 1])
MINIMA_AND_FITS = [
    ("minimize", lambda z: z - torch.log(z) + 0.1 * z**2, 5.0, (math.sqrt(1.8) - 1) / 0.4, None),
    ("minimize", lambda z: torch.sqrt(1 + z**2), 3.0, 0.0, None),
    # (steps to where the curvature vanishes shrink by a third: that is no point of inflection)
    ("minimize", lambda z: ((z - 3) ** 4).sum(), [0.0, 0.5], [3.0, 3.0], None),
    ("least_squares", torch.atan, 3.0, 0.0, None),
    *(("least_squares", both_domains, 20.0, 1.0, solver) for solver in (None, *TRUST[1:])),
]


@pytest.mark.parametrize("kind, fn, start, exact, solver", MINIMA_AND_FITS)
def test_steps_of_minima_and_fits_are_shortened(kind, fn, start, exact, solver):
    sol = getattr(ims, kind)(fn, tensor(start), solver=solver)
    assert error(sol.value, tensor(exact)) < 1e-9


# (not Broyden's method: a function that oscillates within the roundings of z cannot be judged)
LEAPERS = ("Newton", "Newton-reuse", "Chord", "Newton-GMRES")


@pytest.mark.parametrize("name", LEAPERS)
@pytest.mark.parametrize("offset", [3e-14, -1e-13, 4e-13], ids=str)
def test_a_leap_to_where_the_tolerance_is_large_is_no_root(name, offset):
    """``|f| >= 1``, and the nearly flat start sends the full step to 1e13."""
    f = lambda z: 1 + 0.1 * torch.sin(z) ** 2
    sol = ims.root(f, tensor(math.pi / 2 + offset), solver=SOLVER[name], on_failure="mask")
    assert int(sol.status) in (Status.STALLED, Status.MAX_STEPS, Status.SINGULAR)
    assert float(sol.residual) >= 1
