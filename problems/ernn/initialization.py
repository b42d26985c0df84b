"""Where the training of the matrices begins."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["factors_of", "nearly_orthogonal"]


def nearly_orthogonal(n: int, norm: float, rank: int | None = None) -> Tensor:
    """Return a random ``n x n`` matrix with singular values from 0.9 to 1 times ``norm``.

    An orthogonal matrix would treat all directions alike; distinct singular values give the norm
    second derivatives. Only ``rank`` of them, by default all, are not zero.

    Examples
    --------
    >>> torch.linalg.matrix_norm(nearly_orthogonal(5, 0.3), 2)
    tensor(0.3000)
    """
    rank = n if rank is None else rank
    left, _ = torch.linalg.qr(torch.randn(n, n))
    right, _ = torch.linalg.qr(torch.randn(n, n))
    values = norm * torch.linspace(1.0, 0.9, rank)
    return left[:, :rank] * values @ right[:, :rank].T


def factors_of(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return ``left (m, rank)`` and ``right (rank, n)`` of equal size, whose product is nearest.

    Examples
    --------
    >>> left, right = factors_of(torch.tensor([[4.0, 0.0], [0.0, 0.0]]), 1)
    >>> left @ right
    tensor([[4., 0.],
            [0., 0.]])
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root.unsqueeze(-1) * right[:rank]
