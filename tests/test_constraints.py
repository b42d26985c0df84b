"""Minima under constraints: the method, its ends, multipliers, and points that others found."""

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from implicit_solvers.testing.problems.hock_schittkowski import HOCK_SCHITTKOWSKI

F32, F64 = torch.float32, torch.float64
PROBLEMS = {p.name: p for p in HOCK_SCHITTKOWSKI}
# there are no multipliers, and no curvature
ENDS = {"hs13": "MAX_STEPS", "hs26": "SINGULAR"}
# another minimum, in which SciPy's methods end too
ELSEWHERE = ["hs2"]


def tensor(values, dtype=F64):
    return torch.tensor(values, dtype=dtype)


def idle(z, *args):
    """Return a constraint that holds everywhere, for problems with bounds alone."""
    return 0 * z[:1] - 1


def solve(p, theta, start=None, **options):
    """Solve one of Hock and Schittkowski's problems."""
    bounds = None if p.bounds is None else p.bounds(theta)
    constraints = {"equalities": p.equalities, "inequalities": p.inequalities}
    if p.equalities is None and p.inequalities is None:
        constraints["inequalities"] = idle
    options = {"on_failure": "mask", **constraints, **options}
    start = p.start(theta.dtype) if start is None else start
    return ims.minimize(p.fn, start, (theta,), bounds=bounds, **options)


def all_of(sol):
    """Return unknowns and multipliers, one after the other."""
    return torch.cat([sol.value, *(y for y in sol.multipliers if not isinstance(y, tuple))])


@pytest.mark.parametrize("name", PROBLEMS)
def test_hock_and_schittkowski(name):
    """The solution, its multipliers, and the derivatives of both, from the standard start."""
    p = PROBLEMS[name]
    theta = p.theta().requires_grad_()
    sol = solve(p, theta)
    assert sol.status_names() == ENDS.get(name, "CONVERGED")
    z, y = sol.value, all_of(sol)[len(sol.value) :]
    if name in (*ENDS, *ELSEWHERE):
        return
    assert relative(z, p.solution) < 1e-7
    if not p.regular:
        return
    assert not bool(sol.degenerate)
    pairs = [(z, p.derivative)]
    if p.multipliers is not None and p.multipliers.numel():
        assert relative(y, p.multipliers) < 1e-7
        pairs.append((y, p.multipliers_derivative))
    for ours, exact in pairs:
        slopes = [torch.autograd.grad(v, theta, retain_graph=True)[0] for v in ours]
        assert relative(torch.stack(slopes), exact) < 1e-7


def relative(ours, exact):
    """Return the largest difference, over the largest entry."""
    return float((ours - exact).detach().abs().max() / exact.abs().max().clamp(min=1.0))


UNITS = ["hs12", "hs14", "hs24", "hs61", "hs65", "hs71", "hs77", "hs117"]


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("of", [(40, 0, 0), (0, 30, 0), (0, -20, 0), (0, 0, 24)], ids=str)
def test_powers_of_two_change_nothing(name, of):
    """In objective, unknown and constraints: the same steps, status, and bits."""
    p, (f, z, c) = PROBLEMS[name], (2.0**k for k in of)
    theta = p.theta()

    def found(f, z, c):
        def scaled(row):
            if row is None:
                return None
            weights = c ** (1 + torch.arange(row(p.start(), theta).numel()) % 3)
            return lambda u, theta: weights * row(u / z, theta)

        return ims.minimize(
            lambda u, theta: f * p.fn(u / z, theta),
            p.start() * z,
            (theta,),
            bounds=tuple(b * z for b in p.box(theta)),
            equalities=scaled(p.equalities),
            inequalities=scaled(p.inequalities),
            on_failure="mask",
        )

    plain, other = found(1.0, 1.0, 1.0), found(f, z, c)
    assert int(other.status) == int(plain.status) == Status.CONVERGED
    assert int(other.iterations) == int(plain.iterations)
    assert torch.equal(other.value / z, plain.value)


def distance(z, a, r, s):
    return ((z - a) ** 2).sum(-1)


def disk(z, a, r, s):
    return z.square().sum(-1) - r


def line(z, a, r, s):
    return z.sum(-1) - s


def chords(count):
    """Return points to project to a chord of a disk; every hundredth line misses the disk."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(count, 2, generator=generator, dtype=F64)
    s = torch.rand(count, generator=generator, dtype=F64) - 0.5
    bad = torch.arange(count) % 100 == 7
    s[bad] = 3.0
    return a, torch.ones(count, dtype=F64), s, bad


def test_a_thousand_lanes_of_which_some_are_infeasible():
    """They say so, and change no bit of any other, nor of its gradient."""
    a, r, s, bad = chords(1000)
    options = {"equalities": line, "inequalities": disk, "batch_dims": 1, "in_dims": 0}

    def found(a, r, s):
        a = a.clone().requires_grad_()
        start = torch.zeros(len(a), 2, dtype=F64)
        sol = ims.minimize(distance, start, (a, r, s), on_failure="mask", **options)
        total = sol.value.sum() + sum(y.square().sum() for y in sol.multipliers)
        return sol, torch.autograd.grad(total, a)[0]

    every, slopes = found(a, r, s)
    assert set(every.status[bad].tolist()) == {int(Status.INFEASIBLE)}
    assert bool(every.converged[~bad].all()) and float(slopes[bad].abs().max()) == 0
    good, others = found(a[~bad], r[~bad], s[~bad])
    # batched kernels may round differently
    torch.testing.assert_close(every.value[~bad], good.value, rtol=0, atol=1e-12)
    torch.testing.assert_close(slopes[~bad], others, rtol=0, atol=1e-10)
    assert torch.equal(every.iterations[~bad], good.iterations)
    # closed form: to the line, and where that leaves the disk, to the end of the chord
    foot = a[~bad] - 0.5 * (a[~bad].sum(-1) - s[~bad]).unsqueeze(-1)
    middle = 0.5 * s[~bad].unsqueeze(-1).expand_as(foot)
    half = (1 - middle.square().sum(-1)).sqrt().unsqueeze(-1)
    off = foot - middle
    length = off.norm(dim=-1, keepdim=True)
    exact = middle + off * torch.where(length > half, half / length, 1.0)
    torch.testing.assert_close(good.value.detach(), exact, rtol=0, atol=1e-11)


def test_lanes_of_vmap_equal_each_alone():
    a, r, s, bad = chords(8)

    def alone(a, r, s):
        start = torch.zeros(2, dtype=F64)
        options = {"equalities": line, "inequalities": disk, "on_failure": "mask"}
        return ims.minimize(distance, start, (a, r, s), **options)

    lanes = vmap(alone)(a, r, s)
    for i in range(8):
        one = alone(a[i], r[i], s[i])
        assert int(one.status) == int(lanes.status[i])
        assert int(one.iterations) == int(lanes.iterations[i])
        torch.testing.assert_close(lanes.value[i], one.value, rtol=0, atol=1e-12)
        torch.testing.assert_close(lanes.multipliers.equalities[i], one.multipliers.equalities)
    assert lanes.status_names()[7] == "INFEASIBLE" and bool(bad[7])


ORIGIN = tensor([0.5, 0.5])
# objective, start, constraints, and the status
LANES = [
    (lambda z: -z.sum(), ORIGIN, {"inequalities": lambda z: -z}, "UNBOUNDED"),
    (lambda z: z[0] * z[1], ORIGIN, {"inequalities": lambda z: z[0] - z[1] - 9}, "UNBOUNDED"),
    (lambda z: z[0], ORIGIN, {"equalities": lambda z: (z**2).sum() + 1}, "INFEASIBLE"),
    (lambda z: z[0], ORIGIN, {"equalities": lambda z: z.sum() - 5, "bounds": (0, 1)}, "INFEASIBLE"),
    (lambda z: z[0], ORIGIN, {"inequalities": lambda z: z, "bounds": (tensor([1.0, 2.0]),
     tensor([2.0, 1.0]))}, "INFEASIBLE"),
    # (these begin in a saddle, and leave it)
    (lambda z: z[0] * z[1], ORIGIN, {"equalities": lambda z: z.sum() - 1}, "UNBOUNDED"),
    (lambda z: z[0] * z[1], ORIGIN, {"equalities": lambda z: z.sum() - 1, "bounds": (0, 2)},
     "CONVERGED"),
    (lambda z: z[0] + torch.nan, ORIGIN, {"inequalities": lambda z: z}, "NONFINITE"),
    (lambda z: z[0], ORIGIN, {"equalities": lambda z: z[0] * torch.nan}, "NONFINITE"),
]  # fmt: skip


@pytest.mark.parametrize("fn, start, options, name", LANES, ids=lambda v: v if v is str else "")
def test_ends(fn, start, options, name):
    sol = ims.minimize(fn, start, on_failure="mask", **options)
    assert sol.status_names() == name


def corner(z, a):
    return (z[0] - a[0]) ** 4 + (z[1] - a[1]) ** 2 + z[0] * z[1]


def ball(z, a):
    return z.square().sum() - a[1] ** 2


def test_derivatives_in_all_modes():
    """Of the value, multipliers and bounds; to second order against differences."""

    def both(a):
        sol = ims.minimize(corner, torch.zeros(2, dtype=F64), (a,), inequalities=ball)
        return torch.cat([sol.value, sol.multipliers.inequalities.reshape(1)])

    a = tensor([2.0, 1.0]).requires_grad_()
    assert torch.autograd.gradcheck(both, (a,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(both, (a,))
    modes = [hessian, lambda f: jacfwd(jacfwd(f)), lambda f: jacrev(jacrev(f))]
    first, *others = (mode(lambda a: both(a).sum())(a.detach()) for mode in modes)
    for other in others:
        torch.testing.assert_close(first, other)

    def held(lo):
        start, less = torch.zeros(2, dtype=F64), {"inequalities": lambda z: z.sum() - 9}
        return ims.minimize(lambda z: (z**2).sum() + z[0] * z[1], start, bounds=(lo, 5), **less)

    lo = tensor([1.0, -9.0])
    torch.testing.assert_close(held(lo).value, tensor([1.0, -0.5]))
    torch.testing.assert_close(jacrev(lambda lo: held(lo).value)(lo), tensor([[1, 0], [-0.5, 0]]))


def test_trees_and_captured_tensors():
    """Unknowns and constraints may be trees; what the functions read by themselves counts."""
    c = tensor(3.0).requires_grad_()
    z0 = {"x": torch.zeros(2, dtype=F64), "y": torch.zeros((), dtype=F64)}
    sol = ims.minimize(
        lambda z: (z["x"] ** 2).sum() + z["y"] ** 2,
        z0,
        equalities=lambda z: {"sum": z["x"].sum() + z["y"] - c},
        inequalities=lambda z: (1.5 - z["x"], z["y"] - 9),
    )
    torch.testing.assert_close(sol.value["x"], tensor([1.5, 1.5]))
    assert sol.multipliers.equalities["sum"].shape == ()
    assert [y.shape for y in sol.multipliers.inequalities] == [(2,), ()]
    (slope,) = torch.autograd.grad(sol.value["y"], c)
    torch.testing.assert_close(slope, tensor(1.0))


@pytest.mark.parametrize("name", ["hs14", "hs24", "hs65", "hs71", "hs100"])
def test_float32(name):
    p = PROBLEMS[name]
    plain, half = solve(p, p.theta()), solve(p, p.theta(F32))
    assert half.value.dtype == half.multipliers[-1].dtype == F32 and bool(half.converged)
    # the default tolerance of float32
    torch.testing.assert_close(half.value.double(), plain.value, rtol=1e-5, atol=1e-5)


def test_weakly_active_constraints_are_degenerate():
    slack, weak = (
        ims.minimize(lambda z: ((z - 1) ** 2).sum(), 3 * ORIGIN, (), inequalities=c)
        for c in (lambda z: z[0] - 2, lambda z: z[0] - 1)
    )
    assert not bool(slack.degenerate) and bool(weak.degenerate)
    assert float(slack.multipliers.inequalities) == 0


@pytest.mark.parametrize("name", ["hs43", "hs71", "hs100"])
def test_what_scipy_found_is_attached(name):
    """Its point and multipliers give the derivatives of our own solve; others are REJECTED."""
    p = PROBLEMS[name]
    theta = p.theta().requires_grad_()
    ours = solve(p, theta)
    kinds = [(c, low) for c, low in ((p.equalities, 0), (p.inequalities, -np.inf)) if c is not None]
    rows = [
        scipy.optimize.NonlinearConstraint(
            lambda z, c=c: c(tensor(z), p.theta()).numpy(),
            low,
            0,
            jac=lambda z, c=c: jacrev(c)(tensor(z), p.theta()).numpy(),
        )
        for c, low in kinds
    ]
    found = scipy.optimize.minimize(
        lambda z: float(p.fn(tensor(z), p.theta())),
        np.array(p.z0, float),
        jac=lambda z: grad(p.fn)(tensor(z), p.theta()).numpy(),
        bounds=scipy.optimize.Bounds(*(b.numpy() for b in p.box(p.theta()))),
        constraints=rows,
        method="trust-constr",
        options={"gtol": 1e-10, "xtol": 1e-12, "barrier_tol": 1e-10, "maxiter": 2000},
    )
    v = iter(tensor(v) for v in found.v)
    multipliers = tuple(() if c is None else next(v) for c in (p.equalities, p.inequalities))
    given = {"equalities": p.equalities, "inequalities": p.inequalities, "rtol": 1e-5}
    given["bounds"] = None if p.bounds is None else p.bounds(theta)
    z, y = ims.attach_kkt(p.fn, tensor(found.x), multipliers, (theta,), **given)
    slopes = [torch.autograd.grad(v.sum(), theta)[0] for v in (z, ours.value)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(y[1], ours.multipliers[1], rtol=1e-4, atol=1e-6)
    for wrong in ((p.start(), multipliers), (tensor(found.x), tuple(-1 * v if isinstance(
            v, torch.Tensor) else v for v in multipliers))):  # fmt: skip
        with pytest.raises(ims.ConvergenceError, match="failed"):
            ims.attach_kkt(p.fn, *wrong, (theta,), **given)


@pytest.mark.nightly
@pytest.mark.parametrize("whole", [False, True])
def test_compiled(whole):
    """Compiled steps, and a whole graph, end as the eager solve does."""
    a, r, s, _ = chords(5)
    options = {"equalities": line, "inequalities": disk, "batch_dims": 1, "in_dims": 0}
    start = torch.zeros(5, 2, dtype=F64)

    def found(a, solver=None):
        sol = ims.minimize(distance, start, (a, r, s), solver=solver, on_failure="mask", **options)
        return sol.value, sol.status, sol.multipliers.equalities

    a.requires_grad_()
    if whole:
        compiled = torch.compile(found, fullgraph=True)(a)
    else:
        compiled = found(a, ims.FilterInteriorPoint(compile=True))
    eager = found(a)
    for one, other in zip(compiled, eager, strict=True):
        torch.testing.assert_close(one, other)
    slopes = [torch.autograd.grad(out[0].sum(), a)[0] for out in (compiled, eager)]
    torch.testing.assert_close(*slopes)


def test_many_starts():
    """The lowest of the minima under constraints, and its derivative, is the solution."""
    a = tensor(0.2).requires_grad_()

    def tilted(z, a):
        return ((z**2 - 1) ** 2 + a * z).sum()

    starts = tensor([[-1.5], [0.3], [1.5]])
    limit = {"inequalities": lambda z, a: -0.9 - z}
    z = ims.minimize(tilted, ims.multistart(starts), (a,), **limit).value
    torch.testing.assert_close(z.detach(), tensor([-0.9]))
    z = ims.minimize(tilted, ims.multistart(starts), (-a,), **limit).value
    free = ims.minimize(tilted, tensor([1.5]), (-a,)).value
    slopes = [torch.autograd.grad(v, a)[0] for v in (z, free)]
    torch.testing.assert_close(*slopes)


# an objective, an inequality, a point and its multiplier; Newton's step from there is zero
WRONG = {
    "multiplier": (lambda z: z, lambda z: z**2 - 4, -2.0, 0.3),
    "sign": (lambda z: -z, lambda z: z**2 - 4, -2.0, -0.25),
    "violated": (lambda z: (z - 3) ** 2, lambda z: z - 1, 3.0, 0.0),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_step_shows_is_rejected(name):
    fn, row, z, y = WRONG[name]
    with pytest.raises(ims.ConvergenceError, match="REJECTED|SINGULAR"):
        ims.attach_kkt(fn, tensor(z), ((), tensor(y)), inequalities=row)


def test_unknowns_are_exactly_at_their_bounds():
    lo = 1 + torch.rand(20, generator=torch.Generator().manual_seed(0), dtype=F64)
    options = {"bounds": (lo, None), "inequalities": lambda z: (z**2).sum() - 1e3}
    sol = ims.minimize(lambda z: (z**2).sum(), lo + 7 / 3, **options)
    assert torch.equal(sol.value, lo)
