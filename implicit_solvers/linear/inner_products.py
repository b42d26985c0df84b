"""Inner products of lanes of vectors, real or complex. It knows nothing of operators."""

from __future__ import annotations

from torch import Tensor

from implicit_solvers.ranks import summed

__all__ = ["inner", "real_inner"]


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a^H b`` of each lane of ``(N, n)``, as ``(N, 1)``."""
    return summed((a.conj() * b).sum(-1, keepdim=True))


def real_inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the real part of ``a^H b`` of each lane, as ``(N, 1)``."""
    return inner(a, b).real
