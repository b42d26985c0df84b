"""Quasi-Newton methods and those for one unknown in one compiled graph, and with steps that are."""

import functools

import pytest
import torch
from torch._dynamo.exc import Unsupported
from torch._dynamo.utils import counters

import implicit_solvers as ims
from implicit_solvers import Status

from .comparison import agree, nightly_but

LANES = {"batch_dims": 1, "in_dims": (0, None), "on_failure": "mask"}


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def system(z, x, W):
    return torch.tanh(z @ W.T) + z**3 + z - x


def contraction(z, x, W):
    return torch.tanh(z @ W.T) + x


SYSTEMS = {
    "Broyden": ims.Broyden,
    "bad": functools.partial(ims.Broyden, good=False),
    "Broyden, LU": functools.partial(ims.Broyden, linear_solver=ims.LU(), memory=3),
    "reuse": functools.partial(ims.Newton, reuse=0.2),
    "Aitken": ims.Aitken,
}
X, W = 2 * drawn(5, 4), 0.3 * drawn(4, 4, seed=1)


def solved(solver, **options):
    """Return a function of ``x`` and ``W`` that solves for a root, or a fixed point."""
    equation, fn = (ims.root, system)
    if "root" not in solver.solves:
        equation, fn = ims.fixed_point, contraction

    def run(x, W):
        return equation(fn, torch.zeros_like(x), (x, W), solver=solver, **{**LANES, **options})

    return run


@pytest.mark.parametrize("name", nightly_but(["reuse"], SYSTEMS))
def test_lanes(name):
    backend = "aot_eager" if name in ("Broyden, LU", "reuse") else "eager"
    (sol, _), _ = agree(solved(SYSTEMS[name]()), (X, W), backend=backend, steps=0)
    assert sol.converged.all()
    assert sol.iterations.min() < sol.iterations.max()


@pytest.mark.parametrize("name", ["Broyden", pytest.param("reuse", marks=pytest.mark.nightly)])
def test_one_lane_of_float32(name):
    run = solved(SYSTEMS[name](), batch_dims=0, in_dims=None)
    agree(run, (X[0].float(), W.float()))


@pytest.mark.parametrize("name", ["reuse", pytest.param("Broyden", marks=pytest.mark.nightly)])
def test_lanes_that_cannot_be_selected(name):
    agree(solved(SYSTEMS[name](), in_dims=None), (X, W), steps=0)


@pytest.mark.parametrize(
    "name, steps",
    [("Broyden, LU", 3), ("reuse", 20), pytest.param("bad", 20, marks=pytest.mark.nightly)],
)
def test_a_budget_of_steps(name, steps):
    (sol, _), _ = agree(solved(SYSTEMS[name](rtol=None, max_steps=steps)), (X, W), steps=0)
    assert sol.status.tolist() == [Status.BUDGET] * 5


@pytest.mark.parametrize("name", nightly_but(["Broyden"], ["Broyden", "Broyden, LU", "reuse"]))
def test_lanes_that_fail_do_so_alone(name):
    """``z^2 = x``: without a root, with NaN, and from a singular Jacobian."""
    x = torch.tensor(
        [[2.0, 5.0], [-9.0, 1.0], [float("nan"), 1.0], [7.0, 0.5]], dtype=torch.float64
    )
    x = torch.cat([x, x[:1]])
    start = torch.ones_like(x)
    start[4] = 0.0
    solver = SYSTEMS[name](max_steps=60)

    def run(x, W):
        return ims.root(
            lambda z, x, W: z**2 + torch.tanh(z @ W) - x, start, (x, W), solver=solver, **LANES
        )

    (sol, (gx, gw)), _ = agree(run, (x, 0 * W[:2, :2]), steps=0)
    assert sol.converged[[0, 3]].all() and not sol.converged[1:3].any()
    assert sol.status[2] == Status.NONFINITE
    if name != "Broyden":
        assert sol.status[4] == Status.SINGULAR
    assert (gx[1:3] == 0).all() and torch.isfinite(gw).all()
    torch.testing.assert_close(sol.value[[0, 3]], x[[0, 3]].sqrt())


@pytest.mark.parametrize("name", nightly_but(["reuse"], ["Broyden, LU", "reuse"]))
def test_nothing_is_factored_in_steps_where_no_lane_needs_it(name):
    run = solved(SYSTEMS[name](compact=False))
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    with torch.no_grad():
        steps = compiled(X, W).iterations.max()
        expected, actual = factorizations(run, X), factorizations(compiled, X)
        assert 1 < actual == expected < steps
        # a lane that is solved at its start needs nothing
        x = torch.cat([X[:1], torch.zeros_like(X[:4])])
        assert compiled(x, W).iterations.tolist()[1:] == [0] * 4
        alone = factorizations(run, X[:1])
        assert factorizations(run, x) == factorizations(compiled, x) == alone


def factorizations(run, x):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run(x, W)
    return sum(event.name == "aten::linalg_lu_factor_ex" for event in profile.events())


SCALAR = {
    "Steffensen": ims.Steffensen,
    "Bisection": ims.Bisection,
    "Chandrupatla": ims.Chandrupatla,
}
LEVELS = torch.tensor([-30.0, -1.0, 0.0, 0.5, 40.0], dtype=torch.float64).unsqueeze(-1)
SLOPE = torch.tensor(0.5, dtype=torch.float64)
scalar = pytest.mark.parametrize("name", SCALAR)


def cubic(z, x, w):
    return z**3 + w * z - x


def one_unknown(solver):
    def run(x, w):
        return ims.root(cubic, torch.ones_like(x), (x, w), solver=solver, **LANES)

    return run


@scalar
def test_one_unknown(name):
    (sol, (gx, _)), _ = agree(one_unknown(SCALAR[name]()), (LEVELS, SLOPE), steps=0)
    assert sol.converged.all()
    z, weights = sol.value, torch.linspace(0.5, 1.5, 5, dtype=torch.float64).unsqueeze(-1)
    torch.testing.assert_close(gx, 2 * weights * z / (3 * z**2 + SLOPE))


@scalar
def test_lanes_of_one_unknown_that_fail_do_so_alone(name):
    def run(x, w):
        solver = SCALAR[name](max_steps=60)
        fn = lambda z, x, w: z**2 + w * z.abs() - x
        return ims.root(fn, torch.ones_like(x), (x, w), solver=solver, **LANES)

    x = torch.tensor([3.0, -2.0, float("nan"), 7.0], dtype=torch.float64).unsqueeze(-1)
    (sol, (gx, _)), _ = agree(run, (x, SLOPE))
    assert sol.converged.tolist() == [True, False, False, True]
    assert sol.status[2] == Status.NONFINITE
    if name != "Steffensen":
        assert sol.status[1] == Status.BRACKET
    assert (gx[1:3] == 0).all()


@pytest.mark.parametrize("name", [None, "Bisection"])
def test_a_bracket_that_is_given(name):
    solver = None if name is None else SCALAR[name]()

    def run(x, w):
        ends = (torch.full_like(x, -1.0), 9.0)
        return ims.root(cubic, None, (x, w), bracket=ends, solver=solver, **LANES)

    (sol, _), _ = agree(run, (LEVELS, SLOPE), steps=0)
    # the root at -30 is below -1
    assert sol.status.tolist() == [Status.BRACKET, *[Status.CONVERGED] * 4]


def test_a_bracket_and_a_budget():
    def run(x):
        return ims.root(
            lambda z, x: z**3 - x,
            None,
            (x,),
            bracket=(torch.zeros_like(x), 4.0),
            solver=ims.Bisection(rtol=None, max_steps=20),
            on_failure="mask",
        )

    (sol, _), _ = agree(run, (torch.tensor(5.0, dtype=torch.float64),), steps=0)
    torch.testing.assert_close(sol.value, sol.value.new_tensor(5.0) ** (1 / 3), atol=4e-6, rtol=0)


@scalar
def test_several_unknowns_are_refused(name):
    def run(x):
        options = {"solver": SCALAR[name](), "on_failure": "mask"}
        return ims.root(lambda z, x: z - x, torch.zeros_like(x), (x,), **options).value

    with pytest.raises(Unsupported, match="2 unknowns|is for one unknown"):
        torch.compile(run, fullgraph=True, backend="eager")(X[0, :2])
    with pytest.raises(ValueError, match="2 unknowns|is for one unknown"):
        torch.compile(run, backend="eager")(X[0, :2])


@pytest.mark.parametrize(
    "name",
    [
        "Broyden, LU",
        "reuse",
        "Aitken",
        *SCALAR,
        *(pytest.param(name, marks=pytest.mark.nightly) for name in ("Broyden", "bad")),
    ],
)
def test_compiled_steps(name, steps_compiled_by):
    steps_compiled_by("aot_eager" if name in ("Broyden", "Bisection") else "eager")
    if name in SYSTEMS:
        scales = torch.logspace(-3, 1, 40, dtype=torch.float64).unsqueeze(-1)
        inputs = scales * drawn(40, 4), W
    else:
        inputs = torch.linspace(-30, 40, 40, dtype=torch.float64).unsqueeze(-1), SLOPE
    results = []
    for compiled in (False, True):
        solver = {**SYSTEMS, **SCALAR}[name](compile=compiled)
        run = solved(solver) if name in SYSTEMS else one_unknown(solver)
        leaves = [t.clone().requires_grad_() for t in inputs]
        sol = run(*leaves)
        results.append((sol, torch.autograd.grad((sol.value**2).sum(), leaves)))
    (expected, expected_gradients), (actual, gradients) = results
    assert torch.equal(actual.status, expected.status)
    assert torch.equal(actual.iterations, expected.iterations)
    assert actual.iterations.min() < actual.iterations.max()
    torch.testing.assert_close(actual.value, expected.value)
    torch.testing.assert_close(gradients, expected_gradients)
    # all lanes, then 16 and 8 places at the most
    assert 1 <= counters["stats"]["unique_graphs"] <= 3
