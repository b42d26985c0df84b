"""Projections onto cones by what makes a point the nearest, and programs with known solutions."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacfwd, jacrev, jvp, vmap

from implicit_solvers.problems import convex
from implicit_solvers.problems.convex import (
    Cones,
    project_dual_cone,
    project_exponential_cone,
    project_power_cone,
)
from implicit_solvers.problems.convex.cones import linearize_curved

CURVED = {"second_order": (3, 3, 4), "semidefinite": (2, 3, 3), "exponential": 2}
EVERY = Cones(zero=2, nonnegative=3, **CURVED, power=(0.3, 0.5, 0.9))
CURVED = {"second_order": (3,), "semidefinite": (3,), "exponential": 1}
CONES = Cones(zero=1, nonnegative=2, **CURVED, power=(0.4,))
VARIABLES = CONES.size + 1  # more than constraints: the multipliers are unique
numbers = st.floats(-10, 10).filter(lambda v: abs(v) > 1e-6)
seeds = st.integers(0, 10_000)


def in_cones(slack, cones):
    """The constraints, for CVXPY, that the slack is in a product of cones."""
    constraints = [slack[: cones.zero] == 0, slack[cones.zero : cones.linear] >= 0]
    first = cones.linear
    for k in cones.second_order:
        constraints.append(cp.SOC(slack[first], slack[first + 1 : first + k]))
        first += k
    for k in cones.semidefinite:
        rows = [[None] * k for _ in range(k)]
        for j in range(k):  # the upper triangle, column by column
            for i in range(j + 1):
                rows[i][j] = rows[j][i] = slack[first] * (1 if i == j else 0.5**0.5)
                first += 1
        constraints.append(cp.bmat(rows) >> 0)
    for _ in range(cones.exponential):
        constraints.append(cp.ExpCone(*(slack[first + k] for k in range(3))))
        first += 3
    for alpha in cones.power:
        constraints.append(cp.PowCone3D(*(slack[first + k] for k in range(3)), alpha))
        first += 3
    return constraints


def in_exponential_cone(v, far):
    """Whether ``v`` is at most ``far`` from {s exp(r / s) <= t}: a step inwards gets there."""
    r, s, t = v + far * np.array([0, 2, 8])  # of which the ball of radius 1 is in the cone
    with np.errstate(over="ignore"):
        return s > 0 and s * np.exp(r / s) <= t


def in_its_dual(v, far):
    """Whether ``v`` is at most ``far`` from the dual cone {-r exp(s / r) <= e t}."""
    r, s, t = v + far * np.array([-2, 2, 8])
    with np.errstate(over="ignore"):
        return r < 0 and -r * np.exp(s / r - 1) <= t


def in_power_cone(v, far, alpha, scales=(1, 1)):
    """Whether ``v`` is at most ``far`` from {x^alpha y^(1 - alpha) >= |z|} or a scaled one."""
    x, y, z = v[0] + far, v[1] + far, abs(v[2]) - far
    x, y = x / scales[0], y / scales[1]
    return x >= 0 and y >= 0 and x**alpha * y ** (1 - alpha) >= z


class TestExponentialCone:
    @given(v=st.tuples(numbers, numbers, numbers), scale=st.floats(0.1, 10))
    @example(v=(0.0014, -1.43, 1.34), scale=1e3)
    @example(v=(-0.73, 8.65e-4, -0.8), scale=1e3)
    @example(v=(5.0, 1e-3, 1.0), scale=1e3)
    @example(v=(1e-4, 2.0, -1.0), scale=1e3)
    def test_it_is_the_nearest_point(self, v, scale):
        v = torch.tensor(v, dtype=torch.float64)
        p, size = project_exponential_cone(v), float(v.abs().max())
        # p in the cone, p - v in its dual and orthogonal to p, all up to rounding
        assert in_exponential_cone(p.numpy(), 1e-11 * size)
        assert in_its_dual((p - v).numpy(), 1e-11 * size)
        assert abs(float(p @ (v - p))) <= 1e-12 * size**2
        scaled = project_exponential_cone(torch.stack([p, v - p, scale * v]))
        expected = torch.stack([p, 0 * p, scale * p])
        torch.testing.assert_close(scaled, expected, rtol=1e-9, atol=1e-9 * size)

    def test_its_cases(self):
        # inside, on the facet, next to it (twice), in the polar cone, and the tip
        v = [[-1.0, 1, 2], [-1, 0, 2], [-1, -2, -3], [-1, -2, 3], [1, -2, -3], [0, 0, 0]]
        truth = [[-1.0, 1, 2], [-1, 0, 2], [-1, 0, 0], [-1, 0, 3], [0, 0, 0], [0, 0, 0]]
        found = project_exponential_cone(torch.tensor([*v, [torch.nan, 1, 1]]))
        torch.testing.assert_close(found[:-1], torch.tensor(truth))
        assert found[-1].isnan().all()

    def test_derivatives(self):
        v = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
        modes = {"check_forward_ad": True, "check_batched_grad": True}
        assert gradcheck(project_exponential_cone, v, **modes)
        assert gradgradcheck(project_exponential_cone, v)


EXPONENTS = [0.01, 0.3, 0.5, 0.8, 0.99]


class TestPowerCone:
    @given(
        v=st.tuples(numbers, numbers, numbers),
        scale=st.floats(0.1, 10),
        alpha=st.sampled_from(EXPONENTS),
    )
    @example(v=(-1e-3, 10.0, 1.0), scale=1.0, alpha=0.01)  # the nearest x is 1e-99
    @example(v=(-10.0, 10.0, 1e-3), scale=1.0, alpha=0.01)
    @example(v=(0.0, 10.0, 1.0), scale=1.0, alpha=0.3)
    def test_it_is_the_nearest_point(self, v, scale, alpha):
        v = torch.tensor(v, dtype=torch.float64)
        p, size = project_power_cone(v, alpha), float(v.abs().max())
        # p in the cone, p - v in its dual and orthogonal to p, all up to rounding
        assert in_power_cone(p.numpy(), 1e-13 * size, alpha)
        assert in_power_cone((p - v).numpy(), 1e-13 * size, alpha, (alpha, 1 - alpha))
        assert abs(float(p @ (v - p))) <= 1e-13 * size**2
        scaled = project_power_cone(torch.stack([p, v - p, scale * v]), alpha)
        expected = torch.stack([p, 0 * p, scale * p])
        torch.testing.assert_close(scaled, expected, rtol=1e-9, atol=1e-9 * size)

    def test_its_cases(self):
        # inside, on two facets, in the polar cone, the tip, between them, and no number
        v = [[1.0, 4, 2], [0, 3, 0], [3, 0, 0], [-1, -4, 3], [0, 0, 0], [2, -1, 0]]
        truth = [[1.0, 4, 2], [0, 3, 0], [3, 0, 0], [0, 0, 0], [0, 0, 0], [2, 0, 0]]
        found = project_power_cone(torch.tensor([*v, [1, 1, torch.nan]]), 0.5)
        torch.testing.assert_close(found[:-1], torch.tensor(truth))
        assert found[-1].isnan().all()

    @pytest.mark.parametrize("alpha", [0.3, 0.5, 0.8])
    @pytest.mark.parametrize("place", [[2.0, -1.0], [-1.0, 2.0]])
    def test_its_slope_between_the_facets(self, place, alpha):
        v = torch.tensor([*place, 0.0], dtype=torch.float64)
        project = lambda v: project_power_cone(v, alpha)
        for D in (jacrev(project)(v), jacfwd(project)(v)):
            step = 1e-8 * torch.eye(3, dtype=torch.float64)
            slope = (project(v + step) - project(v - step)) / 2e-8
            # rounding, 1e-16 / 1e-8; what is curved is of a higher power of the step
            torch.testing.assert_close(D, slope.mT, rtol=1e-7, atol=1e-7)

    def test_derivatives(self):
        v = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
        alpha = torch.rand(12, dtype=torch.float64, requires_grad=True)
        modes = {"check_forward_ad": True, "check_batched_grad": True}
        assert gradcheck(project_power_cone, (v, alpha), **modes)
        assert gradgradcheck(project_power_cone, (v, alpha))


class TestProducts:
    def test_it_is_the_nearest_point_of_the_dual_cone(self):
        u = torch.randn(EVERY.size, dtype=torch.float64)
        s = cp.Variable(EVERY.size)  # by Moreau: y is u and the projection of -u onto the cone
        problem = cp.Problem(cp.Minimize(cp.sum_squares(s + u.numpy())), in_cones(s, EVERY))
        problem.solve(solver="SCS", eps=1e-10, max_iters=100_000)
        y = project_dual_cone(u, EVERY)
        np.testing.assert_allclose(y.numpy(), u.numpy() + s.value, atol=1e-6)

    @given(seeds)
    def test_its_jacobian_is_that_of_autograd_and_a_contraction(self, seed):
        generator = torch.Generator().manual_seed(seed)
        u = 3 * torch.randn(2, EVERY.size, dtype=torch.float64, generator=generator)
        u[1] *= seed % 3  # at times the tip of every cone
        project = lambda u: project_dual_cone(u, EVERY)
        y, entries = linearize_curved(u, EVERY)
        assert torch.equal(y, project(u)[:, EVERY.linear :])
        linear = (u > 0) | (torch.arange(EVERY.size) < EVERY.zero)
        linear[:, EVERY.linear :] = False
        D = torch.diag_embed(linear.double())
        D[:, *(torch.from_numpy(places) for places in EVERY.block_places())] = entries
        torch.testing.assert_close(vmap(jacrev(project))(u), D, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(D, D.mT)
        values = torch.linalg.eigvalsh(D)
        assert values.min() > -1e-10 and values.max() < 1 + 1e-10


@pytest.fixture(scope="module")
def layer():
    """``|root x|^2 / 2 + c x`` where ``b - A x`` is in a product of cones; all are parameters."""
    x, root = cp.Variable(VARIABLES), cp.Parameter((VARIABLES, VARIABLES))
    c, A, b = map(cp.Parameter, (VARIABLES, (CONES.size, VARIABLES), CONES.size))
    goal = cp.Minimize(cp.sum_squares(root @ x) / 2 + c @ x)
    return convex.ConvexLayer(cp.Problem(goal, in_cones(b - A @ x, CONES)), [root, c, A, b], [x])


def draw(seed, lanes):
    """A minimizer, multipliers and slack in one vector, and the matrices."""
    generator = torch.Generator().manual_seed(seed)
    n, m = VARIABLES, CONES.size
    shapes = (n,), (m,), (n, n), (m, n)
    drawn = (torch.randn(lanes, *s, generator=generator, dtype=torch.float64) for s in shapes)
    x, u, root, A = drawn
    return x, u, root / 3 + torch.eye(n, dtype=torch.float64), A


def program(x, u, root, A):
    """The program of which ``x`` is the minimizer, by its optimality conditions."""
    y = project_dual_cone(u, CONES)
    c = -(root.mT @ (root @ x.unsqueeze(-1)) + A.mT @ y.unsqueeze(-1)).squeeze(-1)
    return root, c, A, (A @ x.unsqueeze(-1)).squeeze(-1) + y - u


class TestKnownSolutions:
    @given(seeds)
    def test_the_solution_is_the_one_that_was_put_in(self, layer, seed):
        values = draw(seed, 4)
        solution = layer(*program(*values))
        assert solution.converged.all() and (solution.residual < 1e-11).all()
        # as far as the program determines it: its condition times the residual
        torch.testing.assert_close(solution.value.variables[0], values[0], rtol=1e-7, atol=1e-7)
        point = solution.value.point
        near = point + 1e-3 * torch.randn_like(point)
        again = layer(*program(*values), start=near).value.variables[0]
        torch.testing.assert_close(again, values[0], rtol=1e-7, atol=1e-7)

    @given(seeds)
    def test_so_are_its_derivatives(self, layer, seed):
        values, moves = draw(seed, 3), draw(seed + 20_000, 3)
        there_and_back = lambda *values: layer(*program(*values)).value.variables[0]
        moved = jvp(there_and_back, values, moves)[1]
        torch.testing.assert_close(moved, moves[0], rtol=1e-5, atol=1e-5)
        leaves = [v.clone().requires_grad_() for v in values]
        weights = draw(seed + 40_000, 3)[0]
        slopes = torch.autograd.grad((there_and_back(*leaves) * weights).sum(), leaves)
        expected = (weights, *(0 * v for v in values[1:]))
        torch.testing.assert_close(slopes, expected, rtol=1e-5, atol=1e-5)
