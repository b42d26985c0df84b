"""Auxiliary outputs differentiate like any tensor (wrong answer 16: zero gradients elsewhere)."""

import pytest
import torch
from torch.func import grad, vmap

import implicit_solvers as ims


def fn(z, a):
    return z**2 - a, {"cube": z**3 * a, "note": "text"}


@pytest.mark.parametrize("a", [2.0, 5.0])
def test_aux_is_that_of_the_solution_and_has_gradients(a):
    a = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    sol = ims.root(fn, torch.ones((), dtype=torch.float64), (a,), has_aux=True)
    assert sol.aux["note"] == "text"
    # cube = sqrt(a)^3 a = a^2.5
    (g,) = torch.autograd.grad(sol.aux["cube"], a)
    torch.testing.assert_close(sol.aux["cube"], a**2.5)
    torch.testing.assert_close(g, 2.5 * a.detach() ** 1.5)


def test_aux_under_transforms():
    def cube(a):
        one = torch.ones((), dtype=torch.float64)
        return ims.root(lambda z, a: (z**2 - a, z**3 * a), one, (a,), has_aux=True).aux

    a = torch.tensor([2.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(vmap(grad(cube))(a), 2.5 * a**1.5)
    torch.testing.assert_close(vmap(grad(grad(cube)))(a), 3.75 * a**0.5)


@pytest.mark.parametrize("solve", [ims.root, ims.fixed_point, ims.minimize, ims.least_squares])
def test_every_equation_takes_aux(solve):
    a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    functions = {
        ims.root: lambda z, a: z - a,
        ims.fixed_point: lambda z, a: a + 0 * z,
        ims.minimize: lambda z, a: (z - a) ** 2,
        ims.least_squares: lambda z, a: (z - a).reshape(1),
    }
    inner = functions[solve]
    sol = solve(
        lambda z, a: (inner(z, a), z * a), torch.zeros((), dtype=a.dtype), (a,), has_aux=True
    )
    (g,) = torch.autograd.grad(sol.aux, a)
    assert float(g) == pytest.approx(1.0)


def test_a_function_without_the_pair_is_told():
    with pytest.raises(ValueError, match="has_aux=True"):
        ims.root(lambda z: z, torch.zeros(2), has_aux=True)
