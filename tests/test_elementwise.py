"""Functions given by their partial derivatives: every composition, and what is refused."""

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import implicit_solvers as ims
from tests.cases import MANY_P, MODES, P, assert_agree, check_gradients


def as_elementwise(order):
    """Return g(x, y) = exp(x) sin(y), which can be differentiated ``order`` times."""
    if order < 0:
        return None
    # its partial derivatives: g itself, and g with y moved by a quarter of a turn
    inner = as_elementwise(order - 1)
    partials = None
    if inner is not None:
        partials = lambda v, x, y: [v, lambda: inner(x, y + torch.pi / 2)]
    return ims.elementwise_function(lambda x, y: x.exp() * y.sin(), partials, name="wave")


rotate = ims.elementwise_function(
    lambda r, t: (r * t.cos(), r * t.sin()),
    lambda v, r, t: [(v[0] / r, v[1] / r), lambda: (-v[1], v[0])],
)
wave = as_elementwise(3)


def wave_oracle(x, y):
    return x.exp() * y.sin()


def rotate_oracle(r, t):
    return r * t.cos(), r * t.sin()


def mixed(fn_wave, fn_rotate):
    """Return a scalar of the functions whose derivatives mix all entries."""

    def scalar(p):
        # not 1.5 + p[0] ** 2: torch makes a float64 tangent of a 0-d float32 tensor plus a number
        u, v = fn_rotate(1.5 + p[:1] ** 2, p)
        w = fn_wave(p * p[1], p.sum())
        return (u * v * w).sum() + w.sum() ** 2 + u.sum() * v.prod()

    return scalar


ours, oracle = mixed(wave, rotate), mixed(wave_oracle, rotate_oracle)


@pytest.mark.parametrize("mode", MODES)
def test_mode(mode):
    # no solve: a few roundings
    assert_agree(ours, oracle, [mode], 1e-11)


@pytest.mark.parametrize("function", [wave, rotate], ids=["one output", "two outputs"])
def test_gradcheck(function):
    check_gradients(function, MANY_P.abs(), P)


def test_arguments_are_broadcast_and_promoted():
    x, y = torch.rand(2, 1, 3), torch.rand(4, 1, dtype=torch.float64)
    out = wave(x, y)
    assert out.shape == (2, 4, 3) and out.dtype == torch.float64
    torch.testing.assert_close(out, wave_oracle(x.double(), y))
    gx, gy = grad(lambda x, y: wave(x, y).sum(), argnums=(0, 1))(x, y)
    assert gx.shape == x.shape and gx.dtype == x.dtype
    assert gy.shape == y.shape and gy.dtype == y.dtype
    assert wave(x, 0.5).dtype == torch.float32
    torch.testing.assert_close(wave(1, x), wave_oracle(torch.ones_like(x), x))
    assert wave(torch.rand(0, 3), torch.rand(3)).shape == (0, 3)
    lanes = torch.rand(3, 5)
    batched = vmap(wave, in_dims=(None, 1), out_dims=1)(x[:, 0], lanes)
    torch.testing.assert_close(batched, wave_oracle(x[:, :1], lanes.T))


def test_only_what_is_needed_is_computed():
    calls = []

    def entry(label, value):
        return lambda: (calls.append(label), value)[1]

    f = ims.elementwise_function(lambda x, y: x * y, lambda v, x, y: [entry("x", y), entry("y", x)])
    x, y = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0)
    f(x, y).backward()
    assert calls == ["x"] and x.grad == 3
    jvp(lambda y: f(torch.tensor(2.0), y), (y,), (torch.ones(()),))
    assert calls == ["x", "y"]


def test_a_graph_that_is_pulled_back_again_and_again_computes_its_slopes_twice():
    calls = []
    square = ims.elementwise_function(
        lambda x, y: x**2 * y, lambda v, x, y: [lambda: (calls.append("x"), 2 * x * y)[1], x**2]
    )
    x, y = torch.tensor(3.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    value = square(x, y)
    pulled = [torch.autograd.grad(value, x, k * value, retain_graph=True)[0] for k in range(5)]
    assert calls == ["x"] * 2 and [float(g) for g in pulled] == [216.0 * k for k in range(5)]
    # of other arguments, or to be differentiated again, they are computed anew
    assert torch.autograd.grad(value, [x, y], retain_graph=True) == (12.0, 9.0)
    slope = torch.autograd.grad(value, x, create_graph=True)[0]
    assert torch.autograd.grad(slope, x) == (4.0,)


def test_none_is_a_derivative_of_zero():
    f = ims.elementwise_function(lambda x, y: x * x + 0 * y, lambda v, x, y: [2 * x, None])
    x, y = torch.tensor(2.0), torch.tensor(3.0)
    assert grad(f, argnums=1)(x, y) == 0
    assert jvp(f, (x, y), (torch.ones(()), torch.ones(())))[1] == 4
    assert jvp(lambda y: f(x, y), (y,), (torch.ones(()),))[1] == 0


def test_an_output_that_is_not_used_adds_nothing():
    f = ims.elementwise_function(
        lambda x: (x * x, x.sqrt()), lambda v, x: [(2 * x, 0.5 / x.sqrt())]
    )
    x = torch.zeros((), requires_grad=True)
    f(x)[0].backward()  # the other derivative is infinite
    assert x.grad == 0


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("one_more", [jacrev, jacfwd], ids=["reverse", "forward"])
def test_a_derivative_that_is_not_available_is_an_error(order, one_more):
    f = as_elementwise(order)
    g = lambda y: f(P[0], y)
    reference = lambda y: wave_oracle(P[0], y)
    for _ in range(order):
        g, reference = one_more(g), one_more(reference)
    torch.testing.assert_close(g(P[1]), reference(P[1]))
    with pytest.raises(NotImplementedError, match="wave has no derivative"):
        one_more(g)(P[1])


def test_float32():
    for modes in (jacrev, jacfwd, hessian):
        mine = modes(ours)(P.float())
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), modes(oracle)(P), rtol=1e-4, atol=1e-4)


def test_an_input_that_is_nan_touches_no_other():
    x = torch.tensor([0.5, float("nan"), 1.0], dtype=torch.float64)
    for fn in (grad(lambda x: wave(x, x).sum()), lambda x: hessian(wave)(x[0], x[2])):
        whole, clean = fn(x), fn(x.nan_to_num(0.7))
        keep = ~x.isnan() if whole.dim() else torch.tensor(True)
        torch.testing.assert_close(whole[keep], clean[keep])
