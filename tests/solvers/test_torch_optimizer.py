"""Optimizers of torch.optim as solvers: the same steps as alone, lane by lane, or a refusal."""

import math
import pickle
from dataclasses import replace

import pytest
import torch
from torch.func import jacfwd, jacrev, vmap
from torch.optim import Optimizer

import implicit_solvers as ims
from implicit_solvers import Status
from tests.solvers.objectives import F32, F64, LOGISTIC, ROSENBROCK, error, lanes_are_alone, tensor

optim = torch.optim


class SignDescent(Optimizer):
    """A user's own elementwise optimizer, with a state of its own."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["count"] = state.get("count", 0) + 1
                state["mean"] = 0.5 * state.get("mean", torch.zeros_like(p)) + p.grad
                p.sub_(group["lr"] / state["count"] * state["mean"].sign())


ELEMENTWISE = [
    (optim.SGD, {"lr": 0.01}),
    (optim.SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    (optim.Adam, {"lr": 0.05}),
    (optim.Adam, {"lr": 0.05, "amsgrad": True, "betas": [0.8, 0.99]}),
    (optim.AdamW, {"lr": 0.05, "weight_decay": 0}),
    (optim.Adamax, {"lr": 0.05}),
    (optim.NAdam, {"lr": 0.05}),
    (optim.RAdam, {"lr": 0.05}),
    (optim.RMSprop, {"lr": 0.01, "centered": True, "momentum": 0.3}),
    (optim.Adagrad, {"lr": 0.3, "lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    (optim.Adadelta, {"lr": 1.0}),
    (optim.Rprop, {"lr": 0.01}),
    (optim.ASGD, {"lr": 0.01, "lambd": 0, "t0": 3}),
    (SignDescent, {"lr": 0.1}),
]
elementwise = pytest.mark.parametrize(
    "optimizer, options",
    ELEMENTWISE,
    ids=[f"{i}-{kind.__name__}" for i, (kind, _) in enumerate(ELEMENTWISE)],
)
CURVES = tensor([1.0, 3.0, 9.0])


def bowl(z, t):
    return (CURVES.to(z) * (torch.cosh(z) - t * z)).sum()


def alone(optimizer, options, start, theta, steps, tolerance=None):
    """Let torch.optim minimize by itself; return the iterate and the number of steps."""
    z = start.clone().requires_grad_()
    made = optimizer([z], **options)
    for step in range(steps + 1):
        made.zero_grad()
        bowl(z, theta).backward()
        rms = float(z.grad.square().mean().sqrt())
        if step == steps or (tolerance is not None and rms <= tolerance):
            return z.detach(), step
        made.step()
    raise AssertionError


@elementwise
def test_a_budget_makes_the_steps_of_torch_optim(optimizer, options):
    """In each lane of a batch, to the last bit or two."""
    theta = torch.linspace(-1, 2, 15, dtype=F64).reshape(5, 3)
    start = torch.linspace(1, -1, 15, dtype=F64).reshape(5, 3)
    solver = ims.TorchOptimizer(optimizer, rtol=None, max_steps=12, **options)
    sol = vmap(lambda z, t: ims.minimize(bowl, z, (t,), solver=solver))(start, theta)
    assert sol.status.tolist() == [Status.BUDGET] * 5 and sol.iterations.tolist() == [12] * 5
    for i in range(5):
        theirs, _ = alone(optimizer, options, start[i], theta[i], 12)
        assert error(sol.value[i], theirs) < 1e-13, i


@elementwise
@pytest.mark.parametrize("compact", [True, False], ids=["compact", "static"])
def test_lanes_that_stop_leave_the_others_alone(optimizer, options, compact):
    """Starts at several distances: lanes end at different steps, and then stand still."""
    distance = tensor([1e-4, 1e-3, 1e-2, 0.1, 0.5]).unsqueeze(-1)
    theta = torch.full((5, 3), 0.4, dtype=F64)
    start = torch.asinh(theta) + distance * tensor([1.0, -1.0, 0.5])
    tolerance = 3e-3
    solver = ims.TorchOptimizer(
        optimizer, rtol=0.0, atol=tolerance, max_steps=60, compact=compact, **options
    )
    sol = ims.minimize(
        lambda z, t: vmap(bowl)(z, t), start, (theta,), solver=solver, batch_dims=1, in_dims=(0,),
        on_failure="mask",
    )  # fmt: skip
    assert len(set(sol.iterations.tolist())) >= 3
    for i in range(5):
        theirs, steps = alone(optimizer, options, start[i], theta[i], 60, tolerance)
        assert int(sol.iterations[i]) == steps, i
        if bool(sol.converged[i]):  # the best iterate is returned otherwise, not the last
            assert error(sol.value[i], theirs) < 1e-12, i


@pytest.mark.parametrize(
    "optimizer, options",
    [(optim.Adam, {"lr": 0.1}), (optim.SGD, {"lr": 2.0, "momentum": 0.7})],
    ids=["Adam", "SGD"],
)
def test_to_the_default_tolerance(optimizer, options):
    solver = ims.TorchOptimizer(optimizer, **options)
    batch = lanes_are_alone(LOGISTIC, solver, count=3)
    assert int(batch.iterations.max()) < 3000
    theta = tensor(LOGISTIC.theta)
    sol = LOGISTIC.solve(solver)
    assert error(sol.value, LOGISTIC.minimum) < 1e-9
    exact = LOGISTIC.derivative(LOGISTIC.minimum, theta)
    for mode in (jacrev, jacfwd):
        ours = mode(lambda t: LOGISTIC.solve(solver, start=sol.value, theta=t).value)(theta)
        assert error(ours, exact) < 1e-7


def test_the_derivative_after_a_budget_and_of_second_order():
    """Of ``argmin cosh z - t z``, which is ``asinh t``."""
    solver = ims.TorchOptimizer(optim.Adam, lr=0.1, rtol=None, max_steps=400)

    def solve(t):
        return ims.minimize(
            lambda z, t: torch.cosh(z) - t * z, tensor(0.0), (t,), solver=solver
        ).value

    t = tensor(0.8)
    assert error(solve(t), torch.asinh(t)) < 1e-8
    assert error(jacrev(solve)(t), (1 + t**2) ** -0.5) < 1e-8
    for second in (jacrev(jacrev(solve)), jacfwd(jacrev(solve)), jacrev(jacfwd(solve))):
        assert error(second(t), -t * (1 + t**2) ** -1.5) < 1e-8


@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
def test_dtype_of_a_scalar_unknown(dtype):
    solver = ims.TorchOptimizer(optim.Rprop, lr=0.1, atol=1e-3)
    sol = ims.minimize(lambda z: (z - 2) ** 2, torch.tensor(0.0, dtype=dtype), solver=solver)
    assert sol.value.dtype == sol.residual.dtype == dtype and sol.value.shape == ()
    assert error(sol.value, tensor(2.0)) < 1e-3


def test_least_squares():
    t, y = torch.linspace(0, 1, 6, dtype=F64), tensor([1.0, 1.2, 1.5, 1.7, 2.2, 2.7])
    residuals = lambda z: torch.exp(z * t) - y
    solver = ims.TorchOptimizer(optim.SGD, lr=0.1)
    sol = ims.least_squares(residuals, tensor(0.0), solver=solver)
    assert error(sol.value, ims.least_squares(residuals, tensor(0.0)).value) < 1e-10


def test_failures():
    """NaN, no minimum, and too few steps, beside a lane that converges."""
    solver = ims.TorchOptimizer(optim.SGD, lr=0.2, max_steps=300)
    a = tensor([1.0, math.nan, -1.0, 1e-3]).requires_grad_()
    fn = lambda z, a: 0.5 * a * (z - 1) ** 2
    sol = vmap(lambda a: ims.minimize(fn, tensor(0.0), (a,), solver=solver, on_failure="mask"))(a)
    assert sol.status.tolist() == [0, Status.NONFINITE, Status.MAX_STEPS, Status.MAX_STEPS]
    sol.value.sum().backward()
    assert a.grad[1:].tolist() == [0.0, 0.0, 0.0] and bool(torch.isfinite(a.grad[0]))


# -- what is refused ---------------------------------------------------------------------------


class Normalized(SignDescent):
    """The gradient over its norm: entries depend on each other."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(self.param_groups[0]["lr"] * p.grad / p.grad.norm())


class Centered(SignDescent):
    """The gradient less its mean in each row: lanes are independent, but not the entries."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(0.01 * (p.grad + 0.1 * p.grad.mean(-1, keepdim=True)))


class Noisy(SignDescent):
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(0.1 * p.grad * torch.rand_like(p))


class RowState(SignDescent):
    """Elementwise steps, but with a state of one number for each row."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state[p]["rows"] = p.grad.sum(-1)
            p.sub_(0.1 * p.grad)


REFUSED = [
    (optim.LBFGS, {}, "LBFGS.*does not make steps from dense gradients"),
    (optim.SparseAdam, {}, "SparseAdam.*dense gradients"),
    (optim.Adafactor, {}, "Adafactor.*not elementwise"),
    (Normalized, {}, "Normalized.*not elementwise"),
    (Centered, {}, "Centered.*not elementwise"),
    (Noisy, {}, "Noisy.*(not elementwise|against)"),
    (RowState, {}, "RowState.*not elementwise"),
    (optim.SGD, {"lr": 0.1, "maximize": True}, "against the gradient.*maximize"),
    (optim.Adam, {"maximize": True}, "against the gradient.*maximize"),
    (optim.SGD, {"lr": 0.0}, "positive lr"),
    (optim.AdamW, {}, "AdamW.*another function.*weight_decay=0"),
    (optim.Adam, {"weight_decay": 0.1}, "Adam.*another function.*weight_decay=0"),
    (optim.SGD, {"weight_decay": 0.1}, "SGD.*another function.*weight_decay=0"),
    (optim.ASGD, {}, "ASGD.*another function.*lambd=0"),
    (optim.Adam, {"foreach": True}, "foreach=True.*leave it out"),
    (optim.Adam, {"fused": True}, "fused=True.*leave it out"),
    (optim.Adam, {"capturable": True}, "capturable=True.*leave it out"),
    (optim.Adam, {"differentiable": True}, "differentiable=True.*leave it out"),
    (optim.Adam, {"lr": -1.0}, "Invalid learning rate"),
]
if hasattr(optim, "Muon"):  # torch 2.9
    REFUSED.append((optim.Muon, {"weight_decay": 0.0}, "Muon.*not elementwise"))


@pytest.mark.parametrize(
    "optimizer, options, message",
    REFUSED,
    ids=[f"{o.__name__}-{'-'.join(k) or 'plain'}" for o, k, _ in REFUSED],
)
def test_unfit_optimizers_are_refused(optimizer, options, message):
    with pytest.raises(ValueError, match=message):
        ims.TorchOptimizer(optimizer, **options)


def test_what_is_no_optimizer_class_is_refused():
    for wrong in (optim.Adam([torch.zeros(1)]), torch.nn.Linear, "adam", None):
        with pytest.raises(TypeError, match="subclass of torch.optim.Optimizer"):
            ims.TorchOptimizer(wrong)
    with pytest.raises(TypeError, match="tensor lr.*lr=0.1"):
        ims.TorchOptimizer(optim.SGD, lr=torch.tensor(0.1, dtype=F64))
    with pytest.raises(TypeError, match="betas of the type dict"):
        ims.TorchOptimizer(optim.Adam, betas={})
    with pytest.raises(TypeError, match="speed"):
        ims.TorchOptimizer(optim.Adam, speed=1.0)


def test_solver_is_a_value():
    solver = ims.TorchOptimizer(optim.Adam, lr=0.1, betas=[0.8, 0.9])
    copy = pickle.loads(pickle.dumps(solver))
    assert copy == solver and hash(copy) == hash(solver)
    assert solver == ims.TorchOptimizer(optim.Adam, betas=(0.8, 0.9), lr=0.1)
    assert solver != ims.TorchOptimizer(optim.Adam, lr=0.2, betas=(0.8, 0.9))
    shorter = replace(solver, max_steps=3, rtol=None)
    assert shorter.options == solver.options and shorter.max_steps == 3
    assert int(ROSENBROCK.solve(shorter).iterations) == 3
    with pytest.raises(AttributeError):
        solver.max_steps = 3


def test_unrolling_is_refused():
    solver = ims.TorchOptimizer(optim.SGD, lr=0.1, rtol=None, max_steps=3)
    with pytest.raises(ValueError, match="TorchOptimizer"):
        ROSENBROCK.solve(solver, adjoint=ims.UnrolledAdjoint())
