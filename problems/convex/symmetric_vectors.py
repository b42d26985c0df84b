"""Symmetric matrices as vectors, with the same inner product."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["from_svec", "svec", "svec_basis"]


@cache
def _triangle(k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, columns and weights of the upper triangle, column by column, and its places."""
    columns, rows = np.tril_indices(k)
    place = np.zeros((k, k), dtype=np.int64)
    place[rows, columns] = np.arange(len(rows))
    return rows, columns, np.where(rows == columns, 1.0, 2.0**0.5), np.maximum(place, place.T)


def _on(like: Tensor, k: int) -> tuple[Tensor, ...]:
    rows, columns, weights, place = (torch.from_numpy(t).to(like.device) for t in _triangle(k))
    return rows, columns, weights.to(like.dtype), place


def svec(S: Tensor) -> Tensor:
    """Return the upper triangle by columns, entries off the diagonal times ``sqrt(2)``.

    It takes ``(..., k, k)`` to ``(..., k (k + 1) / 2)``, and keeps the Frobenius inner product.

    Examples
    --------
    >>> svec(torch.tensor([[1.0, 2.0], [2.0, 3.0]]))
    tensor([1.0000, 2.8284, 3.0000])
    """
    rows, columns, weights, _ = _on(S, S.shape[-1])
    return S[..., rows, columns] * weights


def from_svec(v: Tensor, k: int) -> Tensor:
    """Return the symmetric matrices ``(..., k, k)`` of vectors ``(..., k (k + 1) / 2)``.

    Examples
    --------
    >>> from_svec(torch.tensor([1.0, 2.0**0.5, 3.0]), 2)
    tensor([[1., 1.],
            [1., 3.]])
    """
    _, _, weights, place = _on(v, k)
    return (v / weights)[..., place]


def svec_basis(k: int, like: Tensor) -> Tensor:
    """Return the orthonormal matrices ``(k (k + 1) / 2, k, k)`` that `svec` takes coordinates in.

    Examples
    --------
    >>> svec_basis(2, torch.zeros(1)).shape
    torch.Size([3, 2, 2])
    """
    eye = torch.eye(k * (k + 1) // 2, dtype=like.dtype, device=like.device)
    return from_svec(eye, k)
