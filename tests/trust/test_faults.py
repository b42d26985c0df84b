"""One line of the core wrong: what tells it, in the smallest problem that shows it.

`tests/fault_injection.py` puts such lines in and runs these tests, among others.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import implicit_solvers as ims

D, C = torch.float64, torch.complex128
ONE = torch.ones((), dtype=D)
A = torch.tensor([[3.0, 1.0, -0.5], [-1.0, 2.0, 0.3], [0.4, 0.7, 1.5]], dtype=D)
SPD = A @ A.T
B = torch.tensor([1.0, -2.0, 0.5], dtype=D)
# of systems of condition 10: the tolerances of the solves, eps ** (2 / 3), with a margin
close = functools.partial(torch.testing.assert_close, rtol=1e-8, atol=1e-9)


def solve(A, b, **options):
    return ims.linear_solve(ims.MatrixOperator(A), b, **options).value


# -- lanes that leave ------------------------------------------------------------------------------


def test_a_lane_keeps_its_absolute_tolerance_when_others_leave():
    # the first lane is solved at once, and its numbers are of another size
    b = torch.stack((0 * B, 1e-180 * B))
    operator = ims.MatrixOperator(SPD, positive_definite=True)
    solver = ims.CG(rtol=0.0, atol=1e-190, max_steps=20)
    sol = vmap(lambda b: ims.linear_solve(operator, b, solver=solver))(b)
    assert bool(sol.converged.all()) and float(sol.residual[1]) <= 1e-190
    close(1e180 * sol.value[1], torch.linalg.solve(SPD, B))


def test_a_lane_keeps_its_start_when_others_leave():
    # atan(z) + 2 has no root; an iterate that runs away from a small start is not taken for one
    f = lambda z, a: torch.where(a > 0, z - a, torch.atan(z) + 2)
    start = torch.tensor([1e13, 0.0], dtype=D)
    solver = ims.Newton(halvings=0, rtol=1e-6, max_steps=20)
    sol = ims.root(f, start, (start,), solver=solver, batch_dims=1, in_dims=0, on_failure="mask")
    assert sol.converged.tolist() == [True, False]


@pytest.mark.parametrize("way", ["vmap", "in_dims"])
def test_lanes_that_leave_one_by_one(way):
    a = torch.tensor([1.0, 1e9, 2.0, 1e5, 1.1, 1e3, 1.0, 1e2], dtype=D)
    f = lambda z, a, s: z**3 - a * s
    if way == "vmap":
        sol = vmap(lambda a: ims.root(f, ONE, (a, ONE)))(a)
    else:
        sol = ims.root(f, torch.ones_like(a), (a, ONE), batch_dims=1, in_dims=(0, None))
    # (a lane in another's place would be judged no root, and find its own in more steps)
    alone = [int(ims.root(f, ONE, (x, ONE)).iterations) for x in a]
    assert sol.iterations.tolist() == alone and len(set(alone)) > 4
    close(sol.value, a ** (1 / 3))


def test_a_lane_that_ended_stands_still():
    # two of three go on, so that nobody leaves; the tolerance is loose, so that a step more shows
    f = lambda z, a: a * torch.cos(z)
    a = torch.tensor([0.1, 0.8, 0.9], dtype=D)
    loose = ims.FixedPointIteration(rtol=1e-2, atol=1e-2)
    alone = [ims.fixed_point(f, ONE, (x,), solver=loose) for x in a]
    sol = vmap(lambda x: ims.fixed_point(f, ONE, (x,), solver=loose))(a)
    assert sol.iterations.tolist() == [int(one.iterations) for one in alone]
    assert sol.status.tolist() == [0, 0, 0]
    values = torch.stack([one.value for one in alone])
    # the same operations in lanes and alone, to a few roundings
    torch.testing.assert_close(sol.value, values, rtol=1e-14, atol=0)


class Idle(NamedTuple):
    z: torch.Tensor
    error: torch.Tensor
    estimate: float = 0.0


@dataclass(frozen=True)
class Stays(ims.EquationMethod):
    """Says at once that it is there."""

    solves: ClassVar[tuple[str, ...]] = ("root",)

    def init(self, problem, z):
        return Idle(z, self.norm(problem.residual(z)))

    def step(self, problem, state):
        return state


def test_a_lane_goes_on_from_newtons_next_point():
    starts = torch.tensor([2.1, 2.0, 1.9], dtype=D)
    solve = lambda z: ims.root(lambda z: z**3 - 8, z, solver=Stays())
    close(vmap(lambda z: solve(z).value)(starts), 0 * starts + 2)
    close(solve(starts[0]).value, 2 * ONE)


def test_an_ill_conditioned_root_is_as_good_as_rounding_allows():
    k = torch.arange(8, dtype=D)
    hilbert = 1 / (k + k[:, None] + 1)
    sol = ims.root(lambda z: hilbert @ z - hilbert.sum(-1), 0 * k)
    off = float((sol.value - 1).square().mean().sqrt())
    assert bool(sol.converged) and off < float(sol.error) and 1e-10 < float(sol.error) < 1e-4


class Once(NamedTuple):
    z: torch.Tensor
    error: torch.Tensor
    flag: torch.Tensor
    steps: int


@dataclass(frozen=True)
class FlagsOnce(ims.EquationMethod):
    """Halves the error at each step; what is negative it flags at the first step alone."""

    solves: ClassVar[tuple[str, ...]] = ("root",)

    def init(self, problem, z):
        return Once(z, self.norm(problem.residual(z)), torch.zeros(len(z), dtype=torch.int64), 0)

    def step(self, problem, state):
        new = self.init(problem, state.z - 0.5 * problem.residual(state.z))
        flagged = (state.steps == 0) & (state.z < 0).squeeze(-1)
        flag = torch.where(flagged, int(ims.Status.STALLED), 0)
        return new._replace(flag=flag, steps=state.steps + 1)


def test_a_lane_that_was_flagged_keeps_its_status():
    # two of three go on, so that it does not leave
    start = torch.tensor([-1.0, 2.0, 3.0], dtype=D)
    solve = lambda z: ims.root(lambda z: z - 1, z, solver=FlagsOnce(), on_failure="mask")
    assert vmap(solve)(start).status.tolist() == [ims.Status.STALLED, 0, 0]


def test_three_levels_of_systems_whose_lanes_leave():
    # operators carry the outer two levels, right-hand sides the inner one: columns of a grid
    scale = torch.tensor([[0.0, 3.0, 1.0], [20.0, 0.5, 7.0]], dtype=D)
    matrices = SPD + scale[..., None, None] * torch.diag(torch.arange(3.0, dtype=D))
    b = torch.stack((0 * B, B, 0 * B, B.flip(0)))  # half of the lanes leave at once

    def one(A, b):
        return ims.linear_solve(
            ims.MatrixOperator(A, positive_definite=True), b, solver=ims.CG(max_steps=9)
        ).value

    x = vmap(vmap(vmap(one, (None, 0)), (0, None)), (0, None))(matrices, b)
    close(x, torch.linalg.solve(matrices[:, :, None], b[None, None].unsqueeze(-1)).squeeze(-1))
    many = vmap(vmap(vmap(one, (0, None)), (0, None)), (None, 0))(matrices, b)
    close(many, x.movedim(2, 0))


def test_levels_that_different_tensors_carry():
    a, c = torch.tensor([1.0, 2.0], dtype=D), torch.tensor([3.0, 5.0, 7.0], dtype=D)
    one = lambda a, c: ims.root(lambda z, a, c: z + z**3 - a * c, ONE, (a, c)).value
    z = vmap(vmap(one, (None, 0)), (0, None))(a, c)
    close(z + z**3, a[:, None] * c)


# -- lanes that failed, or whose adjoint did -------------------------------------------------------


def test_an_adjoint_that_failed_is_left_out_of_what_lanes_share():
    # one step of GMRES solves a system of a multiple of the identity, and no other; and in the lane
    # that fails the slope in w is infinite, so that no weight makes it nothing
    c = torch.tensor([[0.0, 0.0], [1.0, -1.0], [1.0, 1.0]], dtype=D)
    b = torch.tensor([[1.0, 2.0], [1.0, 1.0], [3.0, 1.0]], dtype=D)
    m = torch.tensor([1.0, 0.0, 1.0], dtype=D)
    w = torch.tensor(2.0, dtype=D, requires_grad=True)
    f = lambda z, b, c, m, w: z * (w - c) - b + (w * m).sqrt()
    z0 = torch.zeros(2, dtype=D)
    options = {"adjoint": ims.ImplicitAdjoint(ims.GMRES(max_steps=1)), "on_failure": "mask"}
    z = vmap(lambda b, c, m: ims.root(f, z0, (b, c, m, w), **options).value)(b, c, m)
    with pytest.warns(ims.ConvergenceWarning, match="adjoint of root"):
        z.sum().backward()
    root = math.sqrt(2)
    slopes = -(b - root) / (2 - c) ** 2 - 1 / (2 * root * (2 - c))
    close(w.grad, slopes[[0, 2]].sum())


WORSE_THAN_ZERO = {"GMRES": {"max_steps": 1}, "Neumann": {"max_steps": 20, "rtol": None}}


@pytest.mark.parametrize("solver", WORSE_THAN_ZERO)
@pytest.mark.parametrize("policy", ["raise", "warn", "mask"])
def test_an_adjoint_that_failed_is_held_to_the_policy(policy, solver):
    b = B.clone().requires_grad_()
    adjoint = ims.ImplicitAdjoint(getattr(ims, solver)(**WORSE_THAN_ZERO[solver]))
    z = ims.root(lambda z, b: A @ z - b, 0 * B, (b,), adjoint=adjoint, on_failure=policy).value
    if policy == "raise":
        with pytest.raises(ims.ConvergenceError, match="adjoint of root .*MAX_STEPS"):
            z.sum().backward()
        return
    with pytest.warns(ims.ConvergenceWarning, match="adjoint of root .*MAX_STEPS"):
        z.sum().backward()
    assert bool(b.grad.any()) == (policy == "warn")


def test_a_failed_lane_and_a_tensor_that_some_levels_carry():
    a = torch.tensor([[1.0, 2.0, math.nan], [4.0, 5.0, 6.0]], dtype=D)
    w = torch.tensor([1.5, 0.5], dtype=D, requires_grad=True)
    one = lambda a, w: ims.root(lambda z, a, w: z**2 - a * w, ONE, (a, w), on_failure="mask").value
    vmap(vmap(one, (0, None)))(a, w).sum().backward()
    each = 0.5 * (a / w.detach()[:, None]).sqrt()
    close(w.grad, each.nan_to_num(0.0).sum(1))


def test_a_complex_system_in_which_a_lane_failed():
    S = A * (1 + 0.5j)
    b = torch.stack((B * (1 - 2j), B * math.nan, B * 1j))
    scale = torch.tensor(1.0 + 0.3j, dtype=C)

    def total(scale, b):
        one = lambda b: ims.linear_solve(scale * ims.MatrixOperator(S), b, on_failure="mask").value
        return torch.where(torch.isnan(b), 0.0, vmap(one)(b)).sum()

    def exact(scale, b):
        return torch.linalg.solve(scale * S, b[[0, 2]].T).sum()

    # a real number as the loss: its gradient conjugates what it has to
    loss = lambda f: lambda scale, b: (f(scale, b) * (1 + 2j)).real
    ours, theirs = (grad(loss(f), (0, 1))(scale, b) for f in (total, exact))
    close(ours[0], theirs[0])
    close(ours[1][[0, 2]], theirs[1][[0, 2]])
    tangent = torch.tensor(0.2 - 1j, dtype=C)
    zero = torch.zeros_like(b)
    ours, theirs = (jvp(f, (scale, b), (tangent, zero))[1] for f in (total, exact))
    close(ours, theirs)


@pytest.mark.parametrize("by", [None, ims.GMRES()], ids=["factors", "products"])
def test_a_step_that_does_not_pay_is_made_shorter(by):
    """Full steps on ``atan`` diverge from 3: made shorter, each lane counts what it accepts."""
    starts = torch.tensor([0.0, 0.5, 3.0, 20.0], dtype=D)
    solver = ims.Newton(linear_solver=by)
    solve = lambda z: ims.root(torch.atan, z, solver=solver)
    alone = [solve(z) for z in starts]
    together = ims.root(torch.atan, starts, solver=solver, batch_dims=1, in_dims=())
    assert bool(together.converged.all()) and float(together.value.abs().max()) < 1e-10
    assert together.iterations.tolist() == [int(sol.iterations) for sol in alone]
    # a budget counts trials: as many of these do not arrive
    few = replace(solver, rtol=None, max_steps=int(alone[3].iterations))
    assert float(ims.root(torch.atan, starts[3], solver=few).residual) > 1e-3


@pytest.mark.parametrize("kind", [ims.GaussNewton, ims.LevenbergMarquardt, ims.Dogleg])
def test_a_lane_of_fits_stays_where_it_ended(kind):
    """Whole steps on ``atan`` diverge from 3; a lane that is done does not go on."""
    starts = torch.tensor([0.02, 0.5, 3.0, 20.0], dtype=D)
    options = {"solver": kind(atol=1e-2, rtol=0.0, compact=False)}
    alone = [ims.least_squares(torch.atan, z, **options) for z in starts]
    together = ims.least_squares(torch.atan, starts, batch_dims=1, in_dims=(), **options)
    close(together.value, torch.stack([sol.value for sol in alone]))
    assert together.iterations.tolist() == [int(sol.iterations) for sol in alone]
    assert bool((together.value.abs() <= starts).all())


class Point(NamedTuple):
    z: torch.Tensor
    error: torch.Tensor
    flag: torch.Tensor


@dataclass(frozen=True)
class Ahead(ims.EquationMethod):
    """Newton's method with the slope one ahead of the iterate."""

    solves: ClassVar[tuple[str, ...]] = ("root",)

    def init(self, problem, z):
        r = problem.residual_to_factor(z)
        return Point(z, self.norm(r), torch.zeros(len(z), dtype=torch.int64))

    def step(self, problem, state):
        r, slope = problem.residual_to_factor(state.z), problem.linearize(state.z + 1).dense()
        return self.init(problem, state.z - r / slope[..., 0])


def test_a_jacobian_is_that_at_the_point_that_is_asked_for():
    """An evaluation that serves the Jacobian too serves that at its own point alone."""
    solver, start = Ahead(rtol=None, max_steps=1), torch.tensor(2.0, dtype=D)
    assert float(ims.root(lambda z: z**3 - 2, start, solver=solver).value) == 2 - 6 / 27


@pytest.mark.parametrize("steps", range(1, 8))
def test_gradients_of_budgets_are_those_at_the_point(steps):
    """The factors of the last step are corrected, however far it went."""
    a = torch.tensor([1.0, 30.0], dtype=D, requires_grad=True)
    solver = ims.Newton(rtol=None, max_steps=steps)
    z = ims.root(lambda z, a: z**3 + z - a, torch.ones(2, dtype=D), (a,), solver=solver).value
    (slope,) = torch.autograd.grad(z.sum(), a)
    close(slope, 1 / (3 * z.detach() ** 2 + 1), rtol=1e-12, atol=0)


def test_a_matrix_that_is_singular_but_for_rounding():
    A, b = (
        torch.arange(1, 10, dtype=D).reshape(3, 3),
        torch.tensor([6.0, 15.0, 24.0], dtype=D),
    )
    with pytest.raises(ims.ConvergenceError, match="SINGULAR"):
        ims.root(lambda z: A @ z - b, torch.zeros(3, dtype=D), solver=ims.Newton())
    scaled = torch.tensor([1e-150, 1.0, 1e150], dtype=D)
    regular = torch.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 4.0]], dtype=D)
    for units, x in ((scaled[:, None] * regular, 1 + 0 * scaled), (regular * scaled, 1 / scaled)):
        assert bool(ims.linear_solve(ims.MatrixOperator(units), units @ x).converged)


def test_units_of_rows_stay_out_of_a_linear_solve():
    A = torch.tensor([[1.0, 1e17], [1.0, 1.0]], dtype=D)
    b, w = A.sum(-1).requires_grad_(), torch.tensor([1.0, 2.0], dtype=D)
    # (a solve would try QR's factors where these fail)
    lu = ims.LU()
    factors, sides = lu.factor_dense(A[None]), b.detach().reshape(1, 2, 1)
    close(lu.solve(factors, sides, False).flatten(), torch.ones(2, dtype=D))
    (solve(A, b, solver=lu) @ w).backward()
    close(b.grad, torch.tensor([1e-17, 1.0], dtype=D), rtol=1e-12, atol=0)


def test_a_lane_that_failed_returns_its_best_iterate():
    sol = ims.fixed_point(
        lambda z: 2 * z, ONE, solver=ims.FixedPointIteration(max_steps=5), on_failure="mask"
    )
    assert float(sol.value) == 1 and float(sol.residual) == 1 and int(sol.iterations) == 5
    nan = ims.fixed_point(lambda z: math.nan * z, ONE, solver=ims.Anderson(), on_failure="mask")
    assert int(nan.status) == ims.Status.NONFINITE


# -- derivatives -----------------------------------------------------------------------------------


def test_derivatives_of_a_linear_system():
    exact, ours = (lambda A, b: torch.linalg.solve(A, b)), solve
    for mode in (jacrev, jacfwd):
        for argument in (0, 1):
            close(mode(ours, argument)(A, B), mode(exact, argument)(A, B))


def test_a_jacobian_after_a_loose_solve_is_that_at_the_solution():
    # the factors that Newton leaves are those of the iterate before
    f = lambda z, b: A @ z + z**3 - b
    for solver in (ims.Newton(rtol=1e-3, atol=1e-3), ims.Newton(rtol=None, max_steps=1)):
        b = (10 * B).requires_grad_()
        z = ims.root(f, B, (b,), solver=solver).value
        (g,) = torch.autograd.grad(z.sum(), b)
        J = A + torch.diag(3 * z.detach() ** 2)
        torch.testing.assert_close(g, torch.linalg.inv(J).sum(0), rtol=1e-10, atol=0)


def test_derivatives_of_each_order_where_the_slope_depends_on_the_solution():
    root = lambda a: ims.root(lambda z, a: a * z**2 - 1, ONE, (a,)).value
    a = torch.tensor(2.0, dtype=D, requires_grad=True)
    first, second, third = -0.5 * a**-1.5, 0.75 * a**-2.5, -1.875 * a**-3.5
    close(jacfwd(root)(a), first)
    close(jacfwd(jacfwd(root))(a), second)
    close(jacfwd(hessian(root))(a), third)
    (g,) = torch.autograd.grad(root(a), a, create_graph=True)
    close(g, first)
    close(torch.autograd.grad(g, a)[0], second)


def test_forward_mode_leaves_the_start_of_backward_solves_alone():
    memory = ims.AdjointStart()
    adjoint = ims.ImplicitAdjoint(ims.GMRES())

    def root(b):
        f = lambda z, b: A @ z - b
        return ims.root(f, 0 * B, (b,), adjoint=adjoint, adjoint_start=memory).value

    b = B.clone().requires_grad_()
    root(b).sum().backward()
    close(memory.value, torch.linalg.solve(A.T, torch.ones_like(B)))
    jvp(root, (B,), (B,))
    close(memory.value, torch.linalg.solve(A.T, torch.ones_like(B)))


def test_a_scaled_complex_operator_is_transposed_with_its_scale():
    scale = torch.tensor(1.0 + 2j, dtype=C)
    operator = scale * ims.MatrixOperator(A.to(C))
    b = (B * (2 - 1j)).requires_grad_()
    x = ims.linear_solve(operator, b, solver=ims.GMRES()).value
    (g,) = torch.autograd.grad(x.real.sum(), b)
    close(g, torch.linalg.solve((scale * A).mH, torch.ones_like(b)).detach())


# -- captured tensors ------------------------------------------------------------------------------


def test_captured_tensors_beside_arguments():
    def root(w, a):
        return ims.root(lambda z, a: w * z**2 - a, ONE, (a,)).value

    w, a = torch.tensor(2.0, dtype=D), torch.tensor(3.0, dtype=D)
    exact = lambda w, a: (a / w).sqrt()
    for ours, theirs in zip(grad(root, (0, 1))(w, a), grad(exact, (0, 1))(w, a), strict=True):
        close(ours, theirs)
    with forward_ad.dual_level():
        dual = root(forward_ad.make_dual(w, ONE), a)
        close(forward_ad.unpack_dual(dual).tangent, grad(exact)(w, a))


def test_what_only_the_solution_reads_is_captured():
    x = torch.tensor(2.0, dtype=D, requires_grad=True)
    y = torch.tensor(1.5, dtype=D, requires_grad=True)
    z = ims.root(lambda z: z - x if bool(z < 1) else z - x * y, 0 * ONE).value
    gx, gy = torch.autograd.grad(z, (x, y), create_graph=True)
    close(torch.stack((gx, gy)), torch.stack((y, x)))
    close(torch.autograd.grad(gx, y)[0], ONE)


def test_what_is_read_after_a_layer_inside_is_captured():
    def outer(w):
        def f(z):
            inner = ims.root(lambda y: y**2 - z, ONE).value
            return inner - w  # z = w^2

        return ims.root(f, ONE).value

    w = torch.tensor(1.5, dtype=D)
    close(grad(outer)(w), 2 * w)
    leaf = w.clone().requires_grad_()
    close(torch.autograd.grad(outer(leaf), leaf)[0], 2 * w)


# -- tolerances, statuses, structures --------------------------------------------------------------


def test_default_tolerances_follow_the_iterate():
    eps = torch.finfo(D).eps
    picard = lambda z: 0.5 * z + 0.5
    sol = ims.fixed_point(picard, 1e8 * ONE, solver=ims.FixedPointIteration())
    assert float(sol.residual) <= 2.01 * eps**0.75  # atol + rtol |z|, at z = 1
    assert int(sol.iterations) < 75  # of 1 / 2 each: to 1e-12 / 1e8 = 2 ** -66
    operator = ims.MatrixOperator(torch.diag(torch.logspace(0, 2, 30, dtype=D)))
    b = 1e-9 * torch.ones(30, dtype=D)
    sol = ims.linear_solve(operator, b, solver=ims.GMRES())
    assert float(sol.residual) <= 1.1e-9 * eps ** (2 / 3)


def test_an_unknown_of_several_tensors_keeps_their_order():
    x, y = torch.tensor([1.0, 2.0], dtype=D), torch.tensor([3.0, 4.0], dtype=D)
    g = lambda z: (0.5 * z[0] + 0.5 * x, 0.25 * z[1] + 0.75 * y)
    found = ims.fixed_point(g, (0 * x, 0 * y)).value
    close(found[0], x)
    close(found[1], y)
