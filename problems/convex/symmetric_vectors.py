"""Symmetric matrices as vectors, with the same inner product."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["from_svec", "svec", "svec_basis"]


def _triangle(k: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, columns and weights of the upper triangle, column by column."""
    columns, rows = torch.tril_indices(k, k, device=like.device)
    one = torch.ones(1, dtype=like.dtype, device=like.device)
    return rows, columns, torch.where(rows == columns, one, 2.0**0.5 * one)


def svec(S: Tensor) -> Tensor:
    """Return the upper triangle by columns, entries off the diagonal times ``sqrt(2)``.

    Parameters
    ----------
    S
        ``(..., k, k)``, symmetric.

    Returns
    -------
    Tensor
        ``(..., k (k + 1) / 2)``, with the Frobenius inner product of the matrices.

    Examples
    --------
    >>> svec(torch.tensor([[1.0, 2.0], [2.0, 3.0]]))
    tensor([1.0000, 2.8284, 3.0000])
    """
    rows, columns, weights = _triangle(S.shape[-1], S)
    return S[..., rows, columns] * weights


def from_svec(v: Tensor, k: int) -> Tensor:
    """Return the symmetric matrices ``(..., k, k)`` of vectors ``(..., k (k + 1) / 2)``.

    Examples
    --------
    >>> from_svec(torch.tensor([1.0, 2.0**0.5, 3.0]), 2)
    tensor([[1., 1.],
            [1., 3.]])
    """
    rows, columns, weights = _triangle(k, v)
    place = torch.zeros(k, k, dtype=torch.int64, device=v.device)
    place[rows, columns] = torch.arange(len(rows), device=v.device)
    place = torch.maximum(place, place.mT)
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
