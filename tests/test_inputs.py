"""Unusual input, for every entry point, and failures; what is refused is in tests/refusals."""

import functools

import pytest
import torch
from torch.func import vmap

import implicit_solvers as ims

Z = torch.ones(2, dtype=torch.float64)


def linear(fn, b, args=()):
    return ims.linear_solve(ims.FunctionOperator(lambda v: fn(v, *args), like=b), b)


def custom(fn, z, args=(), **options):
    # the solution of the functions below, which the solver takes for granted
    solver = ims.custom_root(fn, **options)(lambda z0, k, a, *rest: (a / k).detach())
    return solver(z, *args)


def attach(fn, z, args=(), **options):
    return ims.Solution(ims.attach(fn, z, args, **options), *[None] * 5)


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
    start = {linear: a, attach: (a / k).detach()}.get(entry, torch.ones_like(a))
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
    point = 1 / k.detach() * Z
    captured = lambda z: fn(z, k, 1.0)
    if find is custom:
        z = ims.custom_root(captured)(lambda z0: point)(Z).value
    else:
        z = find(captured, point if find is attach else Z).value
    torch.testing.assert_close(z.detach(), Z / 3)
    (g,) = torch.autograd.grad(z.sum(), k)
    torch.testing.assert_close(g, torch.tensor(-2 / 9, dtype=Z.dtype))


@entries
def test_an_empty_batch_under_vmap(entry):
    out = vmap(lambda a: solve(entry, TWO, a))(torch.ones(0, 2, dtype=Z.dtype))
    assert out.shape == (0, 2) and out.dtype == Z.dtype


def test_the_start_gets_no_gradient():
    a, z0 = (torch.tensor(x, requires_grad=True) for x in (2.0, 1.0))
    z = ims.root(lambda z, a, power: z**power - a, z0, (a, 2)).value
    g, none = torch.autograd.grad(z, (a, z0), allow_unused=True)
    assert float(g) == pytest.approx(0.5 / 2**0.5, rel=1e-5)  # float32
    assert none is None


NONFINITE = {
    "nan in the start": (Z * torch.nan, 1.0),
    "inf in the start": (Z * torch.inf, 1.0),
    "nan from fn": (Z, torch.nan),
    "inf from fn": (Z, torch.inf),
}


@pytest.mark.parametrize("what", NONFINITE)
@pytest.mark.parametrize("entry", [name for name in ENTRIES if name != "linear_solve"])
def test_nonfinite_is_a_failure_under_the_policy(entry, what):
    z, factor = NONFINITE[what]
    if entry == "custom_root" and factor == 1:
        return  # this solver of the user's does not look at its start
    find, fn = ENTRIES[entry]
    bad, args = (lambda z, k, a: factor * fn(z, k, a)), (TWO / 2, Z)
    with pytest.raises(ims.ConvergenceError, match="NONFINITE"):
        find(bad, z, args)
    if entry == "attach":
        return
    with pytest.warns(ims.ConvergenceWarning, match="NONFINITE"):
        warned = find(bad, z, args, on_failure="warn")
    for sol in (warned, find(bad, z, args, on_failure="mask")):
        assert sol.status.item() == ims.Status.NONFINITE and not sol.converged.item()


def test_args_are_not_scanned():
    mask = torch.tensor([0.0, -torch.inf])

    def masked(z, mask):
        return z - torch.softmax(z.detach() * 0 + mask, 0)

    sol = ims.root(masked, torch.zeros(2), (mask,))
    torch.testing.assert_close(sol.value, torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("method", ["loop", "batched"])
@pytest.mark.parametrize("numpy", [False, True], ids=["tensor", "numpy"])
def test_a_solver_may_return_the_same_memory_every_time(method, numpy):
    count = {"loop": 1, "batched": 3}[method]
    buffer = torch.zeros(count, dtype=torch.float64).squeeze()

    def solver(z0, a):
        buffer.copy_(a.sqrt())
        return buffer.numpy() if numpy else buffer

    solve = ims.custom_root(lambda z, a: z**2 - a, vmap_method=method)(solver)
    lanes = vmap(lambda a: solve(torch.ones((), dtype=torch.float64), a).value)
    a = torch.tensor([9.0, 4.0, 16.0], dtype=torch.float64)
    earlier, later = lanes(a), lanes(4 * a)
    torch.testing.assert_close(earlier, a.sqrt())
    torch.testing.assert_close(later, 2 * a.sqrt())


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
