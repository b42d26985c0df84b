"""Tensors from a seed, and what tensors are made with: trees, batch shapes, dtypes, devices.

It knows no equation.
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

__all__ = [
    "batch_shapes",
    "check_sizes",
    "devices",
    "dtypes",
    "normal",
    "parameters",
    "rotation",
    "seeds",
]

Device = torch.device | str


def seeds() -> SearchStrategy[int]:
    """Draw the seed of a tensor's own generator; it shrinks to 0."""
    return st.integers(0, 2**16)


def normal(seed: int, *shape: int) -> Tensor:
    """Return standard normal numbers in float64, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def rotation(seed: int, n: int) -> Tensor:
    """Return an orthogonal matrix ``(n, n)``; the identity for seed 0, so that cases get simple."""
    if seed == 0 or n == 0:
        return torch.eye(n, dtype=torch.float64)
    q, r = torch.linalg.qr(normal(seed, n, n))
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0)


def check_sizes(min_size: int, max_size: int, least: int = 1) -> None:
    """Refuse bounds that no size satisfies."""
    if not least <= min_size <= max_size:
        raise ValueError(
            f"min_size={min_size}, max_size={max_size}: pass {least} <= min_size <= max_size"
        )


def dtypes() -> SearchStrategy[torch.dtype]:
    """Draw a dtype of the unknowns, ``float64`` or ``float32``; it shrinks to ``float64``.

    Returns
    -------
    SearchStrategy
        Of ``torch.dtype``.

    Examples
    --------
    >>> import hypothesis
    >>> hypothesis.find(dtypes(), lambda dtype: True)
    torch.float64
    """
    return st.sampled_from((torch.float64, torch.float32))


def devices() -> SearchStrategy[torch.device]:
    """Draw a device that this machine has: the CPU or a CUDA device; it shrinks to the CPU.

    Returns
    -------
    SearchStrategy
        Of ``torch.device``.

    Examples
    --------
    >>> import hypothesis
    >>> hypothesis.find(devices(), lambda device: True)
    device(type='cpu')
    """
    cuda = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return st.sampled_from([torch.device("cpu"), *cuda])


def batch_shapes(
    *, min_dims: int = 0, max_dims: int = 2, min_side: int = 1, max_side: int = 3
) -> SearchStrategy[tuple[int, ...]]:
    """Draw the shape of a grid of lanes; it shrinks to the fewest dimensions and lanes.

    Parameters
    ----------
    min_dims, max_dims
        The bounds of the number of dimensions.
    min_side, max_side
        The bounds of each; ``min_side=0`` draws empty batches too.

    Returns
    -------
    SearchStrategy
        Of tuples of numbers.

    Raises
    ------
    ValueError
        If a bound is negative or no number satisfies the bounds.

    Examples
    --------
    >>> import hypothesis
    >>> hypothesis.find(batch_shapes(), lambda shape: len(shape) == 2)
    (1, 1)
    """
    if not (0 <= min_dims <= max_dims and 0 <= min_side <= max_side):
        raise ValueError(
            f"min_dims={min_dims}, max_dims={max_dims}, min_side={min_side}, max_side={max_side}: "
            "pass bounds of at least 0, the lower ones first"
        )
    sides = st.integers(min_side, max_side)
    return st.lists(sides, min_size=min_dims, max_size=max_dims).map(tuple)


def parameters(
    *,
    max_leaves: int = 4,
    max_side: int = 3,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
    device: Device = "cpu",
) -> SearchStrategy[Any]:
    """Draw a pytree of parameters: tensors in dicts, lists and tuples, nested.

    Entries are normal with the standard deviation ``scale``. It shrinks to one 0-d tensor.

    Parameters
    ----------
    max_leaves
        The most tensors in the tree.
    max_side
        The largest dimension of a tensor; it has at most two.
    scale
        The standard deviation of the entries.
    dtype, device
        Of all the tensors.

    Returns
    -------
    SearchStrategy
        Of a tensor, or of a dict, list or tuple of trees; never of an empty one.

    Raises
    ------
    ValueError
        If ``max_leaves`` or ``max_side`` is below 1.

    Examples
    --------
    >>> import hypothesis
    >>> hypothesis.find(parameters(), lambda tree: True).shape
    torch.Size([])
    >>> hypothesis.find(parameters(), lambda tree: isinstance(tree, dict)).keys()
    dict_keys(['a'])
    """
    if max_leaves < 1 or max_side < 1:
        raise ValueError(
            f"max_leaves={max_leaves}, max_side={max_side}: pass numbers of at least 1"
        )

    def leaf(shape: tuple[int, ...], seed: int) -> Tensor:
        return (scale * normal(seed, *shape)).to(device=device, dtype=dtype)

    def split(count: int) -> SearchStrategy[Any]:
        """Draw a tree of exactly so many tensors."""
        leaves = st.builds(leaf, batch_shapes(max_side=max_side), seeds())
        if count == 1:
            return leaves | leaves.map(lambda t: {"a": t}) | leaves.map(lambda t: [t])
        halves = [st.tuples(split(k), split(count - k)) for k in range(1, count)]
        pairs = st.one_of(halves)
        as_dict = pairs.map(lambda pair: dict(zip("ab", pair, strict=True)))
        return pairs | as_dict | pairs.map(list)

    return st.integers(1, max_leaves).flatmap(split)
