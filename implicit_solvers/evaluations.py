"""How often a solve has evaluated its function, formed its Jacobian, and multiplied with it.

It knows nothing of who asks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Counter", "Evaluations", "added", "as_tensor", "counted"]


class Evaluations(NamedTuple):
    """What a solve has evaluated until a problem ended; int64, ``(*batch,)`` each.

    Problems that step together are evaluated together: each step counts what its slowest problem
    needs.

    Attributes
    ----------
    function
        Calls of the function, for any purpose (SciPy's ``nfev``); the gradient of an objective
        comes with its value.
    jacobian
        Jacobians (of ``minimize``, Hessians) that were formed (SciPy's ``njev``, ``nhev``).
    products
        Products of a vector with a Jacobian that was not formed, or with its transpose.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> ims.root(lambda z: z**2 - 2, torch.tensor(1.0)).evaluations
    Evaluations(function=..., jacobian=..., products=...)
    """

    function: Any
    jacobian: Any
    products: Any


class Counter:
    """What one solve has asked for so far, and what it had at some marks since it began to step."""

    def __init__(self) -> None:
        self.function = self.jacobian = self.products = 0
        self.begin()

    def begin(self) -> None:
        """Begin to step: marks count from here."""
        self._before, self._marks = self.read(), list[Evaluations]()

    def read(self) -> Evaluations:
        """Return the numbers."""
        return Evaluations(self.function, self.jacobian, self.products)

    def since(self, before: Evaluations) -> Evaluations:
        """Return what has been asked for since it was ``before``."""
        return Evaluations(*(a - b for a, b in zip(self.read(), before, strict=True)))

    def mark(self) -> int:
        """Note the numbers as they are now, and return the mark of what comes after."""
        self._marks.append(self.since(self._before))
        return len(self._marks)

    def until(self, mark: Any) -> Any:
        """Return the numbers at the end of a mark, or of that of each lane, as ``(N, 3)``."""
        marks = [*self._marks, self.since(self._before)]
        if not isinstance(mark, Tensor):
            return marks[mark]
        return torch.tensor(marks, device=mark.device)[mark]


def added(total: Any, more: Any) -> Any:
    """Return the sum of counts, numbers that all lanes share or tensors ``(N, 3)``, if any are."""
    if len(total) == 0 or len(more) == 0:
        return ()
    if isinstance(total, Tensor) or isinstance(more, Tensor):
        like = total if isinstance(total, Tensor) else more
        return as_tensor(total, like) + as_tensor(more, like)
    return Evaluations(*(a + b for a, b in zip(total, more, strict=True)))


def as_tensor(counts: Any, like: Any) -> Tensor:
    """Return counts as a tensor that lanes can share, where ``like`` is, if that is a tensor."""
    if isinstance(counts, Tensor):
        return counts
    device = like.device if isinstance(like, Tensor) else None
    return torch.tensor(tuple(counts), dtype=torch.int64, device=device)


def counted(counts: Tensor) -> Evaluations | None:
    """Return numbers ``(*lanes, 3)`` by their names; None of what is empty."""
    return Evaluations(*counts.unbind(-1)) if counts.shape[-1] > 0 else None
