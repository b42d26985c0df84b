"""Modules as functions of parameters: normalization of each task by its own examples."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vjp, vmap

import implicit_solvers as ims
from implicit_solvers.problems import imaml
from tests.problems.imaml.meta_tasks import assert_slope, one


def images(tasks=3, examples=4):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(tasks, examples, 2, 5, 5, generator=g, dtype=torch.float64)
    return x + torch.arange(tasks).reshape(-1, 1, 1, 1, 1)


def test_batch_normalization_is_of_the_tasks_own_examples():
    norm = nn.BatchNorm2d(2, track_running_stats=False).double()
    model, theta = imaml.functional_model(norm)
    theta = {"weight": torch.tensor([2.0, 3.0]).double(), "bias": torch.tensor([0.5, -1]).double()}
    x = images()
    got = vmap(model, in_dims=(None, 0))(theta, x)
    mean = x.numpy().mean((1, 3, 4), keepdims=True)
    std = np.sqrt(x.numpy().var((1, 3, 4), keepdims=True) + norm.eps)
    weight, bias = (theta[k].numpy().reshape(2, 1, 1) for k in ("weight", "bias"))
    np.testing.assert_allclose(got, (x.numpy() - mean) / std * weight + bias, atol=1e-12)
    # every task has weights of its own, too
    own = {k: v.expand(3, 2) * torch.arange(1, 4)[:, None] for k, v in theta.items()}
    got = vmap(model)(own, x)
    scale = np.arange(1, 4).reshape(3, 1, 1, 1, 1)
    expected = ((x.numpy() - mean) / std * weight + bias) * scale
    np.testing.assert_allclose(got, expected, atol=1e-12)


NORMS = {
    "batch": nn.BatchNorm2d(2, track_running_stats=False),
    "group": nn.GroupNorm(1, 2),
    "instance": nn.InstanceNorm2d(2, affine=True),
    "layer": nn.LayerNorm([2, 3, 3]),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_the_meta_gradient_goes_through_normalization(norm):
    network = nn.Sequential(
        nn.Conv2d(2, 2, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(18, 2)
    ).double()
    model, theta = imaml.functional_model(network)
    x, labels = images(2, 6), torch.arange(4).remainder(2).expand(2, 4)
    supports, queries = (x[:, :4], labels), (x[:, 2:], labels)
    method = imaml.Imaml(8.0, ims.NewtonCG(), ims.ImplicitAdjoint(ims.CG()))
    arguments = (model, F.cross_entropy, theta, supports, queries)
    assert not assert_slope(method, arguments, atol=1e-7).left_out.any()


CONVOLUTION, LINEAR = nn.Conv2d(2, 4, 3), nn.Linear(6, 4)
IMAGES = (5, 2, 6, 6)
OWN = {"track_running_stats": False}
LAYERS = {
    "BatchNorm1d of vectors": (LINEAR, nn.BatchNorm1d(4, **OWN), (5, 6)),
    "BatchNorm1d of sequences": (LINEAR, nn.BatchNorm1d(2, **OWN), (5, 2, 6)),
    "BatchNorm2d": (CONVOLUTION, nn.BatchNorm2d(4, **OWN), IMAGES),
    "BatchNorm2d in eval mode": (CONVOLUTION, nn.BatchNorm2d(4, **OWN).eval(), IMAGES),
    "BatchNorm2d without weight": (CONVOLUTION, nn.BatchNorm2d(4, affine=False, **OWN), IMAGES),
    "BatchNorm3d": (LINEAR, nn.BatchNorm3d(2, **OWN), (3, 2, 2, 2, 6)),
    "SyncBatchNorm": (LINEAR, nn.SyncBatchNorm(4, **OWN).eval(), (5, 6)),
    "InstanceNorm1d": (LINEAR, nn.InstanceNorm1d(2, affine=True), (5, 2, 6)),
    "InstanceNorm1d of one": (LINEAR, nn.InstanceNorm1d(2, affine=True), (2, 6)),
    "InstanceNorm2d": (CONVOLUTION, nn.InstanceNorm2d(4, affine=True), IMAGES),
    "InstanceNorm2d without weight": (CONVOLUTION, nn.InstanceNorm2d(4), IMAGES),
    "InstanceNorm3d": (LINEAR, nn.InstanceNorm3d(2, affine=True), (3, 2, 2, 2, 6)),
    "GroupNorm": (CONVOLUTION, nn.GroupNorm(2, 4), IMAGES),
    "LayerNorm": (LINEAR, nn.LayerNorm(4), (5, 6)),
    "LayerNorm of two dimensions": (LINEAR, nn.LayerNorm([2, 4]), (5, 2, 6)),
    "LayerNorm without bias": (LINEAR, nn.LayerNorm(4, bias=False), (5, 6)),
    "LayerNorm without weight": (LINEAR, nn.LayerNorm(4, elementwise_affine=False), (5, 6)),
    "RMSNorm": (LINEAR, nn.RMSNorm(4), (5, 6)),
    "pooling": (CONVOLUTION, nn.Sequential(nn.Tanh(), nn.MaxPool2d(2)), IMAGES),
}


@pytest.mark.parametrize("name", LAYERS)
def test_products_with_hessians_of_batched_tasks(name):
    """Torch has them wrong where a normalization has a weight; one task at a time it is right."""
    first, second, shape = LAYERS[name]
    network = nn.Sequential(first, second).double()
    model, theta = imaml.functional_model(network)
    theta, v = ({k: torch.randn(3, *t.shape).double() for k, t in theta.items()} for _ in range(2))
    x = torch.randn(3, *shape, dtype=torch.float64)
    torch.testing.assert_close(
        model(one(theta, 0), x[0]), functional_call(network, one(theta, 0), (x[0],))
    )

    def loss(theta, x):
        out = model(theta, x)
        return (out.tanh().square() * torch.linspace(1, 2, out.numel()).reshape(out.shape)).sum()

    _, pull = vjp(lambda t: vmap(grad(loss))(t, x), theta)
    batched = pull(v)[0]
    for task in range(3):
        _, pull = vjp(lambda t: grad(loss)(t, x[task]), one(theta, task))  # noqa: B023
        single = pull(one(v, task))[0]
        torch.testing.assert_close(one(batched, task), single, rtol=1e-10, atol=1e-10)


def test_model_and_parameters_are_copies():
    network = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    forward, before = network[1].forward, network[0].weight.detach().clone()
    model, theta = imaml.functional_model(network)
    assert network[1].forward == forward
    assert list(theta) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert not any(value.requires_grad for value in theta.values())
    x = torch.randn(4, 2)
    torch.testing.assert_close(model(theta, x), network(x))
    network[1].weight.data.zero_()
    assert not torch.allclose(model(theta, x), network(x))
    theta["1.weight"].zero_()
    theta["0.weight"].zero_()
    torch.testing.assert_close(model(theta, x), theta["1.bias"].expand(4, 3))
    assert torch.equal(network[0].weight, before)


def test_frozen_parameters_stay_what_they_are():
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    network[0].requires_grad_(False)
    model, theta = imaml.functional_model(network)
    assert list(theta) == ["1.weight", "1.bias"]
    x = torch.randn(4, 2)
    zero = {name: torch.zeros_like(value) for name, value in theta.items()}
    torch.testing.assert_close(model(zero, x), torch.zeros(4, 1))
    torch.testing.assert_close(model(theta, x), network(x))


def test_a_module_with_buffers_and_shared_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(2, 2, bias=False)
            self.second = nn.Linear(2, 2, bias=False)
            self.second.weight = self.first.weight
            self.register_buffer("shift", torch.tensor([1.0, -1.0]))

        def forward(self, x):
            return self.second(torch.tanh(self.first(x))) + self.shift

    model, theta = imaml.functional_model(Tied())
    assert list(theta) == ["first.weight"]
    W, x = torch.randn(2, 2), torch.randn(3, 2)
    expected = torch.tanh(x @ W.T) @ W.T + torch.tensor([1.0, -1.0])
    torch.testing.assert_close(model({"first.weight": W}, x), expected)
