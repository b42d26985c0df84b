"""What cannot be compiled says so, and derivatives of second order are never silently wrong."""

import pytest
import torch
from torch import nn
from torch._dynamo.exc import Unsupported

import implicit_solvers as ims

A = torch.tensor([[2.0, 1.0], [0.5, 3.0]], dtype=torch.float64)
X = torch.tensor([0.3, -0.2], dtype=torch.float64)


def cubic(z, x):
    return z**3 + z - x


def solved(**options):
    options = {"solver": ims.Newton(), "on_failure": "mask", **options}
    return lambda x: ims.root(cubic, torch.zeros_like(x), (x,), **options).value


def system(**options):
    options = {"on_failure": "mask", **options}
    return lambda x: ims.linear_solve(ims.MatrixOperator(A), x, **options).value


SGD = ims.TorchOptimizer(torch.optim.SGD, lr=0.1)
REFUSED = {
    "policy": (solved(on_failure="raise"), 'needs on_failure="mask", and it is "raise"'),
    "solver": (
        lambda x: (
            ims.minimize(
                lambda z, x: (z - x).square().sum(),
                torch.zeros_like(x),
                (x,),
                solver=SGD,
                on_failure="mask",
            ).value
        ),
        r"cannot use TorchOptimizer\(\), which is not traceable: use Newton\(\)",
    ),
    "inner": (
        solved(solver=ims.Newton(linear_solver=ims.Structured())),
        r"cannot use Structured\(\)",
    ),
    "adjoint": (
        solved(adjoint=ims.ImplicitAdjoint(ims.Structured())),
        r"the adjoint cannot use Structured\(\) in a compiled graph: use LU\(\)",
    ),
    "system": (system(on_failure="warn"), 'needs on_failure="mask", and it is "warn"'),
    "linear solver": (system(solver=ims.Structured()), r"cannot use Structured\(\)"),
    "check": (system(check=True), "cannot check=True"),
    "columns": (
        lambda x: (
            ims.linear_solve(ims.MatrixOperator(A), torch.stack([x, x], 1), on_failure="mask").value
        ),
        "make lanes of them",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_in_a_graph_says_what_to_do(name):
    fn, words = REFUSED[name]
    with pytest.raises(Unsupported, match=words):
        torch.compile(fn, fullgraph=True, backend="eager")(X)


@pytest.mark.parametrize("name", ["policy", "solver", "system", "columns"])
def test_where_breaks_are_allowed_the_solve_runs_outside(name):
    fn, _ = REFUSED[name]
    compiled = torch.compile(fn, backend="eager")
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    torch.testing.assert_close(compiled(x), fn(y))
    compiled(x).sum().backward()
    fn(y).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_a_failure_raises_outside_of_the_graph():
    def run(x):
        return ims.root(lambda z, x: z**2 + x, torch.ones_like(x), (x,)).value + 1

    with pytest.raises(ims.ConvergenceError):
        torch.compile(run, backend="eager")(X.abs())


def test_vmap_around_a_solve_says_so():
    with pytest.raises(Unsupported, match="use batch_dims"):
        torch.compile(torch.func.vmap(solved()), fullgraph=True, backend="eager")(X)


def test_a_solve_in_the_function_of_another_is_refused():
    def outer(z, x):
        return z + 0.1 * solved()(z) - x

    def run(x):
        start = torch.zeros_like(x)
        return ims.root(outer, start, (x,), solver=ims.Newton(), on_failure="mask").value

    with pytest.raises((Unsupported, AssertionError, RuntimeError)):
        torch.compile(run, fullgraph=True, backend="eager")(X)


LOSSES = {"square": lambda z: (z**2).sum(), "sum": lambda z: z.sum()}


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


@pytest.mark.parametrize(
    "backend, loss", [("eager", "square"), ("eager", "sum"), ("aot_eager", "sum")]
)
@pytest.mark.parametrize("adjoint", [ims.ImplicitAdjoint(), ims.OneStepAdjoint()])
def test_second_derivatives_are_errors(adjoint, backend, loss):
    w = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def run(x):
        return ims.fixed_point(
            lambda z, x: w * torch.cos(z) + x**2,
            torch.zeros_like(x),
            (x,),
            solver=ims.FixedPointIteration(),
            adjoint=adjoint,
            on_failure="mask",
        ).value

    x = X.clone().requires_grad_()
    refused(LOSSES[loss](torch.compile(run, fullgraph=True, backend=backend)(x)), (x, w))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("solver", [ims.LU(), ims.CG()])
def test_second_derivatives_of_linear_systems_are_errors(solver, loss):
    def run(M, b):
        operator = ims.MatrixOperator(M @ M.T, positive_definite=True)
        return ims.linear_solve(operator, b, solver=solver, on_failure="mask").value

    M, b = A.clone().requires_grad_(), X.clone().requires_grad_()
    refused(LOSSES[loss](torch.compile(run, fullgraph=True, backend="eager")(M, b)), (M, b))


@pytest.mark.parametrize("policy", ["mask", "raise"])
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

    compiled = torch.compile(run, backend="eager")
    try:
        actual = gradients(compiled)
    except (Unsupported, RuntimeError):
        assert policy == "mask"  # torch.while_loop says that its body cannot be traced
    else:
        torch.testing.assert_close(actual, gradients(run))
