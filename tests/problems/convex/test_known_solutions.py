"""Programs over all cones that are made to have a solution that is known."""

import cvxpy as cp
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from implicit_solvers.problems.convex import Clarabel, Cones, ConvexLayer, project_dual_cone

CONES = Cones(zero=1, nonnegative=2, second_order=(3,), semidefinite=(3,), exponential=1)
VARIABLES = CONES.size + 1  # more than constraints: the multipliers are unique


def layer_of_every_cone():
    """``|root x|^2 / 2 + c x`` where ``b - A x`` is in a product of cones; all are parameters."""
    x, root = cp.Variable(VARIABLES), cp.Parameter((VARIABLES, VARIABLES))
    c, A, b = (
        cp.Parameter(VARIABLES),
        cp.Parameter((CONES.size, VARIABLES)),
        cp.Parameter(CONES.size),
    )
    slack, first = b - A @ x, CONES.linear
    constraints = [slack[: CONES.zero] == 0, slack[CONES.zero : first] >= 0]
    for k in CONES.second_order:
        constraints.append(cp.SOC(slack[first], slack[first + 1 : first + k]))
        first += k
    for k in CONES.semidefinite:

        def entry(i, j, first=first):
            i, j = min(i, j), max(i, j)
            return slack[first + j * (j + 1) // 2 + i] * (1 if i == j else 0.5**0.5)

        constraints.append(cp.bmat([[entry(i, j) for j in range(k)] for i in range(k)]) >> 0)
        first += k * (k + 1) // 2
    for _ in range(CONES.exponential):
        constraints.append(cp.ExpCone(slack[first], slack[first + 1], slack[first + 2]))
        first += 3
    problem = cp.Problem(cp.Minimize(cp.sum_squares(root @ x) / 2 + c @ x), constraints)
    return ConvexLayer(problem, [root, c, A, b], [x])


@pytest.fixture(scope="module")
def layer():
    return layer_of_every_cone()


def draw(seed, lanes):
    """A minimizer, multipliers and slack in one vector, and the matrices."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(lanes, *shape, generator=generator, dtype=torch.float64)

    root = normal(VARIABLES, VARIABLES) / 3 + torch.eye(VARIABLES, dtype=torch.float64)
    return normal(VARIABLES), normal(CONES.size), root, normal(CONES.size, VARIABLES)


def program(x, u, root, A):
    """The program of which ``x`` is the minimizer, by its optimality conditions."""
    y = project_dual_cone(u, CONES)
    c = -(root.mT @ (root @ x.unsqueeze(-1)) + A.mT @ y.unsqueeze(-1)).squeeze(-1)
    return root, c, A, (A @ x.unsqueeze(-1)).squeeze(-1) + y - u


@given(st.integers(0, 10_000))
def test_the_solution_is_the_one_that_was_put_in(layer, seed):
    x, u, root, A = draw(seed, 4)
    solution = layer(*program(x, u, root, A))
    assert solution.converged.all() and (solution.residual < 1e-11).all()
    # as far as the program determines it: its condition times the residual
    torch.testing.assert_close(solution.value.variables[0], x, rtol=1e-7, atol=1e-7)


@given(st.integers(0, 10_000))
def test_so_are_its_derivatives(layer, seed):
    values, moves = draw(seed, 3), draw(seed + 20_000, 3)

    def there_and_back(*values):
        return layer(*program(*values)).value.variables[0]

    _, moved = torch.func.jvp(there_and_back, values, moves)
    torch.testing.assert_close(moved, moves[0], rtol=1e-5, atol=1e-5)
    leaves = [v.clone().requires_grad_() for v in values]
    weights = draw(seed + 40_000, 3)[0]
    slopes = torch.autograd.grad((there_and_back(*leaves) * weights).sum(), leaves)
    for found, expected in zip(slopes, (weights, *(0 * v for v in values[1:])), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_refinement_alone_finds_it_from_nearby(layer):
    values = draw(0, 6)
    exact = layer(*program(*values)).value.point
    start = exact + 1e-3 * torch.randn_like(exact)
    solution = layer(*program(*values), start=start)
    torch.testing.assert_close(solution.value.variables[0], values[0], rtol=1e-8, atol=1e-8)


def test_a_value_that_matters_to_nothing_still_makes_lanes():
    x, offset = cp.Variable(2), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 1) + offset))
    layer = ConvexLayer(problem, [offset], [x], solver=Clarabel(workers=1))
    offsets = torch.randn(3, dtype=torch.float64, requires_grad=True)
    (best,) = layer(offsets).value.variables
    torch.testing.assert_close(best, torch.ones(3, 2, dtype=torch.float64))
    if best.requires_grad:
        (slope,) = torch.autograd.grad(best.sum(), offsets, materialize_grads=True)
        assert (slope == 0).all()
    mapped = torch.func.vmap(lambda a: layer(a).value.variables[0])(offsets.detach())
    torch.testing.assert_close(mapped, best.detach())


class TestUnits:
    """The minimizer and its derivatives do not depend on the units of objective and constraints."""

    x, mean, root, limit = cp.Variable(5), cp.Parameter(5), cp.Parameter((5, 5)), cp.Parameter()
    total = cp.sum(x) == 1
    objective = cp.Maximize(mean @ x - cp.sum_squares(root @ x))
    layer = ConvexLayer(
        cp.Problem(objective, [total, x >= 0, x <= limit]),
        [mean, root, limit],
        [x],
        duals=[total],
        solver=Clarabel(workers=1),
    )

    def portfolios(self):
        generator = torch.Generator().manual_seed(0)
        mean = torch.randn(8, 5, generator=generator, dtype=torch.float64)
        roots = torch.randn(8, 5, 5, generator=generator, dtype=torch.float64) / 2
        limit = torch.full((8,), 0.6, dtype=torch.float64)
        return mean, roots + 0.2 * torch.eye(5, dtype=torch.float64), limit

    @pytest.mark.parametrize("unit", [1e-12, 1e-8, 1e-4, 1e4, 1e8])
    def test_of_the_objective(self, unit):
        values = self.portfolios()
        moves = (values[0].flip(0), values[1].flip(0), 0.1 * values[2])

        def solve(mean, root, limit):
            value = self.layer(unit * mean, unit**0.5 * root, limit).value
            return value.variables[0], value.duals[0] / unit

        def plain(mean, root, limit):
            value = self.layer(mean, root, limit).value
            return value.variables[0], value.duals[0]

        expected, slope = torch.func.jvp(plain, values, moves)
        torch.testing.assert_close(solve(*values), expected, rtol=1e-7, atol=1e-7)
        _, moved = torch.func.jvp(solve, values, moves)
        torch.testing.assert_close(moved, slope, rtol=1e-6, atol=1e-6)

    def test_of_a_warm_start(self):
        mean, root, limit = self.portfolios()
        point = self.layer(1e-8 * mean, 1e-4 * root, limit).value.point
        moved = 1.1 * mean.flip(-1)
        warm = self.layer(1e-8 * moved, 1e-4 * root, limit, start=point).value.variables
        cold = self.layer(moved, root, limit).value.variables
        torch.testing.assert_close(warm, cold, rtol=1e-7, atol=1e-7)

    @pytest.mark.parametrize("unit", [1e-8, 1e-4, 1e6])
    def test_of_the_constraints(self, unit):
        x, c, G, h = cp.Variable(3), cp.Parameter(3), cp.Parameter((5, 3)), cp.Parameter(5)
        rows = G @ x <= h
        layer = ConvexLayer(
            cp.Problem(cp.Minimize(c @ x), [rows, x >= -1]), [c, G, h], [x], duals=[rows]
        )
        cost, matrix = torch.randn(6, 3).double(), torch.rand(6, 5, 3).double()
        one = layer(cost, matrix, torch.ones(6, 5).double()).value
        other = layer(cost, unit * matrix, unit * torch.ones(6, 5).double()).value
        torch.testing.assert_close(other.variables, one.variables, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(unit * other.duals[0], one.duals[0], rtol=1e-9, atol=1e-9)
