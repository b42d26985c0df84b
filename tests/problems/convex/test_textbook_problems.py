"""Twelve textbook problems against CVXPY, central differences, and one another in batches."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

import implicit_solvers as ims
from implicit_solvers.problems.convex import ConvexLayer
from tests.problems.convex.textbook import PROBLEMS

MADE = {}


def made(name, **options):
    """The problem and its layer, canonicalized once for all tests."""
    key = (name, *options.items())
    if key not in MADE:
        textbook = MADE[name,][0] if (name,) in MADE else PROBLEMS[name]()
        layer = ConvexLayer(textbook.problem, textbook.parameters, textbook.variables, **options)
        MADE[key] = textbook, layer
    return MADE[key]


def tensors(values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def solve_flat(layer, *values):
    return torch.cat([v.flatten() for v in layer(*values).value.variables])


@pytest.mark.parametrize("name", PROBLEMS)
class TestOneProblem:
    def test_the_values_are_those_of_cvxpy(self, name):
        textbook, layer = made(name)
        values = textbook.draw(np.random.default_rng(1))
        solution = layer(*tensors(values))
        for parameter, value in zip(textbook.parameters, values, strict=True):
            parameter.value = value
        # another solver than the layer's, run to its limit
        textbook.problem.solve(solver="SCS", eps=1e-11, max_iters=200_000)
        assert textbook.problem.status == "optimal"
        for variable, value in zip(textbook.variables, solution.value.variables, strict=True):
            np.testing.assert_allclose(value.numpy(), variable.value, rtol=1e-7, atol=1e-7)

    def test_the_derivatives_are_those_of_central_differences(self, name):
        textbook, layer = made(name)
        rng, step = np.random.default_rng(2), 1e-5
        values = tensors(textbook.draw(rng))
        symmetric = [bool(p.attributes["symmetric"]) for p in textbook.parameters]
        for _ in range(3):
            moves = [torch.tensor(rng.normal(size=v.shape)) for v in values]
            moves = [m + m.mT if s else m for m, s in zip(moves, symmetric, strict=True)]
            ahead = [v + step * m for v, m in zip(values, moves, strict=True)]
            behind = [v - step * m for v, m in zip(values, moves, strict=True)]
            slope = (solve_flat(layer, *ahead) - solve_flat(layer, *behind)) / (2 * step)
            pushed = torch.func.jvp(lambda *v: solve_flat(layer, *v), tuple(values), tuple(moves))
            torch.testing.assert_close(pushed[1], slope, rtol=1e-5, atol=1e-5)
            weights = torch.tensor(rng.normal(size=slope.shape))
            leaves = [v.clone().requires_grad_() for v in values]
            (weights @ solve_flat(layer, *leaves)).backward()
            pulled = sum((v.grad * m).sum() for v, m in zip(leaves, moves, strict=True))
            torch.testing.assert_close(pulled, weights @ slope, rtol=1e-5, atol=1e-5)

    def test_a_batch_of_16_is_a_loop_and_one_infeasible_lane_fails_alone(self, name):
        textbook, layer = made(name, on_failure="mask")
        rng = np.random.default_rng(3)
        drawn = [textbook.draw(rng) for _ in range(16)]
        if textbook.spoil is not None:
            drawn[5] = textbook.spoil(drawn[5])
        lanes = [torch.stack(tensors(v)).requires_grad_() for v in zip(*drawn, strict=True)]
        solution = layer(*lanes)
        expected = torch.zeros(16, dtype=torch.int64)
        if textbook.spoil is not None:
            expected[5] = ims.Status.INFEASIBLE
            assert all(v[5].isnan().all() for v in solution.value.variables)
        assert torch.equal(solution.status, expected)
        sum(v.sin().nansum() for v in solution.value.variables).backward()
        for i in range(16):
            own = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in drawn[i]]
            one = layer(*own)
            sum(v.sin().nansum() for v in one.value.variables).backward()
            assert one.status == solution.status[i]
            pairs = zip(one.value.variables, solution.value.variables, strict=True)
            for value, batch in pairs:
                torch.testing.assert_close(batch[i], value, rtol=1e-9, atol=1e-9, equal_nan=True)
            for leaf, batch in zip(own, lanes, strict=True):
                torch.testing.assert_close(batch.grad[i], leaf.grad, rtol=1e-6, atol=1e-8)
                if expected[i]:
                    assert (batch.grad[i] == 0).all()

    def test_vmap_is_the_batch(self, name):
        textbook, layer = made(name, on_failure="mask")
        rng = np.random.default_rng(4)
        drawn = [textbook.draw(rng) for _ in range(3)]
        lanes = [torch.stack(tensors(v)) for v in zip(*drawn, strict=True)]

        def slopes(*values):
            return torch.func.grad(
                lambda values: solve_flat(layer, *values).sin().sum(), has_aux=False
            )(values)

        mapped = torch.func.vmap(slopes)(*lanes)
        leaves = [v.clone().requires_grad_() for v in lanes]
        sum(v.sin().sum() for v in layer(*leaves).value.variables).backward()
        for leaf, own in zip(leaves, mapped, strict=True):
            torch.testing.assert_close(own, leaf.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "name",
    ["lasso", "logistic_regression", "robust_linear_program", "max_cut", "minimum_cost_flow"],
)
def test_gradcheck_and_double_backward(name):
    textbook, layer = made(name)
    values = [v.requires_grad_() for v in tensors(textbook.draw(np.random.default_rng(5)))]
    # torch's projection onto what the layer reads: the symmetric part
    symmetric = [bool(p.attributes["symmetric"]) for p in textbook.parameters]

    def solve(*values):
        return solve_flat(layer, *values)

    assert gradcheck(solve, values, check_forward_ad=True, check_batched_grad=True)
    if name == "max_cut":
        assert symmetric == [True]
    weights = torch.randn(len(solve(*values)), dtype=torch.float64)

    def slope(*values):
        return torch.autograd.grad(weights @ solve(*values), values, create_graph=True)

    moves = [torch.randn_like(v) for v in values]
    step = 1e-5
    pairs = list(zip(values, moves, strict=True))
    ahead = slope(*[(v + step * m).detach().requires_grad_() for v, m in pairs])
    behind = slope(*[(v - step * m).detach().requires_grad_() for v, m in pairs])
    expected = [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
    curvature = torch.autograd.grad(
        sum((g * m).sum() for g, m in zip(slope(*values), moves, strict=True)), values
    )
    for found, truth in zip(curvature, expected, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5)
