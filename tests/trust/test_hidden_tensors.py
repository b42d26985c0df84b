"""Functions that hide what they read: a derivative is right, or an error that says what to do."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import grad
from torch.utils.checkpoint import checkpoint

import implicit_solvers as ims

D = torch.float64
ZERO = torch.zeros(3, dtype=D)
_generator = torch.Generator().manual_seed(3)
W = 0.2 * torch.randn(3, 3, dtype=D, generator=_generator)
B = torch.randn(3, dtype=D, generator=_generator)


def tanh_forward(w, z):
    return torch.tanh(w @ z)


def tanh_pullback(w, z, g):
    h = g * (1 - torch.tanh(w @ z) ** 2)
    return torch.outer(h, z), w.T @ h


class OldStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, z):
        ctx.save_for_backward(w, z)
        return tanh_forward(w, z)

    @staticmethod
    def backward(ctx, g):
        return tanh_pullback(*ctx.saved_tensors, g)


class NewStyle(torch.autograd.Function):
    @staticmethod
    def forward(w, z):
        return tanh_forward(w, z)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return tanh_pullback(*ctx.saved_tensors, g)


@torch.library.custom_op("implicit_solvers_tests::cell", mutates_args=())
def with_formula(w: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return tanh_forward(w, z)


with_formula.register_autograd(
    lambda ctx, g: tanh_pullback(*ctx.saved_tensors, g),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


@torch.library.custom_op("implicit_solvers_tests::opaque", mutates_args=())
def without_formula(w: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return tanh_forward(w, z)


def energy(w, b, z):
    # its gradient in z is w^T tanh(w z) - b
    with torch.enable_grad():
        u = z if z.requires_grad else z.detach().requires_grad_()
        E = torch.log(torch.cosh(w @ u)).sum() - b @ u
        return torch.autograd.grad(E, u, create_graph=True)[0]


def bare_energy(w, b, z):
    u = z if z.requires_grad else z.detach().requires_grad_()
    E = torch.log(torch.cosh(w @ u)).sum() - b @ u
    return torch.autograd.grad(E, u, create_graph=True)[0]


def plain_energy(w, b, z):
    return w.T @ torch.tanh(w @ z) - b


def plain(w, b, z):
    return torch.tanh(w @ z) + b


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(W.clone()), nn.Parameter(B.clone())

    def forward(self, z):
        return plain(self.w, self.b, z)


def checkpointed(w, b, z):
    return checkpoint(lambda z: plain(w, b, z), z, use_reentrant=False)


# what stands inside: the map of captured w and b, and the same map in plain operations
INSIDE = {
    "old autograd.Function": (lambda w, b, z: OldStyle.apply(w, z) + b, plain),
    "new autograd.Function": (lambda w, b, z: NewStyle.apply(w, z) + b, plain),
    "custom_op": (lambda w, b, z: with_formula(w, z) + b, plain),
    "checkpoint": (checkpointed, plain),
    "autograd.grad": (energy, plain_energy),
    "autograd.grad alone": (bare_energy, plain_energy),
}
SOLVERS = [None, ims.Newton(), ims.Broyden(), ims.FixedPointIteration()]


def unrolled(fn, w, b):
    z = ZERO
    for _ in range(100):
        z = fn(w, b, z)
    return torch.autograd.grad(z.square().sum(), (w, b))


def parameters():
    return W.clone().requires_grad_(), B.clone().requires_grad_()


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", INSIDE)
def test_what_hides_a_tensor_is_differentiated(name, solver):
    fn, reference = INSIDE[name]
    w, b = parameters()
    z = ims.fixed_point(lambda z: fn(w, b, z), ZERO, solver=solver).value
    found = torch.autograd.grad(z.square().sum(), (w, b))
    for mine, exact in zip(found, unrolled(reference, w, b), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-8, atol=1e-10)  # the solver's rtol


@pytest.mark.parametrize("name", ["old autograd.Function", "custom_op"])
def test_what_hides_a_tensor_in_args_and_in_batches(name):
    fn, reference = INSIDE[name]
    w, b = parameters()
    z = ims.fixed_point(lambda z, w, b: fn(w, b, z), ZERO, (w, b), solver=ims.Newton()).value
    found = torch.autograd.grad(z.square().sum(), (w, b))
    for mine, exact in zip(found, unrolled(reference, w, b), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-8, atol=1e-10)


def test_a_reentrant_checkpoint():
    w, b = parameters()

    def fn(z):
        z = z if z.requires_grad or not torch.is_grad_enabled() else z.clone().requires_grad_()
        return checkpoint(lambda z: plain(w, b, z), z, use_reentrant=True)

    z = ims.fixed_point(fn, ZERO).value
    assert w.grad is None  # a solve leaves no gradients behind
    z.square().sum().backward()
    for mine, exact in zip((w.grad, b.grad), unrolled(plain, w, b), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-8, atol=1e-10)


def script(cell):
    return torch.jit.script(cell)


def trace(cell):
    return torch.jit.trace(cell, torch.zeros(3, dtype=D))


def compiled(cell):
    return torch.compile(cell, backend="eager")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("convert", [script, trace, compiled], ids=lambda c: c.__name__)
def test_a_converted_module(convert):
    cell = Cell()
    module = convert(cell)
    held = list(module.parameters())
    z = ims.fixed_point(module, ZERO).value
    found = torch.autograd.grad(z.square().sum(), held)
    for mine, exact in zip(found, unrolled(plain, cell.w, cell.b), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-8, atol=1e-10)


def test_a_custom_op_without_a_formula_is_refused():
    w, b = parameters()
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        ims.fixed_point(lambda z: without_formula(w, z) + b, ZERO).value.sum().backward()


DETOURS = {
    "numpy": lambda w, z: torch.from_numpy(np.tanh((w @ z).detach().numpy())),
    "dlpack": lambda w, z: torch.from_dlpack(torch.tanh(w @ z).detach()),
}


@pytest.mark.parametrize("detour", DETOURS)
def test_a_detour_is_a_constant_as_in_torch(detour):
    w, b = parameters()
    z = ims.fixed_point(lambda z: DETOURS[detour](w, z) + b, ZERO).value
    # the map is z -> constant + b
    (g,) = torch.autograd.grad(z.sum(), b, retain_graph=True)
    torch.testing.assert_close(g, torch.ones(3, dtype=D))
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(
            ims.fixed_point(lambda z: DETOURS[detour](w, z) + b, ZERO).value.sum(), w
        )


def second(w, b, fn):
    z = ims.fixed_point(lambda z: fn(w, b, z), ZERO).value
    (g,) = torch.autograd.grad(z.square().sum(), w, create_graph=True)
    return torch.autograd.grad(g.square().sum(), w)[0]


@pytest.mark.parametrize("name", ["checkpoint", "autograd.grad", "custom_op"])
def test_second_order_through_what_is_seen(name):
    fn, reference = INSIDE[name]
    w, b = parameters()
    torch.testing.assert_close(second(w, b, fn), second(w, b, reference), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["old autograd.Function", "new autograd.Function"])
def test_second_order_through_what_is_hidden_is_an_error(name):
    w, b = parameters()
    with pytest.raises(RuntimeError, match="pass it in args"):
        second(w, b, INSIDE[name][0])


@pytest.mark.parametrize("name", INSIDE)
def test_second_order_in_args(name):
    def value(w, fn):
        return ims.fixed_point(lambda z, w: fn(w, B, z), ZERO, (w,)).value

    found = []
    for fn in INSIDE[name]:
        w = W.clone().requires_grad_()
        (g,) = torch.autograd.grad(value(w, fn).square().sum(), w, create_graph=True)
        found.append(torch.autograd.grad(g.square().sum(), w)[0])
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", [n for n in INSIDE if n != "new autograd.Function"])
@pytest.mark.parametrize("captured", [False, True], ids=["args", "captured"])
def test_a_transform_that_cannot_go_through_says_so(name, captured):
    fn = INSIDE[name][0]

    def value(w):
        if captured:
            return ims.fixed_point(lambda z: fn(w, B, z), ZERO).value.sum()
        return ims.fixed_point(lambda z, w: fn(w, B, z), ZERO, (w,)).value.sum()

    with pytest.raises(RuntimeError, match=r"plain backward\(\) can"):
        grad(value)(W)


def test_a_function_with_setup_context_under_a_transform():
    fn, reference = INSIDE["new autograd.Function"]
    slopes = [
        grad(lambda w, f=f: ims.fixed_point(lambda z, w: f(w, B, z), ZERO, (w,)).value.sum())(W)
        for f in (fn, reference)
    ]
    torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-10)
    with pytest.raises(RuntimeError, match="pass it in args"):
        grad(lambda w: ims.fixed_point(lambda z: fn(w, B, z), ZERO).value.sum())(W)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("convert", [script, trace], ids=lambda c: c.__name__)
def test_a_scripted_module_beyond_first_order_is_an_error(convert):
    module = convert(Cell())
    w = next(iter(module.parameters()))
    z = ims.fixed_point(module, ZERO).value
    with pytest.raises(RuntimeError, match="pass it in args"):
        torch.autograd.grad(z.sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match="pass it in args"):
        grad(lambda x: ims.fixed_point(lambda z: module(z) * x, ZERO).value.sum())(0.9 * ZERO[0])


def test_a_masked_lane_with_a_hidden_tensor_is_an_error():
    w = torch.tensor([0.5], dtype=D, requires_grad=True)

    class Times(torch.autograd.Function):
        @staticmethod
        def forward(ctx, w, z):
            ctx.save_for_backward(w, z)
            return w * z

        @staticmethod
        def backward(ctx, g):
            w, z = ctx.saved_tensors
            return (g * z).sum(0), g * w

    x = torch.tensor([[1.0], [float("nan")]], dtype=D)
    fn, start = lambda z, x: Times.apply(w, z) + x, torch.zeros(2, 1, dtype=D)
    z = ims.fixed_point(fn, start, (x,), batch_dims=1, in_dims=0, on_failure="mask").value
    with pytest.raises(RuntimeError, match='on_failure="mask"'):
        z.nansum().backward()


def test_what_depends_on_nothing_has_no_graph():
    assert not ims.root(lambda z, b: z - b, ZERO, (B,)).value.requires_grad
    assert not ims.fixed_point(lambda z: plain(W, B, z), ZERO).value.requires_grad
