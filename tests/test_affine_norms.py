"""Normalizations with weights under ``vmap``: torch's own second derivatives are wrong there."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, hessian, vmap

import implicit_solvers as ims
from implicit_solvers.affine_norms import is_written_out, weights_apart

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


def assert_trees_close(a, b, **tolerances):
    assert a.keys() == b.keys()
    for key, value in a.items():
        torch.testing.assert_close(value, b[key], **tolerances)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("captured", [False, True], ids=["argument", "captured"])
def test_gradients_of_minima_under_vmap_are_those_of_a_loop(name, captured):
    loss, theta, x = regularized_loss(name)

    def score(theta, x):
        objective, args = (loss, (theta, x))
        if captured:
            objective, args = (lambda phi, x: loss(phi, theta, x)), (x,)
        phi = ims.minimize(objective, theta, args, solver=ims.NewtonCG()).value
        return weighted_sum(phi.values())

    batched = grad(lambda theta: vmap(score, (None, 0))(theta, x).sum())(theta)
    looped = grad(lambda theta: sum(score(theta, task) for task in x))(theta)
    # the minima are found to eps**0.75, each way by steps of its own
    assert_trees_close(batched, looped, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_a_minimum_that_is_differentiated_twice(name):
    loss, theta, x = regularized_loss(name)

    def score(scale, x):
        start = {key: scale * value for key, value in theta.items()}
        phi = ims.minimize(loss, start, (start, x), solver=ims.NewtonCG()).value
        return weighted_sum(phi.values())

    scale = torch.tensor(1.1, dtype=F64)
    looped = hessian(lambda scale: sum(score(scale, task) for task in x))(scale)
    batched = hessian(lambda scale: vmap(score, (None, 0))(scale, x).sum())(scale)
    torch.testing.assert_close(batched, looped, rtol=1e-7, atol=1e-9)


def test_second_derivatives_of_an_equilibrium_under_vmap_are_those_of_a_loop():
    torch.manual_seed(0)
    norm = nn.LayerNorm(4).to(F64)
    W, x = torch.randn(4, 4, dtype=F64) / 4, torch.randn(TASKS, 4, dtype=F64)
    gain = torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=F64)

    def score(gain, x):
        def cell(z, gain, x):
            return 0.3 * F.layer_norm(torch.tanh(z @ W + x), (4,), gain, norm.bias)

        return weighted_sum([ims.fixed_point(cell, torch.zeros_like(x), (gain, x)).value])

    batched = hessian(lambda gain: vmap(score, (None, 0))(gain, x).sum())(gain)
    looped = hessian(lambda gain: sum(score(gain, task) for task in x))(gain)
    torch.testing.assert_close(batched, looped, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_linear_solves_with_hessians_under_vmap_are_those_of_a_loop(name):
    loss, theta, x = regularized_loss(name)
    b = {key: torch.ones_like(value) for key, value in theta.items()}

    def score(theta, x):
        A = ims.HessianOperator(loss, theta, ({k: v + 0.1 for k, v in theta.items()}, x))
        return weighted_sum(ims.linear_solve(A, b, solver=ims.GMRES()).value.values())

    looped = grad(lambda theta: sum(score(theta, task) for task in x))(theta)
    batched = grad(lambda theta: vmap(score, (None, 0))(theta, x).sum())(theta)
    assert_trees_close(batched, looped, rtol=1e-6, atol=1e-8)


X, W, B, V = (
    torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))
    for seed, shape in enumerate([(5, 3, 4), (3,), (3,), (4,)])
)
CALLS = {
    "layer": lambda x: F.layer_norm(x, (4,), V, V, 1e-3),
    "layer by keywords": lambda x: F.layer_norm(x, (4,), bias=V),
    "layer of two dimensions": lambda x: F.layer_norm(x, (3, 4), W.unsqueeze(-1) * V),
    "torch's layer": lambda x: torch.layer_norm(x, (4,), V, None),
    "batch": lambda x: F.batch_norm(x, None, None, W, B, True),
    "batch of rows": lambda x: F.batch_norm(x[..., 0], None, None, W, B, True),
    "batch, by its statistics": lambda x: F.batch_norm(x, B, W.exp(), weight=W, bias=B),
    "torch's batch": lambda x: torch.batch_norm(
        x,
        weight=W,
        bias=None,
        running_mean=None,
        running_var=None,
        training=True,
        momentum=0.1,
        eps=1e-5,
        cudnn_enabled=False,
    ),
    "instance": lambda x: F.instance_norm(x, weight=W, bias=B),
    "torch's instance": lambda x: torch.instance_norm(x, W, B, None, None, True, 0.1, 1e-5, False),
    "batch without weights": lambda x: F.batch_norm(x, None, None, training=True),
    "batch, with statistics to update": lambda x: F.batch_norm(
        x, torch.zeros_like(W), torch.ones_like(W), W, B, True
    ),
    "instance without weights": lambda x: F.instance_norm(x),
    "instance, by given statistics": lambda x: F.instance_norm(
        x, B, W.exp(), W, B, use_input_stats=False
    ),
    "none": lambda x: F.layer_norm(x, (4,)),
}


@pytest.mark.parametrize("name", CALLS)
def test_weights_apart_changes_no_value(name):
    # entries are of size 1; where weight and bias cancel, only the absolute error is at rounding
    torch.testing.assert_close(
        weights_apart(CALLS[name])(X), CALLS[name](X), rtol=1e-12, atol=1e-14
    )


def test_what_is_written_out():
    assert not is_written_out(F.layer_norm, (X, (4,)), {})
    assert is_written_out(F.batch_norm, (X, None, None), {"training": True})
    assert is_written_out(F.layer_norm, (X, (4,)), {"weight": V})
    assert not is_written_out(torch.tanh, (X,), {})


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
