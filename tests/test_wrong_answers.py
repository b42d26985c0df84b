"""Wrong answers that other libraries give: a test for each number of the design's section 6."""

import math

import pytest
import torch
from torch.func import grad, hessian, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from tests.cases import default_dtype

F64 = torch.float64
ONE = torch.ones((), dtype=F64)


def tensor(x, **options):
    return torch.tensor(x, dtype=F64, **options)


def square_root(a, **options):
    return ims.root(lambda z, a: z**2 - a, ONE, (a,), **options).value


def differences(fn, x, step=1e-5):
    """Return the derivative of a function of a 0-d tensor by central differences, to 1e-9."""
    near = (fn(x + step) - fn(x - step)) / (2 * step)
    far = (fn(x + 2 * step) - fn(x - 2 * step)) / (4 * step)
    return (4 * near - far) / 3


def test_01_gradient_of_a_0d_unknown():
    # TorchOpt: -0.0. The root of z^2 = a has dz/da = 1 / (2 sqrt(a)).
    a = tensor(2.0, requires_grad=True)
    square_root(a).backward()
    torch.testing.assert_close(a.grad, tensor(0.5 / math.sqrt(2)))
    torch.testing.assert_close(grad(square_root)(a.detach()), tensor(0.5 / math.sqrt(2)))


def test_02_coupled_tuple_keeps_the_off_diagonal_blocks():
    # TorchOpt solves with the diagonal blocks alone. x + 2y = a, 3x - y = b.
    p = tensor([5.0, 1.0])

    def solve(p):
        def fn(z, p):
            x, y = z
            return x + 2 * y - p[0], 3 * x - y - p[1]

        x, y = ims.root(fn, (0 * ONE, 0 * ONE), (p,)).value
        return torch.stack([x, y])

    exact = tensor([[1.0, 2.0], [3.0, -1.0]]) / 7  # the inverse; blocks alone: diag(1, -1)
    torch.testing.assert_close(solve(p), exact @ p)
    torch.testing.assert_close(jacrev(solve)(p), exact)


@pytest.mark.parametrize("solver", [ims.CG(), ims.GMRES()], ids=["CG", "GMRES"])
def test_03_cg_returns_the_converged_iterate(solver):
    # hypertorch returns the iterate before it: here (0.25, 0.5), and the solution is (1, 7) / 11.
    A = ims.MatrixOperator(tensor([[4.0, 1.0], [1.0, 3.0]]), positive_definite=True)
    sol = ims.linear_solve(A, tensor([1.0, 2.0]), solver=solver)
    assert int(sol.iterations) == 2
    torch.testing.assert_close(sol.value, tensor([1.0, 7.0]) / 11, rtol=1e-12, atol=0)


def test_03_cg_goes_on_when_the_residual_is_exactly_zero():
    # hypertorch, betty: 0 / 0 = NaN in the step after. Here one step solves exactly, of five.
    b = tensor([1.0, -2.0, 4.0], requires_grad=True)
    A = ims.MatrixOperator(2 * torch.eye(3, dtype=F64), positive_definite=True)
    x = ims.linear_solve(A, b, solver=ims.CG(rtol=None, max_steps=5)).value
    x.sum().backward()
    assert torch.equal(x, b / 2) and torch.equal(b.grad, tensor([0.5, 0.5, 0.5]))
    zero = ims.linear_solve(A, 0 * b.detach(), solver=ims.CG()).value
    assert torch.equal(zero, 0 * b.detach())


def in_lanes(way, fn, a, w, **options):
    """Solve from ones, one lane for each entry of ``a``; all lanes share ``w``."""
    if way == "vmap":
        return vmap(lambda a: ims.root(fn, ONE, (a, w), **options))(a)
    in_dims = (0, None) if way == "in_dims" else None
    return ims.root(fn, torch.ones_like(a), (a, w), batch_dims=1, in_dims=in_dims, **options)


@pytest.mark.parametrize("way", ["vmap", "in_dims", "batch_dims"])
def test_04_gradients_of_shared_parameters_are_summed(way):
    # qpth: the mean. z_i = w a_i^2: the sum of all z_i has dw = a . a = 14, not 14 / 3.
    w = tensor(0.7, requires_grad=True)
    in_lanes(way, lambda z, a, w: z - w * a**2, tensor([1.0, 2.0, 3.0]), w).value.sum().backward()
    torch.testing.assert_close(w.grad, tensor(14.0))


def test_05_divergent_map_has_no_gradient():
    # torchdeq: a gradient of the wrong sign and no warning. z = 2 z + b has z = -b, dz/db = -1.
    fn = lambda z, b: 2 * z + b
    picard = ims.FixedPointIteration()
    b = tensor(0.3, requires_grad=True)
    with pytest.raises(ims.ConvergenceError, match="fixed_point"):
        ims.fixed_point(fn, ONE, (b,), solver=picard)
    with pytest.warns(ims.ConvergenceWarning):
        warned = ims.fixed_point(fn, ONE, (b,), solver=picard, on_failure="warn")
    assert not bool(warned.converged)
    masked = ims.fixed_point(fn, ONE, (b,), solver=picard, on_failure="mask").value
    assert torch.autograd.grad(masked, b) == (tensor(0.0),)
    # a solver that finds the repelling point gives its derivative, with the sign right
    z = ims.fixed_point(fn, ONE, (b,), solver=ims.Newton()).value
    torch.testing.assert_close(z.detach(), -b.detach())
    torch.testing.assert_close(torch.autograd.grad(z, b)[0], tensor(-1.0))


def test_06_second_derivatives():
    # TorchOpt, torchdeq, qpth: silently wrong or zero. sqrt(a)'' = -a^-1.5 / 4.
    a = tensor(2.0, requires_grad=True)
    exact = -0.25 * a.detach() ** -1.5
    (g,) = torch.autograd.grad(square_root(a), a, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(g, a)[0], exact)
    torch.testing.assert_close(hessian(square_root)(a.detach()), exact)
    torch.testing.assert_close(grad(grad(square_root))(a.detach()), exact)


def test_07_captured_parameters_have_gradients():
    # TorchOpt, xitorch, torch-sla: None for w and the module's weight. z = (w + v) / 3.
    w = tensor(2.0, requires_grad=True)
    linear = torch.nn.Linear(1, 1, bias=False, dtype=F64)
    z = ims.root(lambda z: 3 * z - w - linear(torch.ones(1, dtype=F64)), torch.zeros(1).double())
    z.value.sum().backward()
    torch.testing.assert_close(w.grad, tensor(1 / 3))
    torch.testing.assert_close(linear.weight.grad, tensor([[1 / 3]]))
    g = grad(lambda w: ims.root(lambda z: z**2 - w, ONE).value)(tensor(2.0))
    torch.testing.assert_close(g, tensor(0.5 / math.sqrt(2)))


def test_08_least_squares_with_residuals_has_the_full_hessian():
    # Theseus: dz/da = 1 / (1 + 4 z^2), Gauss-Newton's. min (z - a)^2 + (z^2 - b)^2 has the
    # condition z - a + 2 z (z^2 - b) = 0, so dz/da = 1 / (1 + 6 z^2 - 2 b).
    b = tensor(0.5)  # so that 2 z^3 = a

    def solve(a):
        fn = lambda z, a: torch.stack([z - a, z**2 - b])
        return ims.least_squares(fn, ONE, (a,)).value

    a = tensor(3.0)
    z = solve(a)
    exact, gauss_newton = 1 / (1 + 6 * z**2 - 2 * b), 1 / (1 + 4 * z**2)
    assert abs(exact - gauss_newton) > 0.03
    torch.testing.assert_close(exact, (a / 2) ** (-2 / 3) / 6)
    torch.testing.assert_close(grad(solve)(a), exact, rtol=1e-9, atol=0)
    torch.testing.assert_close(grad(solve)(a), differences(solve, a), rtol=1e-8, atol=0)


def test_09_no_symmetric_solver_for_a_nonsymmetric_jacobian():
    # torch-sla: CG on a nonsymmetric matrix, without a word.
    A = tensor([[2.0, 1.0], [-3.0, 4.0]])
    b = tensor([1.0, 2.0])

    def root(b, solver):
        adjoint = ims.ImplicitAdjoint(solver)
        return ims.root(lambda z, b: A @ z - b, 0 * b, (b,), adjoint=adjoint).value

    def linear_solve(b, solver):
        return ims.linear_solve(ims.MatrixOperator(A), b, solver=solver).value

    for solve in (root, linear_solve):
        for solver in (ims.CG(), ims.Cholesky()):
            with pytest.raises(ValueError, match="symmetric"):
                solve(b, solver)
        exact = tensor([[4.0, -1.0], [3.0, 2.0]]) / 11
        for solver in (None, ims.GMRES()):
            torch.testing.assert_close(jacrev(solve)(b, solver), exact)


@pytest.mark.parametrize("solver", [ims.CG, ims.GMRES, ims.Neumann])
def test_10_a_krylov_solve_that_fell_short_is_no_solution(solver):
    # linear_operator: a relative residual of 0.7 passes. Two steps do not solve this system.
    scale = torch.logspace(-3, 0, 20, dtype=F64)
    b = torch.ones(20, dtype=F64, requires_grad=True)
    A = ims.DiagonalOperator(scale)
    with pytest.raises(ims.ConvergenceError, match="MAX_STEPS"):
        ims.linear_solve(A, b, solver=solver(max_steps=2))
    sol = ims.linear_solve(A, b, solver=solver(max_steps=2), on_failure="mask")
    true = (b - scale * sol.value).detach().square().mean().sqrt()
    assert not bool(sol.converged) and int(sol.status) == Status.MAX_STEPS
    assert float(true) > 0.3
    torch.testing.assert_close(sol.residual, true)


def by_descent(fn):
    """Return a solver that minimizes |fn|^2, in plain torch."""

    def solver(z0, *args):
        z = z0.clone().requires_grad_()
        exact = {"max_iter": 200, "tolerance_grad": 1e-15, "tolerance_change": 0}
        optimizer = torch.optim.LBFGS([z], line_search_fn="strong_wolfe", **exact)

        def closure():
            optimizer.zero_grad()
            loss = fn(z, *args).square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        return z.detach()

    return solver


def test_11_a_root_found_by_a_minimizer_differentiates_the_residual():
    # Optimistix differentiates through norm(f): at the root its gradient is 0 / 0 or zero.
    fn = lambda z, a: torch.stack([z[0] ** 2 + z[1] - a, z[1] - 2 * z[0]])
    solve = ims.custom_root(fn)(by_descent(fn))
    a = tensor(8.0)

    def z(a):
        return solve(tensor([1.0, 1.0]), a).value

    torch.testing.assert_close(z(a), tensor([2.0, 4.0]), rtol=1e-7, atol=0)
    # x^2 + 2 x = a: dx = da / (2 x + 2)
    torch.testing.assert_close(jacrev(z)(a), tensor([1 / 6, 1 / 3]), rtol=1e-6, atol=0)


def test_11_a_stationary_point_that_is_no_root_is_a_failure():
    # |z^2 + 1|^2 has its minimum 1 at z = 0; Optimistix: success.
    fn = lambda z, a: z**2 + a
    solve = ims.custom_root(fn)(by_descent(fn))
    with pytest.raises(ims.ConvergenceError, match="REJECTED|SINGULAR"):
        solve(ONE, ONE)
    sol = ims.custom_root(fn, on_failure="mask")(by_descent(fn))(ONE, ONE)
    assert abs(float(sol.value)) < 1e-3 and not bool(sol.converged)
    torch.testing.assert_close(sol.residual, ONE, rtol=1e-5, atol=0)
    beside = ims.custom_root(fn, on_failure="mask")(lambda z0, a: z0)(ONE, -2 * ONE)
    assert int(beside.status) == ims.Status.REJECTED
    for solver in (ims.GMRES(), ims.LU()):
        with pytest.raises(ims.ConvergenceError, match="STALLED|SINGULAR|MAX_STEPS"):
            ims.root(fn, ONE, (ONE,), solver=ims.Newton(linear_solver=solver))


@pytest.mark.parametrize("way", ["vmap", "in_dims"])
def test_12_a_nan_lane_spoils_no_other(way):
    # Optimistix, lineax: the batch's backward raises, or every gradient is NaN.
    a = tensor([2.0, math.nan, 3.0], requires_grad=True)
    w = tensor(1.5, requires_grad=True)
    sol = in_lanes(way, lambda z, a, w: z**2 - a * w, a, w, on_failure="mask")
    assert sol.converged.tolist() == [True, False, True]
    sol.value.sum().backward()
    # z = sqrt(a w)
    exact = 0.5 * (1.5 / tensor([2.0, 3.0])).sqrt()
    torch.testing.assert_close(a.grad[[0, 2]], exact)
    assert float(a.grad[1]) == 0
    torch.testing.assert_close(w.grad, 0.5 * (tensor([2.0, 3.0]) / 1.5).sqrt().sum())


def test_13_an_unconverged_lane_has_no_gradient():
    # All of them: a confident number. From 1e6, two Newton steps are nowhere near sqrt(2).
    a = tensor([2.0, 2.0], requires_grad=True)
    start = tensor([1.4142, 1e6])
    solver = ims.Newton(max_steps=3)

    def solve(policy):
        fn = lambda z, a: z**2 - a
        return vmap(lambda z, a: ims.root(fn, z, (a,), solver=solver, on_failure=policy))(start, a)

    with pytest.raises(
        ims.ConvergenceError, match=r"1 of 2 problems \(problem 1: MAX_STEPS after 3"
    ):
        solve("raise")
    with pytest.warns(ims.ConvergenceWarning, match="MAX_STEPS"):
        assert solve("warn").converged.tolist() == [True, False]
    sol = solve("mask")
    assert sol.status.tolist() == [0, Status.MAX_STEPS] and float(sol.residual[1]) > 1e9
    sol.value.sum().backward()
    assert float(a.grad[0]) == pytest.approx(0.5 / math.sqrt(2)) and float(a.grad[1]) == 0


@pytest.fixture(params=[torch.float32, F64])
def default(request):
    with default_dtype(request.param):
        yield


LANEWISE = {"batch_dims": 1, "in_dims": (0,)}
SAME = {
    "root": lambda one, a: ims.root(lambda z, a: z - a, one, (a,)),
    "fixed_point": lambda one, a: ims.fixed_point(lambda z, a: 0.5 * (z + a), one, (a,)),
    "minimize": lambda one, a: ims.minimize(lambda z, a: (z - a).square().sum(), one, (a,)),
    "least_squares": lambda one, a: ims.least_squares(lambda z, a: z - a, one, (a,)),
    "linear_solve": lambda one, a: ims.linear_solve(ims.DiagonalOperator(2 * one), 2 * a),
    "custom_root": lambda one, a: ims.custom_root(lambda z, a: z - a)(
        lambda z0, a: a.double().numpy()
    )(one, a),
    # steps that are shortened in some lanes
    "damped": lambda one, a: ims.root(
        lambda z, a: torch.atan(9 * (z - a)), one, (a,), solver=ims.Newton(), **LANEWISE
    ),
    "searched": lambda one, a: ims.minimize(
        lambda z, a: torch.sqrt(1 + 25 * (z - a) ** 2), one, (a,), solver=ims.LBFGS(), **LANEWISE
    ),
}


@pytest.mark.usefixtures("default")
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", SAME)
def test_14_the_output_has_the_dtype_of_the_input(name, dtype):
    # cvxpylayers: float32 in, float64 out.
    a = torch.tensor([0.5, 0.25], dtype=dtype, requires_grad=True)
    sol = SAME[name](torch.ones(2, dtype=dtype), a)
    (g,) = torch.autograd.grad(sol.value.sum(), a)
    assert sol.value.dtype == sol.residual.dtype == g.dtype == dtype
    torch.testing.assert_close(sol.value.detach(), a.detach())
    torch.testing.assert_close(g, torch.ones(2, dtype=dtype))


def test_15_a_problem_without_a_solution_is_reported(capsys):
    # qpth: prints a line and returns a point.
    one = torch.ones(2, dtype=F64)
    singular = tensor([[1.0, 1.0], [1.0, 1.0]])
    definite = ims.MatrixOperator(singular, positive_definite=True)
    b = tensor([1.0, -1.0])  # not in the range
    problems = {
        "equation": lambda **o: ims.root(lambda z: z**2 + 1, one, **o),
        "fixed point": lambda **o: ims.fixed_point(lambda z: z + 1, one, **o),
        "unbounded": lambda **o: ims.minimize(lambda z: z.sum(), one, **o),
        "LU": lambda **o: ims.linear_solve(ims.MatrixOperator(singular), b, **o),
        "Cholesky": lambda **o: ims.linear_solve(definite, b, solver=ims.Cholesky(), **o),
        "CG": lambda **o: ims.linear_solve(definite, b, solver=ims.CG(), **o),
        "GMRES": lambda **o: ims.linear_solve(definite, b, solver=ims.GMRES(), **o),
    }
    for name, solve in problems.items():
        with pytest.raises(ims.ConvergenceError):
            solve()
        sol = solve(on_failure="mask")
        assert not bool(sol.converged) and int(sol.status) > Status.BUDGET, name
    assert capsys.readouterr().out == ""


AUX = {
    "root": lambda z, a: z**2 - a,
    "fixed_point": lambda z, a: z - (z**2 - a) / 4,
    "minimize": lambda z, a: z**3 / 3 - a * z,
    "least_squares": lambda z, a: (z**2 - a).reshape(1),
}


@pytest.mark.parametrize("kind", AUX)
def test_16_auxiliary_outputs_have_gradients(kind):
    # Optimistix: zero. aux = z^3 a with z = sqrt(a) is a^2.5.
    def cube(a):
        fn = lambda z, a: (AUX[kind](z, a), {"cube": z**3 * a, "note": "text"})
        aux = getattr(ims, kind)(fn, ONE, (a,), has_aux=True).aux
        assert aux["note"] == "text"
        return aux["cube"]

    a = tensor([2.0, 5.0])
    leaf = tensor(2.0, requires_grad=True)
    cube(leaf).backward()
    torch.testing.assert_close(leaf.grad, 2.5 * a[0] ** 1.5)
    torch.testing.assert_close(vmap(cube)(a), a**2.5)
    torch.testing.assert_close(vmap(grad(cube))(a), 2.5 * a**1.5)
    torch.testing.assert_close(vmap(hessian(cube))(a), 3.75 * a**0.5)


def test_an_iterate_that_runs_away_is_no_root():
    # atan(z) + 2 > 0.4 everywhere; far out it is below rtol |z|, which grows with the iterate
    f = lambda z: torch.atan(z) + 2
    for z0, solver in ((0.0, None), (1e13, None), (0.0, ims.Newton(halvings=0))):
        assert not bool(ims.root(f, tensor(z0), solver=solver, on_failure="mask").converged)
