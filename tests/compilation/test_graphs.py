"""What else one graph can hold: pytrees, modules, defaults, adjoints, batches of any size."""

import pytest
import torch
from torch import nn

import implicit_solvers as ims
from implicit_solvers import Status

from .comparison import agree, compare, drawn, evaluated, nightly_but
from .systems import LANES, ROWS, TIMES, curves

F64 = torch.float64
ONE_INPUT = {"batch_dims": 1, "in_dims": (0,), "on_failure": "mask"}


def flat(sol, value):
    return ims.Solution(value, sol.converged, sol.iterations, sol.residual, sol.error, sol.status)


def test_one_lane_of_float32_with_all_that_a_function_may_have():
    """A pytree, auxiliary outputs, a module, a captured tensor and a solver made in the graph."""
    cell = nn.Linear(3, 3)

    def run(a, b):
        scaled = 0.5 * b

        def fn(z, a):
            u = z["u"] ** 3 + z["v"].sum() - a
            return {"u": u, "v": z["v"] + scaled * z["u"] - cell(scaled)}, (z["v"] * a).sum()

        start = {"u": torch.ones_like(a), "v": torch.zeros_like(b)}
        sol = ims.root(fn, start, (a,), solver=ims.Newton(), has_aux=True, on_failure="mask")
        value = torch.cat([sol.value["u"].reshape(1), sol.value["v"]])
        return flat(sol, value * sol.aux)

    compiled = torch.compile(run, fullgraph=True)
    inputs, parameters = (torch.tensor(2.0), 0.1 * drawn(3).float()), list(cell.parameters())
    sol, _ = compare(compiled, run, inputs, parameters)
    assert sol.converged
    none, gradients = compare(compiled, run, (torch.tensor(torch.nan), inputs[1]), parameters)
    assert not none.converged and not any(g.any() for g in gradients)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "make", [ims.Anderson, ims.FixedPointIteration, lambda: ims.LBFGS(check_every=3)]
)
def test_modules(make):
    cell = nn.Linear(4, 4).double()
    nn.init.orthogonal_(cell.weight, 0.5)
    options = {"solver": make(), "batch_dims": 1, "on_failure": "mask", "return_solution": True}
    if "fixed_point" in make().solves:
        layer = ims.nn.FixedPoint(lambda z, x: torch.tanh(cell(z) + x), **options)
    else:
        layer = ims.nn.Minimize(lambda z, x: ((cell(z) - x) ** 2 + z**4 + z**2).sum(-1), **options)
    agree(layer, (drawn(5, 4),), list(cell.parameters()), backend="aot_eager")


# -- without a solver ------------------------------------------------------------------------------


def cubic(z, x):
    return z**3 + z - x


def test_a_root_without_a_solver():
    x = torch.linspace(0.5, 2.0, 6, dtype=F64).reshape(3, 2)

    def layer(x, solver=None):
        return ims.root(cubic, torch.zeros_like(x), (x,), solver=solver, **ONE_INPUT)

    compiled = torch.compile(layer, fullgraph=True)
    sol, (g,) = compare(compiled, lambda x: layer(x, ims.NewtonDogleg()), (x,), steps=0)
    # of the loss in `evaluated`
    z, weights = sol.value, torch.linspace(0.5, 1.5, 2, dtype=F64)
    torch.testing.assert_close(g, 2 * weights * z / (3 * z**2 + 1))


@pytest.mark.parametrize("name", nightly_but([None], [None, "Bisection", "Bisection, budget"]))
def test_a_bracket_that_is_given(name):
    budget = {"rtol": None, "max_steps": 20} if name and "budget" in name else {}
    solver = None if name is None else ims.Bisection(**budget)

    def run(x, w):
        ends = (torch.full_like(x, -1.0), 9.0)
        fn = lambda z, x, w: z**3 + w * z - x
        return ims.root(fn, None, (x, w), bracket=ends, solver=solver, **LANES)

    x = torch.tensor([-30.0, -1.0, 0.0, 0.5, 40.0], dtype=F64).unsqueeze(-1)
    sol, _ = agree(run, (x, torch.tensor(0.5, dtype=F64)), steps=0)
    # the root at -30 is below -1
    good = Status.BUDGET if budget else Status.CONVERGED
    assert sol.status.tolist() == [Status.BRACKET, *[good] * 4]


@pytest.mark.nightly
def test_a_minimum_without_a_solver_leaves_negative_curvature():
    # four lanes begin at the top between two minima, one beside it
    def run(x, w):
        start = torch.tensor([[1e-3, 0.0]] * 4 + [[0.4, 0.1]], dtype=x.dtype)
        return ims.minimize(lambda z, x, w: (z**4 - w * x * z**2).sum(-1), start, (x, w), **LANES)

    x = torch.tensor([1.0, 2.0, 0.5, -1.0, 3.0], dtype=F64).unsqueeze(-1).expand(-1, 2).clone()
    sol, _ = agree(run, (x, torch.tensor(0.5, dtype=F64)), steps=0)
    torch.testing.assert_close(sol.value[:3, 0].abs(), (x[:3, 0] / 4).sqrt())


# -- adjoints --------------------------------------------------------------------------------------

ADJOINTS = {
    "GMRES": ("FixedPointIteration", ims.ImplicitAdjoint(ims.GMRES())),
    "BiCGStab": ("FixedPointIteration", ims.ImplicitAdjoint(ims.BiCGStab())),
    "one step": ("FixedPointIteration", ims.OneStepAdjoint()),
    "CG": ("GradientDescent", ims.ImplicitAdjoint(ims.CG())),
}


@pytest.mark.parametrize("name", nightly_but(["one step"], ADJOINTS))
def test_adjoints(name):
    row, adjoint = ADJOINTS[name]
    system, solver = ROWS[row].problem, ROWS[row].solver
    x, w = system.data(7)
    agree(system.run(solver(), adjoint=adjoint), (x[4:], w), factor=1e3)


BUDGET = {"max_steps": 2, "rtol": None}
MATRIX = torch.diag(torch.linspace(1, 30, 5, dtype=F64)) + 0.3 * drawn(5, 5)
JACOBIS = {
    "Jacobi": ims.Jacobi(),
    "operator": lambda z, x, W: ims.DiagonalOperator(1 / (1 + W.diagonal() * (1 - 0.3))),
}
PRECONDITIONED = {
    "GMRES, lanes": (ims.GMRES(**BUDGET), "Jacobi", (3,)),
    "GMRES": (ims.GMRES(**BUDGET), "operator", ()),
    "BiCGStab": (ims.BiCGStab(**BUDGET), "operator", (3,)),
    "Neumann": (ims.Neumann(max_steps=40, rtol=None), "Jacobi", ()),
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", PRECONDITIONED)
def test_preconditioned_adjoints(name):
    """A budget of steps tells whether, and how, they are."""
    solver, jacobi, lanes = PRECONDITIONED[name]
    x = drawn(*lanes, 5, seed=1)
    options = {"batch_dims": len(lanes), "in_dims": (0, None)} if lanes else {}

    def layer(preconditioner):
        adjoint = ims.ImplicitAdjoint(solver, preconditioner=preconditioner)

        def run(x, W):
            fn = lambda z, x, W: z @ W.t() + 0.1 * torch.tanh(z) + z - x
            settings = {"solver": ims.Newton(), "adjoint": adjoint, "on_failure": "mask", **options}
            return ims.root(fn, torch.zeros_like(x), (x, W), **settings)

        return run

    _, gradients = agree(layer(JACOBIS[jacobi]), (x, MATRIX), steps=0, factor=10)
    if name != "Neumann":  # it diverges without
        _, without = evaluated(layer(None), (x, MATRIX))
        assert not torch.allclose(gradients[1], without[1], rtol=1e-6)


# -- graphs ----------------------------------------------------------------------------------------


SHARING = ["FixedPointIteration", "Newton", "Dogleg"]


@pytest.mark.parametrize("name", nightly_but(["FixedPointIteration"], SHARING))
def test_batches_of_any_size_share_a_graph(name, graphs):
    """And nothing is differentiated where no gradients are asked for."""
    system, solver = ROWS[name].problem, ROWS[name].solver
    run = system.run(solver())
    backend = "aot_eager" if name == "Newton" else "eager"
    compiled = torch.compile(run, fullgraph=True, backend=backend)
    with torch.no_grad():
        for lanes in (5, 7, 12):
            x, w = system.data(lanes)
            torch._dynamo.mark_dynamic(x, 0)
            value = compiled(x, w.requires_grad_()).value
            assert not value.requires_grad
            torch.testing.assert_close(value, run(x, w).value, equal_nan=True)
    assert graphs() == 1


def called(fn, name):
    """Return how often an operator ran in ``fn()``."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        fn()
    return sum(event.name == f"aten::{name}" for event in profile.events())


COSTS = {
    "Newton, reuse": "linalg_lu_factor_ex",
    "Broyden, LU": "linalg_lu_factor_ex",
    "LevenbergMarquardt": "linalg_svd",
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", COSTS)
def test_nothing_is_factored_in_steps_where_no_lane_needs_it(name):
    system, solver = ROWS[name].problem, ROWS[name].solver
    run = system.run(solver(compact=False))
    compiled = torch.compile(run, fullgraph=True)
    x, w = system.data(7)
    # nearly linear, so that old factors serve
    x, w = x[[0, 4, 5, 6, 0, 4, 5]], 0.2 * w
    with torch.no_grad():
        steps = compiled(x, w).iterations.max()
        assert 0 < called(lambda: compiled(x, w), COSTS[name]) < steps
        solved = torch.zeros_like(x)  # at the start
        solved[0] = 1e-3 * x[0]
        assert compiled(solved, w).iterations.tolist()[1:] == [0] * 6
        few = called(lambda: compiled(solved, w), COSTS[name])
        assert few == called(lambda: compiled(solved[[0] * 7], w), COSTS[name])


# -- harder problems -------------------------------------------------------------------------------


def arctan(solver):
    """From 3 the full step leads away."""
    fn = lambda z, x: torch.arctan(z) - x
    return lambda x: ims.root(fn, torch.full_like(x, 3.0), (x,), solver=solver, **ONE_INPUT)


def overshooting(solver):
    """At the minimum, 0, a whole step multiplies the error by ``-a``."""

    def residuals(z, a):
        return torch.cat([z + 0.5 * a * z**2 - 1, z - 0.5 * a * z**2 + 1], -1)

    start = torch.tensor([[0.5, -0.4], [0.3, 0.2]], dtype=F64)
    return lambda a: ims.least_squares(residuals, start, (a,), solver=solver, **ONE_INPUT)


def pytree(solver):
    def residuals(z, y):
        return {"data": z["scale"] * torch.exp(-z["rate"] * TIMES) - y, "prior": z["rate"] / 9}

    def run(y):
        start = {"scale": y.new_ones(()), "rate": y.new_zeros(())}
        sol = ims.least_squares(residuals, start, (y,), solver=solver, on_failure="mask")
        return flat(sol, torch.stack([sol.value["scale"], sol.value["rate"]]))

    return run


def powell(solver):
    """Badly scaled, the root being (1.1e-5, 9.1)."""

    def fn(z, a):
        return torch.stack([1e4 * z[0] * z[1] - a, torch.exp(-z).sum() - 1.0001])

    start = torch.tensor([0.0, 1.0], dtype=F64)
    return lambda a: ims.root(fn, start, (a,), solver=solver, on_failure="mask")


def singular_on_the_way(solver):
    """The first lane starts at a singular Jacobian, the second at a regular one."""

    def fn(z, a):
        u, v = z[:, 0], z[:, 1]
        return torch.stack([u * v - a[:, 0], u + v**2 - a[:, 1]], -1)

    start = torch.tensor([[2.0, 1.0], [3.0, 1.0]], dtype=F64)
    return lambda a: ims.root(fn, start, (a,), solver=solver, **ONE_INPUT)


DOGLEG, LEVENBERG, GAUSS = ims.Dogleg(), ims.LevenbergMarquardt(), ims.GaussNewton()
Y = curves(6)[0]
TWO = torch.tensor([[6.0, 7.0], [6.0, 7.0]], dtype=F64)
HARDER = [
    (arctan, ims.Newton(), 0.1 * drawn(4, 1)),
    (overshooting, GAUSS, torch.tensor([[-1.5], [-1.9]], dtype=F64)),
    *((pytree, solver, Y[1]) for solver in (DOGLEG, LEVENBERG, GAUSS)),
    *((powell, solver, torch.tensor(1.0, dtype=F64)) for solver in (DOGLEG, LEVENBERG)),
    *((singular_on_the_way, solver, TWO) for solver in (DOGLEG, LEVENBERG)),
]


@pytest.mark.nightly
@pytest.mark.parametrize("problem, solver, data", HARDER)
def test_harder_problems(problem, solver, data):
    # the condition number of powell's Jacobian is 1e5
    sol, _ = agree(problem(solver), (data,), factor=1e3 if problem is powell else 1.0)
    assert sol.converged.all()
    if problem is overshooting:
        assert float(sol.value.detach().abs().max()) < 1e-10
    if problem is powell:
        exact = torch.tensor([1.098159e-05, 9.106146], dtype=F64)
        torch.testing.assert_close(sol.value.detach(), exact, rtol=1e-6, atol=0.0)


def rank_deficient(solver):
    def residuals(z, y):
        return (z[:, :1] + z[:, 1:2]) * torch.exp(-z[:, 2:] * TIMES) - y

    def run(y):
        start = torch.tensor([0.5, 0.5, 0.0], dtype=F64).expand(len(y), 3)
        return ims.least_squares(residuals, start, (y,), solver=solver, **ONE_INPUT)

    return run


def underdetermined(solver):
    def run(a):
        start = torch.tensor([3.0, 0.1], dtype=F64).expand(len(a), 2)
        fn = lambda z, a: (z**2).sum(-1, keepdim=True) - a
        return ims.least_squares(fn, start, (a,), solver=solver, **ONE_INPUT)

    return run


def dependent(solver):
    """Twice the same equation."""
    fn = lambda z, a: (z.sum(-1, keepdim=True) ** 3 - a).expand(-1, 2)

    def run(a):
        start = torch.tensor([1.0, 0.1], dtype=F64).expand(len(a), 2)
        return ims.root(fn, start, (a,), solver=solver, **ONE_INPUT)

    return run


def saddle(solver):
    fn = lambda z, a: (z**4 + a * z * z.flip(-1)).sum(-1)
    return lambda a: ims.minimize(fn, a * torch.zeros(2), (a,), solver=solver, **ONE_INPUT)


A = torch.tensor([[1.0], [4.0], [30.0]], dtype=F64)
NO_SOLUTIONS = [
    *(
        (rank_deficient, solver, Y[[0, 1, 3]], Status.SINGULAR)
        for solver in (GAUSS, LEVENBERG, DOGLEG)
    ),
    *((underdetermined, solver, A, Status.SINGULAR) for solver in (LEVENBERG, DOGLEG)),
    *(
        (dependent, solver, A, Status.SINGULAR)
        for solver in (ims.Newton(), ims.NewtonDogleg(), ims.Broyden())
    ),
    *((saddle, solver, A, Status.SADDLE) for solver in (ims.LBFGS(), ims.NewtonCG())),
]


@pytest.mark.nightly
@pytest.mark.parametrize("problem, solver, data, status", NO_SOLUTIONS)
def test_where_a_solve_ends_is_judged_in_graphs_too(problem, solver, data, status):
    """What is one of many solutions is SINGULAR, and a start on top of a saddle SADDLE."""
    run = problem(solver)
    sol, expected = torch.compile(run, fullgraph=True)(data), run(data)
    assert sol.status.tolist() == [status] * 3
    assert torch.equal(sol.iterations, expected.iterations)
    close = {"rtol": 1e-10, "atol": 1e-10}
    for what in ("value", "error"):
        torch.testing.assert_close(getattr(sol, what), getattr(expected, what), **close)
