"""The experiments' networks and their first parameters."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, nn

from implicit_solvers.problems.imaml import functional_model
from implicit_solvers.problems.imaml.few_shot_networks import (
    classifier,
    initial_parameters,
    regressor,
)


def built(network, seed=0):
    model, _ = functional_model(network)
    return model, initial_parameters(network, Generator().manual_seed(seed))


@given(
    side=st.sampled_from([4, 7, 14, 28, 84]),
    channels=st.sampled_from([1, 3]),
    width=st.sampled_from([4, 8]),
    ways=st.sampled_from([None, 2, 5]),
    normalization=st.sampled_from(["batch", "group"]),
    pooling=st.booleans(),
)
def test_outputs_have_the_shape_of_the_task(side, channels, width, ways, normalization, pooling):
    network = classifier(side, channels, width, ways, normalization=normalization, pooling=pooling)
    model, theta = built(network)
    out = model(theta, torch.rand(3, channels, side, side))
    blocks = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    last = side
    for _ in range(blocks):
        last = last // 2 if pooling else -(-last // 2)
    assert out.shape == (3, width * last**2 if ways is None else ways)
    assert blocks == 4 or last <= 2
    if ways is not None:
        assert (out == 0).all()  # the last layer starts at zero


@pytest.mark.parametrize("normalization", ["batch", "group"])
def test_outputs_do_not_depend_on_the_convolutions_scale(normalization):
    """What `initial_parameters` says of normalized networks, up to the normalization's epsilon."""
    model, theta = built(classifier(14, 1, 8, None, normalization=normalization))
    x = torch.rand(6, 1, 14, 14)
    larger = {name: 2 * value if value.dim() == 4 else value for name, value in theta.items()}
    torch.testing.assert_close(model(larger, x), model(theta, x), rtol=1e-3, atol=1e-3)


def test_group_normalization_looks_at_one_image():
    model, theta = built(classifier(14, 1, 8, None, normalization="group"))
    x = torch.rand(6, 1, 14, 14)
    torch.testing.assert_close(model(theta, x)[2:3], model(theta, x[2:3]), rtol=1e-4, atol=1e-5)


def test_batch_normalization_looks_at_all_images():
    model, theta = built(classifier(14, 1, 8, None))
    x = torch.rand(6, 1, 14, 14)
    assert (model(theta, x)[2] - model(theta, x[:3])[2]).abs().max() > 0.01


def test_first_parameters():
    """Deviations 3 sqrt(2 / inputs) of convolutions, sqrt(2 / inputs) of the regressor's layers."""
    theta = initial_parameters(classifier(28, 1, 64, 5), Generator().manual_seed(0))
    kernel = theta["3.weight"].numpy()
    assert kernel.shape == (64, 64, 3, 3)
    np.testing.assert_allclose(kernel.std(), 3 * np.sqrt(2 / 576), rtol=0.02)
    assert abs(kernel.mean()) < 5 * kernel.std() / np.sqrt(kernel.size)
    assert (theta["1.weight"] == 1).all() and (theta["1.bias"] == 0).all()
    network = regressor(300)
    theta = initial_parameters(network, Generator().manual_seed(0))
    matrix = next(value for value in theta.values() if value.shape == (300, 300)).numpy()
    np.testing.assert_allclose(matrix.std(), np.sqrt(2 / 300), rtol=0.02)
    again = initial_parameters(network, Generator().manual_seed(0))
    assert all(torch.equal(theta[name], again[name]) for name in theta)


def test_the_regressor_is_the_published_one_on_inputs_from_minus_one_to_one():
    model, theta = built(regressor(5))
    first, second, last = (value for value in theta.values() if value.dim() == 2)
    x = torch.linspace(-5, 5, 9)[:, None]
    hidden = ((x / 5) @ first.T).clamp(min=0)
    expected = (hidden @ second.T).clamp(min=0) @ last.T
    torch.testing.assert_close(model(theta, x), expected)
    features, theta = built(regressor(5, None))
    assert features(theta, x).shape == (9, 5)
