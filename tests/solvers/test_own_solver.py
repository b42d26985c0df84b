"""A solver as a user writes it, from the page ``docs/own_solver.md`` alone: the page's own code."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

import implicit_solvers as ims
from implicit_solvers import Status
from tests.cases import MANY_P, UNKNOWNS, P, newton_oracle, words
from tests.test_compositions import WRAPPERS, cube, error

F64 = torch.float64
PAGE = Path(__file__).parents[2] / "docs" / "own_solver.md"


@pytest.fixture(scope="module")
def heavy_ball():
    scope = {"__name__": "own_solver"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), scope)
    return scope["HeavyBall"]


def solve(heavy_ball, unknown):
    def g(z, p):
        return unknown.pack(unknown.ravel(z) - unknown.f(unknown.ravel(z), p))

    def at(p):
        z0 = unknown.pack(torch.zeros(unknown.n, dtype=p.dtype))
        return unknown.ravel(ims.fixed_point(g, z0, (p,), solver=heavy_ball()).value)

    return at


def oracle(unknown):
    return lambda p: newton_oracle(unknown.f, torch.zeros(unknown.n, dtype=p.dtype), p)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("word", words(1) + words(2))
@pytest.mark.parametrize("unknown", UNKNOWNS, ids=lambda u: u.name)
def test_derivatives(heavy_ball, unknown, word, wrapper):
    ours = WRAPPERS[wrapper](word, cube(solve(heavy_ball, unknown)))
    reference = WRAPPERS[wrapper](word, cube(oracle(unknown)))
    assert error(ours, reference) < 1e-7


@pytest.mark.parametrize("unknown", UNKNOWNS, ids=lambda u: u.name)
def test_gradcheck(heavy_ball, unknown):
    p = P.clone().requires_grad_()
    fn = solve(heavy_ball, unknown)
    assert gradcheck(fn, (p,), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(fn, (p,), check_fwd_over_rev=True, check_rev_over_rev=True)


def test_float32(heavy_ball):
    unknown = UNKNOWNS[0]
    value = vmap(solve(heavy_ball, unknown))(MANY_P.float())
    assert value.dtype == torch.float32
    assert error(value.double(), vmap(oracle(unknown))(MANY_P)) < 1e-4


RATES = [0.5, 0.9, -0.7, 1.5, 0.3, math.nan, 0.99]


def g(z, a, shared):
    return a * torch.sin(z) + shared + 0.1 * z.flip(-1)


def by_scipy(a, shared):
    x = scipy.optimize.root(
        lambda z: z - a * np.sin(z) - shared - 0.1 * z[::-1], np.ones(2), tol=1e-13
    )
    return torch.from_numpy(x.x)


def batch(heavy_ball, a, shared, **options):
    z0 = torch.ones(len(a), 2, dtype=F64)
    return ims.fixed_point(
        g,
        z0,
        (a.unsqueeze(-1), shared),
        solver=heavy_ball(**options),
        batch_dims=1,
        in_dims=(0, None),
        on_failure="mask",
    )


def test_lanes(heavy_ball):
    a, shared = torch.tensor(RATES, dtype=F64), torch.tensor(0.2, dtype=F64)
    sol = batch(heavy_ball, a, shared)
    assert sol.status[5] == Status.NONFINITE
    assert len(set(sol.iterations.tolist())) > 3
    for i, rate in enumerate(RATES):
        alone = batch(heavy_ball, a[i : i + 1], shared)
        assert int(alone.status[0]) == int(sol.status[i])
        assert abs(int(alone.iterations[0]) - int(sol.iterations[i])) <= 1
        torch.testing.assert_close(alone.value[0], sol.value[i], equal_nan=True)
        if not math.isnan(rate):
            assert bool(sol.converged[i])
            torch.testing.assert_close(sol.value[i], by_scipy(rate, 0.2), rtol=1e-9, atol=1e-9)


def test_a_failed_lane_is_alone_in_the_backward_pass(heavy_ball):
    good = [0, 1, 2, 4]

    def total(shared, places, max_steps=60):
        a = torch.tensor([RATES[i] for i in places], dtype=F64)
        value = batch(heavy_ball, a, shared, max_steps=max_steps).value
        return value[[places.index(i) for i in good]].sum()

    shared = torch.tensor(0.2, dtype=F64)
    with_bad = grad(total)(shared, list(range(len(RATES))))
    torch.testing.assert_close(with_bad, grad(total)(shared, good), rtol=1e-10, atol=0)


def test_a_permutation_of_lanes_permutes_the_results(heavy_ball):
    a, shared = torch.tensor(RATES, dtype=F64), torch.tensor(0.2, dtype=F64)
    order = torch.tensor([3, 0, 6, 5, 1, 4, 2])
    sol, permuted = batch(heavy_ball, a, shared), batch(heavy_ball, a[order], shared)
    assert permuted.status.tolist() == sol.status[order].tolist()
    torch.testing.assert_close(permuted.value, sol.value[order], equal_nan=True)


def test_compaction_and_budget(heavy_ball):
    a, shared = torch.tensor(RATES, dtype=F64), torch.tensor(0.2, dtype=F64)
    static = batch(heavy_ball, a, shared, compact=False)
    torch.testing.assert_close(static.value, batch(heavy_ball, a, shared).value, equal_nan=True)
    budget = batch(heavy_ball, a, shared, max_steps=3, rtol=None)
    assert budget.status.tolist()[:5] == [Status.BUDGET] * 5


def test_the_default_derivative_is_that_of_the_equation(heavy_ball):
    a = torch.tensor([0.3, 0.6], dtype=F64).requires_grad_()
    sol = ims.fixed_point(
        lambda z, a: a * torch.cos(z), torch.zeros_like(a), (a,), solver=heavy_ball()
    )
    sol.value.sum().backward()
    z = sol.value.detach()
    torch.testing.assert_close(a.grad, torch.cos(z) / (1 + a.detach() * torch.sin(z)))
