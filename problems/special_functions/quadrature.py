"""Gauss-Legendre quadrature with nodes clustered at the start of the interval."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

__all__ = ["clustered_nodes", "quadrature"]

SIZE = 1 << 16  # nodes times elements: large against the cost of a call, small against the cache


@functools.cache
def clustered_nodes(count: int) -> tuple[tuple[float, float], ...]:
    """Return ``count`` pairs of node and weight for the integral over [0, 1].

    The Gauss-Legendre rule in ``u``, mapped by ``x = u (1 + u) / 2``: the integrands here fall from
    their largest value at ``x = 0``.
    """
    roots, weights = np.polynomial.legendre.leggauss(count)
    u = (roots + 1) / 2
    return tuple(
        (float(x), float(w)) for x, w in zip(u * (1 + u) / 2, weights / 2 * (0.5 + u), strict=True)
    )


def quadrature(
    integrands: Callable[..., tuple[Tensor, ...]], nodes: int, *args: Tensor
) -> list[Tensor]:
    """Integrate over [0, 1] for each element, at all nodes at once.

    ``integrands(x, *args)`` returns tensors ``(nodes, n)``, of ``x`` with the shape ``(nodes, 1)``
    and flat float64 ``args`` of one length.

    Examples
    --------
    >>> a = torch.tensor([1.0, 2.0], dtype=torch.float64)
    >>> quadrature(lambda x, a: ((-a * x).exp(),), 12, a)
    [tensor([0.6321, 0.4323], dtype=torch.float64)]
    """
    places = torch.tensor(clustered_nodes(nodes), dtype=torch.float64, device=args[0].device)
    x, weights = places[:, :1], places[:, 1]
    blocks = zip(*(t.split(max(1, SIZE // nodes)) for t in args), strict=True)
    parts = [[weights @ v for v in integrands(x, *block)] for block in blocks]
    if len(parts) == 1:
        return parts[0]
    return [torch.cat(p) for p in zip(*parts, strict=True)]
