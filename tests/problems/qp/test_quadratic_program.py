"""Quadratic programs against Clarabel, NumPy's own arithmetic, and differences."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers.problems import qp
from implicit_solvers.problems.qp import InteriorPoint, kkt_residual, quadratic_program
from tests.cases import default_dtype
from tests.problems.qp import drawn_programs as drawn
from tests.problems.qp.drawn_programs import objective, regular_programs

STATUS = {
    "Solved": ims.Status.CONVERGED,
    "PrimalInfeasible": ims.Status.INFEASIBLE,
    "DualInfeasible": ims.Status.UNBOUNDED,
}
DTYPES = [torch.float32, torch.float64]


def assert_close(found, expected, rtol=1e-9, atol=1e-10):
    """Compare tensors or tuples; by default as two solves to rounding, and a condition of 1e4."""
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=rtol, atol=atol)


def tensors(program, dtype=torch.float64):
    return tuple(torch.from_numpy(part).to(dtype) for part in program)


def minimizer(*operands, **options):
    return quadratic_program(*operands, **options).value.x


def everything(*operands):
    return tuple(quadratic_program(*operands).value)


def leaves(operands):
    return tuple(t.detach().clone().requires_grad_() for t in operands)


def slopes(loss, operands):
    """The gradients of a loss of the solution."""
    own = leaves(operands)
    return torch.autograd.grad(loss(quadratic_program(*own).value.x), own)


def check_optimal(program, solution):
    """The optimality conditions in NumPy, in units of the terms that they are differences of."""
    Q, p, G, h, A, b = program
    x, duals, multipliers, slack = (part.detach().double().numpy() for part in solution.value[:4])
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
    return x, duals, multipliers


class TestDrawnPrograms:
    @settings(max_examples=200, suppress_health_check=[HealthCheck.filter_too_much])
    @given(drawn.programs())
    def test_against_clarabel(self, program):
        word, x, duals, multipliers = drawn.clarabel_solve(program)
        assume(word in STATUS)  # of some degenerate programs Clarabel itself is not sure
        curved = np.linalg.matrix_rank(program.Q) == len(program.p)
        if curved:
            single = quadratic_program(*tensors(program, torch.float32), on_failure="mask")
            assert single.value.x.dtype == torch.float32
            assert (single.status == ims.Status.CONVERGED) == (word == "Solved")
        solution = quadratic_program(*tensors(program), on_failure="mask")
        right = {STATUS[word]}
        if word == "DualInfeasible" and not drawn.feasible(program):
            right.add(ims.Status.INFEASIBLE)  # neither it nor its dual has a feasible point
        if word == "PrimalInfeasible" and drawn.falls_without_end(program):
            right.add(ims.Status.UNBOUNDED)
        assert ims.Status(int(solution.status)) in right
        if word != "Solved":
            return
        ours, found, nu = check_optimal(program, solution)
        value = objective(program, x)
        assert abs(objective(program, ours) - value) <= 1e-7 * (1 + abs(value))
        if curved:
            check_optimal(program, single)
            # the curvature is 0.1 at least: an error e of the value moves x by sqrt(20 e)
            np.testing.assert_allclose(ours, x, atol=1e-4 * (1 + abs(x).max()))
        rows = np.vstack([program.G[solution.value.slack.numpy() < 1e-7], program.A])
        independent = 0 < len(rows) <= len(x)
        if independent and np.linalg.svd(rows, compute_uv=False)[-1] > 1e-2:
            size = 1 + abs(duals).max(initial=0) + abs(multipliers).max(initial=0)
            np.testing.assert_allclose(found, duals, atol=1e-3 * size)
            np.testing.assert_allclose(nu, multipliers, atol=1e-3 * size)

    def test_a_batch_of_128_to_rounding(self):
        operands = regular_programs((128,), 32, 32, 4)
        solution = quadratic_program(*operands)
        assert bool(solution.converged.all())
        for lane in range(0, 128, 16):
            Q, p, G, h, A, b = (t[lane] for t in operands)
            x, duals, multipliers, _ = (part[lane] for part in solution.value[:4])
            assert (Q @ x + p + G.T @ duals + A.T @ multipliers).abs().max() < 1e-11
            assert max((G @ x - h).max(), (A @ x - b).abs().max(), -duals.min()) < 1e-11
            assert (duals * (h - G @ x)).abs().max() < 1e-11

    @settings(max_examples=10)
    @given(st.integers(0, 2**31))
    def test_scaling_a_row_scales_its_multiplier(self, seed):
        Q, p, G, h, A, b = regular_programs((), 4, 5, 1, seed)
        scale = torch.rand(5, dtype=torch.float64) + 0.5
        x, duals, multipliers, *_ = everything(Q, p, G, h, A, b)
        scaled = everything(Q, p, scale[:, None] * G, scale * h, -2 * A, -2 * b)
        # two solves to rounding; active rows are drawn, and may be close to dependent
        expected = x, duals / scale, -multipliers / 2
        assert_close(scaled[:3], expected, rtol=1e-6, atol=1e-7)


class TestClosedForms:
    def test_without_some_constraints(self):
        Q, p, *_ = regular_programs((3,), 5, 1, 1)
        value = quadratic_program(Q, p).value[:4]
        assert_close(value, (-torch.linalg.solve(Q, p), p[:, :0], p[:, :0], p[:, :0]))
        Q, p, _, _, A, b = regular_programs((), 5, 1, 2)
        kkt = torch.cat([torch.cat([Q, A.mT], 1), torch.cat([A, A.new_zeros(2, 2)], 1)])
        exact = torch.linalg.solve(kkt, torch.cat([-p, b]))
        for solver in (None, ims.Newton()):
            value = quadratic_program(Q, p, A=A, b=b, solver=solver).value
            assert_close((value.x, value.equality_duals), (exact[:5], exact[5:]))
        Q, p, G, h, _, _ = regular_programs((), 5, 6, 1)
        z = torch.cat(quadratic_program(Q, p, G, h).value[:2])
        assert kkt_residual(z, Q, p, G, h, G[:0], h[:0]).abs().max() < 1e-12

    def test_a_linear_program_with_a_unique_vertex(self):
        # the least of -x - 2 y on a triangle: at (0, 1), and it moves with the corner
        p = torch.tensor([-1.0, -2.0]).double()
        G = torch.tensor([[1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]).double()
        h = torch.tensor([1.0, 0.0, 0.0]).double()
        solve = lambda h: minimizer(torch.zeros(2, 2).double(), p, G, h)
        corner = torch.tensor([[0.0, -1.0, 0.0], [1.0, 1.0, 0.0]]).double()
        assert_close((solve(h), jacrev(solve)(h)), (corner @ h, corner))

    def test_a_minimizer_that_is_not_unique_has_no_derivative(self):
        p = torch.tensor([1.0, 0.0], requires_grad=True)  # the second variable is free
        box = torch.cat([torch.eye(2), -torch.eye(2)])
        x = minimizer(torch.zeros(2, 2), p, box, torch.ones(4))
        assert x[0] == -1
        with pytest.raises(ims.ConvergenceError, match="SINGULAR"):
            x[1].backward()


class TestDerivatives:
    @pytest.mark.parametrize("seed", range(3))
    def test_all_six_inputs_against_differences(self, seed):
        modes = ("forward_ad", "batched_grad", "batched_forward_grad") if seed == 0 else ()
        operands = leaves(regular_programs((), 3, 4, 1, seed))
        _, duals, _, slack, _ = everything(*operands)
        active = duals > 1e-3
        assert bool((active | (slack > 1e-3)).all()) and 0 < int(active.sum()) < 4
        assert gradcheck(everything, operands, **{f"check_{mode}": True for mode in modes})

    def test_float32_knows_which_constraints_are_not_active(self):
        g = torch.Generator().manual_seed(0)
        G, p = (torch.randn(n, 12, generator=g) for n in (12, 200))
        h = 1.1 * (-p @ G.T).amax(0) + 0.01
        (slope,) = torch.autograd.grad(
            quadratic_program(torch.eye(12), p.requires_grad_(), G, h).value.x.sum(), p
        )
        torch.testing.assert_close(slope, torch.full_like(slope, -1.0))

    def test_second_order_against_differences_of_gradients(self):
        modes = {"check_fwd_over_rev": True, "check_rev_over_rev": True}
        free = lambda *operands: everything(*operands)[:3]
        assert gradgradcheck(free, leaves(regular_programs((), 2, 2, 1)), **modes)

    def test_hessian_by_functional_transforms(self):
        Q, p, G, h, A, b = regular_programs((), 4, 5, 1, 3)
        f = lambda h: minimizer(Q, p, G, h, A, b).pow(3).sum()
        e = 1e-5 * torch.eye(5).double()
        differences = torch.stack([grad(f)(h + d) - grad(f)(h - d) for d in e]) / 2e-5
        # the piece is quadratic, so that the differences err by rounding: 1e-15 / 1e-5
        torch.testing.assert_close(hessian(f)(h), differences, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(jacfwd(f)(h), grad(f)(h))

    def test_multipliers_are_the_slopes_of_the_optimum(self):
        Q, p, G, h, A, b = leaves(regular_programs((3,), 6, 7, 2))
        x, duals, multipliers, *_ = everything(Q, p, G, h, A, b)
        optimum = (0.5 * x * (Q @ x[..., None])[..., 0] + p * x).sum()
        assert_close(torch.autograd.grad(optimum, (h, b, p)), (-duals, -multipliers, x))

    def test_an_unsymmetric_matrix_counts_by_its_symmetric_part(self):
        Q, *rest = regular_programs((), 4, 5, 1)
        skew = torch.randn(4, 4, dtype=torch.float64).triu()
        solve = lambda Q: minimizer(Q, *rest)
        J = jacrev(solve)(Q)
        assert_close((solve(Q + skew - skew.mT), J), (solve(Q), J.mT))

    def test_redundant_rows_have_the_derivatives_of_the_program_without_them(self):
        Q, p, G, h, A, b = regular_programs((), 5, 6, 2, 1)
        more = lambda rows, factor: torch.cat([rows, factor * rows])
        lean = lambda p, b: minimizer(Q, p, G, h, A, b)
        twice = lambda p, b: minimizer(Q, p, more(G, 3), more(h, 3), more(A, -2), more(b, -2))
        found, expected = ((f(p, b), *jacrev(f, (0, 1))(p, b)) for f in (twice, lean))
        assert_close(found, expected, rtol=1e-7, atol=1e-8)

    @pytest.mark.parametrize("linear_solver", [None, ims.LU()], ids=["default", "dense"])
    def test_by_another_adjoint(self, linear_solver):
        operands = leaves(regular_programs((), 3, 4, 1))
        x = minimizer(*operands, adjoint=ims.ImplicitAdjoint(linear_solver))
        ours = torch.autograd.grad(x.pow(2).sum(), operands)
        assert_close(ours, slopes(lambda x: x.pow(2).sum(), operands))

    def test_the_adjoint_factors_once_more_where_it_is_handed_no_factors(self):
        operands = leaves(regular_programs((), 5, 6, 1))
        z = torch.cat(everything(*operands)[:3]).detach()
        adjoint = ims.ImplicitAdjoint(qp.CondensedKKT(5, 6))
        attached = ims.attach(kkt_residual, z, operands, adjoint=adjoint)
        dQ, *rest = torch.autograd.grad(attached[:5].pow(2).sum(), operands)
        # the equation takes Q as symmetric, and the function symmetrizes it
        expected = slopes(lambda x: x.pow(2).sum(), operands)
        assert_close(((dQ + dQ.mT) / 2, *rest), expected)


class TestLanes:
    @pytest.mark.parametrize("shared", [(), (0, 2), (0, 3, 4)])
    def test_a_batch_is_its_lanes(self, shared):
        operands = list(regular_programs((6,), 5, 7, 1))
        operands[3] = operands[3] + 5 * bool(shared)  # room for lanes that share rows
        for place in shared:
            operands[place] = operands[place][0]
        of_lane = lambda k: [t if i in shared else t[k] for i, t in enumerate(operands)]
        batch = quadratic_program(*operands)
        weight = torch.randn_like(batch.value.x)
        apart = []
        for lane in range(6):
            alone = quadratic_program(*of_lane(lane))
            assert alone.status == batch.status[lane]
            assert abs(int(alone.iterations) - int(batch.iterations[lane])) <= 1
            assert_close(alone.value, (whole[lane] for whole in batch.value))
            apart.append(slopes(lambda x, k=lane: (weight[k] * x).sum(), of_lane(lane)))
        stacked = [torch.stack(parts) for parts in zip(*apart, strict=True)]
        expected = [t.sum(0) if i in shared else t for i, t in enumerate(stacked)]
        together = slopes(lambda x: (weight * x).sum(), operands)
        assert_close(together, expected, rtol=1e-8, atol=1e-9)
        axes = tuple(None if i in shared else 0 for i in range(6))
        loss = lambda weight, *own: (weight * minimizer(*own)).sum()
        mapped = vmap(grad(loss, tuple(range(1, 7))), (0, *axes))(weight, *operands)
        assert_close(mapped, stacked, rtol=1e-8, atol=1e-9)

    def test_grids_nested_vmaps_and_empty_batches(self):
        operands = regular_programs((2, 3), 4, 5, 1)
        grid = quadratic_program(*operands)
        assert grid.value.x.shape == (2, 3, 4)
        assert grid.status.shape == grid.iterations.shape == grid.residual.shape == (2, 3)
        assert_close(vmap(vmap(everything))(*operands), grid.value)
        assert_close(vmap(everything)(*operands), grid.value)
        empty = everything(*(t[:0, 0] for t in operands))
        assert [t.shape[0] for t in empty] == [0] * 5 and empty[3].shape == (0, 5)


def spoiled(what, operands):
    """Make the third lane one that has no solution; returns the status expected."""
    Q, p, G, h, A, b = (t.clone() for t in operands)
    if what == "INFEASIBLE":
        G[2, 1], h[2, 1] = -G[2, 0], -h[2, 0] - 1
    elif what == "INFEASIBLE equalities":
        A[2, 1], b[2, 1] = A[2, 0], b[2, 0] + 1
    elif what == "UNBOUNDED":
        Q[2], G[2], A[2], b[2], h[2] = 0, G[2, :1], 0, 0, 1
        p[2] = -G[2, 0]
        p[2, 0] += 3
    elif what == "INDEFINITE":
        Q[2] -= 5 * torch.eye(5).double()
    else:
        p[2, 0] = torch.nan
    return ims.Status[what.split()[0]], (Q, p, G, h, A, b)


SPOILS = ["INFEASIBLE", "INFEASIBLE equalities", "UNBOUNDED", "INDEFINITE", "NONFINITE"]


class TestFailure:
    @pytest.mark.parametrize("what", SPOILS)
    def test_a_bad_lane_is_named_and_changes_nothing_for_the_others(self, what):
        good = regular_programs((4,), 5, 6, 2)
        status, bad = spoiled(what, good)
        shared, rest = torch.zeros(5, dtype=torch.float64, requires_grad=True), [0, 1, 3]

        def solve(operands):
            Q, p, *constraints = own = leaves(operands)
            solution = quadratic_program(Q, p + shared, *constraints, on_failure="mask")
            return solution, torch.autograd.grad(solution.value.x.pow(2).sum(), (*own, shared))

        solution, gradients = solve(bad)
        clean, expected = solve(tuple(t[rest] for t in good))
        assert solution.status.tolist() == [0, 0, int(status), 0]
        assert_close((part[rest] for part in solution.value), clean.value)
        found = (*(g[rest] for g in gradients[:-1]), gradients[-1])
        assert_close(found, expected, rtol=1e-8, atol=1e-9)
        assert all(bool((g[2] == 0).all()) for g in gradients[:-1])
        with pytest.raises(ims.ConvergenceError, match=f"problem 2: {status.name}"):
            quadratic_program(*bad)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_contradictory_bounds_and_no_bound_at_all(self, dtype):
        one = torch.ones(1, 1, dtype=dtype)
        G, h = torch.cat([one, -one]), torch.tensor([0.0, -1.0], dtype=dtype)
        status = quadratic_program(one, one[0], G, h, on_failure="mask").status
        assert status == ims.Status.INFEASIBLE
        status = quadratic_program(0 * one, one[0], on_failure="mask").status
        assert status == ims.Status.UNBOUNDED

    def test_a_warning_keeps_the_best_iterate(self):
        _, bad = spoiled("INFEASIBLE", regular_programs((4,), 5, 6, 2))
        with pytest.warns(ims.ConvergenceWarning, match="INFEASIBLE"):
            solution = quadratic_program(*bad, on_failure="warn")
        assert bool(torch.isfinite(solution.value.x).all())


def family(name, dtype):
    """Draw 300 programs of a kind that is hard on interior-point methods."""
    n, m = (6, 20) if name == "rows of all sizes" else (12, 12)
    Q, p, G, h, A, _ = regular_programs((300,), n, m, m)
    eye = torch.eye(n).double().expand(300, n, n)
    box = torch.cat([eye, -eye], 1), torch.ones(300, 2 * n).double()
    if name in ("linear", "half the rank"):
        Q = 0 * Q if name == "linear" else Q[..., :6] @ Q[..., :6].mT
        G, h = torch.cat([G, box[0]], 1), torch.cat([h.abs(), box[1]], 1)
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
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("name", FAMILIES)
    def test_hard_families(self, name, dtype):
        solution = quadratic_program(*family(name, dtype), on_failure="mask")
        assert bool(solution.converged.all())
        assert float(solution.iterations.double().mean()) < 20

    def test_wrong_guesses_of_the_active_set_are_left_early(self):
        # with five times as many inequalities as variables most first guesses are wrong
        solution = quadratic_program(*regular_programs((64,), 20, 100, 5))
        # 16 on average where each wrong guess is followed for six steps
        assert float(solution.iterations.double().mean()) < 13.5

    def test_settings(self):
        operands = regular_programs((8,), 6, 8, 1)
        exact = quadratic_program(*operands).value.x
        solve = lambda **setting: quadratic_program(*operands, solver=InteriorPoint(**setting))
        for compact in (True, False):
            assert_close([solve(compact=compact).value.x], [exact])
        short = solve(rtol=None, max_steps=3)
        assert short.iterations.tolist() == [3] * 8
        assert short.status.tolist() == [int(ims.Status.BUDGET)] * 8
        for steps in (9, 17):  # a budget keeps what it has found
            assert_close([solve(rtol=None, max_steps=steps).value.x], [exact], rtol=1e-10)
        # what is at the end of a range is taken
        InteriorPoint(rtol=None, atol=0, max_steps=0)
        InteriorPoint(rtol=np.float32(1e-3), atol=np.float64(0), max_steps=np.int64(3))

    @pytest.mark.gpu
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_gpu(self, dtype):
        operands = regular_programs((16,), 6, 8, 1, dtype=dtype)
        on_gpu = minimizer(*(t.cuda() for t in operands))
        tolerance = 1e3 * torch.finfo(dtype).eps ** 0.75
        expected = minimizer(*operands)
        torch.testing.assert_close(on_gpu.cpu(), expected, rtol=tolerance, atol=tolerance)


def test_the_default_dtype_changes_nothing():
    a, box = torch.tensor([2.0, 3.0]), torch.cat([torch.eye(2), -torch.eye(2)])
    program = torch.eye(2), a, box, torch.ones(4)
    with default_dtype(torch.float64):
        x = quadratic_program(*program).value.x
    torch.testing.assert_close(x, torch.tensor([-1.0, -1.0]))
