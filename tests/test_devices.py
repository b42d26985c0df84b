"""On a GPU: the lanes, statuses and derivatives of a CPU, and solves inside CUDA graphs."""

import pytest
import torch

import implicit_solvers as ims
from tests.compilation.comparison import drawn
from tests.compilation.systems import ROWS

pytestmark = pytest.mark.gpu
LANES = {"batch_dims": 1, "in_dims": (0, None), "on_failure": "mask"}
W = 0.3 * drawn(4, 4, seed=1)
ON_ANY = ["Newton", "NewtonDogleg", "FixedPointIteration", "Anderson", "LBFGS", "TrustRegion"]
ON_ANY += ["fit, GaussNewton", "fit, LevenbergMarquardt", "Broyden", "Newton, GMRES"]


def gradients(run, inputs):
    leaves = [t.clone().requires_grad_() for t in inputs]
    sol = run(*leaves)
    loss = sol.value.nan_to_num(0.0, 0.0, 0.0).square().sum()
    return sol, torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("name", ON_ANY)
def test_lanes_end_as_on_a_cpu(name):
    """Those that fail, too; they leave no trace in gradients."""
    system = ROWS[name].problem
    run, inputs = system.run(ROWS[name].solver()), system.data(20)
    sol, found = gradients(run, [t.cuda() for t in inputs])
    expected, exact = gradients(run, inputs)
    assert sol.value.is_cuda and sol.status.is_cuda
    assert torch.equal(sol.status.cpu(), expected.status)
    assert int((sol.iterations.cpu() - expected.iterations).abs().max()) <= 1
    # both are within the tolerance of the solve
    good, close = expected.converged, {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(sol.value.cpu()[good], expected.value[good], **close)
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a.cpu(), b, **close)


def test_a_number_on_the_cpu_goes_with_unknowns_on_the_gpu():
    """Its gradient arrives where it is."""
    x, a = drawn(5, 3), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def gradient(x):
        z = ims.root(lambda z, a: z**3 + a * z - x, torch.zeros_like(x), (a,)).value
        return torch.autograd.grad(z.sum(), a)[0]

    found = gradient(x.cuda())
    assert found.device == a.device
    torch.testing.assert_close(found, gradient(x))


def test_tensors_on_two_devices_are_refused():
    A, b = ims.MatrixOperator(W.cuda()), W[0]
    with pytest.raises(TypeError, match="on cpu and A has .* on cuda"):
        ims.linear_solve(A, b)


def test_what_factors_on_the_cpu_is_refused():
    b = torch.ones(4, dtype=torch.float64, device="cuda")
    diagonals = ims.TridiagonalOperator(b[1:] / 3, b, b[1:] / 3)
    sparse = ims.SparseOperator(torch.diag(b).to_sparse())
    for A, solver in ((diagonals, ims.Banded()), (sparse, ims.SuperLU())):
        with pytest.raises(ValueError, match="on the CPU alone"):
            ims.linear_solve(A, b, solver=solver)
        assert bool(ims.linear_solve(A, b).converged)
    with pytest.raises(ValueError, match="on the CPU alone"):
        ims.root(lambda z: z**3 - b, b, jac_sparsity=torch.eye(4))


def test_memory_is_linear_in_the_lanes():
    def peak(lanes):
        x = torch.randn(lanes, 4, dtype=torch.float64, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients(ROWS["Newton"].problem.run(ims.Newton()), (x, W.cuda()))
        return torch.cuda.max_memory_allocated() - before

    peak(1000)  # workspaces
    # what does not grow is nothing beside 10,000 lanes
    assert peak(40_000) < 2.2 * peak(20_000)


# -- CUDA graphs -----------------------------------------------------------------------------------


def budget(x, W):
    """A solve whose steps are unrolled, and whose backward pass is: nobody is asked."""
    adjoint = ims.ImplicitAdjoint(ims.Neumann(max_steps=8, rtol=None))
    solver = ims.FixedPointIteration(max_steps=8, rtol=None)
    fn = lambda z, x, W: torch.tanh(z @ W.mT) + x
    return ims.fixed_point(
        fn, torch.zeros_like(x), (x, W), solver=solver, adjoint=adjoint, **LANES
    ).value


def slopes(solve, x, W):
    return torch.autograd.grad(solve(x, W).square().sum(), (x, W))


def test_a_budget_goes_with_reduced_overhead():
    compiled = torch.compile(budget, fullgraph=True, mode="reduce-overhead")
    for seed in range(4):  # recorded in the second call
        leaves = [t.cuda().requires_grad_() for t in (drawn(64, 4, seed=seed), W)]
        torch.compiler.cudagraph_mark_step_begin()
        found = [g.clone() for g in slopes(compiled, *leaves)]
        torch.testing.assert_close(found, list(slopes(budget, *leaves)))


def test_a_budget_is_captured():
    """``torch.cuda.graph`` around a compiled solve and its backward pass."""
    compiled = torch.compile(budget, fullgraph=True)
    x, w = (t.cuda().requires_grad_() for t in (drawn(64, 4), W))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiles, and makes handles and workspaces
            slopes(compiled, x, w)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = slopes(compiled, x, w)
    with torch.no_grad():
        x.copy_(drawn(64, 4, seed=3))
    graph.replay()
    torch.testing.assert_close(found, slopes(budget, x, w))
