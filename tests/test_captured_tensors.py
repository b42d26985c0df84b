"""Captured tensors: gradients arrive wherever the function got its tensors from."""

import functools
import itertools

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import implicit_solvers as ims

W = torch.tensor([[0.3, -0.2, 0.1], [0.2, 0.1, -0.4], [-0.1, 0.3, 0.2]], dtype=torch.float64)
X = torch.tensor([0.4, -0.7, 0.9], dtype=torch.float64)
MANY_X = torch.tensor([[0.4, -0.7, 0.9], [-0.3, 0.5, 0.2], [0.8, 0.1, -0.6]], dtype=torch.float64)
Z0 = torch.zeros(3, dtype=torch.float64)


def f(z, x):
    return z + 0.5 * torch.tanh(W @ z) * x.sum() - x


def reference(x):
    """Everything is an argument: this way is tested against oracles in test_compositions."""
    return ims.root(f, Z0, (x,)).value


class Cell(nn.Module):
    """A module that holds the tensor, as an attribute or as a parameter."""

    def __init__(self, x):
        super().__init__()
        if isinstance(x, nn.Parameter):
            self.x = x
        else:
            self.register_buffer("x", x)

    def forward(self, z):
        return f(z, self.x)


def closure(x):
    return ims.root(lambda z: f(z, x), Z0).value


def non_leaves(x):
    s, y = x.sum(), x * 1
    return ims.root(lambda z: z + 0.5 * torch.tanh(W @ z) * s - y, Z0).value


def partly_in_args(x):
    return ims.root(lambda z, s: z + 0.5 * torch.tanh(W @ z) * s - x, Z0, (x.sum(),)).value


def in_args_and_captured(x):
    return ims.root(lambda z, y: z + 0.5 * torch.tanh(W @ z) * y.sum() - x, Z0, (x,)).value


def start_and_captured(x):
    return ims.root(lambda z: f(z, x), x).value


def partial(x):
    return ims.root(functools.partial(lambda z, y: f(z, y), y=x), Z0).value


def keyword_partial_of_method(x):
    return ims.root(functools.partial(Cell(x).forward), Z0).value


def module(x):
    return ims.root(Cell(x), Z0).value


def bound_method(x):
    return ims.root(Cell(x).forward, Z0).value


def functional(x):
    cell = Cell(torch.zeros_like(Z0))
    return ims.root(lambda z: functional_call(cell, {"x": x}, (z,)), Z0).value


def default_argument(x):
    return ims.root(lambda z, y=x: f(z, y), Z0).value


def grad_inside(x):
    def scale():
        return grad(lambda u: (u * x.sum() * u).sum() / 2)(torch.ones((), dtype=x.dtype))

    return ims.root(lambda z: z + 0.5 * torch.tanh(W @ z) * scale() - x, Z0).value


def vmap_inside(x):
    def product(z):
        return vmap(lambda row: row @ z * (x * x).sum() / (x * x).sum())(W)

    return ims.root(lambda z: z + 0.5 * torch.tanh(product(z)) * x.sum() - x, Z0).value


def layer_inside(x):
    def total():
        return ims.root(lambda u: u + u**3 - x.sum() - x.sum() ** 3, Z0[:1]).value[0]

    return ims.root(lambda z: z + 0.5 * torch.tanh(W @ z) * total() - x, Z0).value


def layer_inside_with_args(x):
    def total():
        return ims.root(lambda u, t: u + u**3 - t - t**3, Z0[:1], (x.sum(),)).value[0]

    return ims.root(lambda z: z + 0.5 * torch.tanh(W @ z) * total() - x, Z0).value


def layer_inside_that_captures_the_unknown(x):
    def same(z):
        return ims.root(lambda u: u + u**3 - z - z**3, Z0).value

    return ims.root(lambda z: z + 0.5 * torch.tanh(W @ same(z)) * x.sum() - x, Z0).value


def minimum_inside(x):
    def same(z):
        return ims.minimize(lambda u: ((u - z) ** 2).sum() * (1 + x[0] ** 2), Z0).value

    return ims.root(lambda z: z + 0.5 * torch.tanh(W @ same(z)) * x.sum() - x, Z0).value


def linear_solve_inside(x):
    def same(v):
        s = 1 + x.sum() ** 2
        A = ims.FunctionOperator(lambda v: v * s, like=Z0)
        return ims.linear_solve(A, v * s).value

    return ims.root(lambda z: z + 0.5 * torch.tanh(same(W @ z)) * x.sum() - x, Z0).value


def fixed_point(x):
    return ims.fixed_point(lambda z: x - 0.5 * torch.tanh(W @ z) * x.sum(), Z0).value


def least_squares(x):
    return ims.least_squares(lambda z: f(z, x), Z0).value


def attached(x):
    return ims.attach(lambda z: f(z, x), reference(x).detach())


CASES = [
    closure,
    non_leaves,
    partly_in_args,
    in_args_and_captured,
    start_and_captured,
    partial,
    keyword_partial_of_method,
    module,
    bound_method,
    functional,
    default_argument,
    grad_inside,
    vmap_inside,
    layer_inside,
    layer_inside_with_args,
    layer_inside_that_captures_the_unknown,
    minimum_inside,
    linear_solve_inside,
    fixed_point,
    least_squares,
    attached,
]
cases = pytest.mark.parametrize("solve", CASES, ids=lambda fn: fn.__name__)


def cube(fn):
    return lambda x: (fn(x) ** 3).sum()


def agree(a, b):
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@cases
def test_plain_autograd(solve):
    gradients = []
    for fn in (solve, reference):
        x = X.clone().requires_grad_()
        (first,) = torch.autograd.grad(cube(fn)(x), x, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), x)
        gradients.append((first.detach(), second))
    agree(gradients[0][0], gradients[1][0])
    agree(gradients[0][1], gradients[1][1])


@cases
def test_transforms(solve):
    ours, ref = cube(solve), cube(reference)
    v = torch.tensor([0.3, -1.0, 0.5], dtype=X.dtype)
    agree(grad(ours)(X), grad(ref)(X))
    agree(jvp(solve, (X,), (v,))[1], jvp(reference, (X,), (v,))[1])
    agree(vjp(solve, X)[1](v)[0], vjp(reference, X)[1](v)[0])
    agree(vmap(solve)(MANY_X), vmap(reference)(MANY_X))
    agree(hessian(ours)(X), hessian(ref)(X))
    for inner, outer in itertools.product((jacfwd, jacrev), repeat=2):
        agree(outer(inner(ours))(X), outer(inner(ref))(X))
    agree(vmap(grad(ours))(MANY_X), vmap(grad(ref))(MANY_X))
    agree(vmap(hessian(ours))(MANY_X), vmap(hessian(ref))(MANY_X))
    batch = MANY_X[:2]
    agree(jacrev(lambda x: vmap(ours)(x).sum())(batch), jacrev(lambda x: vmap(ref)(x).sum())(batch))
    agree(jacfwd(lambda x: vmap(ours)(x).sum())(batch), jacfwd(lambda x: vmap(ref)(x).sum())(batch))


@cases
def test_gradcheck(solve):
    x = X.clone().requires_grad_()
    assert gradcheck(
        solve, (x,), check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert gradgradcheck(solve, (x,), check_fwd_over_rev=True, check_rev_over_rev=True)


def test_parameters_of_a_module_get_gradients():
    linear = nn.Linear(3, 3).double()
    nn.init.orthogonal_(linear.weight, 0.5)
    sol = ims.fixed_point(lambda z: torch.tanh(linear(z)) + X, Z0)
    sol.value.sum().backward()
    ours = [p.grad.clone() for p in linear.parameters()]
    linear.zero_grad()
    z = Z0
    for _ in range(200):
        z = torch.tanh(linear(z)) + X
    z.sum().backward()
    for mine, unrolled in zip(ours, linear.parameters(), strict=True):
        agree(mine, unrolled.grad)


def test_a_branch_that_only_the_solution_takes_is_found():
    x = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    y = torch.tensor(1.25, dtype=torch.float64, requires_grad=True)

    def branches(z):
        # at the start z = 0 the first branch reads x alone
        return z - x if bool(z < 1) else z - x * y

    z = ims.root(branches, torch.zeros((), dtype=torch.float64)).value
    gx, gy = torch.autograd.grad(z, (x, y))
    assert (float(gx), float(gy)) == pytest.approx((1.25, 2.0))


def test_captured_tensor_as_the_argument_of_an_inner_transform_is_right_or_an_error():
    def solve(x):
        return ims.root(lambda z: z - grad(lambda u: (u**3).sum() / 3)(x), Z0).value

    x = X.clone().requires_grad_()
    (g,) = torch.autograd.grad(solve(x).sum(), x)
    agree(g, 2 * X)
    with pytest.raises(RuntimeError, match="pass it in args"):
        torch.autograd.grad(solve(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="pass it in args"):
        grad(lambda x: solve(x).sum())(X)


def test_a_capture_that_cannot_be_seen_is_right_or_an_error():
    class Times(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z, x):
            ctx.save_for_backward(z, x)
            return z * x

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, g):
            z, x = ctx.saved_tensors
            return g * x, g * z

    Times.forward = staticmethod(lambda z, x: z * x)
    Times.setup_context = staticmethod(lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
    x = X.clone().requires_grad_()
    z = ims.root(lambda z: Times.apply(z, x) - 1, Z0).value
    agree(torch.autograd.grad(z.sum(), x, retain_graph=True)[0], -1 / X**2)
    with pytest.raises(RuntimeError, match="pass it in args"):
        torch.autograd.grad(z.sum(), x, create_graph=True)


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


def test_a_variable_replaced_before_the_backward_pass():
    holder = {"w": torch.tensor(0.5, dtype=torch.float64, requires_grad=True)}
    old = holder["w"]
    z = ims.fixed_point(lambda z: holder["w"] * torch.cos(z), torch.zeros_like(old)).value
    holder["w"] = torch.tensor(0.7, dtype=torch.float64)
    (g,) = torch.autograd.grad(z, old, retain_graph=True)
    z = z.detach()
    agree(g, torch.cos(z) / (1 + 0.5 * torch.sin(z)))


def test_a_variable_replaced_before_a_second_derivative_is_an_error():
    holder = {"w": torch.tensor(0.5, dtype=torch.float64, requires_grad=True)}
    old = holder["w"]
    z = ims.fixed_point(lambda z: holder["w"] * torch.cos(z), torch.zeros_like(old)).value
    holder["w"] = torch.tensor(0.7, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="does not read a tensor any more"):
        torch.autograd.grad(z, old, create_graph=True)


def test_batch_norm_in_evaluation_mode():
    norm = nn.BatchNorm1d(3).double().eval()
    norm.running_mean.copy_(X)

    def solve(x):
        return ims.fixed_point(lambda z: 0.3 * torch.tanh(norm(z)) + x, torch.zeros_like(x)).value

    def loop(x):
        z = torch.zeros_like(x)
        for _ in range(60):
            z = 0.3 * torch.tanh(norm(z)) + x
        return z

    agree(grad(lambda x: solve(x).sum())(MANY_X), grad(lambda x: loop(x).sum())(MANY_X))


def test_batched_statistics_need_no_derivative():
    def solve(mean, x):
        def cell(z, x):
            return 0.3 * torch.tanh(nn.functional.batch_norm(z, mean, torch.ones_like(mean))) + x

        return ims.fixed_point(cell, torch.zeros_like(x), (x,)).value.sum()

    each = vmap(grad(solve, argnums=1), (0, None))(MANY_X, MANY_X)
    alone = torch.stack([grad(solve, argnums=1)(mean, MANY_X) for mean in MANY_X])
    agree(each, alone)
