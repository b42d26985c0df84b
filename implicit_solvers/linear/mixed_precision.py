"""Linear maps in a lower precision than that of their vectors."""

from __future__ import annotations

from collections.abc import Sequence
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
from implicit_solvers.torch_internals import version

__all__ = ["RoundedTensors", "RoundedVectors", "made_of_tensors", "rounded"]

_MADE_OF_TENSORS = (
    DiagonalOperator,
    IdentityOperator,
    MatrixOperator,
    SparseOperator,
    TridiagonalOperator,
)


class RoundedTensors:
    """The tensors of a solve's operators in a lower precision, kept for its derivatives.

    One is rounded again if it is another than before, or was written to.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], tuple[Tensor, int, Tensor]] = {}

    def of(self, tensors: Sequence[Tensor], name: str, dtype: torch.dtype) -> list[Tensor]:
        """Return the tensors of the operator called ``name``; those of other kinds as they are."""
        return [self._one(t, (name, place), dtype) for place, t in enumerate(tensors)]

    def _one(self, tensor: Tensor, key: tuple[str, int], dtype: torch.dtype) -> Tensor:
        if tensor.dtype not in (torch.float64, torch.complex128):
            return tensor
        if tensor.is_complex():
            dtype = dtype.to_complex()
        if tensor.is_inference():  # it has no version
            return tensor.to(dtype)
        known = self._kept.get(key)
        if known is not None and known[2].dtype == dtype and _unchanged(known[0], known[1], tensor):
            return known[2]
        source = tensor.detach()  # shares the version
        self._kept[key] = source, version(source), source.to(dtype)
        return self._kept[key][2]


def _unchanged(source: Tensor, before: int, tensor: Tensor) -> bool:
    same = source.data_ptr() == tensor.data_ptr() and source.dtype == tensor.dtype
    alike = source.shape == tensor.shape and source.stride() == tensor.stride()
    return same and alike and version(source) == before and source.is_conj() == tensor.is_conj()


class RoundedVectors:
    """A map that multiplies in its own precision, in the place of one in a lower precision.

    It takes vectors in the lower precision, and rounds its products.
    """

    def __init__(self, A: LaneMap) -> None:
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


def rounded(problem: LinearProblem, dtype: torch.dtype, tensors: RoundedTensors) -> LinearProblem:
    """Return the problem in a lower precision.

    Operators made of tensors are rounded; those of functions multiply in their own precision.

    Parameters
    ----------
    problem
        A problem in float64 or complex128.
    dtype
        The precision, real: float32.
    tensors
        The operators' tensors that were rounded before.
    """
    b = problem.b
    low = dtype.to_complex() if b.is_complex() else dtype
    A = _rounded_map(problem.A, low, dtype, tensors, "A")
    M: Any = problem.M
    if isinstance(M, DiagonalMap):
        M = replace(M, entries=M.entries.to(low if M.entries.is_complex() else dtype))
    elif M is not None:
        M = _rounded_map(M, low, dtype, tensors, "M")
    return LinearProblem(A, b.to(low), M)


def _rounded_map(
    A: LaneMap, vectors: torch.dtype, dtype: torch.dtype, tensors: RoundedTensors, name: str
) -> Any:
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
        tensors.of(A.tensors, name, dtype),
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
