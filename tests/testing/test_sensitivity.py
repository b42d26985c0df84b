"""Errors injected into the library's rules, one at a time: each is caught, and its cause named."""

import pytest
import torch

import implicit_solvers as ims
from implicit_solvers import differentiate, driver, nonlinear_least_squares
from implicit_solvers.autodiff import vjp
from implicit_solvers.capture import Captured
from implicit_solvers.linear import lane_solve
from implicit_solvers.problem import EquationProblem
from implicit_solvers.testing import check_implicit_gradients

DOUBLE = torch.float64
W = torch.tensor([[0.3, -0.5, 0.1], [0.6, 0.1, -0.4], [-0.1, 0.3, 0.2]], dtype=DOUBLE)
X = torch.tensor([0.4, -0.7, 0.9], dtype=DOUBLE)
MANY_X = torch.tensor([[0.4, -0.7, 0.9], [-0.3, 0.5, 0.2], [0.8, 0.1, -0.6]], dtype=DOUBLE)


def coupled(z, x):
    return z + torch.tanh(W @ z) - x


def mixture(z, x):
    return z + torch.tanh(z @ W.T) - x


def shared(z, x, theta):  # theta is shared by the lanes of z and x
    return z + torch.tanh(z @ W.T * theta) - x


def decay(z, y):
    t = torch.arange(4.0, dtype=DOUBLE)
    return z[0] * torch.exp(-z[1] * t) - y


def check_root(**options):
    options = {"order": 1, "vmap": False, "starts": 0, **options}
    return check_implicit_gradients(coupled, torch.zeros(3, dtype=DOUBLE), (X,), **options)


def check_lanes(fn=mixture, args=(MANY_X,), in_dims=(0,), **options):
    options = {"order": 1, "vmap": False, "starts": 0, **options}
    start = torch.zeros_like(MANY_X)
    return check_implicit_gradients(fn, start, args, batch_dims=1, in_dims=in_dims, **options)


def check_fit(**options):
    options = {"order": 1, "vmap": False, "starts": 0, **options}
    start = torch.tensor([1.0, 0.3], dtype=DOUBLE)
    y = torch.tensor([1.0, 0.7, 0.2, 0.4], dtype=DOUBLE)
    return check_implicit_gradients(decay, start, (y,), kind="least_squares", **options)


def failed(report):
    return {entry.check for entry in report.failures}


def test_nothing_is_found_where_nothing_is_injected():
    theta = torch.tensor(0.8, dtype=DOUBLE)
    for report in (
        check_root(),
        check_lanes(),
        check_lanes(shared, (MANY_X, theta), (0, None)),
        check_fit(),
    ):
        assert report.passed, str(report)
        assert all(entry.result != "warning" for entry in report.entries), str(report)


def test_an_adjoint_that_is_not_transposed(monkeypatch):
    original = differentiate.AttachSpec.linear
    monkeypatch.setattr(
        differentiate.AttachSpec, "linear", lambda spec, transposed: original(spec, False)
    )
    report = check_root()
    assert failed(report) == {"reverse mode"}
    assert "disagree by a transpose" in report.causes[0]


def test_a_dropped_sign(monkeypatch):
    original = differentiate.Attach.backward

    def flipped(ctx, gz):
        return tuple(None if g is None else -g for g in original(ctx, gz))

    monkeypatch.setattr(differentiate.Attach, "backward", staticmethod(flipped))
    report = check_root()
    assert failed(report) == {"reverse mode"}
    assert "sign is dropped" in report.causes[0]


def test_a_stale_factorization(monkeypatch):
    def trusting(A, b, solve, most=8):
        x = solve(b)
        good = torch.ones(len(b), dtype=torch.bool)
        return x, good, good.long(), torch.zeros(len(b), dtype=b.dtype)

    monkeypatch.setattr(lane_solve, "_refine", trusting)
    report = check_root(solver=ims.Newton(rtol=1e-7, atol=1e-7))
    assert {"reverse mode", "forward mode"} <= failed(report), str(report)
    assert all("stale factorization" in cause for cause in report.causes), str(report)


def test_a_captured_tensor_that_is_dropped(monkeypatch):
    weight = W.clone().requires_grad_()

    def captures(z, x):
        return z + torch.tanh(weight @ z) - x

    def check():
        return check_implicit_gradients(
            captures, torch.zeros(3, dtype=DOUBLE), (X,), order=1, vmap=False, starts=0
        )

    assert check().passed
    monkeypatch.setattr(driver, "capture", lambda *_: Captured())
    report = check()
    assert [(e.check, e.of) for e in report.failures] == [("reverse mode", "captured weight")]
    assert "captured weight gets no gradient" in report.causes[0]
    assert "pass the tensor in args" in report.failures[0].change


@pytest.mark.parametrize("vmap", [False, True], ids=["batch_dims", "vmap"])
def test_one_lanes_cotangent_added_to_another(monkeypatch, vmap):
    original = differentiate.Attach.backward

    def leaky(ctx, gz):
        return original(ctx, gz if gz.dim() < 2 else gz + gz.roll(1, 0))

    monkeypatch.setattr(differentiate.Attach, "backward", staticmethod(leaky))
    report = check_root(vmap=True) if vmap else check_lanes()
    wanted = {"reverse of vmap"} if vmap else {"reverse mode", "lane 0 unused"}
    assert wanted <= failed(report), str(report)
    assert all("lanes leak" in cause for cause in report.causes), str(report)


def test_gauss_newton_instead_of_the_full_hessian(monkeypatch):
    def condition(self, z, *operands):
        # J at z is held fixed: the Jacobian of the condition is J^T J alone
        _, pull = vjp(lambda u: self.fn(u, *operands), z.detach())
        return pull(self.fn(z, *operands))[0]

    monkeypatch.setattr(nonlinear_least_squares.LeastSquaresEquation, "condition", condition)
    report = check_fit()
    assert {"reverse mode", "forward mode"} <= failed(report), str(report)
    assert all("Gauss-Newton instead of the full Hessian" in cause for cause in report.causes)


def test_an_unconverged_solve_that_is_reported_as_converged(monkeypatch):
    monkeypatch.setattr(
        EquationProblem, "tolerance", lambda self, solver, z: torch.full_like(z[:, 0], 1e-2)
    )
    report = check_root()
    assert "residual" in failed(report)
    assert report.failures[0].cause.startswith("not converged: the solution is reported as conv")
    assert all(cause.startswith("not converged") for cause in report.causes), str(report)


def test_a_mean_instead_of_a_sum_over_lanes(monkeypatch):
    original = differentiate.Attach.backward

    def averaging(ctx, gz):
        return tuple(
            g / len(gz) if g is not None and g.dim() == 0 else g for g in original(ctx, gz)
        )

    monkeypatch.setattr(differentiate.Attach, "backward", staticmethod(averaging))
    theta = torch.tensor(0.8, dtype=DOUBLE)
    report = check_lanes(shared, (MANY_X, theta), (0, None))
    assert [(e.check, e.of) for e in report.failures] == [("reverse mode", "args[1] (theta)")]
    assert "gradients of shared tensors are means, and should be sums" in report.causes[0]


def test_a_mean_over_the_lanes_of_vmap(monkeypatch):
    original = differentiate.Attach.backward
    weight = W.clone().requires_grad_()

    def captures(z, x):
        return z + torch.tanh(weight @ z) - x

    def averaging(ctx, gz):
        found = original(ctx, gz)
        # the captured tensor is the last operand
        return found if gz.dim() < 2 else (*found[:-1], found[-1] / len(gz))

    monkeypatch.setattr(differentiate.Attach, "backward", staticmethod(averaging))
    report = check_implicit_gradients(
        captures, torch.zeros(3, dtype=DOUBLE), (X,), order=1, starts=0
    )
    first = report.failures[0]
    assert (first.check, first.of) == ("reverse of vmap", "captured weight")
    assert {e.of for e in report.failures} == {"captured weight"}
    assert "averaged over the lanes" in report.causes[0]


def test_forward_mode_that_returns_zero(monkeypatch):
    def silent(ctx, *tangents):
        return torch.zeros_like(ctx.saved_tensors[0])

    monkeypatch.setattr(differentiate.Attach, "jvp", staticmethod(silent))
    report = check_root()
    assert failed(report) == {"forward mode"}
    assert "forward mode returns zero for args[0] (x)" in report.causes[0]


# -- errors of layers that somebody else wrote, with the equation that they are to solve ---------


class Detached(torch.autograd.Function):
    """A rule that is right to first order, and whose backward is not differentiable."""

    @staticmethod
    def forward(ctx, x):
        z = ims.root(coupled, torch.zeros_like(x), (x,)).value.detach()
        ctx.save_for_backward(z)
        return z

    @staticmethod
    def backward(ctx, g):
        z = ctx.saved_tensors[0].detach()
        A = torch.eye(3, dtype=DOUBLE) + (1 - torch.tanh(W @ z) ** 2).unsqueeze(-1) * W
        return torch.linalg.solve(A.mT, g)


def one_newton_step(x):
    """Return the solution by the trick that is right to first order alone."""
    z = ims.root(coupled, torch.zeros_like(x), (x,)).value.detach()
    A = torch.eye(3, dtype=DOUBLE) + (1 - torch.tanh(W @ z) ** 2).unsqueeze(-1) * W
    return z - torch.linalg.inv(A) @ coupled(z, x)


@pytest.mark.parametrize("layer", [Detached.apply, one_newton_step], ids=["Function", "step"])
def test_a_second_derivative_that_drops_terms(layer):
    report = check_implicit_gradients(
        layer, None, (X,), equation=coupled, forward=False, vmap=False
    )
    assert failed(report) == {"double backward"}, str(report)
    assert "first derivative is right and its own derivative is not" in report.causes[0] or (
        "the derivative of the first derivative is zero" in report.causes[0]
    )


def test_a_symmetric_adjoint_solver_for_a_nonsymmetric_operator():
    class Cholesky(Detached):
        @staticmethod
        def backward(ctx, g):
            (z,) = ctx.saved_tensors
            A = torch.eye(3, dtype=DOUBLE) + (1 - torch.tanh(W @ z) ** 2).unsqueeze(-1) * W
            factor = torch.linalg.cholesky(A)  # reads the lower triangle
            return torch.cholesky_solve(g.unsqueeze(-1), factor).squeeze(-1)

    report = check_implicit_gradients(
        Cholesky.apply, None, (X,), equation=coupled, order=1, forward=False, vmap=False
    )
    assert report.causes[0].startswith("adjoint solver unfit for a nonsymmetric operator")


@pytest.mark.parametrize(
    "adjoint,cause",
    [
        (ims.OneStepAdjoint(), "the inverse of the Jacobian is left out"),
        (
            ims.ImplicitAdjoint(ims.Neumann(max_steps=3, rtol=None)),
            "a truncated Neumann series of 3 terms",
        ),
        (
            ims.ImplicitAdjoint(ims.GMRES(max_steps=2, rtol=None)),
            "the adjoint's linear solve (GMRES, 2 steps) ended",
        ),
    ],
    ids=["one-step", "neumann", "gmres"],
)
def test_the_librarys_biased_adjoints(adjoint, cause):
    report = check_implicit_gradients(
        lambda z, x: x - torch.tanh(W @ z),
        torch.zeros(3, dtype=DOUBLE),
        (X,),
        kind="fixed_point",
        adjoint=adjoint,
        order=1,
        vmap=False,
        starts=0,
    )
    assert failed(report) == {"reverse mode", "forward mode"}
    assert all(cause in found for found in report.causes), str(report)


def test_a_factor_that_was_left_out():
    def halved(x):
        z = ims.root(coupled, torch.zeros_like(x), (x,)).value
        return 0.5 * z + 0.5 * z.detach()

    report = check_implicit_gradients(halved, None, (X,), equation=coupled, order=1, vmap=False)
    assert failed(report) == {"reverse mode", "forward mode"}
    assert "0.5 times what it should be" in report.causes[0]


def test_without_the_equation_a_square_jacobian_shows_the_transpose(monkeypatch):
    original = differentiate.AttachSpec.linear
    monkeypatch.setattr(
        differentiate.AttachSpec, "linear", lambda spec, transposed: original(spec, False)
    )

    def layer(x):
        return ims.root(lambda z, x: 2 * z + W @ z - x, torch.zeros_like(x), (x,)).value

    report = check_implicit_gradients(layer, None, (X,), order=1, vmap=False)
    assert failed(report) == {"reverse mode"}
    assert "disagree by a transpose" in report.causes[0]


def test_a_lane_of_nan_that_reaches_shared_gradients(monkeypatch):
    weight = W.clone().requires_grad_()

    def captures(z, x):
        return z + 0.5 * torch.tanh(weight @ (z + x)) - x

    # failed lanes are multiplied by zero instead of being left out: zero times NaN is NaN
    monkeypatch.setattr(differentiate.AttachSpec, "masked", property(lambda spec: False))
    report = check_implicit_gradients(
        captures, torch.zeros(3, dtype=DOUBLE), (X,), order=1, starts=0
    )
    assert ("NaN lane", "captured weight") in {(e.check, e.of) for e in report.failures}
    assert {entry.check for entry in report.failures} == {"NaN lane"}, str(report)
    assert all("lanes leak" in cause for cause in report.causes)
