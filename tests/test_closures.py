# ruff: noqa: B023  (late loop variables are what is tested)
"""A derivative uses what the function read in the solve, whatever its variables are later."""

import functools

import pytest
import torch
from torch.func import grad, hessian, jacfwd, vmap

import implicit_solvers as ims
from implicit_solvers.closures import bound

STEPS = (1.0, 2.0, 3.0)
K = torch.tensor(1.5, dtype=torch.float64)


def constrained(right, k):
    return ims.minimize(
        lambda z, k: z.square().sum(),
        torch.stack([k, k]),
        (k,),
        equalities=lambda z, k: z[:1] + z[1:] - 2 * right(k),
    ).value[0]


# each solves for what `right` returns, which reads a loop variable
SOLVES = {
    "root": lambda right, k: ims.root(lambda z, k: z - right(k), k, (k,)).value,
    "of a partial": lambda right, k: (
        ims.root(functools.partial(lambda right, z, k: z - right(k), right), k, (k,)).value
    ),
    "of a gradient": lambda right, k: (
        ims.root(grad(lambda z, k: 0.5 * (z - right(k)).square()), k, (k,)).value
    ),
    "captured": lambda right, k: ims.root(lambda z: z - right(k), torch.zeros_like(k)).value,
    "fixed_point": lambda right, k: (
        ims.fixed_point(lambda z, k: 0.5 * z + 0.5 * right(k), k, (k,)).value
    ),
    "minimize": lambda right, k: ims.minimize(lambda z, k: (z - right(k)).square(), k, (k,)).value,
    "constrained": constrained,
    "least_squares": lambda right, k: ims.least_squares(lambda z, k: z - right(k), k, (k,)).value,
    "layer": lambda right, k: ims.nn.Root(lambda z, k: z - right(k))(k),
    "linear_solve": lambda right, k: (
        ims.linear_solve(
            2.0 * ims.FunctionOperator(lambda v: v / right(k), like=k), 2 * torch.ones_like(k)
        ).value
    ),
    "linear_solve by products": lambda right, k: (
        ims.linear_solve(
            ims.JacobianOperator(lambda z, k: z / right(k), k, (k,)),
            torch.ones_like(k),
            solver=ims.GMRES(),
        ).value
    ),
    "attach": lambda right, k: ims.attach(lambda z, k: z - right(k), right(k).detach(), (k,)),
}


def in_a_loop(solve):
    def total(k):
        out = 0.0
        for h in STEPS:
            out = out + solve(lambda k: h * k**2, k)
        return out

    return total


def in_time(k):
    """Read the last solution too, whose variable is written again."""
    out = torch.zeros_like(k)
    for h in STEPS:
        out = ims.root(lambda z: z - out - h * k**2, torch.zeros_like(k)).value
    return out


LOOPS = {**{name: in_a_loop(solve) for name, solve in SOLVES.items()}, "in time": in_time}


def backward(fn):
    def slope(k):
        leaf = k.clone().requires_grad_()
        return torch.autograd.grad(fn(leaf), leaf)[0]

    return slope


def recorded(fn):
    def slope(k):
        leaf = k.clone().requires_grad_()
        return torch.autograd.grad(fn(leaf), leaf, create_graph=True)[0].detach()

    return slope


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("mode", [backward, recorded, grad, jacfwd])
def test_a_loop_variable_is_the_one_of_its_turn(loop, mode):
    """Of ``6 k^2``."""
    torch.testing.assert_close(mode(loop)(K), 12 * K, rtol=1e-7, atol=0.0)


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_second_derivatives_too(loop):
    twelve = torch.full_like(K, 12.0)
    torch.testing.assert_close(hessian(loop)(K), twelve, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(vmap(grad(grad(loop)))(K[None])[0], twelve, rtol=1e-6, atol=0.0)


def test_masked_lanes_take_the_variable_of_their_turn():
    k = torch.tensor([1.5, -1.0], dtype=torch.float64, requires_grad=True)
    total = 0.0
    how = {"batch_dims": 1, "on_failure": "mask"}
    for h in STEPS:
        z = ims.root(lambda z, k: z**2 - h * k, torch.ones_like(k), (k,), **how).value
        total = total + z[0]
    (slope,) = torch.autograd.grad(total, k)
    exact = sum(0.5 * (h / 1.5) ** 0.5 for h in STEPS)
    torch.testing.assert_close(slope.tolist(), [exact, 0.0])


def test_what_a_function_counts_is_shared():
    calls = 0

    def fn(z):
        nonlocal calls
        calls += 1
        return z**3 - 2

    solution = ims.root(fn, torch.ones((), dtype=torch.float64))
    assert calls >= int(solution.iterations) > 1


def test_a_bound_function_is_like_the_one_given():
    factor = 2

    def fn(n, *, least=1):
        """Multiply downwards."""
        return least if n == 0 else factor * fn(n - 1)

    fn.mark = "kept"
    kept = bound(fn)
    factor = 3
    assert (kept(4), fn(4)) == (16, 81)
    assert (kept.__name__, kept.__doc__, kept.mark) == ("fn", "Multiply downwards.", "kept")
    assert kept.__kwdefaults__ == {"least": 1}
    kept = bound(functools.wraps(scaled)(lambda n: factor * n))
    factor = 5
    assert kept(1) == 3
    assert bound(ims.root) is ims.root
    assert bound(len) is len and bound(constrained) is constrained


SCALE = 1.0


def scaled(z, k):
    return z - SCALE * k**2


def test_a_global_that_was_replaced_is_an_error_where_it_is_read_again(monkeypatch):
    leaf = K.clone().requires_grad_()
    value = ims.root(scaled, leaf.detach(), (leaf,)).value
    torch.autograd.grad(value, leaf, create_graph=True)
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    (slope,) = torch.autograd.grad(value, leaf, retain_graph=True)
    torch.testing.assert_close(slope, 2 * K)
    with pytest.raises(RuntimeError, match=r"reads the global SCALE.*lambda z, SCALE=SCALE"):
        torch.autograd.grad(value, leaf, create_graph=True)


def test_an_attribute_of_the_name_of_a_global_is_another(monkeypatch):
    class Unit:
        SCALE = torch.tensor(1.0, dtype=torch.float64)

    leaf = K.clone().requires_grad_()
    value = ims.root(lambda z, k: z - Unit.SCALE * k**2, leaf.detach(), (leaf,)).value
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
    torch.testing.assert_close(slope.detach(), 2 * K)


def test_a_number_that_became_a_tensor_is_another_value(monkeypatch):
    leaf = K.clone().requires_grad_()
    value = ims.root(scaled, leaf.detach(), (leaf,)).value
    monkeypatch.setitem(globals(), "SCALE", torch.ones(2))
    with pytest.raises(RuntimeError, match="reads the global SCALE"):
        torch.autograd.grad(value, leaf, create_graph=True)
