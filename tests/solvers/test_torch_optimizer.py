"""Optimizers of torch.optim as solvers: the same steps as alone, lane by lane, or a refusal."""

import math
import pickle
from dataclasses import replace

import pytest
import torch
from torch.func import vmap
from torch.optim import Optimizer

import implicit_solvers as ims
from implicit_solvers import Status
from tests.solvers.systems import F64, ROSENBROCK, error, tensor

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
IDS = [f"{i}-{kind.__name__}" for i, (kind, _) in enumerate(ELEMENTWISE)]
elementwise = pytest.mark.parametrize("optimizer, options", ELEMENTWISE, ids=IDS)
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
        optimizer, rtol=0.0, f_atol=tolerance, max_steps=60, compact=compact, **options
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


def test_failures():
    """NaN, no minimum, and too few steps, beside a lane that converges."""
    solver = ims.TorchOptimizer(optim.SGD, lr=0.2, max_steps=300)
    a = tensor([1.0, math.nan, -1.0, 1e-3]).requires_grad_()
    fn = lambda z, a: 0.5 * a * (z - 1) ** 2
    sol = vmap(lambda a: ims.minimize(fn, tensor(0.0), (a,), solver=solver, on_failure="mask"))(a)
    assert sol.status.tolist() == [0, Status.NONFINITE, Status.MAX_STEPS, Status.MAX_STEPS]
    sol.value.sum().backward()
    assert a.grad[1:].tolist() == [0.0, 0.0, 0.0] and bool(torch.isfinite(a.grad[0]))


# -- what is refused beside the list of refusals -------------------------------------------------


class Noisy(SignDescent):
    """Steps that are not functions of the gradient."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(0.1 * p.grad * torch.rand_like(p))


@pytest.mark.parametrize("name", ["Noisy", "Muon"])
def test_unfit_optimizers_are_refused(name):
    kind, options = (
        (Noisy, {}) if name == "Noisy" else (getattr(optim, name, None), {"weight_decay": 0})
    )
    if kind is None:
        pytest.skip("torch 2.9 has Muon")
    with pytest.raises(ValueError, match=f"{name}.*(not elementwise|against)"):
        ims.TorchOptimizer(kind, **options)


def test_options_are_a_value():
    solver = ims.TorchOptimizer(optim.Adam, lr=0.1, betas=[0.8, 0.9])
    assert hash(pickle.loads(pickle.dumps(solver))) == hash(solver)
    assert solver == ims.TorchOptimizer(optim.Adam, betas=(0.8, 0.9), lr=0.1)
    assert solver != ims.TorchOptimizer(optim.Adam, lr=0.2, betas=(0.8, 0.9))
    shorter = replace(solver, max_steps=3, rtol=None)
    assert shorter.options == solver.options and shorter.max_steps == 3
    assert int(ROSENBROCK.solve(shorter).iterations) == 3
