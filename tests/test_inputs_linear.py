"""Unusual input, for every entry point; what is refused is in tests/refusals/."""

import pytest
import torch
from torch.func import vmap

import implicit_solvers as ims
from implicit_solvers import Status

Z = torch.ones(2, dtype=torch.float64)


def linear(fn, b, args=()):
    return ims.linear_solve(ims.FunctionOperator(lambda v: fn(v, *args), like=b), b)


def custom(fn, z, args=()):
    # the solution of the functions below, which the solver takes for granted
    return ims.custom_root(fn)(lambda z0, k, a, *rest: (a / k).detach())(z, *args)


def attach(fn, z, args=()):
    return ims.Solution(ims.attach(fn, (args[1] / args[0]).detach(), args), *[None] * 4)


# functions of which k z = a is the solution
ENTRIES = {
    "root": (ims.root, lambda z, k, a: k * z - a),
    "fixed_point": (ims.fixed_point, lambda z, k, a: z - 0.3 * (k * z - a)),
    "minimize": (ims.minimize, lambda z, k, a: (k * z**2 / 2 - z * a).sum(-1)),
    "least_squares": (ims.least_squares, lambda z, k, a: k * z - a),
    "linear_solve": (linear, lambda z, k, a: k * z),
    "custom_root": (custom, lambda z, k, a: k * z - a),
    "attach": (attach, lambda z, k, a: k * z - a),
}
entries = pytest.mark.parametrize("entry", ENTRIES)
TWO = torch.tensor(2.0, dtype=Z.dtype)


def solve(entry, k, a, *extra):
    entry, fn = ENTRIES[entry]
    start = a if entry is linear else torch.ones_like(a)
    return entry(lambda z, k, a, *rest: fn(z, k, a), start, (k, a, *extra)).value


@entries
def test_unused_arguments_get_nothing(entry):
    a = Z.clone().requires_grad_()
    unused, frozen = (torch.ones(3, dtype=Z.dtype, requires_grad=True) for _ in range(2))
    extra = (unused, {"n": 3, "flag": True, "none": None}, frozen.detach().long())
    z = solve(entry, TWO, a, *extra)
    g, none = torch.autograd.grad(z.sum(), (a, unused), allow_unused=True)
    torch.testing.assert_close(g, Z / 2)
    assert none is None or torch.equal(none, torch.zeros_like(none))


@entries
def test_captured_parameters(entry):
    k = torch.tensor(3.0, dtype=Z.dtype, requires_grad=True)
    find, fn = ENTRIES[entry]
    if find in (custom, attach):
        point = 1 / k.detach() * Z
        captured = lambda z: fn(z, k, 1.0)
        solved = ims.custom_root(captured)(lambda z0: point)
        z = ims.attach(captured, point) if find is attach else solved(Z).value
    else:
        z = find(lambda z: fn(z, k, 1.0), Z).value
    torch.testing.assert_close(z.detach(), Z / 3)
    (g,) = torch.autograd.grad(z.sum(), k)
    torch.testing.assert_close(g, torch.tensor(-2 / 9, dtype=Z.dtype))


@entries
def test_an_empty_batch_under_vmap(entry):
    out = vmap(lambda a: solve(entry, TWO, a))(torch.ones(0, 2, dtype=Z.dtype))
    assert out.shape == (0, 2) and out.dtype == Z.dtype


SLOW = {
    "root": (ims.root, lambda z: z**3, ims.Newton(max_steps=2)),
    "fixed_point": (ims.fixed_point, lambda z: 0.9 * z, ims.FixedPointIteration(max_steps=2)),
    "anderson": (ims.fixed_point, torch.cos, ims.Anderson(max_steps=1)),
    "minimize": (ims.minimize, lambda z: (z**4).sum(), ims.NewtonCG(max_steps=2)),
    "descent": (ims.minimize, lambda z: (z**2).sum(), ims.GradientDescent(lr=0.01, max_steps=2)),
    "least_squares": (ims.least_squares, lambda z: z**3, ims.GaussNewton(max_steps=2)),
}


@pytest.mark.parametrize("entry", SLOW)
def test_too_few_steps_are_reported_under_mask(entry):
    find, fn, solver = SLOW[entry]
    sol = find(fn, Z, solver=solver, on_failure="mask")
    assert int(sol.status) == Status.MAX_STEPS and not bool(sol.converged)
