"""Unusual input, and failures under each policy; what is refused is in tests/refusals."""

import functools

import pytest
import torch
from torch.func import vmap

import implicit_solvers as ims

Z = torch.ones(2, dtype=torch.float64)


def f(z, *args):
    return z - 1


def objective(z, *args):
    return ((z - 1) ** 2).sum()


def attach(fn, z, args=(), **options):
    value = ims.attach(fn, z, args, **options)
    return ims.Solution(value, *[torch.tensor(True)] * 4)


def custom(fn, z, args=(), **options):
    options.pop("solver", None)
    solver = ims.custom_root(fn, **options)(lambda z0, *args: torch.ones_like(z0))
    return solver(z, *args)


ENTRIES = {
    "root": (ims.root, f),
    "fixed_point": (ims.fixed_point, lambda z, *args: 0.5 * z + 0.5),
    "minimize": (ims.minimize, objective),
    "least_squares": (ims.least_squares, f),
    "attach": (attach, f),
    "custom_root": (custom, f),
}

NONFINITE = {
    "nan in the start": (Z * torch.nan, None),
    "inf in the start": (Z * torch.inf, None),
    "nan from fn": (Z, torch.nan),
    "inf from fn": (Z, torch.inf),
}


@pytest.mark.parametrize("what", NONFINITE)
@pytest.mark.parametrize("entry", ENTRIES)
def test_nonfinite_is_a_failure_under_the_policy(entry, what):
    z, factor = NONFINITE[what]
    if entry == "custom_root" and factor is None:
        return  # this solver of the user's does not look at its start
    solve, fn = ENTRIES[entry]
    bad = fn if factor is None else (lambda z, *args: fn(z, *args) * factor)
    with pytest.raises(ims.ConvergenceError, match="NONFINITE"):
        solve(bad, z)
    if entry == "attach":
        return
    with pytest.warns(ims.ConvergenceWarning, match="NONFINITE"):
        warned = solve(bad, z, on_failure="warn")
    for sol in (warned, solve(bad, z, on_failure="mask")):
        assert sol.status.item() == ims.Status.NONFINITE and not sol.converged.item()


def test_args_are_not_scanned():
    mask = torch.tensor([0.0, -torch.inf])

    def masked(z, mask):
        return z - torch.softmax(z.detach() * 0 + mask, 0)

    sol = ims.root(masked, torch.zeros(2), (mask,))
    torch.testing.assert_close(sol.value, torch.tensor([1.0, 0.0]))


def test_unused_and_plain_arguments_and_the_start():
    used, unused, z0 = (torch.tensor(x, requires_grad=True) for x in (2.0, 2.0, 1.0))
    sol = ims.root(lambda z, a, b, power: z**power - a, z0, (used, unused, 2))
    g, *none = torch.autograd.grad(sol.value, (used, unused, z0), allow_unused=True)
    assert float(g) == pytest.approx(0.5 / 2**0.5, rel=1e-5)  # float32
    assert none[1] is None and (none[0] is None or float(none[0]) == 0)


def test_a_singular_jacobian_fails_in_backward_under_the_policy():
    def solve(policy):
        # z = 0 solves z^3 = a exactly, and has no derivative there
        a = torch.zeros((), dtype=torch.float64, requires_grad=True)
        start = torch.zeros_like(a)
        return ims.root(lambda z, a: z**3 - a, start, (a,), on_failure=policy).value, a

    with pytest.raises(ims.ConvergenceError, match="adjoint of root of <lambda>.*SINGULAR"):
        solve("raise")[0].backward()
    for policy in ("warn", "mask"):
        z, a = solve(policy)
        with pytest.warns(ims.ConvergenceWarning, match="SINGULAR"):
            z.backward()
    assert float(a.grad) == 0


def test_an_adjoint_that_does_not_converge_raises_out_of_backward():
    a = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    adjoint = ims.ImplicitAdjoint(ims.CG(max_steps=1))
    sol = ims.minimize(lambda z, a: (scale * (z - a) ** 2).sum(), 0 * scale, (a,), adjoint=adjoint)
    with pytest.raises(ims.ConvergenceError, match="adjoint of minimize.*MAX_STEPS"):
        sol.value.sum().backward()


def test_custom_root_batched_and_looped_agree():
    calls = []

    def solver(z0, a, s):
        calls.append(tuple(a.shape))
        return torch.sqrt(a * s) * torch.ones_like(z0)

    a = torch.tensor([[1.0, 4.0], [9.0, 16.0]], dtype=torch.float64)
    s = torch.tensor(4.0, dtype=torch.float64)
    for method, shapes in {"loop": [()] * 4, "batched": [(4,)]}.items():
        decorate = ims.custom_root(lambda z, a, s: z**2 - a * s, vmap_method=method)
        solve = decorate(solver)
        calls.clear()
        one = functools.partial(solve, torch.ones((), dtype=torch.float64))
        z = vmap(vmap(lambda a, solve=one: solve(a, s).value))(a)
        torch.testing.assert_close(z, 2 * a.sqrt())
        assert calls == shapes
        g = vmap(vmap(torch.func.grad(lambda a, solve=one: solve(a, s).value)))(a)
        torch.testing.assert_close(g, 1 / a.sqrt())
