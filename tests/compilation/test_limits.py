"""Outside of graphs a solve does what it did; derivatives of second order are refused."""

import pytest
import torch
from torch import nn
from torch._dynamo.exc import Unsupported

import implicit_solvers as ims
from implicit_solvers.compiling import compiling

from .comparison import nightly_but

A = torch.tensor([[2.0, 1.0], [0.5, 3.0]], dtype=torch.float64)
X = torch.tensor([0.3, -0.2], dtype=torch.float64)


def solved(x, **options):
    options = {"solver": ims.Newton(), "on_failure": "mask", **options}
    return ims.root(lambda z, x: z**3 + z - x, torch.zeros_like(x), (x,), **options).value


def minimized(x):
    solver = ims.TorchOptimizer(torch.optim.SGD, lr=0.1)
    objective = lambda z, x: (z - x).square().sum()
    start = torch.zeros_like(x)
    return ims.minimize(objective, start, (x,), solver=solver, on_failure="mask").value


def system(x, **options):
    return ims.linear_solve(ims.MatrixOperator(A), x, **options).value


OUTSIDE = {
    "policy": lambda x: solved(x, on_failure="raise"),
    "solver": minimized,
    "system": lambda x: system(x, on_failure="warn"),
    "columns": lambda x: system(torch.stack([x, x], 1), on_failure="mask"),
}


@pytest.mark.parametrize("name", nightly_but(["policy", "system"], OUTSIDE))
def test_where_breaks_are_allowed_the_solve_runs_outside(name):
    fn = OUTSIDE[name]
    compiled = torch.compile(fn)
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    torch.testing.assert_close(compiled(x), fn(y))
    compiled(x).sum().backward()
    fn(y).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_a_failure_raises_outside_of_the_graph():
    def run(x):
        return ims.root(lambda z, x: z**2 + x, torch.ones_like(x), (x,)).value + 1

    with pytest.raises(ims.ConvergenceError):
        torch.compile(run)(X.abs())


@pytest.mark.nightly
def test_what_is_left_out_of_a_graph_is_not_compiled():
    left_out = torch._dynamo.disable(lambda x: compiling(), recursive=False)
    found = torch.compile(lambda x: (x + compiling(), left_out(x)))(X)
    torch.testing.assert_close(found, (X + 1, False))


def test_how_a_compiled_function_is_recorded_is_not_compiled():
    @torch.compile
    def fn(z, x):
        return z**3 + z - x

    counters = torch._dynamo.utils.counters
    counters.clear()
    x = X.clone().requires_grad_()
    ims.root(fn, torch.zeros_like(X), (x,), solver=ims.Newton()).value.sum().backward()
    # the function alone, at each place from where its values and its products are asked for
    assert 0 < counters["frames"]["total"] < 10


def test_a_solve_in_the_function_of_another_is_refused():
    def run(x):
        outer = lambda z, x: z + 0.1 * solved(z) - x
        options = {"solver": ims.Newton(), "on_failure": "mask"}
        return ims.root(outer, torch.zeros_like(x), (x,), **options).value

    with pytest.raises((Unsupported, AssertionError, RuntimeError)):
        torch.compile(run, fullgraph=True)(X)


@pytest.mark.parametrize("policy", nightly_but(["raise"], ["mask", "raise"]))
def test_a_function_that_breaks_graphs_loses_no_gradient(policy):
    w = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def fn(z, x):
        torch._dynamo.graph_break()
        return z**3 + w * z + z - x

    def run(x):
        start = torch.zeros_like(x)
        return ims.root(fn, start, (x,), solver=ims.Newton(), on_failure=policy).value

    def gradients(run):
        x = X.clone().requires_grad_()
        return torch.autograd.grad(run(x).sum(), (x, w))

    try:
        actual = gradients(torch.compile(run))
    except (Unsupported, AssertionError, RuntimeError):
        # torch.while_loop says that its body cannot be traced, if what torch.func transforms can
        assert policy == "mask"
    else:
        torch.testing.assert_close(actual, gradients(run))


# -- second derivatives ----------------------------------------------------------------------------


def refused(value, wrt):
    """Assert that no second derivative can be had."""
    try:
        first = torch.autograd.grad(value, wrt, create_graph=True)
    except RuntimeError as error:
        assert "create_graph=False" in str(error)
        return
    for g in first:
        with pytest.raises(RuntimeError, match="first order|double backward|have been used"):
            torch.autograd.grad(g.sum(), wrt, retain_graph=True)
        with pytest.raises(RuntimeError, match="first order|double backward"):
            g.sum().backward(retain_graph=True)


def equilibrium(adjoint):
    def run(x, w):
        fn = lambda z, x, w: w * torch.cos(z) + x**2
        options = {"solver": ims.FixedPointIteration(), "adjoint": adjoint, "on_failure": "mask"}
        return ims.fixed_point(fn, torch.zeros_like(x), (x, w), **options).value

    return run


def linear(solver):
    def run(b, M):
        operator = ims.MatrixOperator(M @ M.T, positive_definite=True)
        return ims.linear_solve(operator, b, solver=solver, on_failure="mask").value

    return run


W = torch.tensor(0.3, dtype=torch.float64)
IMPLICIT, ONE_STEP = ims.ImplicitAdjoint(), ims.OneStepAdjoint()
LOSSES = {"square": lambda z: (z**2).sum(), "sum": lambda z: z.sum()}
FIRST_ORDER = {
    "implicit": (equilibrium(IMPLICIT), W, "eager"),
    "implicit, aot": (equilibrium(IMPLICIT), W, "aot_eager"),
    "one step": (equilibrium(ONE_STEP), W, "eager"),
    "one step, aot": (equilibrium(ONE_STEP), W, "aot_eager"),
    "LU": (linear(ims.LU()), A, "eager"),
    "CG": (linear(ims.CG()), A, "eager"),
}


@pytest.mark.parametrize("name", nightly_but(["implicit", "LU"], FIRST_ORDER))
def test_second_derivatives_are_errors(name):
    run, w, backend = FIRST_ORDER[name]
    compiled = torch.compile(run, fullgraph=True, backend=backend)
    for loss in LOSSES.values():
        leaves = X.clone().requires_grad_(), w.clone().requires_grad_()
        refused(loss(compiled(*leaves)), leaves)
