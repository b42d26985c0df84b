"""`Dogleg`, `LevenbergMarquardt` and `GaussNewton` in one compiled graph, and step by step."""

import functools
import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

import implicit_solvers as ims

from .comparison import agree, nightly_but

F32, F64 = torch.float32, torch.float64
LANES = {"batch_dims": 1, "on_failure": "mask"}


def named(solver):
    return type(solver).__name__


def drawn(*shape, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def system(z, x, W):
    return torch.tanh(z @ W.T) + z - x


def contraction(z, x, W):
    return torch.tanh(z @ W.T) + x


def rooted(solver, equation=ims.root, fn=system):
    def run(x, W):
        start = torch.zeros_like(x)
        return equation(fn, start, (x, W), solver=solver, in_dims=(0, None), **LANES)

    return run


def inputs(lanes=5, dtype=F64):
    """Return data that take some lanes of `system` far from the start, where steps must shrink."""
    sizes = torch.logspace(-1, 1, lanes, dtype=dtype).unsqueeze(-1)
    return sizes * drawn(lanes, 4, dtype=dtype), 1.5 * drawn(4, 4, seed=1, dtype=dtype)


TIMES = torch.linspace(0, 2, 6, dtype=F64)


def decay(z, y):
    return z[..., :1] * torch.exp(-z[..., 1:] * TIMES.to(z)) - y


def fitted(solver, **options):
    def run(y):
        start = torch.tensor([1.0, 0.0], dtype=y.dtype).expand(len(y), 2)
        return ims.least_squares(decay, start, (y,), solver=solver, in_dims=(0,), **LANES)

    return run


def curves(dtype=F64):
    rates = torch.tensor([[0.3], [1.0], [2.5], [4.0]], dtype=F64)
    return (2 * torch.exp(-rates * TIMES) + 0.05 * drawn(4, 6)).to(dtype)


CASES = {
    "Dogleg": (ims.Dogleg(), "aot_eager"),
    "Dogleg, GMRES": (ims.Dogleg(linear_solver=ims.GMRES(rtol=1e-4)), "eager"),
    "LevenbergMarquardt": (ims.LevenbergMarquardt(), "aot_eager"),
    "LevenbergMarquardt, small region": (ims.LevenbergMarquardt(first_radius=1e-3), "eager"),
    "LevenbergMarquardt, CG": (ims.LevenbergMarquardt(linear_solver=ims.CG(rtol=1e-4)), "eager"),
}


@pytest.mark.parametrize("name", nightly_but(["Dogleg, GMRES"], CASES))
def test_root_in_lanes(name):
    solver, backend = CASES[name]
    (sol, _), _ = agree(rooted(solver), inputs(), backend=backend)
    assert sol.converged.all()
    assert len(sol.iterations.unique()) > 1


@pytest.mark.nightly
def test_old_factors_serve_in_a_graph():
    """The counts of steps tell that the graph takes the same steps with them as eager mode."""
    counts = []
    for reuse in (0, 4):
        (sol, _), _ = agree(rooted(ims.Dogleg(reuse=reuse)), inputs(), steps=0)
        counts.append(sol.iterations)
    assert (counts[1] >= counts[0]).all() and (counts[1] > counts[0]).any()


@pytest.mark.parametrize("solver", [ims.Dogleg(), ims.LevenbergMarquardt()], ids=named)
def test_fixed_points(solver):
    x, W = inputs()
    agree(rooted(solver, ims.fixed_point, contraction), (x, 0.2 * W))


@pytest.mark.nightly
def test_single_precision():
    x, W = inputs(dtype=F32)
    agree(rooted(ims.Dogleg()), (x, W))
    agree(fitted(ims.LevenbergMarquardt()), (curves(F32),))


FITS = {
    "LevenbergMarquardt": (ims.LevenbergMarquardt(), "aot_eager"),
    "Dogleg": (ims.Dogleg(), "aot_eager"),
    "GaussNewton": (ims.GaussNewton(), "aot_eager"),
    "LevenbergMarquardt, CG": (ims.LevenbergMarquardt(linear_solver=ims.CG(rtol=1e-4)), "eager"),
    "Dogleg, CG": (ims.Dogleg(linear_solver=ims.CG(rtol=1e-4)), "eager"),
    "GaussNewton, CG": (ims.GaussNewton(linear_solver=ims.CG(rtol=1e-6)), "eager"),
}


@pytest.mark.parametrize("name", nightly_but(["LevenbergMarquardt", "GaussNewton, CG"], FITS))
def test_fits_in_lanes(name):
    solver, backend = FITS[name]
    (sol, _), _ = agree(fitted(solver), (curves(),), backend=backend)
    assert sol.converged.all()
    assert len(sol.iterations.unique()) > 1


@pytest.mark.parametrize(
    "solver", [ims.Dogleg(), ims.LevenbergMarquardt(), ims.GaussNewton()], ids=named
)
def test_one_fit_of_a_pytree(solver):
    y = curves()[1]

    def run(y):
        def residuals(z, y):
            return {"data": z["scale"] * torch.exp(-z["rate"] * TIMES) - y, "prior": z["rate"] / 9}

        start = {"scale": y.new_ones(()), "rate": y.new_zeros(())}
        sol = ims.least_squares(residuals, start, (y,), solver=solver, on_failure="mask")
        flat = torch.stack([sol.value["scale"], sol.value["rate"]])
        return ims.Solution(flat, sol.converged, sol.iterations, sol.residual, sol.status)

    agree(run, (y,))


def test_gauss_newton_halves_its_steps():
    """At the minimum, 0, a whole step multiplies the error by ``-a``."""

    def run(a):
        def residuals(z, a):
            return torch.cat([z + 0.5 * a * z**2 - 1, z - 0.5 * a * z**2 + 1], -1)

        start = torch.tensor([[0.5, -0.4], [0.3, 0.2]], dtype=F64)
        solver = ims.GaussNewton()
        return ims.least_squares(residuals, start, (a,), solver=solver, in_dims=(0,), **LANES)

    (sol, _), _ = agree(run, (torch.tensor([[-1.5], [-1.9]], dtype=F64),))
    assert sol.converged.all()
    assert float(sol.value.detach().abs().max()) < 1e-10


@pytest.mark.nightly
@pytest.mark.parametrize("solver", [ims.Dogleg(), ims.LevenbergMarquardt()], ids=named)
def test_badly_scaled_root_of_one_lane(solver):
    def run(a):
        def powell(z, a):
            return torch.stack([1e4 * z[0] * z[1] - a, torch.exp(-z).sum() - 1.0001])

        start = torch.tensor([0.0, 1.0], dtype=F64)
        return ims.root(powell, start, (a,), solver=solver, on_failure="mask")

    # the Jacobian's condition number is 1e5
    (sol, _), _ = agree(run, (torch.tensor(1.0, dtype=F64),), factor=1e3)
    exact = torch.tensor([1.098159e-05, 9.106146], dtype=F64)
    torch.testing.assert_close(sol.value.detach(), exact, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(
    "solver", nightly_but([ims.Dogleg()], [ims.Dogleg(), ims.LevenbergMarquardt()]), ids=named
)
def test_singular_jacobians_on_the_way(solver):
    """The first lane starts at a singular Jacobian, the second at a regular one."""

    def run(a):
        def fn(z, a):
            u, v = z[:, 0], z[:, 1]
            return torch.stack([u * v - a[:, 0], u + v**2 - a[:, 1]], -1)

        start = torch.tensor([[2.0, 1.0], [3.0, 1.0]], dtype=F64)
        return ims.root(fn, start, (a,), solver=solver, in_dims=(0,), **LANES)

    (sol, _), _ = agree(run, (torch.tensor([[6.0, 7.0], [6.0, 7.0]], dtype=F64),))
    assert sol.converged.all()


def test_a_fit_without_full_rank():
    y = curves()

    def run(solver):
        def fit(y):
            def residuals(z, y):
                return decay(torch.stack([z[:, 0] + z[:, 1], z[:, 2]], -1), y)

            start = torch.tensor([0.5, 0.5, 0.0], dtype=F64).expand(len(y), 3)
            return ims.least_squares(residuals, start, (y,), solver=solver, in_dims=(0,), **LANES)

        return fit

    for solver in (ims.LevenbergMarquardt(), ims.Dogleg(), ims.GaussNewton()):
        expected = run(solver)(y)
        sol = torch.compile(run(solver), fullgraph=True, backend="eager")(y)
        assert torch.equal(sol.status, expected.status)
        torch.testing.assert_close(sol.value, expected.value, rtol=1e-10, atol=1e-10)
        singular = isinstance(solver, ims.GaussNewton)
        assert sol.status.tolist() == [int(ims.Status.SINGULAR) if singular else 0] * 4


@pytest.mark.parametrize(
    "solver",
    nightly_but([ims.LevenbergMarquardt()], [ims.LevenbergMarquardt(), ims.Dogleg()]),
    ids=named,
)
def test_fewer_residuals_than_unknowns(solver):
    """Nothing is differentiated: the solution is one of many."""
    a = torch.tensor([[1.0], [4.0], [30.0]], dtype=F64)

    def run(a):
        start = torch.tensor([3.0, 0.1], dtype=F64).expand(3, 2)
        fn = lambda z, a: (z**2).sum(-1, keepdim=True) - a
        return ims.least_squares(fn, start, (a,), solver=solver, in_dims=(0,), **LANES)

    expected = run(a)
    sol = torch.compile(run, fullgraph=True, backend="eager")(a)
    assert sol.converged.all() and torch.equal(sol.iterations, expected.iterations)
    torch.testing.assert_close(sol.value, expected.value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((sol.value**2).sum(-1, keepdim=True), a)


def square(solver):
    """Lanes ``z**2 + w**2 x z = x``: of NaN or very negative ``x`` have no root, and fail alone."""

    def run(x, w):
        fn = lambda z, x, w: z**2 + w**2 * x * z - x
        return ims.root(fn, torch.ones_like(x), (x, w), solver=solver, in_dims=(0, None), **LANES)

    return run


@pytest.mark.parametrize(
    "solver", nightly_but([ims.Dogleg()], [ims.Dogleg(), ims.LevenbergMarquardt()]), ids=named
)
def test_lanes_that_fail_have_no_part_in_gradients(solver):
    x = torch.tensor([[2.0], [float("nan")], [-9.0], [5.0]], dtype=F64)
    w = torch.tensor([0.3], dtype=F64)
    (sol, (gx, gw)), _ = agree(square(solver), (x, w), backend="aot_eager")
    assert sol.status.tolist() == [0, ims.Status.NONFINITE, ims.Status.STALLED, 0]
    assert gx[1:3].flatten().tolist() == [0.0, 0.0]
    alone = agree(square(solver), (x[[0, 3]], w))[0][1]
    torch.testing.assert_close(gw, alone[1])


@pytest.mark.parametrize(
    "solver",
    nightly_but(
        [ims.LevenbergMarquardt()], [ims.LevenbergMarquardt(), ims.Dogleg(), ims.GaussNewton()]
    ),
    ids=named,
)
def test_fits_that_fail_have_no_part_in_gradients(solver):
    y = curves()
    y[2, 3] = torch.nan
    (sol, (gy,)), _ = agree(fitted(solver), (y,))
    assert sol.status.tolist() == [0, 0, ims.Status.NONFINITE, 0]
    assert (gy[2] == 0).all() and torch.isfinite(gy).all()


@pytest.mark.parametrize("steps", nightly_but([3], [3, 18]))
def test_a_budget_of_steps(steps):
    """A few are unrolled, many are a loop; at the end lanes stay where no step pays."""
    budget = {"rtol": None, "max_steps": steps}
    # gradients are those of an implicit function only where a root was reached
    with torch.no_grad():
        x, W = inputs()
        cases = [
            (rooted(ims.Dogleg(**budget)), (x, W)),
            (rooted(ims.LevenbergMarquardt(**budget)), (x, W)),
            (fitted(ims.GaussNewton(**budget)), (curves(),)),
        ]
        for run, data in cases:
            expected = run(*data)
            sol = torch.compile(run, fullgraph=True, backend="eager")(*data)
            assert set(sol.status.tolist()) == {int(ims.Status.BUDGET)}
            assert set(sol.iterations.tolist()) == {steps}
            torch.testing.assert_close(sol.value, expected.value, rtol=1e-9, atol=1e-9)


def called(fn, name):
    """Return how often an operator ran in ``fn()``."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        fn()
    return sum(event.name == f"aten::{name}" for event in profile.events())


def test_a_decomposition_is_made_where_a_lane_needs_it_only():
    x, W = inputs()
    for radius in (1.0, 1e6):
        solver = ims.LevenbergMarquardt(first_radius=radius)
        run = torch.compile(rooted(solver), fullgraph=True, backend="eager")
        with torch.no_grad():
            sol = run(x, 0.2 * W)
            svd = called(lambda run=run: run(x, 0.2 * W), "linalg_svd")
        assert sol.converged.all()
        assert svd == 0 if radius > 1 else 0 < svd < int(sol.iterations.max())


def test_factors_are_made_where_a_lane_needs_them_only():
    x, W = inputs()
    saved = []
    for reuse in (0, 4):
        run = torch.compile(rooted(ims.Dogleg(reuse=reuse)), fullgraph=True, backend="eager")
        with torch.no_grad():
            sol = run(x, 0.2 * W)
            factored = called(lambda run=run: run(x, 0.2 * W), "linalg_lu_factor_ex")
        saved.append(int(sol.iterations.max()) - factored)
    # before the first step, the identity is factored
    assert saved[0] == 0 and saved[1] >= 1


@pytest.mark.nightly
def test_batches_of_any_size_share_a_graph():
    counter = CompileCounterWithBackend("eager")
    run = rooted(ims.Dogleg())
    compiled = torch.compile(run, fullgraph=True, backend=counter)
    with torch.no_grad():
        for lanes in (3, 7):
            x, W = inputs(lanes)
            torch._dynamo.mark_dynamic(x, 0)
            torch.testing.assert_close(compiled(x, W).value, run(x, W).value)
    assert counter.frame_count == 1


def test_gauss_newton_needs_as_many_residuals_as_unknowns():
    def run(a):
        fn = lambda z, a: z.sum(-1, keepdim=True) - a
        start = a.new_zeros(3, 2)
        return ims.least_squares(
            fn, start, (a,), solver=ims.GaussNewton(), in_dims=(0,), **LANES
        ).value

    with pytest.raises(Exception, match="GaussNewton\\(\\) needs at least as many residuals"):
        torch.compile(run, fullgraph=True, backend="eager")(drawn(3, 1))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
# said by torch of itself
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_lowered_by_inductor():
    agree(rooted(ims.Dogleg()), inputs(), backend="inductor")


# -- compile=True ----------------------------------------------------------------------------------


STEPS = {
    "Dogleg": (rooted, ims.Dogleg),
    "Dogleg, no reuse": (rooted, functools.partial(ims.Dogleg, reuse=0)),
    "Dogleg, GMRES": (rooted, functools.partial(ims.Dogleg, linear_solver=ims.GMRES(rtol=1e-4))),
    "LevenbergMarquardt": (rooted, ims.LevenbergMarquardt),
    "fit, LevenbergMarquardt": (fitted, ims.LevenbergMarquardt),
    "fit, Dogleg": (fitted, ims.Dogleg),
    "fit, GaussNewton": (fitted, ims.GaussNewton),
}


@pytest.mark.parametrize("name", nightly_but(["Dogleg", "fit, GaussNewton"], STEPS))
def test_compiled_steps(name, traced_only):
    solve, solver = STEPS[name]
    if solve is rooted:
        data = inputs(20)
    else:
        rates = torch.logspace(-2, 0.5, 20, dtype=F64).unsqueeze(-1)
        data = (2 * torch.exp(-rates * TIMES) + 0.05 * drawn(20, 6),)
    results = []
    for compiled in (False, True):
        leaves = [t.clone().requires_grad_() for t in data]
        sol = solve(solver(compile=compiled))(*leaves)
        results.append((sol, torch.autograd.grad((sol.value**2).sum(), leaves)))
    (expected, expected_gradients), (actual, gradients) = results
    assert actual.converged.all() and torch.equal(actual.status, expected.status)
    assert int((actual.iterations - expected.iterations).abs().max()) <= 1
    assert actual.iterations.min() < actual.iterations.max()
    # both are within the tolerance of the solve, eps**0.75 = 2e-12, times condition numbers
    torch.testing.assert_close(actual.value, expected.value, rtol=1e-9, atol=1e-9)
    for a, b in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    # the whole batch, and buckets of 8 and 16
    assert 1 <= counters["stats"]["unique_graphs"] <= 3


@pytest.mark.nightly
def test_compiled_steps_fail_as_ever(traced_only):
    x = torch.tensor([[2.0], [float("nan")], [-9.0], [5.0]], dtype=F64)
    w = torch.tensor([0.3], dtype=F64)
    for solver in (ims.Dogleg, ims.LevenbergMarquardt):
        statuses = [square(solver(compile=compiled))(x, w).status for compiled in (False, True)]
        assert torch.equal(*statuses)
        assert statuses[1].tolist() == [0, ims.Status.NONFINITE, ims.Status.STALLED, 0]


@pytest.mark.parametrize("every", nightly_but([7], [2, 7]))
def test_results_do_not_depend_on_check_every(every):
    runs = [
        (lambda k: rooted(ims.Dogleg(check_every=k)), inputs(20)),
        (lambda k: rooted(ims.LevenbergMarquardt(check_every=k)), inputs(20)),
        (lambda k: fitted(ims.GaussNewton(check_every=k)), (curves(),)),
    ]
    for run, data in runs:
        one, several = run(1)(*data), run(every)(*data)
        assert torch.equal(one.status, several.status)
        assert torch.equal(one.iterations, several.iterations)
        torch.testing.assert_close(several.value, one.value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", [ims.GaussNewton, ims.LevenbergMarquardt, ims.Dogleg])
def test_an_inner_solver_alone_runs_uncompiled(solver, traced_only):
    inner = [ims.CG(rtol=1e-6, compile=compiled) for compiled in (False, True)]
    plain, compiled = (fitted(solver(linear_solver=cg))(curves()) for cg in inner)
    assert torch.equal(plain.value, compiled.value)
    assert torch.equal(plain.status, compiled.status)
