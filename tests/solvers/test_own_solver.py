"""A solver as a user writes it, the page's own code: what is beside its row in SOLVERS."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad

import implicit_solvers as ims
from implicit_solvers import Status
from tests.cases import UNKNOWNS, P, newton_oracle, words
from tests.solvers.systems import tensor
from tests.solvers.table import HeavyBall
from tests.test_compositions import WRAPPERS, cube, error

unknowns = pytest.mark.parametrize("unknown", UNKNOWNS, ids=lambda u: u.name)


def solve(unknown):
    def g(z, p):
        return unknown.pack(unknown.ravel(z) - unknown.f(unknown.ravel(z), p))

    def at(p):
        z0 = unknown.pack(torch.zeros(unknown.n, dtype=p.dtype))
        return unknown.ravel(ims.fixed_point(g, z0, (p,), solver=HeavyBall()).value)

    return at


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("word", words(1) + words(2))
@unknowns
def test_derivatives(unknown, word, wrapper):
    oracle = lambda p: newton_oracle(unknown.f, torch.zeros(unknown.n, dtype=p.dtype), p)
    ours = WRAPPERS[wrapper](word, cube(solve(unknown)))
    assert error(ours, WRAPPERS[wrapper](word, cube(oracle))) < 1e-7


@unknowns
def test_gradcheck(unknown):
    p, fn = P.clone().requires_grad_(), solve(unknown)
    assert gradcheck(fn, (p,), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(fn, (p,), check_fwd_over_rev=True, check_rev_over_rev=True)


RATES = [0.5, 0.9, -0.7, 1.5, 0.3, math.nan, 0.99]


def batch(a, shared, **options):
    return ims.fixed_point(
        lambda z, a, shared: a * torch.sin(z) + shared + 0.1 * z.flip(-1),
        torch.ones(len(a), 2, dtype=a.dtype), (a.unsqueeze(-1), shared), batch_dims=1,
        in_dims=(0, None), solver=HeavyBall(**options), on_failure="mask",
    )  # fmt: skip


def test_a_permutation_of_lanes_permutes_the_results():
    a, shared = tensor(RATES), tensor(0.2)
    order = torch.tensor([3, 0, 6, 5, 1, 4, 2])
    sol, permuted = batch(a, shared), batch(a[order], shared)
    assert len(set(sol.iterations.tolist())) > 3 and sol.status[5] == Status.NONFINITE
    assert permuted.status.tolist() == sol.status[order].tolist()
    torch.testing.assert_close(permuted.value, sol.value[order], equal_nan=True)


def test_lanes_that_fail_are_alone_in_the_backward_pass():
    """One is NaN, and one is stopped before it has converged."""
    good = [0, 1, 2, 4]

    def total(shared, places):
        value = batch(tensor([RATES[i] for i in places]), shared, max_steps=60).value
        return value[[places.index(i) for i in good]].sum()

    with_bad = grad(total)(tensor(0.2), list(range(len(RATES))))
    torch.testing.assert_close(with_bad, grad(total)(tensor(0.2), good), rtol=1e-10, atol=0)
