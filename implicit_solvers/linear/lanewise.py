"""Operators on whole grids of lanes, seen as one operator in each lane.

It knows nothing of solves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from implicit_solvers.linear.linear_operator import LinearOperator, OfOneOperator, operator_pytree
from implicit_solvers.structure import Structure

__all__ = ["LanewiseOperator", "in_lanes"]


@operator_pytree("operator")
@dataclass(frozen=True, eq=False)
class LanewiseOperator(OfOneOperator):
    """An operator that takes all lanes at once and lets none depend on another."""

    lanes: int

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """Whether the operator is."""
        return self.operator.symmetric

    @property
    def positive_definite(self) -> bool:  # type: ignore[override]
        """Whether the operator is."""
        return self.operator.positive_definite

    @property
    def structure(self) -> Structure | None:
        """The structure of the vectors of a lane."""
        return _of_a_lane(self.operator.structure, self.lanes)

    @property
    def out_structure(self) -> Structure | None:
        """The structure of the products of a lane."""
        return _of_a_lane(self.operator.out_structure, self.lanes)

    def mv(self, v: Any) -> Any:
        """Return the products in all lanes."""
        return self.operator.mv(v)

    def rmv(self, v: Any) -> Any:
        """Return the products with the transposes."""
        return self.operator.rmv(v)


def in_lanes(operator: LinearOperator, b: Structure) -> LinearOperator:
    """Return the operator as one of each lane of ``b``, if it takes all of them at once."""
    out = operator.out_structure
    lanes = tuple(b.native)
    if out is None or not lanes or out.native:
        return operator
    if [tuple(s) for s in out.shapes] != [(*lanes, *s) for s in b.shapes]:
        return operator
    vectors = operator.structure
    assert vectors is not None
    if any(tuple(s[: len(lanes)]) != lanes for s in vectors.shapes):
        return operator
    return LanewiseOperator(operator, len(lanes))


def _of_a_lane(whole: Structure | None, lanes: int) -> Structure:
    assert whole is not None
    shapes = tuple(s[lanes:] for s in whole.shapes)
    return replace(whole, shapes=shapes, native=tuple(whole.shapes[0][:lanes]))
