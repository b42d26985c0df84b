"""Normalizations with weights under ``vmap``: torch's own second derivatives are wrong there."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, hessian, vmap
from torch.utils._pytree import tree_leaves

import implicit_solvers as ims
from implicit_solvers.affine_norms import weights_apart

F64 = torch.float64
TASKS, EXAMPLES = 3, 5

NETWORKS = {
    "layer_norm": lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)),
    "batch_norm": lambda: nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)
    ),
    "instance_norm": lambda: nn.Sequential(
        nn.Conv1d(1, 4, 1), nn.InstanceNorm1d(4, affine=True), nn.Flatten()
    ),
}


def weighted_sum(tensors):
    """Return a sum in which every entry has a weight of its own."""
    flat = torch.cat([t.flatten() for t in tensors])
    return (flat * torch.arange(1, 1 + len(flat), dtype=F64)).sum()


def regularized_loss(name):
    """Return a task's loss near ``theta``, that ``theta``, and the data of the tasks."""
    torch.manual_seed(0)
    network = NETWORKS[name]().to(F64)
    theta = {key: torch.randn_like(value) for key, value in network.named_parameters()}
    shape = (EXAMPLES, 1, 3) if name == "instance_norm" else (EXAMPLES, 3)
    x = torch.randn(TASKS, *shape, dtype=F64)

    def loss(phi, theta, x):
        out = functional_call(network, phi, (x,)).tanh()
        near = sum(((phi[key] - theta[key]) ** 2).sum() for key in theta)
        return weighted_sum([out]) / 10 + 10 * near

    return loss, theta, x


def minimum(loss, theta, x):
    return ims.minimize(loss, theta, (theta, x), solver=ims.NewtonCG()).value


def minimum_of_captured(loss, theta, x):
    fn = lambda phi, x: loss(phi, theta, x)
    return ims.minimize(fn, theta, (x,), solver=ims.NewtonCG()).value


def linear_solve(loss, theta, x):
    near = {key: value + 0.1 for key, value in theta.items()}
    A = ims.HessianOperator(loss, theta, (near, x))
    b = {key: torch.ones_like(value) for key, value in theta.items()}
    return ims.linear_solve(A, b, solver=ims.GMRES()).value


def assert_lanes_agree(derive, score, shared, x, tolerance):
    batched = derive(lambda shared: vmap(score, (None, 0))(shared, x).sum())(shared)
    looped = derive(lambda shared: sum(score(shared, task) for task in x))(shared)
    for a, b in zip(tree_leaves(batched), tree_leaves(looped), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("solve", [minimum, minimum_of_captured, linear_solve])
def test_gradients_of_solves_under_vmap_are_those_of_a_loop(name, solve):
    loss, theta, x = regularized_loss(name)
    score = lambda theta, x: weighted_sum(solve(loss, theta, x).values())
    # minima are found to eps**0.75, each way by steps of its own; GMRES stops at eps**(2/3)
    assert_lanes_agree(grad, score, theta, x, 1e-6 if solve is linear_solve else 1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_a_minimum_that_is_differentiated_twice(name):
    loss, theta, x = regularized_loss(name)

    def score(scale, x):
        scaled = {key: scale * value for key, value in theta.items()}
        return weighted_sum(minimum(loss, scaled, x).values())

    assert_lanes_agree(hessian, score, torch.tensor(1.1, dtype=F64), x, 1e-7)


def test_second_derivatives_of_an_equilibrium_under_vmap_are_those_of_a_loop():
    W, x = torch.randn(4, 4, dtype=F64) / 4, torch.randn(TASKS, 4, dtype=F64)
    bias = torch.zeros(4, dtype=F64, requires_grad=True)

    def score(gain, x):
        def cell(z, gain, x):
            return 0.3 * F.layer_norm(torch.tanh(z @ W + x), (4,), gain, bias)

        return weighted_sum([ims.fixed_point(cell, torch.zeros_like(x), (gain, x)).value])

    gain = torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=F64)
    assert_lanes_agree(hessian, score, gain, x, 1e-7)


X, W, B, V = (
    torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))
    for seed, shape in enumerate([(5, 3, 4), (3,), (3,), (4,)])
)
OPTIONS = {"training": True, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": False}
NOTHING = dict.fromkeys(("bias", "running_mean", "running_var"))
CALLS = {
    "layer": lambda x: F.layer_norm(x, (4,), V, V, 1e-3),
    "layer by keywords": lambda x: F.layer_norm(x, (4,), bias=V),
    "layer of two dimensions": lambda x: F.layer_norm(x, (3, 4), W.unsqueeze(-1) * V),
    "torch's layer": lambda x: torch.layer_norm(x, (4,), V, None),
    "batch": lambda x: F.batch_norm(x, None, None, W, B, True),
    "batch of rows": lambda x: F.batch_norm(x[..., 0], None, None, W, B, True),
    "batch, by its statistics": lambda x: F.batch_norm(x, B, W.exp(), weight=W, bias=B),
    "torch's batch": lambda x: torch.batch_norm(x, W, **NOTHING, **OPTIONS),
    "instance": lambda x: F.instance_norm(x, weight=W, bias=B),
    "torch's instance": lambda x: torch.instance_norm(x, W, B, None, None, True, 0.1, 1e-5, False),
    "batch without weights": lambda x: F.batch_norm(x, None, None, training=True),
    "batch, with statistics to update": lambda x: F.batch_norm(x, 0 * W, 0 * W + 1, W, B, True),
    "instance without weights": lambda x: F.instance_norm(x),
    "instance, by its": lambda x: F.instance_norm(x, B, W.exp(), W, B, use_input_stats=False),
    "none": lambda x: F.layer_norm(x, (4,)),
}


@pytest.mark.parametrize("name", CALLS)
def test_weights_apart_changes_no_value(name):
    ours, torchs = weights_apart(CALLS[name])(X), CALLS[name](X)
    # entries are of size 1; where weight and bias cancel, only the absolute error is at rounding
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-14)


def test_statistics_are_updated_as_by_torch():
    def update():
        mean, variance = torch.zeros_like(W), torch.ones_like(W)
        F.batch_norm(X, mean, variance, W, B, True)
        return torch.stack([mean, variance])

    assert torch.equal(weights_apart(update)(), update()) and bool((update()[0] != 0).all())


def test_one_value_has_no_variance():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        weights_apart(lambda x: F.batch_norm(x, None, None, training=True))(X[:1, :, 0])


def test_half_precision_has_statistics_in_single():
    x, weight, bias = 100 + X.bfloat16(), W.bfloat16(), B.bfloat16()

    def normalize(x):
        return F.batch_norm(x, None, None, weight, bias, True)

    ours = weights_apart(normalize)(x)
    assert ours.dtype == torch.bfloat16
    exact = F.batch_norm(x.double(), None, None, weight.double(), bias.double(), True)
    # three roundings of numbers below 4
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=12 * torch.finfo(x.dtype).eps)
