"""Adjoints: what each computes, which equations and compositions it supports, what it refuses."""

import pytest
import torch
from torch.func import grad, jacfwd, jacrev, vmap

import implicit_solvers as ims
from tests.cases import MANY_P as MANY_X
from tests.cases import P as X
from tests.cases import V, W, assert_agree, check_gradients, modes

Z0 = torch.zeros(3, dtype=torch.float64)


def cell(z, x):
    return torch.tanh(W @ z + x)


def by_hand(x, steps, z=Z0):
    for _ in range(steps):
        z = cell(z, x)
    return z


def solve(adjoint, **options):
    return lambda x: ims.fixed_point(cell, Z0, (x,), adjoint=adjoint, **options).value


@ims.custom_fixed_point(cell, adjoint=ims.OneStepAdjoint())
def custom(z, x):
    return by_hand(x, 200, z)


BIASED = {
    "one step": (solve(ims.OneStepAdjoint()), 1),
    "one step, custom": (lambda x: custom(Z0, x).value, 1),
    "Neumann 1": (solve(ims.ImplicitAdjoint(ims.Neumann(max_steps=1, rtol=None))), 1),
    "Neumann 3": (solve(ims.ImplicitAdjoint(ims.Neumann(max_steps=3, rtol=None))), 3),
}
biased = pytest.mark.parametrize("name", BIASED)


@biased
def test_biased_adjoints_sum_the_first_terms(name):
    fn, terms = BIASED[name]
    # a few steps from the fixed point, which is held constant
    assert_agree(fn, lambda x: by_hand(x, terms, by_hand(x.detach(), 200)), modes(0, 1))


@biased
def test_biased_adjoints_raise_when_they_are_differentiated_again(name):
    fn = BIASED[name][0]
    for second in (
        *(lambda a=a, b=b: a(b(fn))(X) for a in (jacrev, jacfwd) for b in (jacrev, jacfwd)),
        lambda: vmap(grad(lambda x: grad(lambda x: fn(x) @ V)(x).sum()))(MANY_X),
    ):
        with pytest.raises(RuntimeError, match="of first order only"):
            second()
    x = X.clone().requires_grad_()
    (g,) = torch.autograd.grad(fn(x) @ V, x, create_graph=True)
    with pytest.raises(RuntimeError, match="of first order only"):
        g.sum().backward()


def test_a_budgeted_cg_is_differentiable_twice():
    def minimum(adjoint):
        objective = lambda z, x: ((z - x) ** 2).sum() + (z**4).sum()
        return lambda x: ims.minimize(objective, Z0, (x,), adjoint=adjoint).value

    # three steps solve a 3 x 3 system to rounding
    budget = ims.ImplicitAdjoint(ims.CG(max_steps=3, rtol=None))
    assert_agree(minimum(budget), minimum(None), ["plain rev-rev", "double backward"])


# -- unrolling ------------------------------------------------------------------------------------

STEPS = ims.FixedPointIteration(max_steps=7, rtol=None)


@pytest.mark.parametrize("checkpoint", [None, 1, 3, 10])
def test_unrolled_equals_the_loop_in_every_mode(checkpoint):
    fn = solve(ims.UnrolledAdjoint(checkpoint), solver=STEPS)
    assert_agree(fn, lambda x: by_hand(x, 7), modes(0, 1, 2))
    if checkpoint in (None, 3):
        check_gradients(fn, X, batched=False)


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
    scale = torch.tensor([0.1, 0.9], dtype=torch.float64)
    fn = lambda z, scale: torch.tanh(scale[:, None] * (z @ W.T) + X)
    options = {"batch_dims": 1, "in_dims": (0,), "adjoint": ims.UnrolledAdjoint()}
    options["solver"] = ims.FixedPointIteration(rtol=1e-6, atol=1e-6)
    sol = ims.fixed_point(fn, torch.zeros(2, 3, dtype=torch.float64), (scale,), **options)
    counts = sol.iterations.tolist()
    assert counts[0] < counts[1]
    for lane, count in enumerate(counts):
        z = Z0
        for _ in range(count):
            z = torch.tanh(scale[lane] * (W @ z) + X)
        torch.testing.assert_close(sol.value[lane], z)


@pytest.mark.parametrize("momentum", [0, 0.5])
def test_unrolled_minimize(momentum):
    def objective(z, x):
        return ((z - x) ** 2).sum() + (z**4).sum()

    def loop(x):
        z, v = Z0, torch.zeros_like(Z0)
        for _ in range(20):
            v = momentum * v - 0.1 * (2 * (z - x) + 4 * z**3)
            z = z + v
        return z

    def unrolled(x):
        solver = ims.GradientDescent(0.1, max_steps=20, rtol=None, momentum=momentum)
        adjoint = ims.UnrolledAdjoint()
        return ims.minimize(objective, Z0, (x,), solver=solver, adjoint=adjoint).value

    assert_agree(unrolled, loop, ["value", "backward", "plain fwd", "plain rev", "plain rev-fwd"])


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

    def solve(rates):
        fn = lambda z, a, s: a * torch.sin(z) + s
        options = {"solver": solver, "adjoint": ims.UnrolledAdjoint(checkpoint)}
        options |= {"batch_dims": 1, "in_dims": (0, None), "on_failure": "mask"}
        return ims.fixed_point(fn, torch.zeros_like(rates), (rates, shared), **options)

    sol = solve(rates)
    alone = solve(rates[kept])
    gradients = [torch.autograd.grad(s.value.sum(), shared)[0] for s in (sol, alone)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=0)  # a sum in another order
    torch.testing.assert_close(sol.value[kept], alone.value)


@pytest.mark.parametrize(
    "solve, fn",
    [
        (ims.fixed_point, lambda z, a: 0.3 * a * torch.cos(z) + 0.1 * z.sum()),
        (ims.fixed_point, lambda z, a: a * torch.ones(3, dtype=a.dtype)),
        (ims.root, lambda z, a: torch.sub(z, 0.2 * a * torch.cos(z), alpha=1.5)),
        (ims.root, lambda z, a: z - 0.1 * a * torch.cos(z).sum()),
    ],
    ids=["contraction", "constant", "a share of it", "broadcast"],
)
def test_neumann_s_series_is_that_of_the_map_however_it_is_written(solve, fn):
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    start, slopes = torch.zeros(3, dtype=a.dtype), []
    for solver in (ims.Neumann(rtol=1e-12), ims.LU()):
        z = solve(fn, start, (a,), adjoint=ims.ImplicitAdjoint(solver)).value
        slopes.append(torch.autograd.grad((z * torch.arange(1.0, 4.0)).sum(), a)[0])
    # the contraction is at most 0.6
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-10, atol=0)
