"""A linear map of one lane, as a function of the tensors that it is made of. It knows no solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from implicit_solvers.lanes import Lanes

__all__ = ["Products", "Template"]

Products = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


class Template(Protocol):
    """A linear map of raveled vectors as a function of the tensors that it is made of."""

    @property
    def symmetric(self) -> bool:
        """Whether the map is known to be symmetric."""

    @property
    def positive_definite(self) -> bool:
        """Whether the map is known to be positive definite."""

    @property
    def diagonal(self) -> bool:
        """Whether the map is known to be diagonal."""

    @property
    def bands(self) -> tuple[int, int] | None:
        """How many diagonals below and above the main one may hold anything, if that is known."""

    @property
    def shape(self) -> tuple[int, int] | None:
        """The numbers of rows and columns, or None for a square map of whatever it is given."""

    def pattern_of(self, tensors: Sequence[Tensor]) -> Any:
        """Return the ``rows``, ``columns`` and ``shape`` of a sparse matrix; None if it is none."""

    def mv(self, v: Tensor, *tensors: Tensor) -> Tensor:
        """Return ``A(*tensors) v`` for one lane."""

    def rmv(self, v: Tensor, *tensors: Tensor) -> Tensor:
        """Return ``A(*tensors)^T v`` for one lane."""

    def dense(self, like: Tensor, *tensors: Tensor) -> Tensor:
        """Return the matrix of one lane."""

    def matrices(
        self, lanes: Lanes, like: Tensor, tensors: Sequence[Tensor], basis: Tensor | None
    ) -> Tensor:
        """Return the matrices of all lanes; ``basis`` is the identity, if it is at hand."""

    def diagonal_entries(self, like: Tensor, *tensors: Tensor) -> Tensor:
        """Return the diagonal of one lane."""

    def products(self, lanes: Lanes, like: Tensor, tensors: Sequence[Tensor]) -> Products:
        """Return ``mv`` and ``rmv`` for all lanes, with what they share computed once."""

    @property
    def source(self) -> Any:
        """What the map was written as: a function, or a class."""

    def reading_by_itself(self, tensors: Sequence[Tensor]) -> tuple[Template, int] | None:
        """Return a map that takes so many tensors and reads the others by itself, if it may."""
