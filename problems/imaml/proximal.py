"""The term that holds a task near the meta-parameters, and its strength."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.torch_internals import (
    tree_flatten,
    tree_leaves,
    tree_structure,
    tree_unflatten,
)

__all__ = [
    "Strength",
    "check_damping",
    "check_proximal",
    "check_strength",
    "neumann_adjoint",
    "proximal_term",
    "strength_of_each_leaf",
]

Strength = Any
"""A number, a 0-d tensor, or a pytree like ``theta`` of tensors that broadcast to its leaves."""


def proximal_term(phi: Any, theta: Any, strength: Strength) -> Tensor:
    """Return ``1/2 sum_k strength_k (phi_k - theta_k)²`` for pytrees of one structure.

    Examples
    --------
    >>> phi, theta = ({"w": torch.full((2,), x), "b": torch.tensor(x)} for x in (1.0, 0.0))
    >>> proximal_term(phi, theta, {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0)})
    tensor(3.)
    """
    pairs = zip(tree_leaves(phi), tree_leaves(theta), strict=True)
    differences = [p - t for p, t in pairs]
    if isinstance(strength, (int, float)):  # one sum for all leaves is faster
        return strength / 2 * torch.cat([d.flatten() for d in differences]).square().sum()
    strengths = strength_of_each_leaf(strength, theta)
    weighted = zip(strengths, differences, strict=True)
    return torch.cat([(s * d.square()).flatten() for s, d in weighted]).sum() / 2


def strength_of_each_leaf(strength: Strength, theta: Any) -> list[Any]:
    """Return the strength for each leaf of ``theta``, or refuse another structure.

    Examples
    --------
    >>> strength_of_each_leaf(2.0, {"w": torch.zeros(3), "b": torch.zeros(())})
    [2.0, 2.0]
    """
    leaves = tree_leaves(theta)
    if isinstance(strength, (int, float)) or (isinstance(strength, Tensor) and not strength.dim()):
        return [strength] * len(leaves)
    given, wanted = tree_structure(strength), tree_structure(theta)
    if given != wanted:
        raise ValueError(
            f"strength has the structure {given} where theta has {wanted}: pass a number, a 0-d "
            "tensor, or a pytree like theta"
        )
    return tree_leaves(strength)


def check_strength(strength: Strength, theta: Any) -> None:
    """Refuse a strength that is not positive and finite, or does not fit ``theta``.

    Under ``torch.func.vmap`` the values of a batched strength cannot be read, nor those of any
    tensor inside of ``torch.compile``; there, only shapes are checked.
    """
    strengths = strength_of_each_leaf(strength, theta)
    for value, leaf in zip(strengths, tree_leaves(theta), strict=True):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if not 0 < value < math.inf:
                raise ValueError(f"strength={value} is not positive and finite: pass 2.0, say")
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"strength has {kind}: pass a number or real floating tensors")
        if not _broadcasts(value, leaf):
            raise ValueError(
                f"strength has the shape {tuple(value.shape)} where theta has "
                f"{tuple(leaf.shape)}: pass tensors that broadcast to the leaves of theta"
            )
        if not _positive_or_unreadable(value):
            raise ValueError(
                "strength has entries that are not positive and finite: keep the tensors "
                "positive, as the exponential of what is learned"
            )


def check_proximal(strength: Strength, damping: float, theta: Any) -> None:
    """Refuse a ``theta`` that is not made of tensors, and what `check_strength` and co. refuse."""
    leaves = tree_leaves(theta)
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        kinds = sorted({type(leaf).__name__ for leaf in leaves})
        raise TypeError(f"theta has leaves of {kinds}: pass a tensor or a pytree of tensors")
    check_strength(strength, theta)
    check_damping(damping)


def check_damping(damping: float) -> None:
    """Refuse a damping that is no finite number of at least zero."""
    if not isinstance(damping, (int, float)) or not 0 <= damping < math.inf:
        raise ValueError(
            f"damping={damping} is not a finite number of at least zero: pass 0.0 for none"
        )


def _broadcasts(value: Tensor, leaf: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(value.shape, leaf.shape) == leaf.shape
    except RuntimeError:
        return False


def _positive_or_unreadable(value: Tensor) -> bool:
    if torch.compiler.is_compiling():  # noqa: TID251 (a check is left out at most)
        return True
    good = ((value > 0) & torch.isfinite(value)).all()
    try:
        return bool(good)
    except RuntimeError:  # a batch of them, under vmap
        return True


def neumann_adjoint(terms: int) -> ims.ImplicitAdjoint:
    """Return the adjoint that sums ``terms`` terms of lemma 1's Neumann series.

    ``(I + H/strength)^-1 = sum_k (-H/strength)^k`` for the Hessian ``H`` of the loss, which
    converges where ``|H|`` is below the strength: preconditioned by the strength, since the
    equation solved is ``(H + strength I) w = strength v``. With damping, the series of the damped
    system in powers of ``-(damping I + H/strength)``.

    Parameters
    ----------
    terms
        Their number; one is first-order MAML's gradient.

    Returns
    -------
    implicit_solvers.ImplicitAdjoint
        For `adapt`, `meta_loss` and `Imaml`, with ``theta`` of any shapes and floating dtype. It is
        biased: of first order only.

    Raises
    ------
    ValueError
        If ``terms`` is no positive whole number.

    Notes
    -----
    Source: Rajeswaran, Finn, Kakade and Levine, "Meta-Learning with Implicit Gradients" (2019),
    lemma 1; the series as an adjoint: Lorraine, Vicol and Duvenaud, "Optimizing Millions of
    Hyperparameters by Implicit Differentiation" (2020).

    Examples
    --------
    >>> neumann_adjoint(3).linear_solver
    Neumann(rtol=None, ...max_steps=3, ...)
    """
    if not isinstance(terms, int) or terms < 1:
        raise ValueError(f"terms={terms!r}: pass a positive number of terms")
    return ims.ImplicitAdjoint(ims.Neumann(max_steps=terms, rtol=None), _inverse_strength)


def _inverse_strength(phi: Any, *args: Any) -> ims.LinearOperator:
    """Return ``1/strength``, from the arguments of the equation, the last of which it is."""
    theta, _, strength = args[-3:]  # phi may have tasks in front
    strengths = strength_of_each_leaf(strength, theta)
    leaves, tree = tree_flatten(theta)
    entries = [torch.ones_like(leaf) / s for leaf, s in zip(leaves, strengths, strict=True)]
    return ims.DiagonalOperator(tree_unflatten(entries, tree))
