"""Wrong input: a table of entry point, input, exception, and what the message must name."""

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

START = [
    ("integer", torch.ones(2, dtype=torch.int64), TypeError, "z.*torch.int64"),
    ("no tensor", 1.0, TypeError, "z.*float"),
    ("list of floats", [1.0, 2.0], TypeError, "z.*float"),
    ("empty tree", {}, ValueError, "z.*empty"),
    ("mixed dtypes", [Z, Z.float()], ValueError, "z.*float64.*float32"),
    ("mixed devices", [Z, torch.ones(2, dtype=Z.dtype, device="meta")], ValueError, "z.*meta"),
]


@pytest.mark.parametrize("what, z, error, words", START, ids=[row[0] for row in START])
@pytest.mark.parametrize("entry", ENTRIES)
def test_start(entry, what, z, error, words):
    solve, fn = ENTRIES[entry]
    with pytest.raises(error, match=words):
        solve(fn, z)


RETURNS = [
    ("shape", lambda z: z[:1], ValueError, r"fn returned.*\(1,\).*\(2,\)"),
    ("structure", lambda z: (z, z), ValueError, "fn returned the structure"),
    ("dtype", lambda z: z.float(), TypeError, "fn returned torch.float32.*float64"),
    ("number", lambda z: 1.0, (TypeError, ValueError), "fn returned"),
]


@pytest.mark.parametrize("what, fn, error, words", RETURNS, ids=[row[0] for row in RETURNS])
@pytest.mark.parametrize("entry", ["root", "fixed_point", "attach", "custom_root"])
def test_what_fn_returns(entry, what, fn, error, words):
    with pytest.raises(error, match=words):
        ENTRIES[entry][0](fn, Z)


def test_what_an_objective_returns():
    with pytest.raises(ValueError, match=r"fn returned \(2,\).*shape \(\)"):
        ims.minimize(lambda z: z**2, Z)
    with pytest.raises(TypeError, match="fn returned torch.float32"):
        ims.minimize(lambda z: (z**2).sum().float(), Z)


def test_what_residuals_return():
    with pytest.raises(ValueError, match="1 residuals for 2 unknowns"):
        ims.least_squares(lambda z: z[:1], Z, solver=ims.GaussNewton())
    with pytest.raises(TypeError, match="fn returned a float"):
        ims.least_squares(lambda z: 1.0, Z)


ARGUMENTS = [
    ("args no tuple", {"args": Z}, TypeError, "args is a Tensor.*args=.theta,."),
    ("on_failure", {"on_failure": "ignore"}, ValueError, "on_failure is 'ignore'"),
    ("batch_dims", {"batch_dims": -1}, ValueError, "batch_dims is -1"),
    ("batch_dims too many", {"batch_dims": 2}, ValueError, "batch_dims=2"),
    ("in_dims alone", {"in_dims": (0,), "args": (Z,)}, ValueError, "in_dims.*batch_dims"),
    (
        "in_dims of another length",
        {"batch_dims": 1, "in_dims": (0, None), "args": (Z,)},
        ValueError,
        "in_dims is .* for 1 args",
    ),
    (
        "in_dims of another place",
        {"batch_dims": 1, "in_dims": (1,), "args": (Z,)},
        ValueError,
        r"in_dims has 1 for args\[0\]",
    ),
    (
        "in_dims of an arg without lanes",
        {"batch_dims": 1, "in_dims": (0,), "args": (torch.ones(3),)},
        ValueError,
        r"args\[0\] carries lanes",
    ),
    ("solver class", {"solver": ims.Newton}, TypeError, "solver is the class Newton"),
    ("solver of another kind", {"solver": ims.CG()}, ValueError, "solver=CG"),
]


@pytest.mark.parametrize("what, options, error, words", ARGUMENTS, ids=[r[0] for r in ARGUMENTS])
@pytest.mark.parametrize("entry", ["root", "fixed_point", "minimize", "least_squares"])
def test_arguments(entry, what, options, error, words):
    solve, fn = ENTRIES[entry]
    with pytest.raises(error, match=words):
        solve(fn, Z, **options)


def test_fn_must_be_callable():
    for solve, _ in ENTRIES.values():
        with pytest.raises(TypeError, match="fn is a"):
            solve(3, Z)


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
        sol = solve(bad, z, on_failure="warn")
    assert sol.status.item() == ims.Status.NONFINITE and not sol.converged.item()
    sol = solve(bad, z, on_failure="mask")
    assert sol.status.item() == ims.Status.NONFINITE


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e not in ("custom_root",)])
def test_an_empty_batch_returns_an_empty_solution(entry):
    solve, fn = ENTRIES[entry]
    if entry == "minimize":
        fn = lambda z: ((z - 1) ** 2).sum(-1)
    sol = solve(fn, torch.ones(0, 3, dtype=torch.float64), batch_dims=1)
    assert sol.value.shape == (0, 3) and sol.value.dtype == torch.float64
    if entry != "attach":
        assert sol.converged.shape == (0,)


def test_args_are_not_scanned():
    mask = torch.tensor([0.0, -torch.inf])

    def masked(z, mask):
        return z - torch.softmax(z.detach() * 0 + mask, 0)

    sol = ims.root(masked, torch.zeros(2), (mask,))
    torch.testing.assert_close(sol.value, torch.tensor([1.0, 0.0]))


def test_unused_and_plain_arguments():
    used, unused = (torch.tensor(2.0, requires_grad=True) for _ in range(2))
    sol = ims.root(lambda z, a, b, power: z**power - a, torch.tensor(1.0), (used, unused, 2))
    g, none = torch.autograd.grad(sol.value, (used, unused), allow_unused=True)
    assert float(g) == pytest.approx(0.5 / 2**0.5, rel=1e-5)
    assert none is None or float(none) == 0


def test_the_start_gets_no_gradient():
    z0 = torch.tensor(1.0, requires_grad=True)
    a = torch.tensor(2.0, requires_grad=True)
    sol = ims.root(lambda z, a: z**2 - a, z0, (a,))
    assert torch.autograd.grad(sol.value, z0, allow_unused=True) == (None,)


def test_singular_jacobian_raises_out_of_backward():
    a = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    # z = 0 solves z^3 = a exactly, and has no derivative there
    sol = ims.root(lambda z, a: z**3 - a, torch.zeros((), dtype=torch.float64), (a,))
    with pytest.raises(ims.ConvergenceError, match="adjoint of root of <lambda>.*SINGULAR"):
        sol.value.backward()


@pytest.mark.parametrize("policy", ["warn", "mask"])
def test_singular_jacobian_warns_under_the_other_policies(policy):
    a = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros((), dtype=torch.float64)
    sol = ims.root(lambda z, a: z**3 - a, zero, (a,), on_failure=policy)
    with pytest.warns(ims.ConvergenceWarning, match="SINGULAR"):
        sol.value.backward()
    if policy == "mask":
        assert float(a.grad) == 0


def test_an_adjoint_solver_unfit_for_the_equation_is_refused():
    for solver in (ims.CG(), ims.Cholesky(), ims.Diagonal()):
        with pytest.raises(ValueError, match="adjoint has linear_solver="):
            ims.root(f, Z, adjoint=ims.ImplicitAdjoint(solver))
    sol = ims.minimize(objective, Z, adjoint=ims.ImplicitAdjoint(ims.CG()))
    assert bool(sol.converged)


def test_an_adjoint_that_does_not_converge_raises_out_of_backward():
    a = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    adjoint = ims.ImplicitAdjoint(ims.CG(max_steps=1))
    sol = ims.minimize(lambda z, a: (scale * (z - a) ** 2).sum(), 0 * scale, (a,), adjoint=adjoint)
    with pytest.raises(ims.ConvergenceError, match="adjoint of minimize.*MAX_STEPS"):
        sol.value.sum().backward()


def test_custom_root_checks_what_the_solver_returns():
    def solver(result):
        return ims.custom_root(lambda z: z - 1)(lambda z0: result)

    with pytest.raises(ValueError, match="your solver returned a tensor of shape"):
        solver(torch.ones(3, dtype=Z.dtype))(Z)
    with pytest.raises(ims.ConvergenceError, match="REJECTED"):
        solver(2 * Z)(Z)
    with pytest.raises(ValueError, match="vmap_method"):
        ims.custom_root(f, vmap_method="parallel")


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
