"""Errors injected into the library's rules, one at a time: each is caught, and its cause named."""

from dataclasses import replace

import pytest
import torch

import implicit_solvers as ims
from implicit_solvers import differentiate, driver, nonlinear_least_squares
from implicit_solvers.autodiff import vjp
from implicit_solvers.linear import lane_solve
from implicit_solvers.testing import check_implicit_gradients

DOUBLE = torch.float64
QUICK = {"order": 1, "vmap": False, "starts": 0}
W = torch.tensor([[0.3, -0.5, 0.1], [0.6, 0.1, -0.4], [-0.1, 0.3, 0.2]], dtype=DOUBLE)
X = torch.tensor([0.4, -0.7, 0.9], dtype=DOUBLE)
MANY_X = torch.tensor([[0.4, -0.7, 0.9], [-0.3, 0.5, 0.2], [0.8, 0.1, -0.6]], dtype=DOUBLE)


def coupled(z, x):
    return z + torch.tanh(W @ z) - x


def mixture(z, x, theta=1.0):  # theta is shared by the lanes of z and x
    return z + torch.tanh(z @ W.T * theta) - x


def decay(z, y):
    t = torch.arange(4.0, dtype=DOUBLE)
    return z[0] * torch.exp(-z[1] * t) - y


WEIGHT = W.clone().requires_grad_()
THETA = torch.tensor(0.8, dtype=DOUBLE)


def captures(z, x):
    return z + 0.5 * torch.tanh(WEIGHT @ (z + x)) - x


def check(fn, start, args, **options):
    return check_implicit_gradients(fn, start, args, **{**QUICK, **options})


def check_root(fn=coupled, **options):
    return check(fn, torch.zeros(3, dtype=DOUBLE), (X,), **options)


def check_lanes(*theta, **options):
    lanes = {"batch_dims": 1, "in_dims": (0, None)[: 1 + len(theta)]}
    return check(mixture, torch.zeros_like(MANY_X), (MANY_X, *theta), **lanes, **options)


def check_fit(**options):
    start = torch.tensor([1.0, 0.3], dtype=DOUBLE)
    y = torch.tensor([1.0, 0.7, 0.2, 0.4], dtype=DOUBLE)
    return check(decay, start, (y,), kind="least_squares", **options)


def failed(report):
    return {entry.check for entry in report.failures}


def test_nothing_is_found_where_nothing_is_injected():
    for report in (
        *(check_root(), check_root(captures), check_root(captures, vmap=True)),
        *(check_lanes(), check_lanes(THETA), check_fit()),
    ):
        assert report.passed, str(report)
        assert all(entry.result != "warning" for entry in report.entries), str(report)


# -- errors, as replacements of an attribute: a function of the original --------------------------

BACKWARD = (differentiate.Attach, "backward")
CONNECTED = (driver, "evaluate_connected")  # what plain autograd goes back through


def backward(change):
    """Return an error of the backward pass: ``change(gradients, cotangent)``."""
    return lambda old: staticmethod(lambda ctx, gz: tuple(change(old(ctx, gz), gz)))


def leaky(old):
    return staticmethod(lambda ctx, gz: old(ctx, gz if gz.dim() < 2 else gz + gz.roll(1, 0)))


def forgetful(old):
    def evaluate(*arguments):  # a graph that does not lead to what is captured
        WEIGHT.requires_grad_(False)
        try:
            return old(*arguments)
        finally:
            WEIGHT.requires_grad_(True)

    return evaluate


def averaged(old):
    def evaluate(fn, inputs, *names):
        def mean(t):  # the value of t, with its gradient over the number of lanes
            return t if t.dim() else t.detach() + (t - t.detach()) / len(inputs[0])

        return old(lambda z, *tensors: fn(z, *map(mean, tensors)), inputs, *names)

    return evaluate


def averaged_captured(grads, gz):
    # the captured tensor is the last operand
    return grads if gz.dim() < 2 else (*grads[:-1], grads[-1] / len(gz))


def stale(old):
    def solve(solver, A, b, factors, *rest):
        z, *others = A.tensors
        earlier = replace(A, graph=None, tensors=[0 * z, *others])
        return old(solver, earlier, b, solver.factor(earlier), *rest)

    return solve


def gauss_newton(old):
    def condition(self, z, *operands):
        # J at z is held fixed: the Jacobian of the condition is J^T J alone
        _, pull = vjp(lambda u: self.fn(u, *operands), z.detach())
        return pull(self.fn(z, *operands))[0]

    return condition


TRANSPOSE = ((differentiate.AttachSpec, "linear"), lambda old: lambda spec, _: old(spec, False))
BOTH = {"reverse mode", "forward mode"}
# what is replaced, the check, the comparisons that must fail, whether no other may, and the cause
INJECTED = {
    "an adjoint that is not transposed": (
        *TRANSPOSE, check_root, {"reverse mode"}, True, "disagree by a transpose"
    ),
    "a dropped sign": (
        BACKWARD, backward(lambda grads, _: (None if g is None else -g for g in grads)),
        check_root, {"reverse mode"}, True, "sign is dropped",
    ),
    "a stale factorization": (
        (lane_solve, "solve_directly"), stale,
        lambda: check_root(solver=ims.Newton(rtol=1e-7, atol=1e-7)), BOTH, False,
        "stale factorization",
    ),
    "a cotangent added to another lane's": (
        BACKWARD, leaky, check_lanes, {"reverse mode", "lane 0 unused"}, False, "lanes leak"
    ),
    "the same, under vmap": (
        BACKWARD, leaky, lambda: check_root(vmap=True), {"reverse of vmap"}, False, "lanes leak"
    ),
    "Gauss-Newton": (
        (nonlinear_least_squares.LeastSquaresEquation, "condition"), gauss_newton, check_fit, BOTH,
        False, "Gauss-Newton instead of the full Hessian",
    ),
    "an unconverged solve, reported as converged": (
        (driver, "iterate"), lambda old: lambda solver, *of: old(replace(solver, rtol=1e-2), *of),
        check_root,
        {"residual"}, False, "not converged",
    ),
    "a cotangent that is detached": (
        BACKWARD, lambda old: staticmethod(lambda ctx, gz: old(ctx, gz.detach())),
        lambda: check_root(order=2), {"double backward"}, False, "cotangent detached in backward",
    ),
    "a derivative of infinity": (
        BACKWARD, backward(lambda grads, _: (None if g is None else g * torch.inf for g in grads)),
        check_root, {"reverse mode"}, True, "the derivative is not finite",
    ),
    "forward mode that returns zero": (
        (differentiate.Attach, "jvp"),
        lambda old: staticmethod(lambda ctx, *_: torch.zeros_like(ctx.saved_tensors[0])),
        check_root, {"forward mode"}, True, "forward mode returns zero for args[0] (x)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INJECTED)
def test_an_injected_error_is_named(monkeypatch, name):
    (owner, attribute), error, run, wanted, alone, cause = INJECTED[name]
    monkeypatch.setattr(owner, attribute, error(getattr(owner, attribute)))
    report = run()
    assert wanted <= failed(report) and (wanted == failed(report) or not alone), str(report)
    assert all(cause in found for found in report.causes), str(report)


# the same, for errors that are seen in one tensor alone
OF_ONE = {
    "a captured tensor that is dropped": (
        CONNECTED, forgetful, lambda: check_root(captures),
        ("reverse mode", "captured WEIGHT"), "captured WEIGHT gets no gradient",
    ),
    "a mean over lanes": (
        CONNECTED, averaged, lambda: check_lanes(THETA),
        ("reverse mode", "args[1] (theta)"), "are means, and should be sums",
    ),
    "a mean over the lanes of vmap": (
        BACKWARD, backward(averaged_captured), lambda: check_root(captures, vmap=True),
        ("reverse of vmap", "captured WEIGHT"), "averaged over the lanes",
    ),
    # failed lanes are multiplied by zero instead of being left out: zero times NaN is NaN
    "a lane of NaN that reaches the others": (
        (differentiate.AttachSpec, "masked"), lambda old: property(lambda spec: False),
        lambda: check_root(captures, vmap=True), ("NaN lane", "captured WEIGHT"), "lanes leak",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_ONE)
def test_an_error_in_one_tensor_is_named(monkeypatch, name):
    (owner, attribute), error, run, place, cause = OF_ONE[name]
    monkeypatch.setattr(owner, attribute, error(getattr(owner, attribute)))
    report = run()
    assert place in {(e.check, e.of) for e in report.failures}, str(report)
    assert {e.of for e in report.failures} == {place[1]} or place[0] == "NaN lane", str(report)
    # beside a lane that failed a gradient takes another path, which is right
    checks = {e.check for e in report.failures}
    assert checks <= {place[0], "NaN lane"} or "vmap" in place[0], str(report)
    assert cause in report.causes[0]
    if "dropped" in name:
        assert "pass the tensor in args" in report.failures[0].change


# -- errors of layers that somebody else wrote, with the equation that they are to solve ---------


def solved(x):
    return ims.root(coupled, torch.zeros_like(x), (x,)).value


def jacobian(z):
    return torch.eye(3, dtype=DOUBLE) + (1 - torch.tanh(W @ z) ** 2).unsqueeze(-1) * W


class Doubled(torch.autograd.Function):
    """A tensor whose gradient is twice what it should be."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def test_a_wrong_derivative_of_what_a_module_s_function_captures():
    layer = ims.nn.Root(lambda z, x: coupled(z, x) + 0.1 * Doubled.apply(WEIGHT) @ z)
    report = check(layer, None, (X,), forward=False)
    assert {e.of for e in report.failures} == {"df/d captured WEIGHT", "captured WEIGHT"}, str(
        report
    )


class Detached(torch.autograd.Function):
    """A rule that is right to first order, and whose backward is not differentiable."""

    @staticmethod
    def forward(ctx, x):
        z = solved(x).detach()
        ctx.save_for_backward(z)
        return z

    @staticmethod
    def backward(ctx, g):
        return torch.linalg.solve(jacobian(ctx.saved_tensors[0].detach()).mT, g)


def one_newton_step(x):
    """Return the solution by the trick that is right to first order alone."""
    z = solved(x).detach()
    return z - torch.linalg.inv(jacobian(z)) @ coupled(z, x)


@pytest.mark.parametrize("layer", [Detached.apply, one_newton_step], ids=["Function", "step"])
def test_a_second_derivative_that_drops_terms(layer):
    report = check_implicit_gradients(
        layer, None, (X,), equation=coupled, forward=False, vmap=False
    )
    assert failed(report) == {"double backward"}, str(report)
    assert "first derivative is right and its own derivative is not" in report.causes[0] or (
        "the derivative of the first derivative is zero" in report.causes[0]
    )


def test_a_second_derivative_of_infinity():
    class Overflowing(Detached):
        @staticmethod
        def backward(ctx, g):
            zero = (g - g.detach()).abs().sqrt()  # with an infinite derivative
            return torch.linalg.solve(jacobian(ctx.saved_tensors[0]).mT, g) + zero

    report = check_implicit_gradients(
        Overflowing.apply, None, (X,), equation=coupled, forward=False, vmap=False
    )
    assert failed(report) == {"double backward"}, str(report)
    assert report.causes[0].startswith("the derivative is not finite")


def test_a_symmetric_adjoint_solver_for_a_nonsymmetric_operator():
    class Cholesky(Detached):
        @staticmethod
        def backward(ctx, g):
            # reads the lower triangle
            factor = torch.linalg.cholesky(jacobian(ctx.saved_tensors[0]))
            return torch.cholesky_solve(g.unsqueeze(-1), factor).squeeze(-1)

    report = check_implicit_gradients(
        Cholesky.apply, None, (X,), equation=coupled, order=1, forward=False, vmap=False
    )
    assert report.causes[0].startswith("adjoint solver unfit for a nonsymmetric operator")


BIASED = {
    "the inverse of the Jacobian is left out": ims.OneStepAdjoint(),
    "a truncated Neumann series of 3 terms": ims.ImplicitAdjoint(
        ims.Neumann(max_steps=3, rtol=None)
    ),
    "the adjoint's linear solve (GMRES, 2 steps) ended": ims.ImplicitAdjoint(
        ims.GMRES(max_steps=2, rtol=None)
    ),
}


@pytest.mark.parametrize("cause", BIASED)
def test_the_librarys_biased_adjoints(cause):
    picard = lambda z, x: x - torch.tanh(W @ z)
    report = check_root(picard, kind="fixed_point", adjoint=BIASED[cause])
    assert failed(report) == BOTH
    assert all(cause in found for found in report.causes), str(report)


def test_a_factor_that_was_left_out():
    halved = lambda x: 0.5 * solved(x) + 0.5 * solved(x).detach()

    report = check_implicit_gradients(halved, None, (X,), equation=coupled, order=1, vmap=False)
    assert failed(report) == BOTH
    assert "0.5 times what it should be" in report.causes[0]


def test_without_the_equation_a_square_jacobian_shows_the_transpose(monkeypatch):
    (owner, attribute), error = TRANSPOSE
    monkeypatch.setattr(owner, attribute, error(getattr(owner, attribute)))

    def layer(x):
        return ims.root(lambda z, x: 2 * z + W @ z - x, torch.zeros_like(x), (x,)).value

    report = check_implicit_gradients(layer, None, (X,), order=1, vmap=False)
    assert failed(report) == {"reverse mode"}
    assert "disagree by a transpose" in report.causes[0]
