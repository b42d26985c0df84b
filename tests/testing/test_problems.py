"""The test problems: their references hold, and the library's solvers agree with them."""

import importlib.util
import math
import pkgutil
from pathlib import Path

import pytest
import scipy.optimize
import torch
from torch.func import grad, jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers.testing import problems
from implicit_solvers.testing.problems import (
    ALL,
    FIXED_POINTS,
    HOCK_SCHITTKOWSKI,
    LEAST_SQUARES,
    MINIMA,
    ROOTS,
)

REGULAR = [p for p in ALL if p.regular]
SINGULAR = [problems.DOUBLE_ROOT, problems.POWELL_SINGULAR]
ROOTLESS = [problems.NO_ROOT, problems.CHEBYQUAD_8]
KINDS = {"root": ROOTS, "fixed_point": FIXED_POINTS, "minimize": MINIMA}
KINDS["least_squares"] = LEAST_SQUARES


def condition(problem, z, theta):
    """Return the optimality condition, without the library."""
    if problem.kind == "root":
        return problem.fn(z, theta)
    if problem.kind == "fixed_point":
        return z - problem.fn(z, theta)
    if problem.kind == "minimize":
        return grad(problem.fn)(z, theta)
    return grad(lambda u: (problem.fn(u, theta) ** 2).sum() / 2)(z)


def blocks(problem, z):
    """Return the condition and its Jacobians in ``z`` and ``theta``, as matrices."""
    n, theta = z.numel(), problem.theta()
    f = condition(problem, z, theta).reshape(n)
    jacobian = jacfwd(lambda u: condition(problem, u, theta))(z).reshape(n, n)
    sensitivity = jacfwd(lambda p: condition(problem, z, p))(theta).reshape(n, -1)
    return f, jacobian, sensitivity


def polished(problem, z):
    """Return SciPy's solution near ``z``, with Jacobians by differences."""
    theta = problem.theta()

    def f(x):
        return condition(problem, torch.from_numpy(x).reshape(z.shape), theta).reshape(-1).numpy()

    x = z.detach().reshape(-1).numpy() * (1 + 1e-6)
    out = scipy.optimize.root(f, x, tol=1e-15, options={"xtol": 1e-15})
    return torch.from_numpy(out.x).reshape(z.shape)


def assert_value(value, expected, problem):
    error = (value - expected).abs() / (1 + expected.abs())
    assert float(error.max()) <= 1e-10, f"{problem}: {float(error.max()):.1e}"


def assert_derivative(found, problem):
    """Compare column by column: the parameters have different units."""
    expected = problem.derivative
    assert found.shape == expected.shape
    columns = expected.reshape(-1, expected.shape[-1]).abs().amax(0)
    scale = torch.where(columns > 0, columns, 1.0)
    error = ((found - expected).abs() / scale).max()
    assert float(error) <= 1e-8, f"{problem}: {float(error):.1e}"


# -- the collection -------------------------------------------------------------------------------


def test_the_lists_hold_every_problem_once():
    found = []
    for info in pkgutil.iter_modules(problems.__path__):
        module = importlib.import_module(f"{problems.__name__}.{info.name}")
        found += [v for v in vars(module).values() if isinstance(v, problems.Problem)]
    assert set(found) == set(ALL)
    assert len({p.name for p in ALL}) == len(ALL)
    assert [*ROOTS, *FIXED_POINTS, *MINIMA, *LEAST_SQUARES] == list(ALL)
    for kind, group in KINDS.items():
        assert {p.kind for p in group} == {kind}
        for problem in group:
            assert getattr(problems, problem.name.replace("-", "_").upper()) is problem
    assert {p for p in ALL if not p.regular} == {*SINGULAR, *ROOTLESS}


@pytest.mark.parametrize("problem", [*ALL, *HOCK_SCHITTKOWSKI], ids=str)
def test_the_functions_keep_dtype_and_shape_and_go_under_vmap(problem):
    for dtype in (torch.float32, torch.float64):
        z0, theta = problem.start(dtype), problem.theta(dtype)
        for bound in problem.box(theta):
            assert bound.dtype == dtype and bound.shape == z0.shape
        out = problem.fn(z0, theta)
        assert out.dtype == dtype
        assert out.dim() == (0 if problem.kind == "minimize" else z0.dim())
        if problem.kind in ("root", "fixed_point"):
            assert out.shape == z0.shape
        many = z0 + 0.01 * torch.rand(5, *z0.shape, dtype=dtype)
        for fn in (problem.fn, problem.equalities, problem.inequalities):
            if fn is None:
                continue
            together = vmap(fn, (0, None))(many, theta)
            alone = torch.stack([fn(z, theta) for z in many])
            assert alone.dtype == dtype
            size = float(alone.abs().max())
            # sums of 30 terms in another order
            torch.testing.assert_close(
                together, alone, rtol=0, atol=100 * torch.finfo(dtype).eps * (1 + size)
            )


# -- the references -------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", REGULAR, ids=str)
def test_the_references_satisfy_the_equation_and_its_derivative(problem):
    z = problem.solution
    assert z.shape == problem.start().shape
    assert problem.derivative.shape == (*z.shape, len(problem.parameters))
    f, jacobian, sensitivity = blocks(problem, z)
    derivative = problem.derivative.reshape(z.numel(), -1)
    theta = problem.theta()
    # the rounding of z and theta, seen through the equation
    terms = jacobian.abs() @ z.abs().reshape(-1) + sensitivity.abs() @ theta.abs()
    assert bool((f.abs() <= 1e-14 * terms + 1e-14).all()), float((f.abs() / terms).max())
    terms = jacobian.abs() @ derivative.abs() + sensitivity.abs()
    defect = (jacobian @ derivative + sensitivity).abs()
    assert bool((defect <= 1e-12 * terms.clamp(min=1e-2)).all()), float((defect / terms).max())
    balanced = jacobian / jacobian.abs().amax(0)  # units apart, the Jacobian is regular
    balanced = balanced / balanced.abs().amax(1, keepdim=True)
    assert torch.linalg.cond(balanced) < 1e7


def test_singular_solutions_and_none_say_so():
    for problem in SINGULAR:
        f, jacobian, _ = blocks(problem, problem.solution)
        assert float(f.abs().max()) == 0
        assert int(torch.linalg.matrix_rank(jacobian)) < problem.solution.numel()
    assert all(problem.solution is None for problem in ROOTLESS)
    assert all(problem.derivative is None for problem in [*SINGULAR, *ROOTLESS])


CLOSED_FORMS = {
    "CIRCLE": (0.8, (-0.75, 1.25)),
    "ROSENBROCK": ((1.0, 1.0), ((0.0, 1.0), (0.0, 2.0))),
    "HELICAL_VALLEY": ((1.0, 0.0, 0.0), ((1.0, 0.0), (0.0, 0.2 * math.pi), (0.0, 1.0))),
    "AFFINE": ((0.0, 2.0), ((-1.6, 0.8, -0.4), (-0.8, 0.4, 0.8))),
    "HIMMELBLAU": ((3.0, 2.0), ((4 / 23, -1 / 23), (-1 / 23, 6 / 23))),
    "ROSENBROCK_VALLEY": ((1.0, 1.0), ((1.0, 0.0), (2.0, 0.0))),
}
# the sums of squares in the literature
SQUARES = {"MEYER": 87.9458, "OSBORNE_1": 5.46489e-5, "OSBORNE_2": 4.01377e-2}
SQUARES["MICHAELIS_MENTEN"] = 1195.449


@pytest.mark.parametrize("name", [*CLOSED_FORMS, *SQUARES])
def test_the_references_are_those_known(name):
    problem = getattr(problems, name)
    if name in SQUARES:
        found = float((problem.fn(problem.solution, problem.theta()) ** 2).sum())
        assert found == pytest.approx(SQUARES[name], rel=2e-6)  # the digits known
        return
    solution, derivative = (torch.tensor(x, dtype=torch.float64) for x in CLOSED_FORMS[name])
    torch.testing.assert_close(problem.solution, solution)
    torch.testing.assert_close(problem.derivative, derivative, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("problem", REGULAR, ids=str)
def test_the_references_agree_with_scipy(problem):
    assert_value(polished(problem, problem.solution), problem.solution, problem)


# -- NIST and CUTEst ------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", problems.NIST[::2], ids=str)
def test_nists_certified_values_are_those_of_the_data(problem):
    z, theta = problem.solution, problem.theta()
    jacobian, r = jacfwd(problem.fn)(z, theta), problem.fn(z, theta)
    units = jacobian.norm(dim=0)
    step = torch.linalg.lstsq(jacobian / units, r, driver="gelsd").solution / units
    assert float((step / z).abs().max()) < 3e-10  # eleven digits
    squares = float((problem.fn(z - step, theta) ** 2).sum())
    # what the rounding of the data leaves of the first of Lanczos's is 1e-25
    rel = 1e-3 if problem.name == "lanczos1-1" else 1e-10
    assert squares == pytest.approx(problem.squares, rel=rel, abs=0)


# Σ_i i F_i where the standard start has 1/i added to its i-th unknown, by sif2jax 0.0.8
# fmt: off
CUTEST_SUMS = {
    "booth": -10, "chandheq": -1519.73268330443, "cluster": 0.400298256115424,
    "coolhans": 1830.21040391222, "denschncne": 115.778112197861, "denschndne": -5291.3688271605,
    "denschnene": 31.501404527435, "denschnfne": 107.25, "gottfr": 3.7556,
    "hatfldane": -0.0571336842026295, "hatfldcne": 2.81808364449299, "hatfldf": 16.5439294366687,
    "hatfldflne": 4.66776346666667, "hatfldg": 356.551916355507, "heart6": -7.64993518518518,
    "heart8": 16.5379971904188, "hypcir": -1, "mancinone": -300742599.278728,
    "oscipane": -15527.1724930713, "pfit1": 89.2550326251284, "pfit4": 1224.76120546453,
    "powellsq": 44.5121951219512, "powersumne": 331.088734567901, "recipe": 60.1,
    "sinvalne": 6.11541189362425,
}
# fmt: on


def moved(z0):
    return z0 + 1 / torch.arange(1, len(z0) + 1, dtype=torch.float64)


@pytest.mark.parametrize("problem", problems.CUTEST, ids=str)
def test_cutests_systems_are_those_of_sif2jax_and_their_roots_are_roots(problem):
    z0, theta = problem.start(), problem.theta()
    f = problem.fn(moved(z0), theta)
    terms = f * torch.arange(1, len(f) + 1)
    error = abs(float(terms.sum()) - CUTEST_SUMS[problem.name])
    assert error <= 1e-12 * float(terms.abs().sum())
    z = problem.solution
    jacobian = jacfwd(problem.fn)(z, theta).abs().nan_to_num()
    assert bool((problem.fn(z, theta).abs() <= 1e-14 * (jacobian @ (1 + z.abs()) + 1)).all())


# -- Hock and Schittkowski ------------------------------------------------------------------------


# f + Σ_i i |h_i| + Σ_i i |g_i| where the standard start has 0.1/i added to its i-th unknown, by
# sif2jax 0.0.8, whose inequalities are in the same order, if not of the same sign. It leaves 74
# out, the upper limits of 83 and the last inequality of 104.
# fmt: off
CONSTRAINED_SUMS = {
    "hs1": 663.77, "hs2": 663.77, "hs3": 1.050819025, "hs4": 3.84671354166667,
    "hs5": 1.1269381324736, "hs38": 17547.4721180556, "hs45": 1.70161506875,
    "hs110": -43.4823708238189, "hs6": 6.01, "hs7": 29.1088490928584, "hs26": 21.789880941358,
    "hs27": 12.8161444444444, "hs39": 12.7266944444444, "hs40": 0.763854166666666,
    "hs42": 14.7677083333333, "hs52": 55.1304694444444, "hs61": 24.6544444444444,
    "hs77": 136.077788942341, "hs78": 5.99331786111111, "hs79": 18.181083938191, "hs10": 573.0725,
    "hs11": -0.127499999999998, "hs12": 23.91, "hs13": 45.3515, "hs15": 668.36, "hs17": 671.8925,
    "hs19": -1376.905231, "hs22": 7.9825, "hs24": 16.0132815982758, "hs29": 39.1203888888889,
    "hs30": 4.69277777777778, "hs31": 21.7575, "hs34": 0.0468362993018482, "hs35": 2.45944444444444,
    "hs37": -896.166833333333, "hs43": 41.4372222222222, "hs64": 253566.887655355,
    "hs65": 135.964166666667, "hs66": 0.653502965968515, "hs72": 15.60304202891,
    "hs76": 6.66017361111111, "hs83": -32088.290493355, "hs86": 831.054366231481,
    "hs93": 145.096467660154, "hs100": 1761.39795082132, "hs104": 17.7066958609869,
    "hs106": 994758.864477167, "hs113": 1699.79432509291, "hs117": 3000.18718611775, "hs14": 6.4175,
    "hs41": 1.48816666666667, "hs60": 20.9887402542387, "hs62": -26521.2262519716, "hs63": 1002.715,
    "hs71": 34.3992819444444, "hs73": 343.098679598801, "hs80": 13.3451948123835,
}
# the least objectives that the book gives, in its digits
LEAST = {
    "hs1": 0, "hs2": 0.0504261879, "hs3": 0, "hs4": 8 / 3,
    "hs5": -math.sqrt(3) / 2 - math.pi / 3, "hs38": 0, "hs45": 1, "hs110": -45.77846971, "hs6": 0,
    "hs7": -math.sqrt(3), "hs26": 0, "hs27": 0.04, "hs39": -1, "hs40": -0.25,
    "hs42": 28 - 10 * math.sqrt(2), "hs52": 1859 / 349, "hs61": -143.6461422, "hs77": 0.24150513,
    "hs78": -2.91970041, "hs79": 0.0787768209, "hs10": -1, "hs11": -8.498464223, "hs12": -30,
    "hs13": 1, "hs15": 306.5, "hs17": 1, "hs19": -6961.81381, "hs22": 1, "hs24": -1,
    "hs29": -16 * math.sqrt(2), "hs30": 1, "hs31": 6, "hs34": -math.log(math.log(10)),
    "hs35": 1 / 9, "hs37": -3456, "hs43": -44, "hs64": 6299.842428, "hs65": 0.9535288567,
    "hs66": 0.5181632741, "hs72": 727.67937, "hs76": -4.681818181, "hs83": -30665.53867,
    "hs86": -32.34867897, "hs93": 135.075961, "hs100": 680.6300573, "hs104": 3.9511634396,
    "hs106": 7049.330923, "hs113": 24.3062091, "hs117": 32.348679,
    "hs14": 9 - 2.875 * math.sqrt(7), "hs41": 52 / 27, "hs60": 0.03256820025,
    "hs62": -26272.51448, "hs63": 961.7151721, "hs71": 17.0140173, "hs73": 29.894378,
    "hs74": 5126.4981, "hs80": 0.0539498478,
}
# fmt: on


def functions(problem, z, count=None):
    """Return the objective, the equalities and the inequalities, the first ``count`` of them."""
    theta, none = problem.theta(), z[:0]
    h, g = (fn(z, theta) if fn else none for fn in (problem.equalities, problem.inequalities))
    return problem.fn(z, theta), h, g[:count]


@pytest.mark.parametrize("problem", HOCK_SCHITTKOWSKI, ids=str)
def test_constrained_problems_are_those_of_sif2jax_and_their_minima_those_of_the_book(problem):
    least = float(problem.fn(problem.solution, problem.theta()))
    # (a better point than the book's of 106 is known)
    rel = 2e-5 if problem.name == "hs106" else 2e-8
    assert least == pytest.approx(LEAST[problem.name], rel=rel, abs=1e-12)
    if problem.name in CONSTRAINED_SUMS:
        z = problem.start() + 0.1 * moved(0 * problem.start())
        f, *rows = functions(problem, z, {"hs83": 3, "hs104": 5}.get(problem.name))
        total = f + sum((c.abs() * torch.arange(1, len(c) + 1)).sum() for c in rows)
        assert float(total) == pytest.approx(CONSTRAINED_SUMS[problem.name], rel=1e-12)


def first_order(problem, z, y, theta):
    """Return the gradient of the Lagrangian, its terms, the constraints, and the bounds' gaps."""
    slope, pull = grad(problem.fn)(z, theta), jacrev(problem.constraints)(z, theta)
    lower, upper = problem.box(theta)
    terms = slope.abs() + y.abs() @ pull.abs()
    return slope + y @ pull, terms, problem.constraints(z, theta), z - lower, upper - z


@pytest.mark.parametrize(
    "problem", [p for p in HOCK_SCHITTKOWSKI if p.multipliers is not None], ids=str
)
def test_constrained_minima_satisfy_the_conditions(problem):
    z, y, theta = problem.solution, problem.multipliers, problem.theta()
    slope, terms, c, below, above = first_order(problem, z, y, theta)
    rounding = 1e-10 * (terms + 1)
    assert bool((below >= 0).all()) and bool((above >= 0).all())
    assert bool((slope[(below > 0) & (above > 0)].abs() <= rounding.max()).all())
    assert bool((slope[below == 0] >= 0).all()) and bool((slope[above == 0] <= 0).all())
    size = 1e-10 * (1 + jacrev(problem.constraints)(z, theta).abs() @ (1 + z.abs()))
    equalities = len(functions(problem, z)[1])
    assert bool((c[:equalities].abs() <= size[:equalities]).all())
    g, mu = c[equalities:], y[equalities:]
    assert bool((g <= size[equalities:]).all()) and bool((mu >= 0).all())
    active = g >= -size[equalities:]
    assert bool((mu[~active] == 0).all())
    if problem.regular:
        assert bool((mu[active] > 0).all())
        at = (below == 0) | (above == 0)
        assert bool((slope[at].abs() > 1e-9 * terms[at]).all())


@pytest.mark.parametrize("problem", [p for p in HOCK_SCHITTKOWSKI if p.regular], ids=str)
def test_the_derivatives_of_constrained_minima_keep_the_conditions(problem):
    z, y, theta = problem.solution, problem.multipliers, problem.theta()
    *_, below, above = first_order(problem, z, y, theta)
    free, active = (below > 0) & (above > 0), y != 0
    active[: len(functions(problem, z)[1])] = True

    def conditions(u, theta):
        slope, _, c, below, above = first_order(problem, u[: len(z)], u[len(z) :], theta)
        at_bounds = torch.where(free, slope, torch.minimum(below, above))
        return torch.cat([at_bounds, torch.where(active, c, u[len(z) :])])

    du = torch.cat([problem.derivative, problem.multipliers_derivative])
    by_u, by_theta = (jacfwd(conditions, i)(torch.cat([z, y]), theta) for i in (0, 1))
    terms = by_u.abs() @ du.abs() + by_theta.abs()
    assert bool(((by_u @ du + by_theta).abs() <= 1e-8 * terms + 1e-10).all())


# -- the default solvers --------------------------------------------------------------------------


def assert_value_and_derivatives(problem, **options):
    solve = lambda theta: problem.solve(theta, **options).value
    assert_value(solve(problem.theta()), problem.solution, problem)
    for jacobian in (jacrev, jacfwd):
        assert_derivative(jacobian(solve)(problem.theta()), problem)


def start_towards_the_reference(problem):
    """Return the standard start, if it leads to the reference, else one near the reference."""
    sol = problem.solve(on_failure="mask")
    far = (sol.value - problem.solution).abs() > 1e-6 * (1 + problem.solution.abs())
    if bool(sol.converged) and not bool(far.any()):
        return problem.start()
    return problem.solution + 0.01 * (problem.start() - problem.solution)


@pytest.mark.parametrize("problem", REGULAR, ids=str)
def test_value_and_derivatives_of_the_default(problem):
    assert_value_and_derivatives(problem, start=start_towards_the_reference(problem))


@pytest.mark.parametrize("problem", ROOTLESS, ids=str)
def test_an_equation_without_a_root_fails(problem):
    with pytest.raises(ims.ConvergenceError, match="root of"):
        problem.solve()
    theta = problem.theta().requires_grad_()
    sol = problem.solve(theta, on_failure="mask")
    assert not bool(sol.converged)
    assert int(sol.status) in (ims.Status.STALLED, ims.Status.MAX_STEPS, ims.Status.SINGULAR)
    assert torch.autograd.grad(sol.value.sum(), theta)[0].tolist() == [0.0] * len(theta)


@pytest.mark.parametrize("problem", SINGULAR, ids=str)
def test_a_singular_root_is_found_and_its_gradient_flagged(problem):
    theta = problem.theta()
    # (closer, z^2 - 2 z + 1 rounds to zero, where nothing can be told)
    sol = problem.solve(theta, on_failure="mask", solver=ims.Newton(f_atol=1e-12))
    # |F| grows with the square of the distance, so that only half of the digits can be had
    assert float((sol.value - problem.solution).abs().max()) <= 1e-5
    if bool(sol.converged):
        assert float(ims.gradient_error(sol, problem.fn, (theta,))) >= 0.1


@pytest.mark.parametrize("problem", ALL, ids=str)
def test_single_precision(problem):
    theta = problem.theta(torch.float32)
    sol = problem.solve(theta, on_failure="mask")
    assert sol.value.dtype == torch.float32 and bool(torch.isfinite(sol.value).all())
    if not bool(sol.converged) or not problem.regular:
        return
    z = sol.value.double()
    off = (z - polished(problem, z)).square().mean().sqrt()
    # float32 rounds theta too, which the error that is estimated does not tell
    noise = torch.finfo(torch.float32).eps ** 0.75 * z.square().mean().sqrt()
    assert float(off) <= 3 * float(sol.error + noise)


def test_solve_takes_a_start_and_parameters_and_batches():
    theta = torch.tensor([[0.5, 0.9], [1.0, 0.3]], dtype=torch.float64)
    values = vmap(lambda t: problems.KEPLER.solve(t).value)(theta)
    residual = values - theta[:, 1] * torch.sin(values) - theta[:, 0]
    assert float(residual.abs().max()) <= 1e-12
    other = problems.CIRCLE.solve(start=torch.tensor(-1.0, dtype=torch.float64)).value
    assert float(other) == pytest.approx(-0.8, abs=1e-12)


# -- the table of the documentation ---------------------------------------------------------------


@pytest.fixture(scope="module")
def solver_table():
    path = Path(__file__).parents[1] / "benchmarks" / "solver_table.py"
    spec = importlib.util.spec_from_file_location("solver_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_has_every_solver_and_problem(solver_table):
    chosen = [problems.KEPLER, problems.NO_ROOT, problems.COSINE]
    text = solver_table.page(chosen, count=3, slow_count=2, seed=0)
    for kind in ("root", "fixed_point"):
        for name in solver_table.our_solvers(kind):
            assert f"`{name}`" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    of = {row[0].removeprefix("| "): row for row in rows}
    assert {"kepler", "no-root", "cosine", "mean"} <= set(of)
    header = next(row for row in rows if "`Newton`" in row)
    steps, calls = of["no-root"][header.index("`Newton`")].split(" / ")
    assert steps.startswith(("STALLED", "MAX_STEPS", "SINGULAR")) and int(calls) > 0


def test_the_tables_criterion(solver_table):
    nan = torch.tensor(float("nan"), dtype=torch.float64)
    for problem in REGULAR:
        z = problem.solution
        assert not solver_table.solved(problem, z + nan)
        # Meyer's gradient cannot be had to 1e-8, as the criterion sees
        if problem is not problems.MEYER:
            assert solver_table.solved(problem, z), problem
    starts = solver_table.random_starts(problems.ROSENBROCK, 7, seed=1)
    assert starts.shape == (7, 2)
    assert torch.equal(starts, solver_table.random_starts(problems.ROSENBROCK, 7, seed=1))
    assert solver_table.share(problems.CHANDRASEKHAR, ims.Newton(), starts.new_ones(4, 20)) == 1
    assert solver_table.share(problems.NO_ROOT, ims.Newton(), starts.new_ones(4)) == 0
    assert solver_table.scipy_share(problems.CIRCLE, "hybr", starts.new_ones(2)) == 1
    assert solver_table.scipy_share(problems.CIRCLE, "hybr", starts.new_full((2,), nan)) == 0
