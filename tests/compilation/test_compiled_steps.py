"""``compile=True``: the loop is compiled, and what a user's function may be stays what it was."""

import functools
import gc
import weakref

import pytest
import torch
from torch import nn

import implicit_solvers as ims
from implicit_solvers import compiled_step

from .comparison import compare, drawn, nightly_but
from .systems import ROWS

X, W = drawn(40, 4), 0.3 * drawn(4, 4, seed=1)
LANES = {"batch_dims": 1, "in_dims": (0, None)}
SIZED = ["FixedPointIteration", "Newton", "Anderson", "Broyden", "Dogleg", "LBFGS"]
PICARD = ims.FixedPointIteration(compile=True)


def system(z, x, W):
    return torch.tanh(z @ W.T) + z - x


def contraction(z, x, W):
    return torch.tanh(z @ W.T) + x


def picard(fn):
    sol = ims.fixed_point(fn, X[0] * 0, (X[0],), solver=PICARD)
    torch.testing.assert_close(fn(sol.value, X[0]), sol.value)


# -- functions -------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_each_of_many_functions_has_a_graph(graphs):
    for k in range(10):
        fn = eval(f"lambda z, x: {k + 2} / 20 * torch.cos(z) + x")
        for _ in range(3):
            picard(fn)
    assert graphs() == 10


def test_each_of_many_values_in_a_closure_is_respected(graphs):
    def scaled(a):
        return lambda z, x: a * torch.cos(z) + x

    # one code object, and more values than Dynamo compiles for by itself
    for k in range(12):
        picard(scaled((k + 2) / 20))
    assert 1 <= graphs() <= 12


def test_a_number_in_a_closure_that_changes_counts():
    shift = 0.0

    def fn(z, x):
        return 0.5 * torch.cos(z) + x - shift

    for value in (1.0, 2.0, -3.0, 1.0):
        shift = value
        picard(fn)


@pytest.mark.parametrize("name", nightly_but(["FixedPointIteration", "Newton"], SIZED))
def test_batches_of_any_size_share_a_graph(name, graphs):
    """Of five sizes, with lanes that leave. One problem has a graph of its own."""
    system, solver = ROWS[name].problem, ROWS[name].solver
    run, expected = (system.run(solver(compile=compiled)) for compiled in (True, False))
    for lanes in (40, 7, 23, 4, 64):
        x, w = system.data(lanes)
        with torch.no_grad():
            sol, other = run(x, w), expected(x, w)
        assert torch.equal(sol.status, other.status)
        close = {"rtol": 1e-9, "atol": 1e-9, "equal_nan": True}
        torch.testing.assert_close(sol.value, other.value, **close)
    assert graphs() == 1


def test_too_many_graphs_for_one_function_are_an_error(monkeypatch):
    """Where torch by itself would go on without compiling."""
    assert compiled_step.LIMIT == 64  # says the page on compilation
    monkeypatch.setattr(compiled_step, "LIMIT", 2)

    def of(kind):
        return lambda z, x: 0.3 * kind(z) + x

    kinds = [eval(f"lambda z: torch.sin(z + {k} / 80)") for k in range(3)]
    for kind in kinds[:2]:
        picard(of(kind))
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        picard(of(kinds[2]))


def test_a_module_of_which_there_are_many():
    """More than Dynamo compiles for by itself."""
    for seed in range(9):
        torch.manual_seed(seed)
        cell = nn.Linear(4, 4).double()
        options = {"batch_dims": 1, "return_solution": True}
        layers = [
            ims.nn.FixedPoint(
                lambda z, x, cell=cell: 0.3 * torch.tanh(cell(z) + x),
                solver=ims.Anderson(compile=compiled),
                **options,
            )
            for compiled in (True, False)
        ]
        compare(*layers, (X[:3],), list(cell.parameters()), factor=1e3)


def test_a_function_that_goes_takes_its_graph_along():
    class Equation:
        def __call__(self, z, x):
            return 0.5 * torch.cos(z) + x

    fn = Equation()
    picard(fn)
    gone = weakref.ref(fn)
    del fn
    gc.collect()
    assert gone() is None


def test_attributes_of_captured_tensors_are_compiled(graphs):
    """Dynamo cannot read them in the body of a loop."""
    weight = W.clone()
    picard(lambda z, x: torch.tanh(z @ weight.T) + x)
    assert graphs() >= 1


def broken(graph, inputs):
    raise OSError("no compiler")


BROKEN = {
    "function": lambda z, x: z - x if float(z.sum()) > 100 else z - 2 * x,
    "compiler": lambda z, x: z - 2 * x,
}


@pytest.mark.parametrize("where", BROKEN)
def test_what_cannot_be_compiled_runs_uncompiled_with_a_warning(where, monkeypatch):
    if where == "compiler":
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    with pytest.warns(UserWarning, match="could not be compiled.*leave compile out"):
        sol = ims.root(BROKEN[where], X[0] * 0, (X[0],), solver=ims.Newton(compile=True))
    torch.testing.assert_close(sol.value, 2 * X[0])


def test_failures_are_raised_as_ever():
    a = torch.tensor([[0.5], [2.0], [0.1]], dtype=torch.float64)
    solver = ims.FixedPointIteration(max_steps=30, compile=True)
    options = {"solver": solver, "batch_dims": 1, "in_dims": (0,)}
    with pytest.raises(ims.ConvergenceError, match="problem 1: "):
        ims.fixed_point(lambda z, a: a * z + 1, torch.zeros_like(a), (a,), **options)


# -- derivatives -----------------------------------------------------------------------------------


KINDS = ["vmap", "captured", "grad", "jacfwd", "hessian"]


@pytest.mark.parametrize("kind", nightly_but(["hessian"], KINDS))
def test_transforms(kind, graphs):
    def one(x, W, compiled):
        solver = ims.Newton(compile=compiled)
        return ims.root(lambda z, x: torch.tanh(W @ z) + z - x, 0 * x, (x,), solver=solver).value

    def loss(x, compiled):
        solver = ims.Newton(compile=compiled)
        return (ims.root(system, 0 * x, (x, W), solver=solver, **LANES).value ** 2).sum()

    def captured(w, compiled):
        # batched and differentiated, and only captured
        solver = ims.Newton(compile=compiled)
        return ims.root(lambda z: z**3 + w * z - X[0], 0 * X[0], solver=solver).value.sum()

    def run(compiled):
        if kind == "vmap":
            return torch.func.vmap(lambda x: one(x, W, compiled))(X[:9])
        if kind == "captured":
            grad = torch.func.grad(lambda w: captured(w, compiled))
            return torch.func.vmap(grad)(X[:9, 0] ** 2)
        return getattr(torch.func, kind)(lambda x: loss(x, compiled))(X[:2])

    torch.testing.assert_close(run(True), run(False))
    assert graphs() >= (kind != "captured")


@pytest.mark.parametrize("adjoint", [ims.OneStepAdjoint(), ims.UnrolledAdjoint()])
def test_adjoints(adjoint):
    def run(compiled):
        solver = ims.FixedPointIteration(compile=compiled)
        options = {"solver": solver, "adjoint": adjoint, **LANES}
        return lambda x, W: ims.fixed_point(contraction, torch.zeros_like(x), (x, W), **options)

    compare(run(True), run(False), (X[:5], W), factor=1e3)


ADJOINTS = {"Neumann": ims.Neumann, "BiCGStab": ims.BiCGStab, "GMRES": ims.GMRES}


@pytest.mark.parametrize("name", nightly_but(["Neumann"], ADJOINTS))
def test_a_compiled_adjoint_of_a_module(name, graphs):
    """Its captured parameters are read where they are: nothing keeps the steps from a graph."""
    cell = nn.Linear(5, 5).double()
    nn.init.orthogonal_(cell.weight, 0.6)

    def run(compiled):
        adjoint = ims.ImplicitAdjoint(ADJOINTS[name](compile=compiled))
        options = {"adjoint": adjoint, "batch_dims": 1, "in_dims": (0,)}
        fn = lambda z, x: torch.tanh(cell(z) + x)
        return lambda x: ims.fixed_point(fn, torch.zeros_like(x), (x,), **options)

    parameters = list(cell.parameters())
    compare(run(True), run(False), (drawn(12, 5, seed=9),), parameters, factor=1e4)
    assert graphs() >= 1


def test_parameters_that_have_moved_since():
    """The backward pass knows those of the forward pass."""
    module, x = nn.Module(), drawn(2, seed=10)
    weight = torch.tensor([[0.2, 0.1], [0.0, 0.3]], dtype=torch.float64)
    module.weight = first = nn.Parameter(weight.clone())

    def solve(fn, *args, **options):
        return ims.fixed_point(fn, torch.zeros(2).double(), args, **options).value.sum()

    adjoint = ims.ImplicitAdjoint(ims.Neumann(compile=True))
    value = solve(lambda z, x: torch.tanh(module.weight @ z) + x, x, adjoint=adjoint)
    module.weight = nn.Parameter(5 * weight)
    expected = torch.func.grad(lambda w: solve(lambda z, w: torch.tanh(w @ z) + x, w))(weight)
    got = torch.autograd.grad(value, first)[0]
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "solver", nightly_but([ims.GaussNewton], [ims.GaussNewton, ims.LevenbergMarquardt, ims.Dogleg])
)
def test_an_inner_solver_alone_runs_uncompiled(solver):
    y = torch.tensor([1.0, 0.6, 0.3, 0.2], dtype=torch.float64)
    times = torch.arange(4)

    def run(inner):
        fn = lambda z, y: z[:1] * torch.exp(-z[1:] * times) - y
        start = torch.ones(2, dtype=torch.float64)
        return ims.least_squares(fn, start, (y,), solver=solver(linear_solver=inner))

    plain, compiled = (run(ims.CG(rtol=1e-6, compile=c)) for c in (False, True))
    assert torch.equal(plain.value, compiled.value) and torch.equal(plain.status, compiled.status)
