"""Adjoints: what each computes, which equations and compositions it supports, what it refuses."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacfwd, jacrev, jvp, vmap

import implicit_solvers as ims

W = torch.tensor([[0.3, -0.2, 0.1], [0.2, 0.1, -0.4], [-0.1, 0.3, 0.2]], dtype=torch.float64)
X = torch.tensor([0.4, -0.7, 0.9], dtype=torch.float64)
MANY_X = torch.stack([X, -X, 0.5 * X])
Z0 = torch.zeros(3, dtype=torch.float64)
V = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def cell(z, x):
    return torch.tanh(W @ z + x)


def solve(adjoint, **options):
    return lambda x: ims.fixed_point(cell, Z0, (x,), adjoint=adjoint, **options).value


def jacobians(x):
    """Return dg/dz and dg/dx at the fixed point, by hand."""
    z = Z0
    for _ in range(200):
        z = cell(z, x)
    slope = torch.diag(1 - z**2)
    return slope @ W, slope


def neumann_jacobian(x, terms):
    A, B = jacobians(x)
    return sum(torch.linalg.matrix_power(A, k) for k in range(terms)) @ B


BIASED = {
    "one step": (ims.OneStepAdjoint(), 1),
    "Neumann 1": (ims.ImplicitAdjoint(ims.Neumann(max_steps=1, rtol=None)), 1),
    "Neumann 3": (ims.ImplicitAdjoint(ims.Neumann(max_steps=3, rtol=None)), 3),
}
biased = pytest.mark.parametrize("name", BIASED)


@biased
def test_biased_adjoints_sum_the_first_terms(name):
    adjoint, terms = BIASED[name]
    expected = neumann_jacobian(X, terms)
    torch.testing.assert_close(jacrev(solve(adjoint))(X), expected)
    torch.testing.assert_close(jacfwd(solve(adjoint))(X), expected)
    x = X.clone().requires_grad_()
    (g,) = torch.autograd.grad(solve(adjoint)(x) @ V, x)
    torch.testing.assert_close(g, V @ expected)
    torch.testing.assert_close(grad(lambda x: solve(adjoint)(x) @ V)(X), V @ expected)
    torch.testing.assert_close(jvp(solve(adjoint), (X,), (V,))[1], expected @ V)
    each = vmap(jacrev(solve(adjoint)))(MANY_X)
    torch.testing.assert_close(each, torch.stack([neumann_jacobian(x, terms) for x in MANY_X]))


@biased
def test_biased_adjoints_raise_when_they_are_differentiated_again(name):
    fn = solve(BIASED[name][0])
    scalar = lambda x: fn(x) @ V
    for second in (
        lambda: jacrev(jacrev(fn))(X),
        lambda: jacfwd(jacrev(fn))(X),
        lambda: jacrev(jacfwd(fn))(X),
        lambda: jacfwd(jacfwd(fn))(X),
        lambda: vmap(grad(lambda x: grad(scalar)(x).sum()))(MANY_X),
    ):
        with pytest.raises(RuntimeError, match="of first order only"):
            second()
    x = X.clone().requires_grad_()
    (g,) = torch.autograd.grad(scalar(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="of first order only"):
        g.sum().backward()


def test_a_budgeted_cg_is_differentiable_twice():
    adjoint = ims.ImplicitAdjoint(ims.CG(max_steps=3, rtol=None))

    def minimum(x):
        return ims.minimize(
            lambda z: ((z - x) ** 2).sum() + (z**4).sum(), Z0, adjoint=adjoint
        ).value

    exact = jacrev(jacrev(lambda x: ims.minimize(
        lambda z: ((z - x) ** 2).sum() + (z**4).sum(), Z0).value))(X)  # fmt: skip
    # three steps solve a 3 x 3 system to rounding
    torch.testing.assert_close(jacrev(jacrev(minimum))(X), exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("entry", [ims.root, ims.minimize, ims.least_squares])
def test_one_step_is_for_fixed_points(entry):
    with pytest.raises(ValueError, match="OneStepAdjoint.*fixed points"):
        entry(lambda z: (z**2).sum(), Z0, adjoint=ims.OneStepAdjoint())


def test_one_step_on_a_custom_fixed_point():
    @ims.custom_fixed_point(cell, adjoint=ims.OneStepAdjoint())
    def mine(z, x):
        for _ in range(100):
            z = cell(z, x)
        return z

    expected = neumann_jacobian(X, 1)
    torch.testing.assert_close(jacrev(lambda x: mine(Z0, x).value)(X), expected)


# -- unrolling ------------------------------------------------------------------------------------


def by_hand(x, steps, z=Z0):
    for _ in range(steps):
        z = cell(z, x)
    return z


STEPS = ims.FixedPointIteration(max_steps=7, rtol=None)


@pytest.mark.parametrize("checkpoint", [None, 1, 3, 10])
def test_unrolled_equals_the_loop_in_every_mode(checkpoint):
    fn = solve(ims.UnrolledAdjoint(checkpoint), solver=STEPS)
    loop = lambda x: by_hand(x, 7)
    torch.testing.assert_close(fn(X), loop(X))
    for inner in (jacfwd, jacrev):
        torch.testing.assert_close(inner(fn)(X), inner(loop)(X))
        torch.testing.assert_close(vmap(inner(fn))(MANY_X), vmap(inner(loop))(MANY_X))
        for outer in (jacfwd, jacrev):
            torch.testing.assert_close(outer(inner(fn))(X), outer(inner(loop))(X))
    x = X.clone().requires_grad_()
    assert gradcheck(fn, (x,), check_forward_ad=True)
    assert gradgradcheck(fn, (x,))


@pytest.mark.parametrize("checkpoint", [None, 2])
def test_unrolled_gives_the_start_and_captured_tensors_a_gradient(checkpoint):
    z0 = torch.full((3,), 0.1, dtype=torch.float64, requires_grad=True)
    w = W.clone().requires_grad_()
    few = ims.FixedPointIteration(max_steps=2, rtol=None)
    adjoint = ims.UnrolledAdjoint(checkpoint)
    sol = ims.fixed_point(lambda z: torch.tanh(w @ z + X), z0, solver=few, adjoint=adjoint)
    ours = torch.autograd.grad(sol.value @ V, (z0, w))
    z = torch.tanh(w @ torch.tanh(w @ z0 + X) + X)
    for mine, loop in zip(ours, torch.autograd.grad(z @ V, (z0, w)), strict=True):
        torch.testing.assert_close(mine, loop)


def test_unrolled_lanes_stop_where_the_solver_stopped():
    solver = ims.FixedPointIteration(rtol=1e-6, atol=1e-6)
    scale = torch.tensor([0.1, 0.9], dtype=torch.float64)

    def batch(x):
        return ims.fixed_point(
            lambda z, x, scale: torch.tanh(scale[:, None] * (z @ W.T) + x),
            torch.zeros(2, 3, dtype=torch.float64),
            (x, scale),
            solver=solver,
            batch_dims=1,
            in_dims=(0, 0),
            adjoint=ims.UnrolledAdjoint(),
        )

    x = torch.stack([X, X])
    sol = batch(x)
    counts = sol.iterations.tolist()
    assert counts[0] < counts[1]
    for lane, count in enumerate(counts):
        z = Z0
        for _ in range(count):
            z = torch.tanh(scale[lane] * (W @ z) + X)
        torch.testing.assert_close(sol.value[lane], z)


@pytest.mark.parametrize(
    "solver",
    [
        ims.GradientDescent(0.1, max_steps=20, rtol=None),
        ims.GradientDescent(0.1, max_steps=20, rtol=None, momentum=0.5),
    ],
    ids=["plain", "momentum"],
)
def test_unrolled_minimize(solver):
    def objective(z, x):
        return ((z - x) ** 2).sum() + (z**4).sum()

    def loop(x):
        z, v = Z0, torch.zeros_like(Z0)
        for _ in range(20):
            v = solver.momentum * v - 0.1 * (2 * (z - x) + 4 * z**3)
            z = z + v
        return z

    def unrolled(x):
        adjoint = ims.UnrolledAdjoint()
        return ims.minimize(objective, Z0, (x,), solver=solver, adjoint=adjoint).value

    torch.testing.assert_close(jacrev(unrolled)(X), jacrev(loop)(X))
    torch.testing.assert_close(jacfwd(jacrev(unrolled))(X), jacfwd(jacrev(loop))(X))


REFUSED = {
    "Dogleg": lambda: ims.root(lambda z: z - 1, Z0, adjoint=ims.UnrolledAdjoint()),
    "checkpoint=0": lambda: solve(ims.UnrolledAdjoint(0), solver=STEPS)(X),
    "Anderson": lambda: solve(ims.UnrolledAdjoint(), solver=ims.Anderson())(X),
    "depend on earlier": lambda: ims.minimize(
        lambda z: (z**2).sum(),
        Z0,
        solver=ims.GradientDescent(0.1, momentum=0.5),
        adjoint=ims.UnrolledAdjoint(2),
    ),
    "rtol=None": lambda: vmap(solve(ims.UnrolledAdjoint(), solver=ims.FixedPointIteration()))(
        MANY_X
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_unrolled_refuses(words):
    with pytest.raises(ValueError, match=words):
        REFUSED[words]()


def test_a_preconditioner_of_the_adjoint_is_used_and_transposed():
    scale = torch.logspace(0, 3, 40, dtype=torch.float64)
    upper = torch.triu(torch.full((40, 40), 0.1, dtype=torch.float64), 1)
    M = torch.diag(scale) + scale[:, None] * upper
    x = torch.ones(40, dtype=torch.float64, requires_grad=True)

    def inverse(z, x):
        return ims.MatrixOperator(torch.linalg.inv(M))

    counts = {}
    for name, preconditioner in {"none": None, "jacobi": ims.Jacobi(), "exact": inverse}.items():
        adjoint = ims.ImplicitAdjoint(ims.GMRES(), preconditioner)
        with ims.monitor() as log:
            z = ims.root(lambda z, x: M @ z + z**3 - x, torch.zeros_like(x), (x,), adjoint=adjoint)
            (g,) = torch.autograd.grad(z.value.sum(), x)
        J = M + torch.diag(3 * z.value.detach() ** 2)
        torch.testing.assert_close(g, torch.linalg.inv(J).sum(0), rtol=1e-7, atol=1e-9)
        counts[name] = int(log.adjoints()[0].iterations)
    assert counts["exact"] < counts["jacobi"] < counts["none"]


@pytest.mark.parametrize("checkpoint", [None, 3])
@pytest.mark.parametrize("budget", [None, 25])
def test_unrolled_lanes_that_failed_are_left_out(checkpoint, budget):
    solver = ims.FixedPointIteration(max_steps=60)
    if budget:
        solver = ims.FixedPointIteration(max_steps=budget, rtol=None)
    # the third lane never settles: a failure, unless its steps are a budget
    rates = torch.tensor([0.5, float("nan"), -2.5, 0.2], dtype=torch.float64)
    shared = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    kept = [0, 2, 3] if budget else [0, 3]

    def total(rates):
        sol = ims.fixed_point(
            lambda z, a, s: a * torch.sin(z) + s,
            torch.zeros_like(rates),
            (rates, shared),
            solver=solver,
            adjoint=ims.UnrolledAdjoint(checkpoint),
            batch_dims=1,
            in_dims=(0, None),
            on_failure="mask",
        )
        return sol

    sol = total(rates)
    gradient = torch.autograd.grad(sol.value.sum(), shared)[0]
    alone = torch.autograd.grad(total(rates[kept]).value.sum(), shared)[0]
    torch.testing.assert_close(gradient, alone, rtol=1e-12, atol=0)
    torch.testing.assert_close(sol.value[kept], total(rates[kept]).value)


def test_unrolled_under_vmap_cannot_mask():
    def solve_one(a):
        return ims.fixed_point(
            lambda z, a: a * torch.sin(z),
            torch.zeros(()),
            (a,),
            solver=ims.FixedPointIteration(max_steps=3, rtol=None),
            adjoint=ims.UnrolledAdjoint(),
            on_failure="mask",
        ).value

    with pytest.raises(ValueError, match="use batch_dims and in_dims"):
        vmap(solve_one)(torch.ones(2))
