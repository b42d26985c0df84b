"""Projections onto cones against another solver, mpmath, and the laws of projections."""

import cvxpy as cp
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacrev, vmap

from implicit_solvers.problems.convex import Cones, project_dual_cone, project_exponential_cone
from implicit_solvers.problems.convex.cones import linearize_dual_projection
from implicit_solvers.problems.convex.symmetric_vectors import from_svec, svec

EVERY = Cones(zero=2, nonnegative=3, second_order=(3, 3, 4), semidefinite=(2, 3, 3), exponential=2)
numbers = st.floats(-10, 10).filter(lambda v: abs(v) > 1e-6)


def distance_to_exponential_cone(v):
    """The distance of ``v`` to its projection by another route: mpmath, along the surface."""
    r, s, t = (mpmath.mpf(float(w)) for w in v)

    def gap(rho):
        a = (rho, mpmath.mpf(1), mpmath.exp(rho))
        length = sum(w * w for w in a)
        x = max(sum(w * q for w, q in zip(a, (r, s, t), strict=True)) / length, 0)
        return mpmath.sqrt(sum((x * w - q) ** 2 for w, q in zip(a, (r, s, t), strict=True)))

    grid = [mpmath.mpf(k) / 8 for k in range(-240, 241)]
    best = min(grid, key=gap)
    low, high = best - mpmath.mpf(1) / 8, best + mpmath.mpf(1) / 8
    golden = (mpmath.sqrt(5) - 1) / 2
    for _ in range(90):
        one, two = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, two) if gap(one) < gap(two) else (one, high)
    facet = mpmath.sqrt(max(r, 0) ** 2 + s**2 + min(t, 0) ** 2)
    inside = s > 0 and s * mpmath.exp(r / s) <= t
    return mpmath.mpf(0) if inside else min(gap((low + high) / 2), facet)


class TestExponentialCone:
    @given(st.tuples(numbers, numbers, numbers))
    def test_it_is_the_nearest_point(self, v):
        v = torch.tensor(v, dtype=torch.float64)
        p = project_exponential_cone(v)
        r, s, t = (mpmath.mpf(float(w)) for w in p)
        size = 1 + float(v.abs().max())
        if s > 1e-8 * size:
            excess = s * mpmath.exp(r / s) - t
            assert excess <= 1e-12 * size * (1 + mpmath.exp(r / s))
        expected = distance_to_exponential_cone(v)
        assert abs(float((v - p).norm()) - float(expected)) <= 1e-9 * size

    @given(st.tuples(numbers, numbers, numbers), st.floats(0.1, 10))
    def test_moreaus_decomposition_and_scaling(self, v, scale):
        v = torch.tensor(v, dtype=torch.float64)
        p = project_exponential_cone(v)
        size = float(v.abs().max())
        assert abs(float(p @ (v - p))) <= 1e-12 * size**2
        torch.testing.assert_close(project_exponential_cone(p), p, rtol=1e-9, atol=1e-9 * size)
        rest = project_exponential_cone(v - p)
        torch.testing.assert_close(rest, 0 * rest, rtol=0, atol=1e-9 * size)
        scaled = project_exponential_cone(scale * v)
        torch.testing.assert_close(scaled, scale * p, rtol=1e-9, atol=1e-9 * size)

    def test_its_cases(self):
        rows = torch.tensor(
            [
                [-1.0, 1.0, 2.0],  # inside
                [-1.0, 0.0, 2.0],  # on the facet
                [-1.0, -2.0, -3.0],  # next to the facet
                [-1.0, -2.0, 3.0],
                [1.0, -2.0, -3.0],  # in the polar cone
                [0.0, 0.0, 0.0],
                [torch.nan, 1.0, 1.0],
            ]
        )
        truth = torch.tensor(
            [
                [-1.0, 1.0, 2.0],
                [-1.0, 0.0, 2.0],
                [-1.0, 0.0, 0.0],
                [-1.0, 0.0, 3.0],
                [0.0, 0.0, 0.0],
                [0.0, 0.0, 0.0],
                [torch.nan] * 3,
            ]
        )
        torch.testing.assert_close(project_exponential_cone(rows), truth, equal_nan=True)

    @pytest.mark.parametrize("far", [1.0, 1e3])
    def test_far_and_flat_vectors(self, far):
        rows = torch.tensor(
            [[0.0014, -1.43, 1.34], [-0.73, 8.65e-4, -0.8], [5.0, 1e-3, 1.0], [1e-4, 2.0, -1.0]],
            dtype=torch.float64,
        )
        p = project_exponential_cone(far * rows)
        assert p.isfinite().all()
        torch.testing.assert_close((p * (far * rows - p)).sum(-1) / far**2, torch.zeros(4).double())
        for v, found in zip(far * rows, p, strict=True):
            expected = float(distance_to_exponential_cone(v / far)) * far
            # the slope may be beyond the oracle's grid: then the distance is that to the facet
            assert (v - found).norm().item() <= expected + 1e-9 * far

    def test_derivatives(self):
        v = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
        modes = {"check_forward_ad": True, "check_batched_grad": True}
        assert gradcheck(project_exponential_cone, v, **modes)
        assert gradgradcheck(project_exponential_cone, v)


class TestProducts:
    def test_it_is_the_nearest_point_of_the_dual_cone(self):
        u = torch.randn(EVERY.size, dtype=torch.float64)
        y = project_dual_cone(u, EVERY)
        x, first = cp.Variable(EVERY.size), EVERY.linear
        constraints = [x[EVERY.zero : first] >= 0]
        for k in EVERY.second_order:
            constraints.append(cp.SOC(x[first], x[first + 1 : first + k]))
            first += k
        for k in EVERY.semidefinite:

            def entry(i, j, first=first):
                i, j = min(i, j), max(i, j)  # the upper triangle, column by column
                return x[first + j * (j + 1) // 2 + i] * (1 if i == j else 0.5**0.5)

            matrix = cp.bmat([[entry(i, j) for j in range(k)] for i in range(k)])
            constraints.append(matrix >> 0)
            first += k * (k + 1) // 2
        for _ in range(EVERY.exponential):
            a, b, c = x[first], x[first + 1], x[first + 2]
            # the dual cone, -a exp(b / a) <= e c, is -a exp((a - b) / -a) <= c
            constraints.append(cp.ExpCone(a - b, -a, c))
            first += 3
        problem = cp.Problem(cp.Minimize(cp.sum_squares(x - u.numpy())), constraints)
        problem.solve(solver="SCS", eps=1e-10, max_iters=100_000)
        np.testing.assert_allclose(y.numpy(), x.value, atol=1e-6)

    def test_the_jacobian_is_that_of_autograd(self):
        u = 2 * torch.randn(6, EVERY.size, dtype=torch.float64)
        y, D = linearize_dual_projection(u, EVERY)
        assert torch.equal(y, project_dual_cone(u, EVERY))
        expected = vmap(jacrev(lambda u: project_dual_cone(u, EVERY)))(u)
        torch.testing.assert_close(D, expected, rtol=1e-10, atol=1e-12)

    def test_the_tip_of_every_cone_has_a_derivative(self):
        u = torch.zeros(EVERY.size, dtype=torch.float64)
        y, D = linearize_dual_projection(u, EVERY)
        assert (y == 0).all() and torch.equal(project_dual_cone(u, EVERY), u)
        found = jacrev(lambda u: project_dual_cone(u, EVERY))(u)
        torch.testing.assert_close(found, D)
        values = torch.linalg.eigvalsh(D)
        assert values.min() > -1e-12 and values.max() < 1 + 1e-12

    @given(st.integers(0, 10_000))
    def test_its_jacobian_is_a_contraction(self, seed):
        generator = torch.Generator().manual_seed(seed)
        u = 3 * torch.randn(EVERY.size, dtype=torch.float64, generator=generator)
        _, D = linearize_dual_projection(u, EVERY)
        torch.testing.assert_close(D, D.mT)
        values = torch.linalg.eigvalsh(D)
        assert values.min() > -1e-10 and values.max() < 1 + 1e-10

    def test_symmetric_vectors(self):
        S = torch.randn(4, 3, 3, dtype=torch.float64)
        S = S + S.mT
        torch.testing.assert_close(from_svec(svec(S), 3), S)
        torch.testing.assert_close(svec(S).norm(dim=-1), S.flatten(1).norm(dim=-1))
