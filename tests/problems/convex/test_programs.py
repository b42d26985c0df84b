"""Convex programs against CVXPY, central differences, and one another in batches."""

import copy

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.func import grad, jvp, vmap

import implicit_solvers as ims
from implicit_solvers.problems.convex import SCS
from tests.problems.convex.programs import PROGRAMS, flat, made, parts

STEP = 1e-5  # central differences err by its square, and by rounding, 1e-15 / 1e-5


def draw(name, seed, lanes=None):
    program, rng = made(name)[0], np.random.default_rng(seed)
    if lanes is None:
        return program.draw(rng)
    return [torch.stack(v) for v in zip(*(program.draw(rng) for _ in range(lanes)), strict=True)]


def leaves(values):
    return [v.detach().clone().requires_grad_() for v in values]


def moved(values, moves, step):
    return [v + step * m for v, m in zip(values, moves, strict=True)]


def inner(values, others):
    return sum((v * w).sum() for v, w in zip(values, others, strict=True))


@pytest.mark.parametrize("name", PROGRAMS)
class TestEveryProgram:
    def test_values_and_duals_are_those_of_cvxpy_and_of_scs(self, name):
        program, problem, layer = made(name)
        values = draw(name, 1)
        solution = layer(*values)
        for parameter, value in zip(program.parameters, values, strict=True):
            parameter.value = value.numpy()
        # another solver than the layer's, run to its limit
        problem.solve(solver="SCS", eps=1e-11, max_iters=200_000, gp=program.gp)
        assert problem.status == "optimal"
        truths = [v.value for v in program.variables]
        if program.duals:
            truths += [dual.value for c in program.constraints for dual in c.dual_variables]
        for own, truth in zip(parts(solution), [*truths, problem.value], strict=True):
            assert tuple(own.shape) == np.shape(truth)
            np.testing.assert_allclose(own.numpy(), truth, rtol=1e-7, atol=1e-7)
        other = copy.copy(layer)
        other.solver = SCS()
        torch.testing.assert_close(flat(other(*values)), flat(solution), rtol=1e-8, atol=1e-8)

    def test_float32_comes_back_as_float32_and_is_solved_in_float64(self, name):
        layer, values = made(name)[-1], leaves(v.float() for v in draw(name, 1))
        solution = layer(*values)
        assert solution.value.point.dtype == solution.residual.dtype == torch.float32
        exact = flat(layer(*(v.double() for v in values)))
        assert torch.equal(flat(solution), exact.float())
        slopes = torch.autograd.grad(flat(solution).sum(), values, materialize_grads=True)
        assert all(slope.dtype == torch.float32 for slope in slopes)

    def test_the_derivatives_are_those_of_central_differences(self, name):
        program, _, layer = made(name)
        solve = lambda *v: flat(layer(*v))
        rng, values = np.random.default_rng(2), draw(name, 2)
        for _ in range(3):
            moves = [torch.tensor(rng.normal(size=v.shape)) for v in values]
            symmetric = [p.attributes["symmetric"] for p in program.parameters]
            moves = [m + m.mT if s else m for m, s in zip(moves, symmetric, strict=True)]
            ahead, behind = (solve(*moved(values, moves, step)) for step in (STEP, -STEP))
            slope = (ahead - behind) / (2 * STEP)
            pushed = jvp(solve, tuple(values), tuple(moves))[1]
            torch.testing.assert_close(pushed, slope, rtol=1e-5, atol=1e-5)
            weights, own = torch.tensor(rng.normal(size=slope.shape)), leaves(values)
            pulled = inner(torch.autograd.grad(weights @ solve(*own), own), moves)
            torch.testing.assert_close(pulled, weights @ slope, rtol=1e-5, atol=1e-5)

    def test_a_batch_of_16_is_a_loop_and_one_infeasible_lane_fails_alone(self, name):
        program, _, layer = made(name)
        lanes = draw(name, 3, 16)
        expected = torch.zeros(16, dtype=torch.int64)
        if program.spoil:
            expected[5] = ims.Status.INFEASIBLE
            for place, value in program.spoil.items():
                lanes[place][5] = value
        lanes = leaves(lanes)
        solution = layer(*lanes)
        whole = flat(solution)
        assert torch.equal(solution.status, expected)
        assert torch.equal(whole.isnan().all(-1), expected != 0)
        together = torch.autograd.grad(whole.sin().nansum(), lanes)
        for i in range(16):
            own = leaves(v[i] for v in lanes)
            one = layer(*own)
            assert one.status == expected[i]
            close = {"rtol": 1e-9, "atol": 1e-9, "equal_nan": True}
            torch.testing.assert_close(whole[i], flat(one), **close)
            alone = torch.autograd.grad(flat(one).sin().nansum(), own)
            for slope, batch in zip(alone, together, strict=True):
                torch.testing.assert_close(batch[i], slope, rtol=1e-6, atol=1e-8)
                assert not expected[i] or bool((batch[i] == 0).all())

    def test_vmap_is_the_batch_and_shared_values_get_the_sum(self, name):
        layer = made(name)[-1]
        first, *rest = draw(name, 4, 3)
        slopes = lambda *values: grad(lambda v: flat(layer(*v)).sin().sum())(values)
        mapped = vmap(slopes)(first, *rest)
        lanes = leaves([first, *rest])
        batch = torch.autograd.grad(flat(layer(*lanes)).sin().sum(), lanes)
        torch.testing.assert_close(mapped, batch, rtol=1e-6, atol=1e-8)
        if rest:
            mapped = vmap(slopes, (None, *(0 for _ in rest)))(first[0], *rest)
            lanes = leaves([first[0], *rest])
            batch = torch.autograd.grad(flat(layer(*lanes)).sin().sum(), lanes)
            expected = mapped[0].sum(0), *mapped[1:]
            torch.testing.assert_close(batch, expected, rtol=1e-6, atol=1e-8)

    def test_a_warm_start_changes_nothing(self, name):
        layer, values = made(name)[-1], draw(name, 6, 2)
        near = layer(*(1.0001 * v for v in values)).value.point
        warm, cold = layer(*values, start=near), layer(*values)
        torch.testing.assert_close(flat(warm), flat(cold), rtol=1e-8, atol=1e-8)


CHECKED = ["lasso", "logistic_regression", "robust_linear_program", "max_cut", "minimum_cost_flow"]


@pytest.mark.parametrize("name", [*CHECKED, "box_design"])
def test_gradcheck_and_double_backward(name):
    layer, values = made(name)[-1], leaves(draw(name, 5))
    solve = lambda *v: torch.cat([part.flatten() for part in layer(*v).value.variables])
    assert gradcheck(solve, values, check_forward_ad=True, check_batched_grad=True)
    weights = torch.randn(len(solve(*values)), dtype=torch.float64)
    slope = lambda v: torch.autograd.grad(weights @ solve(*v), v, create_graph=True)
    moves = [torch.randn_like(v) for v in values]
    ahead, behind = (slope(leaves(moved(values, moves, step))) for step in (STEP, -STEP))
    curvature = torch.autograd.grad(inner(slope(values), moves), values)
    for found, a, b in zip(curvature, ahead, behind, strict=True):
        torch.testing.assert_close(found, (a - b) / (2 * STEP), rtol=1e-5, atol=1e-5)


class TestUnits:
    """The minimizer and its derivatives do not depend on the units of objective and constraints."""

    @pytest.mark.parametrize("unit", [1e-12, 1e-8, 1e-4, 1e4, 1e8])
    def test_of_the_objective_and_of_a_warm_start(self, unit):
        layer, values = made("markowitz")[-1], tuple(draw("markowitz", 7, 8))
        moves = (values[0].flip(0), values[1].flip(0), 0.1 * values[2])

        def solve(mean, root, limit, unit=unit, **start):
            value = layer(unit * mean, unit**0.5 * root, limit, **start).value
            return torch.cat([*value.variables, value.duals[0].unsqueeze(-1) / unit], -1)

        plain = lambda *v: solve(*v, unit=1)
        expected, slope = jvp(plain, values, moves)
        found, moved = jvp(solve, values, moves)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(moved, slope, rtol=1e-6, atol=1e-6)
        mean, root, limit = values
        point = layer(unit * mean, unit**0.5 * root, limit).value.point
        other = 1.1 * mean.flip(-1), root, limit
        torch.testing.assert_close(solve(*other, start=point), plain(*other), rtol=1e-7, atol=1e-7)

    @pytest.mark.parametrize("unit", [1e-8, 1e-4, 1e6])
    def test_of_the_constraints(self, unit):
        layer, (cost, matrix, room) = made("linear_program")[-1], draw("linear_program", 8, 6)
        one, other = layer(cost, matrix, room).value, layer(cost, unit * matrix, unit * room).value
        found = *other.variables, unit * other.duals[0]
        torch.testing.assert_close(found, (*one.variables, one.duals[0]), rtol=1e-9, atol=1e-9)
