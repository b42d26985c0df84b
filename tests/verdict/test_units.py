"""Other units: the same verdict, steps and bits. Another order of unknowns: the same verdict."""

from functools import partial

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import implicit_solvers as ims

from .systems import CONVERGED, F32, F64, rms, solve, times

LANES, N = 24, 4
# an example is many lanes, and what fails is a lane of them: nothing to shrink
few = settings(
    max_examples=max(3, settings.default.max_examples // 20), phases=set(Phase) - {Phase.shrink}
)


# Each function is in units of its own: of z, s; of its value, c; of each component, r. The unknowns
# come in the order p, and q is that order undone.
def reading(z, s, p):
    return z.gather(-1, p) / s[..., None]


def residual(z, c, s, r, p, q, A, b, bend):
    u = reading(z, s, p)
    return c[..., None] * r * (times(A, u + bend[..., None] * torch.sin(u)) - b)


def iteration(z, c, s, r, p, q, A, b, bend):
    g = b + bend[..., None] * torch.tanh(times(A, reading(z, s, p))) / N
    return s[..., None] * g.gather(-1, q)


def objective(z, c, s, r, p, q, A, b, bend):
    u = reading(z, s, p)
    return c * (times(A, u).square().sum(-1) / 2 + bend * (u**4).sum(-1) - (b * u).sum(-1))


def misfit(z, c, s, r, p, q, A, b, bend):
    u = times(A, reading(z, s, p))
    more = torch.sin(u + b) / 2
    return c[..., None] * torch.cat([u + bend[..., None] * torch.sin(u) - b, more], -1)


def sparse(v, step, c, s, *_):
    least = (0.1 * step * c / s)[..., None]
    return v.sign() * (v.abs() - least).clamp(min=0)


def held(z, c, s, r, p, q, *_):
    return r[..., :1] * (reading(z, s, p).square().sum(-1, keepdim=True) - 0.5)


PROXIMAL = partial(ims.minimize, prox=sparse)
CONSTRAINED = partial(ims.minimize, inequalities=held)
ROWS = [
    ("root", residual, ims.Newton()),
    ("root", residual, None),
    ("root", residual, ims.Dogleg()),
    ("root", residual, ims.LevenbergMarquardt()),
    ("root", residual, ims.Broyden()),
    ("root", residual, ims.Chord()),
    ("root", residual, ims.Newton(linear_solver=ims.SuperLU())),
    ("minimize", objective, ims.Newton()),
    ("minimize", objective, ims.NewtonCG()),
    ("minimize", objective, ims.LBFGS()),
    (PROXIMAL, objective, ims.FISTA()),
    (PROXIMAL, objective, ims.ProximalGradient()),
    ("minimize", objective, ims.BFGS()),
    ("minimize", objective, ims.NonlinearCG()),
    ("minimize", objective, ims.TrustRegion()),
    (CONSTRAINED, objective, ims.FilterInteriorPoint()),
    ("minimize with bounds", objective, ims.ProjectedNewton()),
    ("minimize with bounds", objective, ims.LBFGSB()),
    ("least_squares with bounds", misfit, ims.LevenbergMarquardt()),
    ("least_squares with bounds", misfit, ims.LBFGSB()),
    ("fixed_point", iteration, ims.FixedPointIteration()),
    ("fixed_point", iteration, ims.Anderson()),
    ("fixed_point", iteration, ims.Aitken()),
    ("least_squares", misfit, ims.LevenbergMarquardt()),
    ("least_squares", misfit, ims.Dogleg()),
    ("least_squares", misfit, ims.GaussNewton()),
]
ALL = pytest.mark.parametrize(
    "entry, fn, solver",
    ROWS,
    ids=[f"{fn.__name__}-{type(s).__name__ if s else 'default'}" for _, fn, s in ROWS],
)


def drawn(seed, dtype, bend):
    """Return problems with one solution if ``bend`` is small, and else with many, or with none."""
    g = torch.Generator().manual_seed(seed)
    A, b, z0 = (
        torch.randn(LANES, *shape, generator=g, dtype=F64) for shape in ((N, N), (N,), (N,))
    )
    if bend < 1:
        A = torch.linalg.qr(A)[0] * torch.logspace(0, -1, N, dtype=F64)
    order = torch.rand(LANES, N, generator=g).argsort(-1)
    return [t.to(dtype) for t in (A, b, torch.full((LANES,), bend), z0)], order


def run(entry, fn, solver, drawn, c=1.0, s=1.0, r=1.0, order=None):
    """Solve in other units; return the solution, and its value in the old ones."""
    *data, z0 = drawn
    one = torch.ones_like(z0)
    c, s, r = c * one[:, 0], s * one[:, 0], r * one
    p = torch.arange(N).expand(LANES, N) if order is None else order
    q = p.argsort(-1)
    start, bounds = s[:, None] * z0.gather(-1, q), None
    if isinstance(entry, str) and entry.endswith("bounds"):
        bounds = -0.25 * s[:, None] * torch.ones_like(z0), 0.5 * s[:, None] * torch.ones_like(z0)
    sol = solve(entry, fn, start, (c, s, r, p, q, *data), solver, bounds)
    return sol, sol.value.gather(-1, p) / s[:, None]


def powers(base, most):
    exponents = st.lists(st.integers(-most, most), min_size=LANES, max_size=LANES)
    return exponents.map(lambda k: torch.tensor([float(base) ** i for i in k], dtype=F64))


def shared(c, by_rows):
    """Give the factors to the function in a third of the lanes, in others to z, or to rows."""
    part = torch.arange(LANES) % 3
    one, rows = torch.ones_like(c), torch.ones(LANES, N, dtype=F64)
    if by_rows:
        # (half of the exponent, with one sign and the other)
        k = torch.arange(-2, N - 2) / 2 * (c.log2() / 2)[:, None].trunc()
        rows = torch.where((part == 2)[:, None], torch.exp2(k.trunc()), rows)
    return {"c": torch.where(part == 0, c, one), "s": torch.where(part == 1, c, one), "r": rows}


@ALL
@pytest.mark.parametrize("dtype, most", [(F64, 80), (F32, 40)], ids=["float64", "float32"])
def test_powers_of_two_change_no_bit(entry, fn, solver, dtype, most):
    if dtype == F32 and isinstance(solver, ims.NewtonCG):
        most = 12  # its products have the unit of f over the cube of z's

    @few
    @given(st.integers(0, 2**31), st.sampled_from([0.25, 3.0]), powers(2, most))
    def check(seed, bend, c):
        problems, _ = drawn(seed, dtype, bend)
        # the others measure the residual, or add components: their rows are in one unit
        by_rows = solver == ims.Newton() and entry == "root"
        units = {k: t.to(dtype) for k, t in shared(c, by_rows).items()}
        if entry == "fixed_point":
            units["s"], units["c"] = units["s"] * units["c"], 1.0
        sol, value = run(entry, fn, solver, problems)
        other, again = run(entry, fn, solver, problems, **units)
        assert torch.equal(other.status, sol.status)
        assert torch.equal(other.iterations, sol.iterations)
        assert torch.equal(again, value)
        # the rows of constraints have units of their own, which choose the pivots among rounding
        rtol = torch.finfo(dtype).eps ** 0.5 if entry is CONSTRAINED else 0.0
        torch.testing.assert_close(other.error / units["s"], sol.error, rtol=rtol, atol=0.0)

    check()


@ALL
def test_other_units_and_orders_change_rounding_alone(entry, fn, solver):
    @few
    @given(st.integers(0, 2**31), powers(10, 20))
    def check(seed, c):
        problems, order = drawn(seed, F64, 0.25)
        sol, value = run(entry, fn, solver, problems)
        for units in (shared(c, False), {"order": order}):
            other, again = run(entry, fn, solver, problems, **units)
            assert torch.equal(other.status, sol.status)
            within = 20 * (sol.error + other.error / units.get("s", 1.0))
            within = within + 8 * torch.finfo(F64).eps * rms(value)
            assert bool((rms(again - value) <= within)[sol.status == CONVERGED].all())

    check()
