"""Wrong and unusual input: the cells that test_inputs.py and test_linear_solve.py leave out."""

import pytest
import torch
from torch.func import vmap

import implicit_solvers as ims
from implicit_solvers import Status

Z = torch.ones(2, dtype=torch.float64)
A = torch.tensor([[2.0, 1.0], [0.0, 4.0]], dtype=torch.float64)
META = torch.ones(2, dtype=torch.float64, device="meta")

FUNCTIONS = {
    "root": (ims.root, lambda z, a: 2 * z - a),
    "fixed_point": (ims.fixed_point, lambda z, a: 0.5 * z + 0.25 * a),
    "minimize": (ims.minimize, lambda z, a: (z**2 - z * a).sum(-1)),
    "least_squares": (ims.least_squares, lambda z, a: 2 * z - a),
}


def linear(fn, b, args=(), **options):
    return ims.linear_solve(ims.FunctionOperator(lambda v: fn(v, *args), like=b), b, **options)


def custom(fn, z, args=(), **options):
    solver = ims.custom_root(fn, **options)(lambda z0, *args: args[0].detach() / 2)
    return solver(z, *args)


def attach(fn, z, args=(), **options):
    return ims.attach(fn, z / z * args[0].detach() / 2, args, **options)


def value(out):
    return out.value if isinstance(out, ims.Solution) else out


def half(entry, a, fn_args=None):
    """Return ``a / 2`` by an entry point; ``fn_args`` replaces what follows ``a``."""
    extra = () if fn_args is None else fn_args
    if entry == "linear_solve":
        return value(linear(lambda v, *rest: 2 * v, a, extra))
    if entry in FUNCTIONS:
        solve, fn = FUNCTIONS[entry]
    else:
        solve, fn = {"custom_root": custom, "attach": attach}[entry], FUNCTIONS["root"][1]
    return value(solve(lambda z, a, *rest: fn(z, a), torch.ones_like(a), (a, *extra)))


EVERY = [*FUNCTIONS, "linear_solve", "custom_root", "attach"]


@pytest.mark.parametrize("entry", EVERY)
def test_unused_arguments_get_nothing(entry):
    a = Z.clone().requires_grad_()
    unused, frozen = (torch.ones(3, dtype=Z.dtype, requires_grad=True) for _ in range(2))
    extra = (unused, {"n": 3, "flag": True, "none": None}, frozen.detach().long())
    z = half(entry, a, extra)
    g, none = torch.autograd.grad(z.sum(), (a, unused), allow_unused=True)
    torch.testing.assert_close(g, Z / 2)
    assert none is None or torch.equal(none, torch.zeros_like(none))


@pytest.mark.parametrize("entry", EVERY)
def test_captured_parameters(entry):
    k = torch.tensor(3.0, dtype=Z.dtype, requires_grad=True)
    if entry == "linear_solve":
        z = value(linear(lambda v: k * v, Z))
    elif entry in ("custom_root", "attach"):
        point = 1 / k.detach() * Z
        fn = lambda z: k * z - 1
        z = (
            ims.attach(fn, point)
            if entry == "attach"
            else ims.custom_root(fn)(lambda z0: point)(Z).value
        )
    else:
        fn = {
            "root": lambda z: k * z - 1,
            "fixed_point": lambda z: z - 0.3 * (k * z - 1),
            "minimize": lambda z: (k * z**2 / 2 - z).sum(),
            "least_squares": lambda z: k * z - 1,
        }[entry]
        z = FUNCTIONS[entry][0](fn, Z).value
    torch.testing.assert_close(z.detach(), Z / 3)
    (g,) = torch.autograd.grad(z.sum(), k)
    torch.testing.assert_close(g, torch.tensor(-2 / 9, dtype=Z.dtype))


@pytest.mark.parametrize("entry", EVERY)
def test_an_empty_batch_under_vmap(entry):
    out = vmap(lambda a: half(entry, a))(torch.ones(0, 2, dtype=Z.dtype))
    assert out.shape == (0, 2) and out.dtype == Z.dtype


def test_linear_solve_on_mixed_devices():
    tree = ims.DiagonalOperator({"a": Z, "b": Z})
    with pytest.raises((TypeError, ValueError), match="b .*meta"):
        ims.linear_solve(tree, {"a": Z, "b": META})
    with pytest.raises((TypeError, ValueError), match="b .*meta.*A .*cpu"):
        ims.linear_solve(ims.MatrixOperator(A), META)


SINGULAR = {
    "root": (lambda z: z**2 + 0 * z.sum() - 1, None, "STALLED"),
    "root by Newton": (lambda z: z**2 + 0 * z.sum() - 1, ims.Newton(), "SINGULAR"),
    "fixed_point": (lambda z: z + 1 - 0 * z, ims.Newton(), "SINGULAR"),
    "least_squares": (lambda z: z.sum() * torch.ones_like(z) - 1, ims.GaussNewton(), "SINGULAR"),
}


@pytest.mark.parametrize("entry", SINGULAR)
def test_a_singular_start_is_reported(entry):
    fn, solver, name = SINGULAR[entry]
    kind = entry.split()[0]
    with pytest.raises(ims.ConvergenceError, match=f"{kind} of <lambda>.*{name}"):
        getattr(ims, kind)(fn, 0 * Z, solver=solver)


SLOW = {
    "root": (ims.root, lambda z: z**3, ims.Newton(max_steps=2)),
    "fixed_point": (ims.fixed_point, lambda z: 0.9 * z, ims.FixedPointIteration(max_steps=2)),
    "anderson": (ims.fixed_point, torch.cos, ims.Anderson(max_steps=1)),
    "minimize": (ims.minimize, lambda z: (z**4).sum(), ims.NewtonCG(max_steps=2)),
    "descent": (ims.minimize, lambda z: (z**2).sum(), ims.GradientDescent(lr=0.01, max_steps=2)),
    "least_squares": (ims.least_squares, lambda z: z**3, ims.GaussNewton(max_steps=2)),
}


@pytest.mark.parametrize("entry", SLOW)
def test_too_few_steps_are_reported(entry):
    solve, fn, solver = SLOW[entry]
    with pytest.raises(ims.ConvergenceError, match="MAX_STEPS after"):
        solve(fn, Z, solver=solver)
    sol = solve(fn, Z, solver=solver, on_failure="mask")
    assert int(sol.status) == Status.MAX_STEPS and not bool(sol.converged)


LANES = [
    ("another length", (0, None), ValueError, "in_dims is .* for 1 args"),
    ("another place", (1,), ValueError, r"in_dims has 1 for args\[0\]"),
    ("an arg without lanes", (0,), ValueError, r"args\[0\] carries lanes"),
    ("another structure", ([0, 0],), ValueError, r"in_dims has the structure"),
]


@pytest.mark.parametrize("what, in_dims, error, words", LANES, ids=[r[0] for r in LANES])
def test_in_dims_of_attach(what, in_dims, error, words):
    with pytest.raises(error, match=words):
        ims.attach(lambda z, a: z - 1, Z, (torch.ones(3),), batch_dims=1, in_dims=in_dims)


@pytest.mark.parametrize("entry", FUNCTIONS)
def test_in_dims_of_another_structure(entry):
    solve, fn = FUNCTIONS[entry]
    with pytest.raises(ValueError, match=r"(?s)in_dims has the structure .* for args\[0\]"):
        solve(fn, Z, (Z,), batch_dims=1, in_dims=([0, 0],))
