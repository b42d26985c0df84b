"""What a layer returns: duals, statuses, dtypes, structured leaves, lanes, warm starts."""

import copy

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.func import grad, jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers.problems.convex import (
    SCS,
    Clarabel,
    ConeSolution,
    ConvexLayer,
    project_dual_cone,
)

DOUBLE = torch.float64


def nearest_in_box():
    """The point nearest to ``p`` with entries between ``low`` and 1 that sum to ``total``."""
    x, p, low, total = cp.Variable(3), cp.Parameter(3), cp.Parameter(), cp.Parameter()
    constraints = [x >= low, x <= 1, cp.sum(x) == total]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p) / 2), constraints)
    return problem, [p, low, total], [x]


def box_values(lanes=None):
    shape = () if lanes is None else (lanes,)
    return (
        torch.randn(*shape, 3, dtype=DOUBLE),
        torch.zeros(shape).double(),
        torch.ones(()).double(),
    )


@pytest.fixture(scope="module")
def box():
    return ConvexLayer(*nearest_in_box())


@pytest.fixture(scope="module")
def masked_box():
    return ConvexLayer(*nearest_in_box(), on_failure="mask")


def first(solution):
    return solution.value.variables[0]


class TestDuals:
    value = torch.tensor([1.5, 0.8, 0.4], dtype=DOUBLE)

    def every_cone(self):
        x, X, a = cp.Variable(3), cp.Variable((3, 3), symmetric=True), cp.Parameter(3)
        constraints = [
            cp.sum(x) == a[0],
            x <= a[1],
            cp.SOC(a[2] + x[0], x[1:] - 1),
            X - np.eye(3) >> np.diag([0, 1, 2]),
            cp.ExpCone(x[0], 1 + 0 * x[0], X[0, 1] + x[1] + 1),
        ]
        target = np.array([[1.0, 2, -1], [2, 0, 3], [-1, 3, 4]])
        loss = cp.sum_squares(x - np.array([1, 2, 3])) + cp.sum_squares(X - a[0] * target)
        return cp.Problem(cp.Minimize(loss), constraints), [a], [x, X], constraints

    @pytest.mark.parametrize("sense", [cp.Minimize, cp.Maximize])
    def test_they_are_those_of_cvxpy(self, sense):
        problem, parameters, variables, constraints = self.every_cone()
        if sense is cp.Maximize:
            problem = cp.Problem(cp.Maximize(-problem.objective.args[0]), constraints)
        layer = ConvexLayer(problem, parameters, variables, duals=constraints)
        value = self.value
        solution = layer(value)
        parameters[0].value = value.numpy()
        problem.solve(solver="SCS", eps=1e-11, max_iters=200_000)
        for constraint, found in zip(constraints, solution.value.duals, strict=True):
            truths = [dual.value for dual in constraint.dual_variables]
            found = found if isinstance(found, tuple) else (found,)
            for own, truth in zip(found, truths, strict=True):
                assert tuple(own.shape) == np.shape(truth)
                np.testing.assert_allclose(own.numpy(), truth, rtol=1e-6, atol=1e-7)

    def test_reading_them_leaves_the_problem_as_it_was(self):
        problem, parameters, variables, constraints = self.every_cone()
        ConvexLayer(problem, parameters, variables, duals=constraints)
        assert all(dual.value is None for c in constraints for dual in c.dual_variables)
        assert all(variable.value is None for variable in variables)

    def test_they_are_differentiable(self):
        problem, parameters, variables, constraints = self.every_cone()
        layer = ConvexLayer(problem, parameters, variables, duals=constraints)

        def duals(value):
            flat = []
            for dual in layer(value).value.duals:
                flat += [d.flatten() for d in (dual if isinstance(dual, tuple) else (dual,))]
            return torch.cat(flat)

        value, move = self.value, torch.randn(3, dtype=DOUBLE)
        step = 1e-5
        slope = (duals(value + step * move) - duals(value - step * move)) / (2 * step)
        torch.testing.assert_close(
            torch.func.jvp(duals, (value,), (move,))[1], slope, rtol=1e-5, atol=1e-5
        )

    def test_they_are_the_slope_of_the_optimum(self):
        problem, parameters, variables = nearest_in_box()
        layer = ConvexLayer(problem, parameters, variables, duals=problem.constraints[2:])
        p = torch.tensor([0.9, 0.2, -0.7], dtype=DOUBLE)

        def optimum(total):
            return (first(layer(p, 0 * total, total)) - p).square().sum() / 2

        total = torch.tensor(0.8, dtype=DOUBLE)
        (price,) = layer(p, 0 * total, total).value.duals
        torch.testing.assert_close(grad(optimum)(total), -price)


class TestLanes:
    def test_shared_values_get_the_sum_of_the_lanes_gradients(self, box):
        p, low, total = box_values(6)
        total = total.clone().requires_grad_()
        first(box(p, low, total)).square().sum().backward()
        own = [
            grad(lambda t, i=i: first(box(p[i], low[i], t)).square().sum())(total.detach())
            for i in range(6)
        ]
        torch.testing.assert_close(total.grad, torch.stack(own).sum())

    def test_leading_dimensions_broadcast_and_vmap_nests(self, box):
        p, low = torch.randn(2, 1, 3, dtype=DOUBLE), torch.rand(3, dtype=DOUBLE) / 10
        total = torch.ones((), dtype=DOUBLE)
        solution = box(p, low, total)
        assert first(solution).shape == (2, 3, 3)
        assert solution.status.shape == solution.residual.shape == (2, 3)
        nested = vmap(lambda p: vmap(lambda low: first(box(p, low, total)))(low))(p[:, 0])
        torch.testing.assert_close(nested, first(solution))
        inside = vmap(lambda p: first(box(p, low, total)))(p)  # lanes within lanes
        torch.testing.assert_close(inside, first(solution))

    def test_forward_and_reverse_mode_agree_under_vmap(self, box):
        p, low, total = box_values(4)
        reverse = vmap(jacrev(lambda p: first(box(p, low[0], total))))(p)
        forward = vmap(jacfwd(lambda p: first(box(p, low[0], total))))(p)
        torch.testing.assert_close(forward, reverse)

    def test_permuted_lanes_give_permuted_results(self, box):
        p, low, total = box_values(7)
        order = torch.randperm(7)
        torch.testing.assert_close(
            first(box(p[order], low, total)), first(box(p, low, total))[order]
        )

    def test_an_empty_batch(self, box):
        p = torch.zeros(0, 3, dtype=DOUBLE, requires_grad=True)
        solution = box(p, *box_values()[1:])
        assert first(solution).shape == (0, 3)
        first(solution).sum().backward()
        assert p.grad.shape == (0, 3)

    def test_threads_change_nothing(self):
        p, low, total = box_values(9)
        one, three = (
            ConvexLayer(*nearest_in_box(), solver=Clarabel(workers=k))(p, low, total)
            for k in (1, 3)
        )
        assert torch.equal(first(one), first(three))


class TestDtypes:
    def test_float32_comes_back_as_float32_and_is_solved_in_float64(self, box):
        p, low, total = box_values(4)
        exact = first(box(p.float().double(), low, total))
        leaf = p.float().requires_grad_()
        solution = box(leaf, low.float(), total.float())
        assert first(solution).dtype == solution.residual.dtype == torch.float32
        assert solution.value.point.dtype == torch.float32
        assert torch.equal(first(solution), exact.float())
        first(solution)[:, 0].sum().backward()
        assert leaf.grad.dtype == torch.float32

    def test_a_problem_without_parameters_follows_the_default_dtype(self):
        x = cp.Variable(2)
        layer = ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - 1))), [], [x])
        torch.testing.assert_close(first(layer()), torch.ones(2))


class TestStatuses:
    def program(self):
        x, c, low = cp.Variable(2), cp.Parameter(2), cp.Parameter()
        return cp.Problem(cp.Minimize(c @ x), [x >= low, cp.sum(x) <= 4]), [c, low], [x]

    values = (
        torch.tensor([[1.0, 2.0], [1.0, 2.0], [-1.0, -2.0], [1.0, 1.0]], dtype=DOUBLE),
        torch.tensor([0.0, 3.0, 1.0, torch.nan], dtype=DOUBLE),
    )

    def test_each_lane_has_its_own_and_failed_ones_no_gradient(self):
        layer = ConvexLayer(*self.program(), on_failure="mask")
        c, low = (v.clone().requires_grad_() for v in self.values)
        solution = layer(c, low)
        codes = [ims.Status(int(code)) for code in solution.status]
        assert codes == [
            ims.Status.CONVERGED,
            ims.Status.INFEASIBLE,
            ims.Status.CONVERGED,
            ims.Status.NONFINITE,
        ]
        assert torch.equal(solution.converged, solution.status == 0)
        assert first(solution)[~solution.converged].isnan().all()
        assert solution.value.point[~solution.converged].isnan().all()
        expected = torch.tensor([[0.0, 0.0], [1.0, 3.0]], dtype=DOUBLE)
        torch.testing.assert_close(first(solution)[solution.converged], expected)
        first(solution).square().sum().backward()  # NaN in, and no NaN out
        # x = (low, low), and (low, 4 - low): the slopes of |x|^2
        torch.testing.assert_close(low.grad, torch.tensor([0.0, 0.0, -4.0, 0.0], dtype=DOUBLE))
        assert (c.grad == 0).all()

    def test_unbounded(self):
        x, c = cp.Variable(2), cp.Parameter(2)
        layer = ConvexLayer(cp.Problem(cp.Minimize(c @ x), [x >= 0]), [c], [x], on_failure="mask")
        for solver in (Clarabel(), SCS()):
            layer.solver = solver
            solution = layer(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=DOUBLE))
            assert solution.status.tolist() == [0, int(ims.Status.UNBOUNDED)]

    def test_infeasible_by_scs(self):
        layer = ConvexLayer(*self.program(), on_failure="mask", solver=SCS())
        assert layer(*(v[:3] for v in self.values)).status.tolist() == [0, 10, 0]

    def test_raise_names_the_lane_and_warn_goes_on(self):
        values = [v[:2] for v in self.values]
        with pytest.raises(ims.ConvergenceError, match=r"lane 1: INFEASIBLE"):
            ConvexLayer(*self.program())(*values)
        layer = ConvexLayer(*self.program(), on_failure="warn")
        with pytest.warns(ims.ConvergenceWarning, match=r"lane 1: INFEASIBLE"):
            solution = layer(*values)
        assert first(solution)[0].isfinite().all()

    def test_under_vmap_too(self):
        layer = ConvexLayer(*self.program(), on_failure="mask")
        slope = grad(lambda low, c: first(layer(c, low)).sum())
        c, low = self.values
        found = vmap(slope)(low, c)
        torch.testing.assert_close(found, torch.tensor([2.0, 0.0, 0.0, 0.0], dtype=DOUBLE))
        assert vmap(lambda c, low: layer(c, low).status)(c, low).tolist() == [0, 10, 0, 3]

    def test_too_few_steps(self, masked_box):
        layer = copy.copy(masked_box)
        layer.solver = Clarabel(max_steps=1, polish=0)
        solution = layer(*box_values())
        assert solution.status == ims.Status.MAX_STEPS
        assert first(solution).isfinite().all()  # the best that there is
        layer.solver = Clarabel(max_steps=1)  # Newton's method saves what the solver left
        assert layer(*box_values()).status == 0

    def test_a_sign_that_was_ruled_out(self):
        x, weight = cp.Variable(2), cp.Parameter(nonneg=True)
        loss = cp.sum_squares(x - 1) + weight * cp.sum_squares(x)
        problem = cp.Problem(cp.Minimize(loss), [cp.norm(x) <= 2])
        weights = torch.tensor([1.0, -3.0], dtype=DOUBLE, requires_grad=True)
        with pytest.raises(ValueError, match=r"declared nonnegative and holds -3.*convex"):
            ConvexLayer(problem, [weight], [x])(weights)
        layer = ConvexLayer(problem, [weight], [x], on_failure="mask")
        solution = layer(weights)
        assert solution.status.tolist() == [0, int(ims.Status.NONFINITE)]
        first(solution).sum().backward()
        torch.testing.assert_close(weights.grad, torch.tensor([-0.5, 0.0], dtype=DOUBLE))
        mapped = vmap(lambda w: first(layer(w)))(weights.detach())
        assert mapped[0].isfinite().all() and mapped[1].isnan().all()
        below, most = cp.Variable(), cp.Parameter(nonpos=True)
        layer = ConvexLayer(cp.Problem(cp.Minimize(most * -cp.square(below))), [most], [below])
        with pytest.raises(ValueError, match="declared nonpositive and holds 2"):
            layer(torch.tensor(2.0))


class TestDegenerateSolutions:
    def test_dependent_equations_leave_the_minimizer_its_derivatives(self):
        x, p, total = cp.Variable(2), cp.Parameter(2), cp.Parameter()
        rows = np.array([[1.0, 1.0], [2.0, 2.0], [1.0, 1.0]])
        constraints = [rows @ x == np.array([1.0, 2.0, 1.0]) * total]
        layer = ConvexLayer(
            cp.Problem(cp.Minimize(cp.sum_squares(x - p)), constraints), [p, total], [x]
        )
        values = torch.tensor([1.0, 5.0], dtype=DOUBLE), torch.tensor(2.0, dtype=DOUBLE)
        J, j = jacrev(lambda *v: first(layer(*v)), (0, 1))(*values)
        half = torch.tensor([[0.5, -0.5], [-0.5, 0.5]], dtype=DOUBLE)
        torch.testing.assert_close(J, half)
        torch.testing.assert_close(j, torch.tensor([0.5, 0.5], dtype=DOUBLE))

    def test_what_depends_on_the_choice_of_a_minimizer_raises(self):
        x, total = cp.Variable(2), cp.Parameter()
        problem = cp.Problem(cp.Minimize(cp.sum(x)), [x >= 0, cp.sum(x) >= total])
        value = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
        best = first(ConvexLayer(problem, [total], [x])(value))
        (slope,) = torch.autograd.grad(best.sum(), value, retain_graph=True)
        torch.testing.assert_close(slope, torch.ones((), dtype=DOUBLE))
        with pytest.raises(ims.ConvergenceError, match="SINGULAR"):
            torch.autograd.grad(best[0], value)
        best = first(ConvexLayer(problem, [total], [x], on_failure="mask")(value))
        with pytest.warns(ims.ConvergenceWarning, match="SINGULAR"):
            (slope,) = torch.autograd.grad(best[0], value)
        assert slope == 0

    def test_at_a_kink_the_derivative_is_one_sided(self):
        x, low = cp.Variable(), cp.Parameter()
        layer = ConvexLayer(cp.Problem(cp.Minimize(cp.square(x)), [x >= low]), [low], [x])
        lows = torch.tensor([-1.0, 0.0, 1.0], dtype=DOUBLE, requires_grad=True)
        first(layer(lows)).sum().backward()
        assert lows.grad[0] == 0 and lows.grad[2] == 1
        assert lows.grad[1] in (0, 1)

    def test_repeated_eigenvalues(self):
        X, W = cp.Variable((3, 3), PSD=True), cp.Parameter((3, 3), symmetric=True)
        layer = ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(X - W))), [W], [X])
        W_value = torch.diag(torch.tensor([2.0, 2.0, -1.0], dtype=DOUBLE)).requires_grad_()
        best = first(layer(W_value))
        torch.testing.assert_close(best, W_value.clamp(min=0))
        move = torch.randn(3, 3, dtype=DOUBLE)
        (slope,) = torch.autograd.grad((best * move).sum(), W_value)
        # the projection's derivative between eigenvalues a > 0 > b has the factor a / (a - b)
        share = torch.tensor([[1, 1, 2 / 3], [1, 1, 2 / 3], [2 / 3, 2 / 3, 0]], dtype=DOUBLE)
        torch.testing.assert_close(slope, share * (move + move.mT) / 2)


class TestLeaves:
    def test_matrices_are_read_by_entries_not_by_columns(self):
        X, M = cp.Variable((2, 3)), cp.Parameter((2, 3))
        layer = ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(X - M)), [X <= 4]), [M], [X])
        M_value = torch.arange(6.0).reshape(2, 3)
        torch.testing.assert_close(first(layer(M_value)), M_value.clamp(max=4))

    def test_structured_variables(self):
        S, D = cp.Variable((2, 2), symmetric=True), cp.Variable((2, 2), diag=True)
        low, M = cp.Variable(nonneg=True), cp.Parameter((2, 2))
        capped = cp.Variable(2, bounds=[-1, 1])
        loss = cp.sum_squares(S - M) + cp.sum_squares(D - M) + cp.square(low + 1)
        problem = cp.Problem(cp.Minimize(loss + cp.sum_squares(capped - M[0])))
        layer = ConvexLayer(problem, [M], [low, D, S, capped])
        M_value = torch.tensor([[1.0, 2.0], [4.0, -3.0]], dtype=DOUBLE, requires_grad=True)
        found = layer(M_value).value.variables
        truth = (
            torch.zeros(()),
            torch.tensor([[1.0, 0.0], [0.0, -3.0]]),
            torch.tensor([[1.0, 3.0], [3.0, -3.0]]),
            torch.tensor([1.0, 1.0]),
        )
        for own, expected in zip(found, truth, strict=True):
            torch.testing.assert_close(own, expected.double())
        weights = torch.randn(2, 2, dtype=DOUBLE)
        (slope,) = torch.autograd.grad((found[2] * weights).sum(), M_value)
        torch.testing.assert_close(slope, (weights + weights.mT) / 2)

    @pytest.mark.parametrize("structure", ["PSD", "NSD", "symmetric", "diag"])
    def test_structured_parameters(self, structure):
        x, M = cp.Variable(2), cp.Parameter((2, 2), **{structure: True})
        layer = ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(M @ x - 1))), [M], [x])
        M_value = torch.tensor([[2.0, 0.5], [0.5, 3.0]], dtype=DOUBLE)
        M_value = torch.diag(M_value.diagonal()) if structure == "diag" else M_value
        M_value.requires_grad_()
        solution = first(layer(M_value))
        one = torch.ones(2, dtype=DOUBLE)
        truth = torch.linalg.inv(M_value) @ one
        torch.testing.assert_close(solution, truth)
        weights = torch.randn(2, dtype=DOUBLE)
        (found,) = torch.autograd.grad(weights @ solution, M_value)
        (slope,) = torch.autograd.grad(weights @ truth, M_value)
        expected = (slope + slope.mT) / 2
        if structure == "diag":
            expected = torch.diag(expected.diagonal())
        torch.testing.assert_close(found, expected)

    def test_sparse_leaves(self):
        where = (np.array([0, 1]), np.array([1, 1]))
        X, M = cp.Variable((2, 2), sparsity=where), cp.Parameter((2, 2), sparsity=where)
        layer = ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(X - M))), [M], [X])
        M_value = torch.tensor([[0.0, 2.0], [0.0, 5.0]])
        torch.testing.assert_close(first(layer(M_value)), M_value)

    def test_two_layers_of_one_problem_and_other_solvers_before(self):
        problem, parameters, variables = nearest_in_box()
        values = box_values()
        one = ConvexLayer(problem, parameters, variables)
        for parameter, value in zip(parameters, values, strict=True):
            parameter.value = value.numpy()
        problem.solve(solver="SCS")
        two = ConvexLayer(problem, parameters, variables, duals=[problem.constraints[0]])
        assert torch.equal(first(one(*values)), first(two(*values)))

    def test_problems_without_constraints(self):
        x, c = cp.Variable(2), cp.Parameter(2)
        problem = cp.Problem(cp.Minimize(cp.quad_form(x, np.diag([1.0, 2.0])) + c @ x))
        c_value = torch.tensor([2.0, 4.0])
        for solver in (Clarabel(), SCS()):
            layer = ConvexLayer(problem, [c], [x], solver=solver)
            torch.testing.assert_close(first(layer(c_value)), -torch.ones(2))


class Recorder:
    """A solver of one's own, around another one, with a list of what it was given."""

    polish, workers = 5, 1

    def __init__(self, solver):
        self.solver, self.programs, self.starts = solver, [], []

    def solve(self, P, c, A, b, cones, start) -> ConeSolution:
        self.programs.append((P, c, A, b, cones))
        self.starts.append(start)
        return self.solver.solve(P, c, A, b, cones, start)


class TestSolvers:
    def test_scs_agrees_with_clarabel_on_every_cone(self):
        problem, parameters, variables, constraints = TestDuals().every_cone()
        value = TestDuals.value
        one, two = (
            ConvexLayer(problem, parameters, variables, duals=constraints, solver=s)(value)
            for s in (Clarabel(), SCS())
        )
        torch.testing.assert_close(one.value.point, two.value.point, rtol=1e-8, atol=1e-8)

    def test_refinement_makes_up_for_a_loose_tolerance(self):
        x, X = cp.Variable(3), cp.Parameter((8, 3))
        loss = cp.sum(cp.logistic(X @ x)) + cp.sum_squares(x)
        values = torch.randn(5, 8, 3, dtype=DOUBLE)
        problem = cp.Problem(cp.Minimize(loss)), [X], [x]
        loose, tight = (
            ConvexLayer(*problem, solver=Clarabel(rtol=t, atol=t))(values) for t in (1e-4, 1e-10)
        )
        assert loose.residual.max() < 1e-11
        torch.testing.assert_close(first(loose), first(tight), rtol=1e-9, atol=1e-9)

    def test_without_refinement_the_backward_pass_factors(self, box):
        solver = Clarabel(rtol=1e-12, atol=1e-12, polish=0)
        layer = ConvexLayer(*nearest_in_box(), solver=solver)
        p, low, total = box_values(4)
        own, other = (
            grad(lambda p, f=f: first(f(p, low, total)).square().sum())(p) for f in (box, layer)
        )
        torch.testing.assert_close(other, own, rtol=1e-6, atol=1e-8)
        mapped = vmap(grad(lambda p: first(layer(p, low[0], total)).square().sum()))(p)
        torch.testing.assert_close(mapped, own, rtol=1e-6, atol=1e-8)

    def test_a_warm_start_needs_no_solver_nearby(self):
        solver = Recorder(Clarabel())
        layer = ConvexLayer(*nearest_in_box(), solver=solver)
        p, low, total = box_values(4)
        solution = layer(p, low, total)
        assert solver.starts == [None] * 4
        solver.starts.clear()
        again = layer(p + 1e-4, low, total, start=solution.value.point)
        assert solver.starts == []
        torch.testing.assert_close(first(again), first(layer(p + 1e-4, low, total)))
        # a start that is far off, or not finite, is none at all
        start = solution.value.point.clone()
        start[1], start[2] = torch.nan, 1e9 * torch.randn(start.shape[-1])
        last = layer(p, low, total, start=start)
        torch.testing.assert_close(first(last), first(solution))

    def test_iterations_are_the_solvers_and_newtons(self):
        recorder = Recorder(Clarabel())
        p, low, total = box_values(4)
        polished, plain = (
            ConvexLayer(*nearest_in_box(), solver=s)(p, low, total)
            for s in (recorder, Clarabel(polish=0))
        )
        counts = torch.tensor([Clarabel().solve(*q, start=None).steps for q in recorder.programs])
        assert torch.equal(plain.iterations, counts) and bool((counts > 3).all())
        added = polished.iterations - counts
        assert bool((added >= 0).all()) and bool((added <= 3).all()) and bool((added > 0).any())
        layer = ConvexLayer(*nearest_in_box())
        warm = layer(p + 1e-4, low, total, start=polished.value.point)
        assert bool((warm.iterations <= 3).all())

    def test_scs_begins_at_the_start(self):
        problem, parameters, variables, _ = TestDuals().every_cone()
        solver = Recorder(SCS())
        layer = ConvexLayer(problem, parameters, variables, solver=solver)
        point = layer(TestDuals.value).value.point
        program, u = solver.programs[0], point[layer.program.n :]
        y = project_dual_cone(u, layer.program.cones)
        start = [t.numpy() for t in (point[: layer.program.n], y, y - u)]
        cold, warm = (SCS().solve(*program, start=near) for near in (None, start))
        assert warm.steps < cold.steps / 2

    @pytest.mark.parametrize("linear_solver", [ims.LU(), ims.SVD(), ims.GMRES()])
    def test_other_adjoints(self, box, linear_solver):
        adjoint = ims.ImplicitAdjoint(linear_solver)
        layer = ConvexLayer(*nearest_in_box(), adjoint=adjoint)
        p, low, total = box_values(3)
        p = 0.2 * p  # no vertex, where the multipliers are not unique
        own, other = (
            grad(lambda p, f=f: first(f(p, low, total)).square().sum())(p) for f in (box, layer)
        )
        torch.testing.assert_close(other, own, rtol=1e-6, atol=1e-8)

    def test_the_backward_pass_is_in_the_monitor(self, box):
        p, low, total = box_values(3)
        with ims.monitor() as log:
            first(box(p.requires_grad_(), low, total)).sum().backward()
        assert log.records


def test_a_layer_trains_in_a_network_and_can_be_copied():
    layer = ConvexLayer(*nearest_in_box())
    assert list(layer.parameters()) == []
    network = torch.nn.Linear(2, 3)
    features, target = torch.randn(8, 2), torch.tensor([0.5, 0.5, 0.0])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    losses = []
    for _ in range(15):
        best = first(copy.copy(layer)(network(features), torch.zeros(()), torch.ones(())))
        loss = (best - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
