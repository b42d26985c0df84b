"""Unknowns as pytrees outside, as one tensor ``(*lanes, n)`` inside.

It knows no solver and no equation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.compiling import cached_property
from implicit_solvers.torch_internals import TreeSpec, tree_flatten, tree_unflatten

__all__ = ["Structure", "filled", "replaced", "shown", "split_tensors"]


@dataclass(frozen=True)
class Structure:
    """The shape of an unknown: its tree, its leaves' shapes, and how many dimensions are lanes.

    With ``real_view``, a complex unknown is raveled to its real and imaginary parts, alternating.
    """

    tree: TreeSpec
    shapes: tuple[torch.Size, ...]
    native: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    real_view: bool = False

    @staticmethod
    def of(value: Any, name: str, batch_dims: int = 0) -> Structure:
        """Read the structure of ``value``, the argument called ``name``, and refuse what is unfit.

        Raises
        ------
        TypeError
            If a leaf is no tensor, or is not of a floating dtype, real or complex.
        ValueError
            If there is no leaf, if leaves differ in dtype or device, or if a leaf has fewer than
            ``batch_dims`` dimensions or other lanes than the first.
        """
        leaves, tree = tree_flatten(value)
        if not leaves:
            raise ValueError(f"{name} is an empty pytree: pass at least one tensor")
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    f"{name} has a leaf of type {type(leaf).__name__}: every leaf must be a "
                    "tensor (torch.as_tensor makes one)"
                )
            if not (leaf.is_floating_point() or leaf.is_complex()):
                raise TypeError(
                    f"{name} has dtype {leaf.dtype}: an unknown must be floating; "
                    f"pass {name}.to(torch.float64)"
                )
            if leaf.dtype != leaves[0].dtype or leaf.device != leaves[0].device:
                raise ValueError(
                    f"{name} mixes {leaves[0].dtype} on {leaves[0].device} with {leaf.dtype} on "
                    f"{leaf.device}: give all leaves one dtype and one device"
                )
            if leaf.dim() < batch_dims:
                raise ValueError(
                    f"{name} has a leaf of shape {tuple(leaf.shape)}, which has fewer than "
                    f"batch_dims={batch_dims} dimensions"
                )
            if leaf.shape[:batch_dims] != leaves[0].shape[:batch_dims]:
                raise ValueError(
                    f"{name} has leaves with the batch {tuple(leaves[0].shape[:batch_dims])} and "
                    f"{tuple(leaf.shape[:batch_dims])}: the first batch_dims={batch_dims} "
                    "dimensions of all leaves must agree"
                )
        shapes = tuple(leaf.shape[batch_dims:] for leaf in leaves)
        native = tuple(leaves[0].shape[:batch_dims])
        return Structure(tree, shapes, native, leaves[0].dtype, leaves[0].device)

    def as_real(self) -> Structure:
        """Return the structure with complex leaves seen as pairs of real numbers."""
        return replace(self, real_view=self.dtype.is_complex)

    @property
    def flat_dtype(self) -> torch.dtype:
        """The dtype of the raveled unknown."""
        return self.dtype.to_real() if self.real_view else self.dtype

    @cached_property
    def _sizes(self) -> list[int]:
        factor = 2 if self.real_view else 1
        return [factor * math.prod(shape) for shape in self.shapes]

    @cached_property
    def _bare(self) -> bool:
        """Whether the unknown is one tensor in no container."""
        return self.tree.is_leaf()

    @cached_property
    def is_vector(self) -> bool:
        """Whether the unknown is one tensor ``(n,)`` of a lane, raveled already."""
        return self._bare and len(self.shapes[0]) == 1 and not self.real_view

    @cached_property
    def size(self) -> int:
        """Return the number of unknowns of one lane."""
        return sum(self._sizes)

    def ravel(self, value: Any) -> Tensor:
        """Return the leaves of ``value``, one after the other, as ``(*native, n)``."""
        return self._join(tree_flatten(value)[0])

    def _join(self, leaves: Sequence[Tensor]) -> Tensor:
        lanes = leaves[0].shape[: leaves[0].dim() - len(self.shapes[0])]
        if self.real_view:
            leaves = [torch.stack((leaf.real, leaf.imag), -1) for leaf in leaves]
        sizes = self._sizes
        if len(leaves) == 1:
            shape = (*lanes, sizes[0])
            return leaves[0] if leaves[0].shape == shape else leaves[0].reshape(shape)
        flat = [leaf.reshape((*lanes, k)) for leaf, k in zip(leaves, sizes, strict=True)]
        return torch.cat(flat, dim=-1)

    def unravel(self, flat: Tensor) -> Any:
        """Return the pytree of a tensor ``(*lanes, n)``; any lanes in front are kept."""
        if self.is_vector:
            return flat
        lanes = flat.shape[:-1]
        parts = [flat] if len(self.shapes) == 1 else flat.split(self._sizes, dim=-1)
        pair = (2,) if self.real_view else ()
        leaves = [
            # torch 2.8 cannot compile a strict zip here
            part.reshape((*lanes, *self.shapes[place], *pair))
            for place, part in enumerate(parts)
        ]
        if self.real_view:
            leaves = [torch.complex(leaf[..., 0], leaf[..., 1]) for leaf in leaves]
        return leaves[0] if self._bare else tree_unflatten(leaves, self.tree)

    def check_like(self, value: Any, lanes: Sequence[int], name: str, like: str) -> Tensor:
        """Ravel ``value``, which must have this structure, or say what it was instead."""
        if self._bare and isinstance(value, Tensor):
            leaves, tree = [value], self.tree
        else:
            leaves, tree = tree_flatten(value)
        if tree != self.tree:
            raise ValueError(
                f"{name} returned the structure {shown(tree)}, and {like} has {shown(self.tree)}: "
                f"return one tensor for each leaf of {like}, in the same containers"
            )
        for leaf, shape in zip(leaves, self.shapes, strict=True):
            if not isinstance(leaf, Tensor):
                raise TypeError(f"{name} returned a {type(leaf).__name__}: return a tensor")
            if leaf.shape != (*lanes, *shape):
                raise ValueError(
                    f"{name} returned a tensor of shape {tuple(leaf.shape)} where {like} has "
                    f"{(*lanes, *shape)}: return one entry for each unknown"
                )
            if leaf.dtype != self.dtype:
                raise TypeError(
                    f"{name} returned {leaf.dtype} where {like} has {self.dtype}: convert {like} "
                    "or the tensors that the function uses, so that all have one dtype"
                )
            if leaf.device != self.device:
                raise ValueError(
                    f"{name} returned a tensor on {leaf.device} where {like} is on {self.device}: "
                    "move them to one device"
                )
        return self._join(leaves)


class _Place:
    def __repr__(self) -> str:
        return "tensor"


def shown(tree: TreeSpec) -> str:
    """Write a structure as a value with a word in the place of each tensor: ``{'x': tensor}``."""
    return repr(tree_unflatten([_Place()] * tree.num_leaves, tree))


def filled(value: Any, name: str, like: Any, missing: float | None = None) -> Any:
    """Return a pytree of tensors like ``like``, of one of tensors and numbers.

    A number may stand for all leaves, and, where ``missing`` says what it means, None too.
    """
    leaves, tree = tree_flatten(like)
    given, given_tree = tree_flatten(value)
    if value is None or isinstance(value, (int, float)):
        given, given_tree = [value] * len(leaves), tree
    if given_tree != tree:
        raise ValueError(
            f"{name} has the structure {shown(given_tree)} where z0 has {shown(tree)}: give it "
            "the same, or one number"
        )
    full = []
    for leaf, entry in zip(leaves, given, strict=True):
        if isinstance(entry, Tensor) and (entry.dtype, entry.device) != (leaf.dtype, leaf.device):
            raise TypeError(
                f"{name} is {entry.dtype} on {entry.device} where z0 is {leaf.dtype} on "
                f"{leaf.device}: convert it"
            )
        if entry is None:
            if missing is None:
                raise TypeError(f"{name} is None: pass a number or a tensor")
            entry = missing
        if not isinstance(entry, (Tensor, int, float)):
            raise TypeError(f"{name} has a {type(entry).__name__}: pass numbers or tensors")
        entry = torch.as_tensor(entry, dtype=leaf.dtype, device=leaf.device)
        try:
            full.append(entry.expand(leaf.shape))
        except RuntimeError as error:
            raise ValueError(
                f"{name} has the shape {tuple(entry.shape)} where z0 has {tuple(leaf.shape)}: give "
                "it the same shape, or one number"
            ) from error
    return tree_unflatten(full, tree)


def replaced(values: Sequence[Any], places: Sequence[int], others: Sequence[Any]) -> list[Any]:
    """Return a list of the values, with others in some places."""
    filled = list(values)
    for place, other in zip(places, others, strict=True):
        filled[place] = other
    return filled


def split_tensors(tree: Any) -> tuple[list[Tensor], Any]:
    """Split a pytree into its tensors and a function that puts tensors back in their places."""
    if type(tree) is tuple and all(isinstance(leaf, Tensor) for leaf in tree):
        return list(tree), tuple
    leaves, spec = tree_flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def join(tensors: Sequence[Tensor]) -> Any:
        return tree_unflatten(replaced(leaves, places, tensors), spec)

    return [leaves[i] for i in places], join
