"""Captured tensors: gradients arrive wherever the function got its tensors from."""

import functools

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, vmap

import implicit_solvers as ims
from tests.cases import MANY_P as MANY_X
from tests.cases import P as X
from tests.cases import W, assert_agree, check_gradients, modes

Z0 = torch.zeros(3, dtype=torch.float64)


def g(z, s, x):
    return z + 0.5 * torch.tanh(W @ z) * s - x


def f(z, x):
    return g(z, x.sum(), x)


def reference(x):
    """Everything is an argument: this way is tested against oracles in test_compositions."""
    return ims.root(f, Z0, (x,)).value


def root(fn, z0=Z0, args=()):
    return ims.root(fn, z0, args).value


class Cell(nn.Module):
    """A module that holds the tensor, as an attribute or as a parameter."""

    def __init__(self, x):
        super().__init__()
        self.register_buffer("x", x)

    def forward(self, z):
        return f(z, self.x)


def non_leaves(x):
    s, y = x.sum(), x * 1
    return root(lambda z: g(z, s, y))


def functional(x):
    cell = Cell(torch.zeros_like(Z0))
    return root(lambda z: functional_call(cell, {"x": x}, (z,)))


def grad_inside(x):
    def scale():
        return grad(lambda u: (u * x.sum() * u).sum() / 2)(torch.ones((), dtype=x.dtype))

    return root(lambda z: g(z, scale(), x))


def vmap_inside(x):
    def product(z):
        return vmap(lambda row: row @ z * (x * x).sum() / (x * x).sum())(W)

    return root(lambda z: z + 0.5 * torch.tanh(product(z)) * x.sum() - x)


def layer_inside(x):
    def total():
        return root(lambda u: u + u**3 - x.sum() - x.sum() ** 3, Z0[:1])[0]

    return root(lambda z: g(z, total(), x))


def layer_inside_with_args(x):
    def total():
        return root(lambda u, t: u + u**3 - t - t**3, Z0[:1], (x.sum(),))[0]

    return root(lambda z: g(z, total(), x))


def through(same):
    """Return a solve whose function passes the unknown through ``same(z, x)``, which is z."""
    return lambda x: root(lambda z: z + 0.5 * torch.tanh(W @ same(z, x)) * x.sum() - x)


def scaling(v, x):
    s = 1 + x.sum() ** 2
    return ims.linear_solve(ims.FunctionOperator(lambda v: v * s, like=Z0), v * s).value


CASES = {
    "closure": lambda x: root(lambda z: f(z, x)),
    "non-leaves": non_leaves,
    "partly in args": lambda x: root(lambda z, s: g(z, s, x), Z0, (x.sum(),)),
    "in args and captured": lambda x: root(lambda z, y: g(z, y.sum(), x), Z0, (x,)),
    "start and captured": lambda x: root(lambda z: f(z, x), x),
    "partial": lambda x: root(functools.partial(lambda z, y: f(z, y), y=x)),
    "partial of a method": lambda x: root(functools.partial(Cell(x).forward)),
    "module": lambda x: root(Cell(x)),
    "bound method": lambda x: root(Cell(x).forward),
    "functional": functional,
    "default argument": lambda x: root(lambda z, y=x: f(z, y)),
    "grad inside": grad_inside,
    "vmap inside": vmap_inside,
    "layer inside": layer_inside,
    "layer inside, with args": layer_inside_with_args,
    "layer inside, of the unknown": through(lambda z, x: root(lambda u: u + u**3 - z - z**3)),
    "minimum inside": through(
        lambda z, x: ims.minimize(lambda u: ((u - z) ** 2).sum() * (1 + x[0] ** 2), Z0).value
    ),
    "linear solve inside": through(scaling),
    "fixed_point": lambda x: ims.fixed_point(lambda z: z - f(z, x), Z0).value,
    "least_squares": lambda x: ims.least_squares(lambda z: f(z, x), Z0).value,
    "attached": lambda x: ims.attach(lambda z: f(z, x), reference(x).detach()),
}


FIRST = modes(0, 1, without=["nested_vmap"])
SECOND = [*modes(2, without=["nested_vmap", "of_vmap", "vmap"]), "vmap rev-fwd"]


# a layer inside of another, in ways that the other rows go
LONG = {"layer inside, of the unknown", "layer inside, with args", "minimum inside"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.nightly if n in LONG else ()) for n in CASES]
)
def test_modes(name):
    # a solve inside of another is found to eps**0.75
    assert_agree(CASES[name], reference, [*FIRST, *SECOND], 1e-7)


@pytest.mark.parametrize("name", ["closure", "module", "linear solve inside"])
def test_gradcheck(name):
    check_gradients(CASES[name], X, batched=False)


def agree(a, b):
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_captured_tensor_as_the_argument_of_an_inner_transform_is_right_or_an_error():
    def solve(x):
        return root(lambda z: z - grad(lambda u: (u**3).sum() / 3)(x)).sum()

    x = X.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(solve(x), x)[0], 2 * X)
    with pytest.raises(RuntimeError, match="pass it in args"):
        torch.autograd.grad(solve(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="pass it in args"):
        grad(solve)(X)


def test_a_module_that_replaces_its_buffers_gets_them_back():
    """Spectral normalization puts what its power iteration returns in the place of a buffer."""
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3, bias=False).double())
    before = dict(layer.named_buffers())
    value = ims.fixed_point(
        lambda z: torch.tanh(0.5 * layer(z) + 0.1), torch.zeros(3).double()
    ).value
    torch.autograd.grad(value.sum(), list(layer.parameters()), create_graph=True)
    assert all(now is before[name] for name, now in layer.named_buffers())


def test_recording_and_derivatives_leave_the_generator_and_buffers_alone():
    norm = nn.BatchNorm1d(3).double()
    calls = []

    def fn(z):
        calls.append(1)
        return 0.5 * norm(z.reshape(2, 3) + 0.1 * torch.rand(2, 3, dtype=z.dtype)).reshape(6)

    z0 = torch.arange(6.0, dtype=torch.float64)
    torch.manual_seed(3)
    draws = torch.rand(40, 2, 3, dtype=torch.float64)
    torch.manual_seed(3)
    budget = ims.FixedPointIteration(max_steps=2, rtol=None)
    sol = ims.fixed_point(fn, z0, solver=budget)
    assert len(calls) == 4  # the start, two steps, and the recording
    assert int(norm.num_batches_tracked) == 3
    torch.testing.assert_close(torch.rand(2, 3, dtype=torch.float64), draws[3])
    sol.value.sum().backward()
    assert int(norm.num_batches_tracked) == 3
    assert norm.bias.grad.abs().max() > 0


def test_no_grad_evaluates_nothing_more():
    calls = []

    x = X.clone().requires_grad_()

    def fn(z):
        calls.append(1)
        return z - x

    with torch.no_grad():
        ims.root(fn, Z0)
    plain = len(calls)
    ims.root(fn, Z0)
    assert len(calls) == 2 * plain + 1


def test_integer_and_constant_captures_are_left_alone():
    index = torch.tensor([2, 0, 1])
    x = X.clone().requires_grad_()
    z = ims.root(lambda z: z - x[index] * 2, Z0).value
    (g,) = torch.autograd.grad(z[0], x)
    agree(g, torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64))
    each = vmap(lambda i: ims.root(lambda z: z - X[i] * 2, Z0).value)(
        torch.stack([index, index.flip(0)])
    )
    agree(each, 2 * torch.stack([X[index], X[index.flip(0)]]))


class Layer(nn.Module):
    """A user's module with a layer inside that captures ``self``."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.register_buffer("shift", torch.tensor(0.1, dtype=torch.float64))

    def forward(self, x):
        def cell(z):
            return self.w * torch.cos(z + self.shift) + x

        return ims.fixed_point(cell, torch.zeros_like(x)).value


def slope_of_layer(w, shift):
    z = torch.zeros_like(w)
    for _ in range(200):
        z = w * torch.cos(z + shift)
    return torch.cos(z + shift) / (1 + w * torch.sin(z + shift))


def test_functional_call_of_a_module_that_has_put_its_own_tensors_back():
    layer, x = Layer(), torch.zeros((), dtype=torch.float64)
    w = torch.tensor([0.5, 0.7], dtype=torch.float64)
    shift = torch.tensor(0.3, dtype=torch.float64)

    def call(w):
        return functional_call(layer, {"w": w, "shift": shift}, (x,))

    expected = slope_of_layer(w, shift)
    agree(vmap(grad(call))(w), expected)
    agree(torch.stack([grad(call)(v) for v in w]), expected)
    agree(vmap(jacfwd(call))(w), expected)
    leaf = w[1].clone().requires_grad_()
    (first,) = torch.autograd.grad(call(leaf), leaf, create_graph=True)
    agree(first.detach(), expected[1])
    (second,) = torch.autograd.grad(first, leaf)
    agree(second, jacrev(lambda w: slope_of_layer(w, shift))(w[1]))
    assert float(layer.w.detach()) == 0.5 and float(layer.shift) == 0.1


def test_a_parameter_replaced_before_the_backward_pass():
    layer, x = Layer(), torch.zeros((), dtype=torch.float64)
    old = layer.w
    z = layer(x)
    layer.w = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))
    (g,) = torch.autograd.grad(z, old)
    agree(g, slope_of_layer(old.detach(), layer.shift))
    assert float(layer.w.detach()) == 0.2


def test_a_variable_replaced_before_the_backward_pass_is_read_once_or_an_error():
    holder = {"w": torch.tensor(0.5, dtype=torch.float64, requires_grad=True)}
    old = holder["w"]
    z = ims.fixed_point(lambda z: holder["w"] * torch.cos(z), torch.zeros_like(old)).value
    holder["w"] = torch.tensor(0.7, dtype=torch.float64)
    (g,) = torch.autograd.grad(z, old, retain_graph=True)
    with pytest.raises(RuntimeError, match="does not read a tensor any more"):
        torch.autograd.grad(z, old, create_graph=True)
    z = z.detach()
    agree(g, torch.cos(z) / (1 + 0.5 * torch.sin(z)))


@pytest.mark.parametrize("solver", [None, ims.GMRES(), ims.LSMR()])
@pytest.mark.parametrize("kind", ["function", "jacobian"])
def test_an_operator_that_reads_another_tensor_by_now_is_an_error(kind, solver):
    old = torch.tensor([2.0, 4.0], dtype=torch.float64, requires_grad=True)
    holder, b = {"w": old}, torch.ones(2, dtype=torch.float64)
    product = lambda v: holder["w"] * v
    A = ims.FunctionOperator(product, b) if kind == "function" else ims.JacobianOperator(product, b)
    x = ims.linear_solve(A, b, solver=solver).value.sum()
    holder["w"] = 10 * old.detach()
    with pytest.raises(RuntimeError, match="does not read a tensor any more"):
        torch.autograd.grad(x, old)


def test_batched_statistics_need_no_derivative():
    def solve(mean, x):
        def cell(z, x):
            return 0.3 * torch.tanh(nn.functional.batch_norm(z, mean, torch.ones_like(mean))) + x

        return ims.fixed_point(cell, torch.zeros_like(x), (x,)).value.sum()

    each = vmap(grad(solve, argnums=1), (0, None))(MANY_X, MANY_X)
    alone = torch.stack([grad(solve, argnums=1)(mean, MANY_X) for mean in MANY_X])
    agree(each, alone)
