"""What a layer does besides solving: statuses, lanes, warm starts, solvers, adjoints."""

import copy
from dataclasses import dataclass, field

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.func import grad, vmap

import implicit_solvers as ims
from implicit_solvers.problems.convex import SCS, Clarabel, ConvexLayer
from implicit_solvers.problems.convex.cone_solver import _ZOOMS
from tests.problems.convex.programs import made

DOUBLE = torch.float64


def box(**settings):
    """The layer of the nearest point in a box, with other settings."""
    layer = copy.copy(made("nearest_in_box")[-1])
    for name, value in settings.items():
        setattr(layer, name, value)
    return layer


def values(lanes=4, size=1.0):
    torch.manual_seed(0)
    return size * torch.randn(lanes, 3, dtype=DOUBLE), *torch.tensor([0.0, 1.0], dtype=DOUBLE)


def first(solution):
    return solution.value.variables[0]


def slope(layer):
    return lambda *v: grad(lambda p: first(layer(p, *v[1:])).square().sum())(v[0])


class TestLanes:
    def test_leading_dimensions_broadcast_and_vmap_nests(self):
        p, low = torch.randn(2, 1, 3, dtype=DOUBLE), torch.rand(3, dtype=DOUBLE) / 10
        solve = lambda p, low: first(box()(p, low, torch.ones((), dtype=DOUBLE)))
        solution = box()(p, low, torch.ones((), dtype=DOUBLE))
        assert solution.status.shape == solution.residual.shape == (2, 3)
        whole = first(solution)
        assert whole.shape == (2, 3, 3)
        nested = vmap(vmap(solve, (None, 0)), (0, None))(p[:, 0], low)
        inside = vmap(solve, (0, None))(p, low)  # lanes within lanes
        torch.testing.assert_close((nested, inside), (whole, whole))

    def test_an_empty_batch(self):
        p, *shared = values(0)
        best = first(box()(p.requires_grad_(), *shared))
        best.sum().backward()
        assert best.shape == p.grad.shape == (0, 3)

    def test_threads_change_nothing(self):
        one, three = (box(solver=Clarabel(workers=k))(*values(9)) for k in (1, 3))
        assert torch.equal(first(one), first(three))

    def test_two_layers_of_one_problem_and_other_solvers_before(self):
        program, problem, one = made("nearest_in_box")
        for parameter, value in zip(program.parameters, values(1), strict=True):
            parameter.value = value.squeeze(0).numpy()
        problem.solve(solver="SCS")
        leaves = program.parameters, program.variables
        two = ConvexLayer(problem, *leaves, duals=problem.constraints[:1])
        assert torch.equal(first(one(*values(1))), first(two(*values(1))))
        assert list(one.parameters()) == []


class TestStatuses:
    c = torch.tensor([[1.0, 2.0], [1.0, 2.0], [-1.0, -2.0], [1.0, 1.0]], dtype=DOUBLE)
    low = torch.tensor([0.0, 3.0, 1.0, torch.nan], dtype=DOUBLE)

    def layer(self, **options):
        x, c, low = cp.Variable(2), cp.Parameter(2), cp.Parameter()
        problem = cp.Problem(cp.Minimize(c @ x), [x >= low, cp.sum(x) <= 4])
        return ConvexLayer(problem, [c, low], [x], **options)

    def test_each_lane_has_its_own_and_failed_ones_no_gradient(self):
        layer = self.layer(on_failure="mask")
        c, low = self.c.clone().requires_grad_(), self.low.clone().requires_grad_()
        solution = layer(c, low)
        assert solution.status.tolist() == [0, ims.Status.INFEASIBLE, 0, ims.Status.NONFINITE]
        assert torch.equal(solution.converged, solution.status == 0)
        assert first(solution)[~solution.converged].isnan().all()
        assert solution.value.point[~solution.converged].isnan().all()
        expected = torch.tensor([[0.0, 0.0], [1.0, 3.0]], dtype=DOUBLE)
        torch.testing.assert_close(first(solution)[solution.converged], expected)
        first(solution).square().sum().backward()  # NaN in, and no NaN out
        # x = (low, low), and (low, 4 - low): the slopes of |x|^2
        torch.testing.assert_close(low.grad, torch.tensor([0.0, 0.0, -4.0, 0.0], dtype=DOUBLE))
        assert (c.grad == 0).all()
        mapped = vmap(lambda c, low: layer(c, low).status)(self.c, self.low)
        assert torch.equal(mapped, solution.status)
        slopes = vmap(grad(lambda low, c: first(layer(c, low)).sum()))(self.low, self.c)
        torch.testing.assert_close(slopes, torch.tensor([2.0, 0.0, 0.0, 0.0], dtype=DOUBLE))
        layer.solver = SCS()
        assert layer(self.c[:3], self.low[:3]).status.tolist() == [0, 10, 0]

    @pytest.mark.parametrize("solver", [Clarabel(), SCS()], ids=["clarabel", "scs"])
    def test_unbounded(self, solver):
        x, c = cp.Variable(2), cp.Parameter(2)
        problem = cp.Problem(cp.Minimize(c @ x), [x >= 0])
        layer = ConvexLayer(problem, [c], [x], on_failure="mask", solver=solver)
        solution = layer(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=DOUBLE))
        assert solution.status.tolist() == [0, ims.Status.UNBOUNDED]

    def test_warn_goes_on(self):
        with pytest.warns(ims.ConvergenceWarning, match=r"problem 1: INFEASIBLE"):
            solution = self.layer(on_failure="warn")(self.c[:2], self.low[:2])
        assert first(solution)[0].isfinite().all()

    def test_too_few_steps(self):
        solution = box(solver=Clarabel(max_steps=1, polish=0))(*values(1))
        assert solution.status == ims.Status.MAX_STEPS
        assert first(solution).isfinite().all()  # the best that there is
        # Newton's method saves what the solver left
        assert box(solver=Clarabel(max_steps=1))(*values(1)).status == 0

    def test_a_sign_that_was_ruled_out(self):
        x, weight = cp.Variable(2), cp.Parameter(nonneg=True)
        loss = cp.sum_squares(x - 1) + weight * cp.sum_squares(x)
        problem = cp.Problem(cp.Minimize(loss), [cp.norm(x) <= 2])
        layer = ConvexLayer(problem, [weight], [x], on_failure="mask")
        weights = torch.tensor([1.0, -3.0], dtype=DOUBLE, requires_grad=True)
        solution = layer(weights)
        assert solution.status.tolist() == [0, ims.Status.NONFINITE]
        first(solution).sum().backward()
        torch.testing.assert_close(weights.grad, torch.tensor([-0.5, 0.0], dtype=DOUBLE))
        mapped = vmap(lambda w: first(layer(w)))(weights.detach())
        assert mapped[0].isfinite().all() and mapped[1].isnan().all()

    @pytest.mark.parametrize(
        ("declared", "good", "bad", "said"),
        [
            ({"PSD": True}, [[1.0, 0.8], [0.8, 0.64]], [[1.0, 2.0], [2.0, 1.0]], "eigenvalue -1"),
            ({"NSD": True}, [[-2.0, 0.0], [0.0, 0.0]], [[1.0, 2.0], [2.0, 1.0]], "eigenvalue 3"),
            ({"diag": True}, [[2.0, 0.0], [0.0, 0.0]], [[1.0, 2.0], [0.0, 1.0]], "2 elsewhere"),
            (
                *({"sparsity": ([0, 1], [1, 1])}, [[0.0, 2.0], [0.0, 1.0]]),
                *([[0.0, 2.0], [0.5, 1.0]], "0.5 elsewhere"),
            ),
        ],
        ids=["PSD", "NSD", "diag", "sparsity"],
    )
    def test_a_matrix_that_its_declaration_rules_out(self, declared, good, bad, said):
        x, matrix = cp.Variable(2), cp.Parameter((2, 2), **declared)
        problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 1) + cp.sum_squares(matrix @ x)))
        values = torch.tensor([good, bad, good], dtype=DOUBLE, requires_grad=True)
        layer = ConvexLayer(problem, [matrix], [x], on_failure="mask")
        solution = layer(values)
        assert solution.status.tolist() == [0, ims.Status.NONFINITE, 0]
        first(solution).sum().backward()
        assert (values.grad[1] == 0).all() and values.grad[0].abs().sum() > 0
        # rounding of float32 is no reason
        assert layer(values.detach().float()).status.tolist() == [0, ims.Status.NONFINITE, 0]
        assert vmap(lambda v: first(layer(v)))(values.detach())[1].isnan().all()
        strict = ConvexLayer(problem, [matrix], [x])
        with pytest.raises(ValueError, match=said):
            strict(values)
        with pytest.warns(ims.ConvergenceWarning, match="problem 1: NONFINITE"):
            ConvexLayer(problem, [matrix], [x], on_failure="warn")(values)

    def test_nan_and_infinity_fail_their_lanes(self):
        p, low, total = values(4)
        p[1, 0], p[2, 2] = torch.nan, torch.inf
        solution = box()(p, low, total.requires_grad_())
        assert solution.status.tolist() == [0, 3, 3, 0]
        first(solution).nansum().backward()
        assert total.grad.isfinite()


@dataclass
class Recorder:
    """A solver of one's own, around another one, with a list of what it was given."""

    solver: object
    polish: int = 5
    workers: int = 1
    programs: list = field(default_factory=list)
    starts: list = field(default_factory=list)

    def solve(self, P, c, A, b, cones, start):
        self.programs.append((P, c, A, b, cones))
        self.starts.append(start)
        return self.solver.solve(P, c, A, b, cones, start)


class TestSolvers:
    def test_refinement_makes_up_for_a_loose_tolerance(self):
        layer = copy.copy(made("logistic_regression")[-1])
        X, weight = torch.randn(5, 10, 3, dtype=DOUBLE), torch.ones((), dtype=DOUBLE)
        found = []
        for tolerance in (1e-4, 1e-10):
            layer.solver = Clarabel(rtol=tolerance, atol=tolerance)
            found.append(layer(X, weight))
        assert found[0].residual.max() < 1e-11
        torch.testing.assert_close(first(found[0]), first(found[1]), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("adjoint", [None, ims.LU(), ims.SVD(), ims.GMRES()])
    def test_other_adjoints_and_one_with_little_refinement(self, adjoint):
        if adjoint is None:
            layer = box(solver=Clarabel(rtol=1e-12, atol=1e-12, polish=1))
        else:
            layer = box(adjoint=ims.ImplicitAdjoint(adjoint))
        own = values(4, size=0.2)  # no vertex, where the multipliers are not unique
        expected = slope(box())(*own)
        torch.testing.assert_close(slope(layer)(*own), expected, rtol=1e-6, atol=1e-8)
        mapped = vmap(slope(layer), (0, None, None))(*own)
        torch.testing.assert_close(mapped, expected, rtol=1e-6, atol=1e-8)

    def test_a_warm_start_needs_no_solver_nearby(self):
        recorder = Recorder(Clarabel())
        layer, (p, low, total) = box(solver=recorder), values()
        solution = layer(p, low, total)
        plain = box(solver=Clarabel(polish=0))(p, low, total)
        assert recorder.starts == [None] * 4
        # iterations are the solver's and Newton's
        counts = torch.tensor([Clarabel().solve(*q, start=None).steps for q in recorder.programs])
        assert torch.equal(plain.iterations, counts) and bool((counts > 3).all())
        added = solution.iterations - counts
        assert bool(((added >= 0) & (added <= 3)).all()) and bool((added > 0).any())
        recorder.starts.clear()
        again = layer(p + 1e-4, low, total, start=solution.value.point)
        assert recorder.starts == [] and bool((again.iterations <= 3).all())
        torch.testing.assert_close(first(again), first(layer(p + 1e-4, low, total)))
        # a start that is far off, or not finite, is none at all
        start = solution.value.point.clone()
        start[1], start[2] = torch.nan, 1e9 * torch.randn(start.shape[-1])
        last = layer(p, low, total, start=start)
        torch.testing.assert_close(first(last), first(solution))

    def test_scs_begins_at_the_start(self):
        layer, value = copy.copy(made("every_cone")[-1]), torch.tensor([1.5, 0.8, 0.4]).double()
        point = layer(value).value.point
        layer.solver = solver = Recorder(SCS(polish=0))  # Newton's method would need no solver
        cold, warm = layer(1.001 * value), layer(1.001 * value, start=point)
        assert solver.starts[0] is None and warm.iterations < cold.iterations / 2

    def test_the_backward_pass_is_in_the_monitor(self):
        p, low, total = values()
        with ims.monitor() as log:
            first(box()(p.requires_grad_(), low, total)).sum().backward()
        assert log.records


@pytest.mark.parametrize("method", [Clarabel, SCS])
def test_what_is_at_the_end_of_a_range_is_taken(method):
    given = {"rtol": 0, "atol": np.float64(0), "max_steps": 1, "polish": 0, "workers": 1}
    assert all(getattr(method(**given), field) == value for field, value in given.items())


class Lost(Recorder):
    """Finds nothing in the second lane, however often it is asked."""

    def solve(self, *program):
        found = super().solve(*program)
        lost = 0 < len(self.programs) - 1 <= len(_ZOOMS)
        return found._replace(x=np.nan * found.x) if lost else found


@pytest.mark.parametrize("how", ["NaN", "INFEASIBLE", "STALLED"])
def test_a_failed_lane_has_no_part_in_gradients_of_the_optimum(how):
    x, b, weight, total = cp.Variable(3), cp.Parameter(3), cp.Parameter(nonneg=True), cp.Parameter()
    constraints = [x >= 0, cp.sum(x) <= total]
    goal = cp.Minimize(cp.sum_squares(x - b) + weight * cp.norm1(x) + total)
    problem = cp.Problem(goal, constraints)
    leaves = [b, weight, total], [x]
    layer = ConvexLayer(problem, *leaves, duals=constraints, on_failure="mask")
    goals = torch.randn(4, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    values = goals, torch.tensor(0.1, dtype=DOUBLE), torch.full((4,), 0.5, dtype=DOUBLE)

    def slopes(goals, weight, totals, keep=slice(None)):
        leaves = [t.clone().requires_grad_() for t in (goals, weight, totals)]
        value = layer(leaves[0][keep], leaves[1], leaves[2][keep]).value
        parts = [value.objective, *value.variables, *value.duals]
        return torch.autograd.grad(sum(p.nan_to_num().sin().sum() for p in parts), leaves)

    expected = slopes(*values, keep=[0, 2, 3])
    if how == "NaN":
        values[0][1] = torch.nan
    elif how == "INFEASIBLE":
        values[2][1] = -1.0
    else:
        layer.solver = Lost(Clarabel())
    for one, other in zip(slopes(*values), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_value_in_the_constant_of_the_objective_is_held_to_its_declaration():
    x, p = cp.Variable(pos=True), cp.Parameter(pos=True)
    problem = cp.Problem(cp.Minimize(p * x), [x >= 1])
    layer = ConvexLayer(problem, [p], [x], gp=True, on_failure="mask")
    solution = layer(torch.tensor([1.0, -1.0], dtype=DOUBLE))
    assert solution.status.tolist() == [0, ims.Status.NONFINITE]
