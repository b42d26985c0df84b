"""A function that captures tensors, as one of explicit arguments. It knows no equation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from implicit_solvers.autodiff import unwatched
from implicit_solvers.capture import Captured, Substitution

__all__ = ["ExplicitFunction", "reading_by_itself"]


@dataclass(frozen=True, eq=False)
class ExplicitFunction:
    """``fn(z, *operands)``, where the last operands take the places of what ``fn`` captured.

    ``fn`` itself takes ``arguments`` of them. Every one of the ``expected`` tensors must be read.
    """

    fn: Callable[..., Tensor]
    arguments: int
    captured: Captured
    expected: Sequence[Tensor] = ()

    def __call__(self, z: Tensor, *operands: Tensor) -> Tensor:
        """Evaluate with the operands in the places of the captured tensors."""
        with Substitution(self.captured, (z, *operands), self.expected):
            out = self.fn(z, *operands[: self.arguments])
        self.captured.check_replaced(out, (z, *operands), self.fn)
        return out


def reading_by_itself(
    fn: Callable[..., Tensor], operands: Sequence[Tensor]
) -> tuple[Callable[..., Tensor], int] | None:
    """Return a function that need not be given what it captured, and how many operands it takes.

    None where operands have values that the function would not read by itself. A compiler sees
    what a function reads, and does not see a `Substitution`.
    """
    if not isinstance(fn, ExplicitFunction):
        return fn, len(operands)
    if not (unwatched() and fn.captured.unmoved(operands)):
        return None
    return fn.fn, fn.arguments
