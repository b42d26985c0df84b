"""Which tensors of an operator carry the native lanes of a solve. It knows no solver."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from implicit_solvers.linear.lanewise import LanewiseOperator
from implicit_solvers.linear.linear_operator import (
    LinearOperator,
    ProductOperator,
    ScaledOperator,
    SumOperator,
    TransposedOperator,
)
from implicit_solvers.linear.operators import DiagonalOperator, IdentityOperator, MatrixOperator
from implicit_solvers.linear.sparse import SparseOperator
from implicit_solvers.linear.tridiagonal import TridiagonalOperator
from implicit_solvers.structure import split_tensors

__all__ = ["carried_lanes", "read_operator_dims"]


def carried_lanes(A: LinearOperator, at_once: bool = False) -> list[bool] | None:
    """Tell for each tensor of an operator whether it carries the lanes; None if that is unknown.

    It is known of operators that are made of tensors. Those that take all lanes ``at_once`` do not
    show them in their structure.
    """
    if isinstance(A, LanewiseOperator):
        return carried_lanes(A.operator, at_once=True)
    if isinstance(A, TransposedOperator):
        return carried_lanes(A.operator, at_once)
    if isinstance(A, (SumOperator, ProductOperator)):
        left, right = carried_lanes(A.left, at_once), carried_lanes(A.right, at_once)
        return None if left is None or right is None else left + right
    if isinstance(A, ScaledOperator):
        inner = carried_lanes(A.operator, at_once)
        return None if inner is None else inner + [False] * isinstance(A.scale, Tensor)
    if isinstance(A, DiagonalOperator):
        return [at_once] * len(split_tensors(A)[0])
    if isinstance(A, IdentityOperator):
        return []
    if at_once:
        return None
    if isinstance(A, SparseOperator):
        return [bool(A.structure.native), False, False]
    if isinstance(A, (MatrixOperator, TridiagonalOperator)):
        return [bool(A.structure.native)] * len(split_tensors(A)[0])
    return None


def read_operator_dims(
    in_dims: Any, A: LinearOperator, lanes: tuple[int, ...]
) -> list[bool] | None:
    """Tell what ``in_dims`` says of the tensors of an operator, or refuse it."""
    if in_dims is None:
        return carried_lanes(A)
    if not lanes:
        raise ValueError(
            f"in_dims is {in_dims!r} and batch_dims is 0: pass batch_dims, the number of batch "
            "dimensions of b, too"
        )
    tensors = split_tensors(A)[0]
    given = (0,) * len(tensors) if in_dims == 0 and isinstance(in_dims, int) else in_dims
    if not isinstance(given, (tuple, list)) or len(given) != len(tensors):
        raise ValueError(
            f"in_dims is {in_dims!r} for the {len(tensors)} tensors of A: pass 0, or a tuple with "
            "0 or None for each of them"
        )
    for place, (dim, tensor) in enumerate(zip(given, tensors, strict=True)):
        if dim is not None and (isinstance(dim, bool) or dim != 0):
            raise ValueError(
                f"in_dims has {dim!r} at {place}: the batch comes first, use 0 or None"
            )
        if dim == 0 and tuple(tensor.shape[: len(lanes)]) != lanes:
            raise ValueError(
                f"in_dims says that tensor {place} of A has the batch, and its shape is "
                f"{tuple(tensor.shape)} where b has the batch {lanes}: put None for it, or "
                "expand it"
            )
    return [dim == 0 for dim in given]
