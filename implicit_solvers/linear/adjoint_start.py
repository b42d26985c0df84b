"""Where a backward solve starts, and where it leaves its solution. It knows no solver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.structure import Structure
from implicit_solvers.torch_internals import tree_flatten, tree_map

__all__ = ["AdjointMemory", "AdjointStart"]


class AdjointStart:
    """A warm start of adjoints: each begins where the last one ended.

    Pass one object to the same solve at every step of a training loop. The adjoint ``A^T w = z'``
    starts at ``value``, if that fits in structure, shape, dtype and device, otherwise at zero, and
    leaves ``w`` there. A start whose residual is larger than that of zero is not used for its
    problem. With a tolerance the gradient is the same, up to that tolerance, for fewer products;
    with a budget (``rtol=None``) the start is part of the estimate. Derivatives of the gradient,
    and forward mode, start at zero. No gradient flows through the object. Source:
    Pedregosa, "Hyperparameter optimization with approximate gradient" (2016), section 5.

    Parameters
    ----------
    value
        The first start, like the solution ``z`` (under ``vmap``, with the batch in front); zero by
        default.

    Raises
    ------
    TypeError
        If a leaf of ``value`` is not a tensor.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> matrix = torch.diag(torch.linspace(1.0, 9.0, 30))
    >>> A = ims.MatrixOperator(matrix, positive_definite=True)
    >>> b, start = torch.ones(30, requires_grad=True), AdjointStart()
    >>> with ims.monitor() as log:
    ...     for _ in range(2):
    ...         x = ims.linear_solve(A, b, solver=ims.CG(), adjoint_start=start).value
    ...         x.sum().backward()
    >>> first, second = log.adjoints()
    >>> int(first.iterations) > 5, int(second.iterations)
    (True, 0)
    """

    def __init__(self, value: Any = None) -> None:
        self.value: Any = None if value is None else tree_map(_detached, value)

    def __repr__(self) -> str:
        """Tell what is kept."""
        if self.value is None:
            return "AdjointStart()"
        shapes = [tuple(t.shape) for t in tree_flatten(self.value)[0]]
        return f"AdjointStart(shapes={shapes})"


def _detached(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        raise TypeError(f"value has a leaf of type {type(leaf).__name__}: pass tensors like z")
    return leaf.detach()


@dataclass(frozen=True)
class AdjointMemory:
    """An `AdjointStart` of raveled unknowns of a known structure."""

    start: AdjointStart = field(compare=False)
    structure: Structure

    def read(self, like: Tensor) -> Tensor | None:
        """Return the start ``(*lanes, n)`` for a right-hand side of that shape, if one fits."""
        if self.start.value is None:
            return None
        leaves, tree = tree_flatten(self.start.value)
        old, lanes = self.structure, like.shape[:-1]
        shapes = [torch.Size((*lanes, *shape)) for shape in old.shapes]
        fits = tree == old.tree and [leaf.shape for leaf in leaves] == shapes
        if not fits or any(t.dtype != old.dtype or t.device != like.device for t in leaves):
            return None
        return old.ravel(self.start.value)

    def write(self, w: Tensor) -> None:
        """Keep a solution ``(*lanes, n)``."""
        self.start.value = self.structure.unravel(w.detach().clone())
