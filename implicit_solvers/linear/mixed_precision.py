"""Linear maps in a lower precision than that of their vectors. It knows no solver."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.linear.lanewise import LanewiseOperator
from implicit_solvers.linear.linear_operator import (
    LinearOperator,
    ProductOperator,
    ScaledOperator,
    SumOperator,
    TransposedOperator,
)
from implicit_solvers.linear.operator_template import OperatorTemplate
from implicit_solvers.linear.operators import DiagonalOperator, IdentityOperator, MatrixOperator
from implicit_solvers.linear.preconditioners import DiagonalMap
from implicit_solvers.linear.problem import LinearProblem
from implicit_solvers.linear.sparse import SparseOperator
from implicit_solvers.linear.tridiagonal import TridiagonalOperator

__all__ = ["RoundedVectors", "made_of_tensors", "rounded"]

_MADE_OF_TENSORS = (
    DiagonalOperator,
    IdentityOperator,
    MatrixOperator,
    SparseOperator,
    TridiagonalOperator,
)


class RoundedVectors:
    """A map that multiplies in its own precision, in the place of one in a lower precision.

    It takes vectors in the lower precision, and rounds its products.
    """

    def __init__(self, A: Any) -> None:
        self.A = A

    @property
    def separable(self) -> bool:
        """Whether lanes can be selected."""
        return self.A.separable

    def mv(self, v: Tensor) -> Tensor:
        """Return the product with each lane of ``v (N, n)``."""
        return self.A.mv(v.to(self.A.like.dtype)).to(v.dtype)

    def take(self, index: Tensor) -> RoundedVectors:
        """Return the map of some of the lanes."""
        return RoundedVectors(self.A.take(index))


def rounded(problem: LinearProblem, dtype: torch.dtype) -> LinearProblem:
    """Return a problem of float64 or complex128 in a lower precision, the real ``dtype``.

    Operators made of tensors are rounded; those of functions multiply in their own precision.
    """
    b = problem.b
    low = dtype.to_complex() if b.is_complex() else dtype
    M: Any = problem.M
    if isinstance(M, DiagonalMap):
        M = replace(M, entries=M.entries.to(low if M.entries.is_complex() else dtype))
    elif isinstance(M, LaneMap):
        M = _rounded_map(M, low, dtype, "M")
    elif M is not None:
        M = RoundedVectors(M)
    return LinearProblem(_rounded_map(problem.A, low, dtype, "A"), b.to(low), M)


def _rounded_map(A: LaneMap, vectors: torch.dtype, dtype: torch.dtype, name: str) -> Any:
    template = A.template
    if not (isinstance(template, OperatorTemplate) and template.functionless):
        return RoundedVectors(A)
    template = replace(
        template,
        structure=replace(template.structure, dtype=vectors),
        out=replace(template.out, dtype=vectors),
    )
    return LaneMap(
        template,
        A.lanes,
        A.shape,
        A.memory.rounded(A.tensors, name, dtype),
        like=A.like.to(vectors),
        columns=A.columns,
        transposed=A.transposed,
    )


def made_of_tensors(operator: LinearOperator) -> bool:
    """Tell whether an operator is known by its tensors alone, with no function in it."""
    if isinstance(operator, (SumOperator, ProductOperator)):
        return made_of_tensors(operator.left) and made_of_tensors(operator.right)
    if isinstance(operator, (ScaledOperator, TransposedOperator, LanewiseOperator)):
        return made_of_tensors(operator.operator)
    return type(operator) in _MADE_OF_TENSORS
