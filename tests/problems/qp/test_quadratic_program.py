"""Quadratic programs against Clarabel, NumPy's own arithmetic, and differences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers.problems.qp import (
    CondensedKKT,
    InteriorPoint,
    kkt_residual,
    quadratic_program,
)
from tests.problems.qp.drawn_programs import (
    clarabel_solve,
    falls_without_end,
    feasible,
    objective,
    programs,
    regular_programs,
)

STATUS = {
    "Solved": ims.Status.CONVERGED,
    "PrimalInfeasible": ims.Status.INFEASIBLE,
    "DualInfeasible": ims.Status.UNBOUNDED,
}


def numpy_value(solution):
    return [part.detach().double().numpy() for part in solution.value]


def check_optimal(program, solution):
    """The optimality conditions in NumPy, in units of the terms that they are differences of."""
    Q, p, G, h, A, b = program
    x, duals, multipliers, slack = numpy_value(solution)
    terms = [Q @ x, p, G.T @ duals, A.T @ multipliers]
    dual_size = 1 + sum(abs(term).max(initial=0) for term in terms)
    primal_size = 1 + max(abs(v).max(initial=0) for v in (x, h, b, G @ x))
    z = np.concatenate([x, duals, multipliers])
    # the default tolerance, eps**0.75 (1 + rms(z)), bounds the root mean square of what follows
    eps = torch.finfo(solution.value.x.dtype).eps
    tolerance = eps**0.75 * (len(z) ** 0.5 + np.linalg.norm(z))
    assert abs(sum(terms)).max() <= tolerance * dual_size
    assert abs(A @ x - b).max(initial=0) <= tolerance * primal_size
    assert (G @ x - h).max(initial=-np.inf) <= tolerance * primal_size
    assert duals.min(initial=np.inf) >= -tolerance * dual_size
    smaller = np.minimum(duals, h - G @ x)
    assert abs(smaller).max(initial=0) <= tolerance * max(dual_size, primal_size)
    np.testing.assert_allclose(slack, h - G @ x, atol=10 * eps * len(x) * primal_size)


class TestAgainstClarabel:
    @settings(max_examples=200, suppress_health_check=[HealthCheck.filter_too_much])
    @given(programs())
    def test_200_drawn_programs(self, program):
        word, x, duals, multipliers = clarabel_solve(program)
        assume(word in STATUS)  # of some degenerate programs Clarabel itself is not sure
        solution = quadratic_program(*program.tensors(), on_failure="mask")
        right = {STATUS[word]}
        if word == "DualInfeasible" and not feasible(program):
            right.add(ims.Status.INFEASIBLE)  # neither it nor its dual has a feasible point
        if word == "PrimalInfeasible" and falls_without_end(program):
            right.add(ims.Status.UNBOUNDED)
        assert ims.Status(int(solution.status)) in right
        if word != "Solved":
            return
        check_optimal(program, solution)
        ours = solution.value.x.numpy()
        value = objective(program, x)
        assert abs(objective(program, ours) - value) <= 1e-7 * (1 + abs(value))
        if np.linalg.matrix_rank(program.Q) == len(x):
            # the curvature is 0.1 at least: an error e of the value moves x by sqrt(20 e)
            np.testing.assert_allclose(ours, x, atol=1e-4 * (1 + abs(x).max()))
        active = solution.value.slack.numpy() < 1e-7
        rows = np.vstack([program.G[active], program.A])
        if len(rows) and np.linalg.svd(rows, compute_uv=False)[-1] > 1e-2 * (
            (len(rows) <= len(x) and 1) or np.inf
        ):
            _, found, nu, _ = numpy_value(solution)
            size = 1 + abs(duals).max(initial=0) + abs(multipliers).max(initial=0)
            np.testing.assert_allclose(found, duals, atol=1e-3 * size)
            np.testing.assert_allclose(nu, multipliers, atol=1e-3 * size)

    @settings(max_examples=40, suppress_health_check=[HealthCheck.filter_too_much])
    @given(programs())
    def test_float32(self, program):
        word, *_ = clarabel_solve(program)
        assume(word in STATUS and np.linalg.matrix_rank(program.Q) == len(program.p))
        solution = quadratic_program(*program.tensors(torch.float32), on_failure="mask")
        assert solution.value.x.dtype == torch.float32
        assert (solution.status == ims.Status.CONVERGED) == (word == "Solved")
        if word == "Solved":
            check_optimal(program, solution)

    def test_a_batch_of_128_to_rounding(self):
        operands = regular_programs((128,), 32, 32, 4)
        solution = quadratic_program(*operands)
        assert bool(solution.converged.all())
        for lane in range(0, 128, 16):
            program = [t[lane].numpy() for t in operands]
            Q, p, G, h, A, b = program
            x, duals, multipliers, _ = (part[lane].numpy() for part in solution.value)
            assert abs(Q @ x + p + G.T @ duals + A.T @ multipliers).max() < 1e-11
            assert max((G @ x - h).max(), abs(A @ x - b).max(), -duals.min()) < 1e-11
            assert abs(duals * (h - G @ x)).max() < 1e-11

    def test_wrong_guesses_of_the_active_set_are_left_early(self):
        # with five times as many inequalities as variables most first guesses are wrong
        solution = quadratic_program(*regular_programs((64,), 20, 100, 5))
        # 16 on average where each wrong guess is followed for six steps
        assert float(solution.iterations.double().mean()) < 13.5

    def test_a_budget_keeps_what_it_has_found(self):
        operands = regular_programs((16,), 8, 8, 2)
        exact = quadratic_program(*operands).value.x
        for steps in (9, 17):
            solver = InteriorPoint(rtol=None, max_steps=steps)
            x = quadratic_program(*operands, solver=solver).value.x
            torch.testing.assert_close(x, exact, rtol=1e-10, atol=1e-10)


class TestWithoutSomeConstraints:
    def test_none(self):
        Q, p, *_ = regular_programs((3,), 5, 1, 1)
        solution = quadratic_program(Q, p)
        torch.testing.assert_close(solution.value.x, -torch.linalg.solve(Q, p))
        assert solution.value.inequality_duals.shape == (3, 0)
        assert solution.value.equality_duals.shape == (3, 0)

    def test_equalities_only(self):
        Q, p, _, _, A, b = regular_programs((), 5, 1, 2)
        solution = quadratic_program(Q, p, A=A, b=b)
        kkt = torch.cat([torch.cat([Q, A.mT], 1), torch.cat([A, A.new_zeros(2, 2)], 1)])
        exact = torch.linalg.solve(kkt, torch.cat([-p, b]))
        torch.testing.assert_close(solution.value.x, exact[:5])
        torch.testing.assert_close(solution.value.equality_duals, exact[5:])

    def test_inequalities_only(self):
        Q, p, G, h, _, _ = regular_programs((), 5, 6, 1)
        solution = quadratic_program(Q, p, G, h)
        residual = kkt_residual(
            torch.cat([solution.value.x, solution.value.inequality_duals]),
            *(Q, p, G, h, G[:0], h[:0]),
        )
        assert residual.abs().max() < 1e-12

    def test_a_linear_program_with_a_unique_vertex(self):
        # the least of -x - 2 y on a triangle: at (0, 1), and it moves with the corner
        p = torch.tensor([-1.0, -2.0]).double()
        G = torch.tensor([[1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]).double()
        h = torch.tensor([1.0, 0.0, 0.0]).double()
        solve = lambda h: quadratic_program(torch.zeros(2, 2).double(), p, G, h).value.x
        torch.testing.assert_close(solve(h), torch.tensor([0.0, 1.0]).double())
        expected = torch.tensor([[0.0, -1.0, 0.0], [1.0, 1.0, 0.0]]).double()
        torch.testing.assert_close(jacrev(solve)(h), expected)


def everything(*operands, **options):
    value = quadratic_program(*operands, **options).value
    return value.x, value.inequality_duals, value.equality_duals, value.slack


class TestDerivatives:
    def operands(self, seed=0):
        return tuple(t.requires_grad_() for t in regular_programs((), 3, 4, 1, seed))

    def test_the_drawn_programs_have_active_and_inactive_rows(self):
        for seed in range(4):
            _, duals, _, slack = everything(*self.operands(seed))
            active = duals > 1e-3
            assert bool((active | (slack > 1e-3)).all())
            assert 0 < int(active.sum()) < 4

    @pytest.mark.parametrize("seed", range(3))
    def test_all_six_inputs_against_differences(self, seed):
        every_way = seed == 0
        assert gradcheck(
            everything,
            self.operands(seed),
            check_forward_ad=every_way,
            check_batched_grad=every_way,
            check_batched_forward_grad=every_way,
        )

    def test_second_order_against_differences_of_gradients(self):
        assert gradgradcheck(
            lambda *operands: everything(*operands)[:3],
            tuple(t.requires_grad_() for t in regular_programs((), 2, 2, 1)),
            check_fwd_over_rev=True,
            check_rev_over_rev=True,
        )

    def test_batches_and_shared_inputs(self):
        Q, p, G, h, A, b = regular_programs((2,), 2, 2, 1)
        operands = (Q[0], p, G, h[0], A[0], b)
        assert gradcheck(everything, tuple(t.requires_grad_() for t in operands))

    def test_hessian_by_functional_transforms(self):
        Q, p, G, h, A, b = regular_programs((), 4, 5, 1, 3)
        f = lambda h: quadratic_program(Q, p, G, h, A, b).value.x.pow(3).sum()
        H, e = hessian(f)(h), 1e-5
        for i, row in enumerate(torch.eye(5).double()):
            difference = (grad(f)(h + e * row) - grad(f)(h - e * row)) / (2 * e)
            # the piece is quadratic, so that the differences err by rounding: 1e-15 / 1e-5
            torch.testing.assert_close(H[i], difference, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(jacfwd(f)(h), grad(f)(h))

    def test_multipliers_are_the_slopes_of_the_optimum(self):
        Q, p, G, h, A, b = (t.requires_grad_() for t in regular_programs((3,), 6, 7, 2))
        value = quadratic_program(Q, p, G, h, A, b).value
        x = value.x
        optimum = (0.5 * x * (Q @ x[..., None])[..., 0] + p * x).sum()
        dh, db, dp = torch.autograd.grad(optimum, (h, b, p))
        torch.testing.assert_close(dh, -value.inequality_duals, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(db, -value.equality_duals, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(dp, x.detach(), rtol=1e-9, atol=1e-10)

    def test_an_unsymmetric_matrix_counts_by_its_symmetric_part(self):
        Q, *rest = regular_programs((), 4, 5, 1)
        skew = torch.randn(4, 4, dtype=torch.float64)
        skew = skew - skew.mT
        solve = lambda Q: quadratic_program(Q, *rest).value.x
        torch.testing.assert_close(solve(Q + skew), solve(Q))
        J = jacrev(solve)(Q)
        torch.testing.assert_close(J, J.mT.swapaxes(0, 0))

    def test_redundant_rows_have_the_derivatives_of_the_program_without_them(self):
        Q, p, G, h, A, b = regular_programs((), 5, 6, 2, 1)
        lean = lambda p, h, b: quadratic_program(Q, p, G, h, A, b).value.x
        twice = lambda p, h, b: (
            quadratic_program(
                *(Q, p, torch.cat([G, 3 * G]), torch.cat([h, 3 * h])),
                *(torch.cat([A, A.sum(0, keepdim=True)]), torch.cat([b, b.sum(0, keepdim=True)])),
            ).value.x
        )
        torch.testing.assert_close(twice(p, h, b), lean(p, h, b))
        for which in (0, 2):
            J, K = jacrev(twice, which)(p, h, b), jacrev(lean, which)(p, h, b)
            torch.testing.assert_close(J, K, rtol=1e-7, atol=1e-8)

    def test_a_minimizer_that_is_not_unique_has_no_derivative(self):
        p = torch.tensor([1.0, 0.0], requires_grad=True)  # the second variable is free
        box = torch.cat([torch.eye(2), -torch.eye(2)])
        x = quadratic_program(torch.zeros(2, 2), p, box, torch.ones(4)).value.x
        assert x[0] == -1
        with pytest.raises(ims.ConvergenceError, match="SINGULAR"):
            x[1].backward()

    def test_by_the_dense_adjoint(self):
        operands = self.operands()
        x = quadratic_program(*operands).value.x
        y = quadratic_program(*operands, adjoint=ims.ImplicitAdjoint(ims.LU())).value.x
        z = quadratic_program(*operands, adjoint=ims.ImplicitAdjoint()).value.x
        assert torch.equal(x, z)
        ours = torch.autograd.grad(x.pow(2).sum(), operands)
        dense = torch.autograd.grad(y.pow(2).sum(), operands)
        for g, other in zip(ours, dense, strict=True):
            torch.testing.assert_close(g, other, rtol=1e-9, atol=1e-10)


class TestLanes:
    def test_a_batch_is_its_lanes(self):
        operands = tuple(t.requires_grad_() for t in regular_programs((6,), 5, 7, 1))
        batch = quadratic_program(*operands)
        weight = torch.randn_like(batch.value.x)
        together = torch.autograd.grad((weight * batch.value.x).sum(), operands)
        for lane in range(6):
            own = tuple(t[lane].detach().requires_grad_() for t in operands)
            alone = quadratic_program(*own)
            assert alone.status == batch.status[lane]
            assert abs(int(alone.iterations) - int(batch.iterations[lane])) <= 1
            for part, whole in zip(alone.value, batch.value, strict=True):
                torch.testing.assert_close(part, whole[lane], rtol=1e-9, atol=1e-10)
            apart = torch.autograd.grad((weight[lane] * alone.value.x).sum(), own)
            for g, whole in zip(apart, together, strict=True):
                torch.testing.assert_close(g, whole[lane], rtol=1e-8, atol=1e-9)

    def test_vmap_and_grids(self):
        operands = regular_programs((2, 3), 4, 5, 1)
        grid = quadratic_program(*operands)
        assert grid.value.x.shape == (2, 3, 4)
        assert grid.status.shape == grid.iterations.shape == grid.residual.shape == (2, 3)
        solve = lambda *t: quadratic_program(*t).value
        twice = vmap(vmap(solve))(*operands)
        outer = vmap(solve)(*operands)
        for a, b, c in zip(twice, outer, grid.value, strict=True):
            torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(b, c, rtol=1e-9, atol=1e-10)

    def test_shared_inputs_get_the_sum_of_the_lanes_gradients(self):
        Q, p, G, h, A, b = regular_programs((5,), 4, 5, 1)
        shared = Q[0].clone().requires_grad_(), G[0].clone().requires_grad_()
        x = quadratic_program(shared[0], p, shared[1], h + 5, A, b).value.x
        ours = torch.autograd.grad(x.pow(2).sum(), shared)
        total = [torch.zeros_like(t) for t in shared]
        for lane in range(5):
            x = quadratic_program(shared[0], p[lane], shared[1], h[lane] + 5, A[lane], b[lane])
            for t, g in zip(
                total, torch.autograd.grad(x.value.x.pow(2).sum(), shared), strict=True
            ):
                t += g
        for g, t in zip(ours, total, strict=True):
            torch.testing.assert_close(g, t, rtol=1e-8, atol=1e-9)

    def test_per_lane_gradients_by_vmap_of_grad(self):
        Q, p, G, h, A, b = regular_programs((4,), 4, 5, 1)
        f = lambda p, h: quadratic_program(Q[0], p, G[0], h, A[0], b[0]).value.x.pow(2).sum()
        rooms = h + 5
        ours = vmap(grad(f))(p, rooms)
        for lane in range(4):
            torch.testing.assert_close(ours[lane], grad(f)(p[lane], rooms[lane]))

    def test_an_empty_batch(self):
        operands = [t[:0] for t in regular_programs((1,), 4, 5, 1)]
        solution = quadratic_program(*operands)
        assert solution.value.x.shape == (0, 4)
        assert solution.value.slack.shape == (0, 5)

    @settings(max_examples=10)
    @given(st.integers(0, 2**31), st.permutations(range(4)))
    def test_permuting_lanes_permutes_solutions(self, seed, order):
        operands = regular_programs((4,), 3, 4, 1, seed)
        plain = quadratic_program(*operands).value
        mixed = quadratic_program(*(t[order] for t in operands)).value
        for a, b in zip(plain, mixed, strict=True):
            torch.testing.assert_close(a[order], b, rtol=1e-9, atol=1e-10)

    @settings(max_examples=10)
    @given(st.integers(0, 2**31))
    def test_scaling_a_row_scales_its_multiplier(self, seed):
        Q, p, G, h, A, b = regular_programs((), 4, 5, 1, seed)
        scale = torch.rand(5, dtype=torch.float64) + 0.5
        plain = quadratic_program(Q, p, G, h, A, b).value
        scaled = quadratic_program(Q, p, scale[:, None] * G, scale * h, -2 * A, -2 * b).value
        torch.testing.assert_close(scaled.x, plain.x, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(
            scale * scaled.inequality_duals, plain.inequality_duals, rtol=1e-6, atol=1e-7
        )
        torch.testing.assert_close(
            -2 * scaled.equality_duals, plain.equality_duals, rtol=1e-6, atol=1e-7
        )


def spoiled(what, operands):
    """Make the third lane one that has no solution; returns the status expected."""
    Q, p, G, h, A, b = (t.clone() for t in operands)
    status = ims.Status[what.split()[0]]
    if what == "INFEASIBLE":
        G[2, 1], h[2, 1] = -G[2, 0], -h[2, 0] - 1
    elif what == "INFEASIBLE equalities":
        A[2, 1], b[2, 1] = A[2, 0], b[2, 0] + 1
    elif what == "UNBOUNDED":
        Q[2], G[2] = 0, G[2, :1]
        A[2], b[2] = 0, 0
        h[2] = 1
        p[2] = -G[2, 0] + torch.tensor([3.0, 0, 0, 0, 0], dtype=p.dtype)
    elif what == "INDEFINITE":
        Q[2] = Q[2] - 5 * torch.eye(5, dtype=Q.dtype)
    else:
        p[2, 0] = torch.nan
    return status, (Q, p, G, h, A, b)


SPOILS = ["INFEASIBLE", "INFEASIBLE equalities", "UNBOUNDED", "INDEFINITE", "NONFINITE"]


class TestFailure:
    @pytest.mark.parametrize("what", SPOILS)
    def test_one_bad_lane_changes_nothing_for_the_others(self, what):
        good = regular_programs((4,), 5, 6, 2)
        status, bad = spoiled(what, good)
        shared = torch.zeros(5, dtype=torch.float64, requires_grad=True)
        rest = [0, 1, 3]

        def solve(operands):
            Q, p, *constraints = (t.clone().requires_grad_() for t in operands)
            solution = quadratic_program(Q, p + shared, *constraints, on_failure="mask")
            leaves = (Q, p, *constraints, shared)
            return solution, torch.autograd.grad(solution.value.x.pow(2).sum(), leaves)

        solution, gradients = solve(bad)
        clean, expected = solve(tuple(t[rest] for t in good))
        assert ims.Status(int(solution.status[2])) == status
        assert solution.status[rest].tolist() == [0, 0, 0]
        for part, other in zip(solution.value, clean.value, strict=True):
            torch.testing.assert_close(part[rest], other, rtol=1e-9, atol=1e-10)
        for g, other in zip(gradients[:-1], expected[:-1], strict=True):
            torch.testing.assert_close(g[rest], other, rtol=1e-8, atol=1e-9)
            assert bool((g[2] == 0).all())
        torch.testing.assert_close(gradients[-1], expected[-1], rtol=1e-8, atol=1e-9)

    @pytest.mark.parametrize("what", SPOILS)
    def test_the_error_names_the_lane_and_the_cause(self, what):
        status, bad = spoiled(what, regular_programs((4,), 5, 6, 2))
        with pytest.raises(ims.ConvergenceError, match=f"lane 2: {status.name}"):
            quadratic_program(*bad)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_contradictory_bounds(self, dtype):
        one = torch.ones(1, 1, dtype=dtype)
        G, h = torch.cat([one, -one]), torch.tensor([0.0, -1.0], dtype=dtype)
        status = quadratic_program(one, one[0], G, h, on_failure="mask").status
        assert status == ims.Status.INFEASIBLE

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_no_bound_at_all(self, dtype):
        zero = torch.zeros(2, 2, dtype=dtype)
        p = torch.ones(2, dtype=dtype)
        assert quadratic_program(zero, p, on_failure="mask").status == ims.Status.UNBOUNDED

    def test_a_warning_keeps_the_best_iterate(self):
        _, bad = spoiled("INFEASIBLE", regular_programs((4,), 5, 6, 2))
        with pytest.warns(ims.ConvergenceWarning, match="INFEASIBLE"):
            solution = quadratic_program(*bad, on_failure="warn")
        assert bool(torch.isfinite(solution.value.x).all())


def family(name, dtype, seed=0):
    """Draw 300 programs of a kind that is hard on interior-point methods."""
    n, m = (6, 20) if name == "rows of all sizes" else (12, 12)
    Q, p, G, h, A, _ = regular_programs((300,), n, m, m, seed)
    eye = torch.eye(n).double().expand(300, n, n)
    box = torch.cat([eye, -eye], 1), torch.ones(300, 2 * n).double()
    if name == "linear":
        Q, G, h = 0 * Q, torch.cat([G, box[0]], 1), torch.cat([h.abs(), box[1]], 1)
    elif name == "half the rank":
        root = Q[..., :6]
        Q, G, h = root @ root.mT, torch.cat([G, box[0]], 1), torch.cat([h.abs(), box[1]], 1)
    elif name == "rows of all sizes":
        size = 10 ** A[..., 0]
        G, h = size.unsqueeze(-1) * G, size * h
    elif name == "a box, far away":
        p, (G, h) = 30 * p, box
    elif name == "little room":
        root = eye + 0.1 * A
        Q, p, h = root @ root.mT + 0.1 * eye, 2.5 * p, torch.full((300, n), 0.37).double()
        G = G / n**0.5
    return tuple(t.to(dtype) for t in (Q, p, G, h))


FAMILIES = ["linear", "half the rank", "rows of all sizes", "a box, far away", "little room"]


class TestSolver:
    @pytest.mark.parametrize("name", FAMILIES)
    def test_hard_families(self, name):
        for dtype in (torch.float64, torch.float32):
            solution = quadratic_program(*family(name, dtype), on_failure="mask")
            assert bool(solution.converged.all())
            assert float(solution.iterations.double().mean()) < 20

    def test_without_the_polish_the_minimizer_is_accurate_to_the_tolerance(self):
        operands = regular_programs((8,), 6, 8, 1)
        exact = quadratic_program(*operands).value.x
        plain = quadratic_program(*operands, solver=InteriorPoint(polish=False))
        assert bool(plain.converged.all())
        assert (plain.value.x - exact).abs().max() < 1e-8
        assert bool((plain.value.inequality_duals > 0).all())

    @pytest.mark.parametrize("compact", [True, False])
    def test_options_change_the_way_and_not_the_solution(self, compact):
        operands = regular_programs((8,), 6, 8, 1)
        found = quadratic_program(*operands, solver=InteriorPoint(compact=compact))
        expected = quadratic_program(*operands)
        torch.testing.assert_close(found.value.x, expected.value.x, rtol=1e-9, atol=1e-10)

    def test_a_budget(self):
        operands = regular_programs((8,), 6, 8, 1)
        solution = quadratic_program(*operands, solver=InteriorPoint(rtol=None, max_steps=3))
        assert solution.iterations.tolist() == [3] * 8
        assert solution.status.tolist() == [int(ims.Status.BUDGET)] * 8

    def test_too_few_steps(self):
        operands = regular_programs((), 6, 8, 1)
        with pytest.raises(ims.ConvergenceError, match="MAX_STEPS"):
            quadratic_program(*operands, solver=InteriorPoint(max_steps=2))

    def test_another_equation_is_refused(self):
        with pytest.raises(TypeError, match="quadratic_program only"):
            ims.root(lambda z, a: z - a, torch.zeros(2), (torch.ones(2),), solver=InteriorPoint())

    def test_another_solver(self):
        Q, p, _, _, A, b = regular_programs((), 5, 1, 2)
        solution = quadratic_program(Q, p, A=A, b=b, solver=ims.Newton())
        expected = quadratic_program(Q, p, A=A, b=b)
        torch.testing.assert_close(solution.value.x, expected.value.x)

    def test_the_adjoint_factors_once_more_where_it_is_handed_no_factors(self):
        operands = tuple(t.requires_grad_() for t in regular_programs((), 5, 6, 1))
        z = torch.cat(quadratic_program(*(t.detach() for t in operands)).value[:3])
        attached = ims.attach(
            kkt_residual, z, operands, adjoint=ims.ImplicitAdjoint(CondensedKKT(5, 6))
        )
        ours = torch.autograd.grad(attached[:5].pow(2).sum(), operands)
        x = quadratic_program(*operands).value.x
        expected = torch.autograd.grad(x.pow(2).sum(), operands)
        # the equation takes Q as symmetric, and the function symmetrizes it
        symmetric = ((ours[0] + ours[0].mT) / 2, *ours[1:])
        for g, other in zip(symmetric, expected, strict=True):
            torch.testing.assert_close(g, other, rtol=1e-9, atol=1e-10)

    @pytest.mark.gpu
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_gpu(self, dtype):
        operands = regular_programs((16,), 6, 8, 1, dtype=dtype)
        on_gpu = quadratic_program(*(t.cuda() for t in operands)).value.x
        tolerance = 1e3 * torch.finfo(dtype).eps ** 0.75
        expected = quadratic_program(*operands).value.x
        torch.testing.assert_close(on_gpu.cpu(), expected, rtol=tolerance, atol=tolerance)


eye, one, rows = torch.eye(3), torch.ones(3), torch.ones(2, 3)
BAD = [
    ((eye.tolist(), one), TypeError, "Q is a list: pass a tensor"),
    ((eye, one.long()), TypeError, "p is torch.int64: pass float32 or float64"),
    ((eye, torch.tensor(1.0)), ValueError, r"p has the shape \(\): pass a vector"),
    ((one, one), ValueError, r"Q has the shape \(3,\): pass a matrix"),
    ((torch.eye(2), one), ValueError, r"Q has the shape \(2, 2\), and should end in \(3, 3\)"),
    ((eye.double(), one), TypeError, "Q is torch.float64 on cpu, and p is torch.float32"),
    ((eye, one, rows), ValueError, "G was given without h: pass both, or neither"),
    ((eye, one, None, one[:2]), ValueError, "h was given without G"),
    ((eye, one, rows, one), ValueError, r"G has the shape \(2, 3\), and should end in \(3, 3\)"),
    ((eye, one, None, None, rows), ValueError, "A was given without b"),
    ((eye, one, None, None, eye[:, :2], one), ValueError, r"A has the shape \(3, 2\)"),
    ((eye.expand(2, 3, 3), one.expand(4, 3)), ValueError, r"broadcast: Q \(2,\), p \(4,\)"),
    ((eye[:0, :0], one[:0]), ValueError, "at least one variable"),
]


@pytest.mark.parametrize(("inputs", "error", "message"), BAD)
def test_bad_input(inputs, error, message):
    with pytest.raises(error, match=message):
        quadratic_program(*inputs)


NONSENSE = [
    ({"rtol": -1e-9}, ValueError, "rtol=-1e-09: pass a number >= 0, leave it out, or None"),
    ({"rtol": math.nan}, ValueError, "rtol=nan: pass a number >= 0"),
    ({"rtol": "1e-3"}, TypeError, "rtol='1e-3': pass a number >= 0"),
    ({"rtol": True}, TypeError, "rtol=True: pass a number >= 0"),
    ({"rtol": torch.tensor(1e-3)}, TypeError, r"rtol=tensor\(0.0010\): pass a number >= 0"),
    ({"atol": -1e-9}, ValueError, "atol=-1e-09: pass a number >= 0, leave it out$"),
    ({"atol": math.nan}, ValueError, "atol=nan: pass a number >= 0"),
    ({"atol": None}, TypeError, "atol=None: pass a number >= 0, leave it out$"),
    ({"max_steps": -1}, ValueError, "max_steps=-1: pass a whole number >= 0"),
    ({"max_steps": 10.0}, TypeError, "max_steps=10.0: pass a whole number >= 0"),
    ({"max_steps": True}, TypeError, "max_steps=True: pass a whole number >= 0"),
]


@pytest.mark.parametrize(("options", "error", "message"), NONSENSE)
def test_hyperparameters_that_make_no_sense(options, error, message):
    with pytest.raises(error, match=f"InteriorPoint has {message}"):
        InteriorPoint(**options)


def test_what_is_at_the_end_of_a_range_is_taken():
    InteriorPoint(rtol=None, atol=0, max_steps=0)
    InteriorPoint(rtol=np.float32(1e-3), atol=np.float64(0), max_steps=np.int64(3))
