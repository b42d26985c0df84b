"""Maps with known constants: contractions, monotone maps, smooth networks. It knows no solver."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from implicit_solvers.testing.strategies.tensors import (
    Device,
    check_sizes,
    normal,
    rotation,
    seeds,
)

__all__ = [
    "DrawnMap",
    "DrawnNetwork",
    "apply",
    "contraction",
    "contractions",
    "monotone_map",
    "monotone_maps",
    "networks",
    "points",
]


@dataclass(frozen=True, eq=False)
class DrawnMap:
    """A smooth map ``F`` of ``n`` unknowns and what is known of it, in the Euclidean norm.

    Attributes
    ----------
    fn, args
        ``fn(z, *args)``, for ``z (*lanes, n)``; ``args`` are tensors of one lane. Maps of one
        strategy share ``fn``, so that the ``args`` of several can be stacked to lanes.
    size
        The number of unknowns.
    lipschitz
        ``|F(x) - F(y)| <= lipschitz |x - y|``.
    modulus
        ``<F(x) - F(y), x - y> >= modulus |x - y|^2``.

    Examples
    --------
    >>> drawn = DrawnMap(torch.tanh, (), 1, lipschitz=1.0, modulus=0.0)
    >>> drawn(torch.tensor([0.0]))
    tensor([0.])
    """

    fn: Callable[..., Tensor]
    args: tuple[Tensor, ...]
    size: int
    lipschitz: float
    modulus: float

    def __call__(self, z: Tensor) -> Tensor:
        """Return ``F(z)``."""
        return self.fn(z, *self.args)


def apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return the product of a matrix and a vector in each lane."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def points(size: int, magnitude: float = 1.0) -> SearchStrategy[Tensor]:
    """Draw a point, a multiple of ``magnitude / 4`` in each coordinate; it shrinks to zero."""
    quarters = st.lists(st.integers(-8, 8), min_size=size, max_size=size)
    return quarters.map(lambda ks: torch.tensor(ks, dtype=torch.float64) * magnitude / 4)


def contraction(z: Tensor, W: Tensor, V: Tensor, b: Tensor) -> Tensor:
    """Return ``W tanh(V z) + b``."""
    return apply(W, torch.tanh(apply(V, z))) + b


def contractions(
    *,
    min_size: int = 1,
    max_size: int = 6,
    constant: float = 0.5,
    dtype: torch.dtype = torch.float64,
    device: Device = "cpu",
) -> SearchStrategy[DrawnMap]:
    """Draw a map ``g(z; W, V, b) = W tanh(V z) + b`` with a Lipschitz constant of choice.

    ``V`` is orthogonal and ``W`` is ``constant`` times an orthogonal matrix, so that the constant
    is attained, at ``V z = 0``. By Banach's theorem ``g`` has one fixed point.

    Parameters
    ----------
    min_size, max_size
        The bounds of the number of unknowns.
    constant
        The Lipschitz constant in the Euclidean norm; at 1 and above the map is no contraction.
    dtype, device
        Of ``args``.

    Returns
    -------
    SearchStrategy
        Of `DrawnMap`, from ``(*lanes, n)`` to ``(*lanes, n)``; it shrinks to
        ``g(z) = constant tanh(z)``.

    Raises
    ------
    ValueError
        If no size satisfies the bounds, or ``constant`` is negative.

    Examples
    --------
    >>> import hypothesis
    >>> g = hypothesis.find(contractions(constant=0.9), lambda g: True)
    >>> g(torch.tensor([0.5], dtype=torch.float64))
    tensor([0.4159], dtype=torch.float64)
    """
    check_sizes(min_size, max_size)
    if not 0 <= constant < math.inf:
        raise ValueError(f"constant is {constant}: pass a finite number of at least 0")

    def build(b: Tensor, left: int, right: int) -> DrawnMap:
        n = len(b)
        parts = (constant * rotation(left, n), rotation(right, n), b)
        args = tuple(t.to(device=device, dtype=dtype) for t in parts)
        return DrawnMap(contraction, args, n, constant, -constant)

    shifts = st.integers(min_size, max_size).flatmap(points)
    return st.builds(build, shifts, seeds(), seeds())


def monotone_map(z: Tensor, m: Tensor, K: Tensor, B: Tensor, b: Tensor) -> Tensor:
    """Return ``m z + K z + B^T tanh(B z) + b``."""
    return m * z + apply(K, z) + apply(B.mT, torch.tanh(apply(B, z))) + b


def monotone_maps(
    *,
    min_size: int = 1,
    max_size: int = 6,
    modulus: float = 1.0,
    rotation_speed: float = 1.0,
    dtype: torch.dtype = torch.float64,
    device: Device = "cpu",
) -> SearchStrategy[DrawnMap]:
    """Draw a strongly monotone map ``F(z; m, K, B, b) = m z + K z + B^T tanh(B z) + b``.

    ``K`` is skew symmetric and turns, ``B`` has the norm 1 and bends; neither takes from the
    monotonicity: ``<F(x) - F(y), x - y> >= m |x - y|^2``, and ``F`` has one root if ``m > 0``. It
    is no gradient of a function unless ``K = 0``. Source: Ryu and Boyd, "A Primer on Monotone
    Operator Methods" (2016), section 2.

    Parameters
    ----------
    min_size, max_size
        The bounds of the number of unknowns.
    modulus
        The ``m`` above, not negative.
    rotation_speed
        The norm of ``K``, where there is more than one unknown.
    dtype, device
        Of ``args``.

    Returns
    -------
    SearchStrategy
        Of `DrawnMap`, from ``(*lanes, n)`` to ``(*lanes, n)``, with
        ``lipschitz = m + rotation_speed + 1``.

    Raises
    ------
    ValueError
        If no size satisfies the bounds, or a number is negative.

    Examples
    --------
    >>> import hypothesis
    >>> F = hypothesis.find(monotone_maps(), lambda F: True)
    >>> F(torch.tensor([1.0], dtype=torch.float64))  # z + tanh z
    tensor([1.7616], dtype=torch.float64)
    """
    check_sizes(min_size, max_size)
    if not (0 <= modulus < math.inf and 0 <= rotation_speed < math.inf):
        raise ValueError(
            f"modulus={modulus}, rotation_speed={rotation_speed}: pass finite numbers of at least 0"
        )

    def build(b: Tensor, turn: int, bend: int) -> DrawnMap:
        n = len(b)
        K = normal(turn, n, n)
        K = (K - K.T) / 2
        K = rotation_speed * K / torch.linalg.matrix_norm(K, 2) if n > 1 else 0 * K
        B = rotation(bend, n) if bend % 2 == 0 else normal(bend, n, n)
        B = B / torch.linalg.matrix_norm(B, 2)
        parts = (torch.tensor(modulus, dtype=torch.float64), K, B, b)
        args = tuple(t.to(device=device, dtype=dtype) for t in parts)
        return DrawnMap(monotone_map, args, n, modulus + rotation_speed + 1, modulus)

    shifts = st.integers(min_size, max_size).flatmap(points)
    return st.builds(build, shifts, seeds(), seeds())


@dataclass(frozen=True, eq=False)
class DrawnNetwork:
    """A smooth network and its parameters.

    Attributes
    ----------
    fn, parameters
        ``fn(x, parameters)``, from ``(*lanes, inputs)`` to ``(*lanes, outputs)``; the parameters
        are a list with a dict ``{"weight": (out, in), "bias": (out,)}`` for each layer.
    inputs, outputs
        The sizes.
    lipschitz
        The product of the weights' norms, a bound of the Lipschitz constant in ``x``.

    Examples
    --------
    >>> drawn = DrawnNetwork(lambda x, p: p * x, torch.tensor(2.0), 1, 1, lipschitz=2.0)
    >>> drawn(torch.tensor([3.0]))
    tensor([6.])
    """

    fn: Callable[[Tensor, Any], Tensor]
    parameters: Any
    inputs: int
    outputs: int
    lipschitz: float

    def __call__(self, x: Tensor) -> Tensor:
        """Return the network's output."""
        return self.fn(x, self.parameters)


def _network(
    activation: Callable[[Tensor], Tensor], x: Tensor, layers: list[dict[str, Tensor]]
) -> Tensor:
    for layer in layers[:-1]:
        x = activation(apply(layer["weight"], x) + layer["bias"])
    return apply(layers[-1]["weight"], x) + layers[-1]["bias"]


_ACTIVATIONS = (torch.tanh, torch.sin, torch.nn.functional.softplus)


def networks(
    *,
    inputs: int | None = None,
    outputs: int | None = None,
    max_width: int = 4,
    max_hidden: int = 2,
    gain: float = 1.0,
    dtype: torch.dtype = torch.float64,
    device: Device = "cpu",
) -> SearchStrategy[DrawnNetwork]:
    """Draw a smooth random network ``x -> W_L s(... s(W_1 x + b_1) ...) + b_L``.

    The activation ``s`` is tanh, sin or softplus: infinitely often differentiable and with slopes
    of at most 1. Weights are normal with the standard deviation ``gain / sqrt(fan in)``.

    Parameters
    ----------
    inputs, outputs
        The sizes; drawn up to ``max_width`` if left out.
    max_width, max_hidden
        The most units in a layer, and the most hidden layers; there may be none.
    gain
        The size of the weights.
    dtype, device
        Of the parameters.

    Returns
    -------
    SearchStrategy
        Of `DrawnNetwork`; it shrinks to one layer of one input and output.

    Raises
    ------
    ValueError
        If a size is below 1, ``max_hidden`` below 0, or ``gain`` not positive.

    Examples
    --------
    >>> import hypothesis
    >>> net = hypothesis.find(networks(inputs=2), lambda net: len(net.parameters) == 2)
    >>> [tuple(layer["weight"].shape) for layer in net.parameters]
    [(1, 2), (1, 1)]
    """
    if min(max_width, inputs or 1, outputs or 1) < 1 or inputs == 0 or outputs == 0:
        raise ValueError(
            f"inputs={inputs}, outputs={outputs}, max_width={max_width}: pass sizes of at least 1"
        )
    if max_hidden < 0 or not 0 < gain < math.inf:
        raise ValueError(
            f"max_hidden={max_hidden}, gain={gain}: pass a number of at least 0 and one above 0"
        )

    def build(
        first: int, hidden: list[int], last: int, activation: Callable[..., Tensor], seed: int
    ) -> DrawnNetwork:
        widths = [first, *hidden, last]
        layers, lipschitz = [], 1.0
        for i, (n, m) in enumerate(pairwise(widths)):
            drawn = normal(seed + i, m, n + 1)
            weight, bias = gain * drawn[:, :n] / n**0.5, gain * drawn[:, n]
            lipschitz *= float(torch.linalg.matrix_norm(weight, 2))
            layer = {"weight": weight, "bias": bias}
            layers.append({k: t.to(device=device, dtype=dtype) for k, t in layer.items()})
        return DrawnNetwork(partial(_network, activation), layers, first, last, lipschitz)

    width = st.integers(1, max_width)
    return st.builds(
        build,
        width if inputs is None else st.just(inputs),
        st.lists(width, max_size=max_hidden),
        width if outputs is None else st.just(outputs),
        st.sampled_from(_ACTIVATIONS),
        seeds(),
    )
