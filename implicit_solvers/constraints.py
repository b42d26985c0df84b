"""Constraints as they are given: functions of the unknown, and what they return.

It knows no solver.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.guarded_call import called
from implicit_solvers.many_starts import Starts
from implicit_solvers.structure import Structure
from implicit_solvers.torch_internals import TreeSpec, tree_flatten, tree_unflatten

__all__ = ["Constraints", "Multipliers"]

Read = Callable[[Any, Structure, Sequence[int]], Tensor]


class Multipliers(NamedTuple):
    """The multipliers of constraints, each like what its function returns; ``()`` without one.

    With them the gradient of ``f + sum(y h) + sum(u g)`` vanishes, where no bound is active.

    Attributes
    ----------
    equalities
        Those ``y`` of ``h = 0``, of any sign.
    inequalities
        Those ``u`` of ``g <= 0``: not negative, and zero where ``g < 0``.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> a = torch.tensor(3.0, requires_grad=True)
    >>> sol = ims.minimize(
    ...     lambda z, a: z**2, torch.tensor(5.0), (a,), inequalities=lambda z, a: a - z
    ... )
    >>> sol.multipliers.inequalities
    tensor(6.0000, grad_fn=<...>)
    >>> torch.autograd.grad(sol.multipliers.inequalities, a)[0]
    tensor(2.)
    """

    equalities: Any = ()
    inequalities: Any = ()


@dataclass(frozen=True)
class _Part:
    """What one function of constraints returns: its tree, its leaves' shapes, and their size."""

    name: str
    tree: TreeSpec
    shapes: tuple[torch.Size, ...]

    @property
    def size(self) -> int:
        """Return how many numbers there are in a lane."""
        return sum(math.prod(shape) for shape in self.shapes)

    @staticmethod
    def of(name: str, out: Any, structure: Structure) -> _Part:
        """Read what the function returns at the start."""
        leaves, tree = tree_flatten(out)
        lanes = structure.native
        _check(name, leaves, structure, lanes)
        return _Part(name, tree, tuple(leaf.shape[len(lanes) :] for leaf in leaves))

    def ravel(self, out: Any, structure: Structure, lanes: Sequence[int]) -> Tensor:
        """Return what the function returns as ``(*lanes, size)``."""
        leaves, tree = tree_flatten(out)
        _check(self.name, leaves, structure, lanes)
        shapes = tuple(leaf.shape[len(lanes) :] for leaf in leaves)
        if tree != self.tree or shapes != self.shapes:
            raise ValueError(
                f"{self.name} returned {_shown(shapes)} where it returned {_shown(self.shapes)} at "
                "z0: what it returns may not change its structure or shapes"
            )
        flat = [
            leaf.reshape((*lanes, math.prod(shape)))
            for leaf, shape in zip(leaves, shapes, strict=True)
        ]
        return torch.cat(flat, -1)

    def unravel(self, flat: Tensor) -> Any:
        """Return a pytree like what the function returns."""
        lanes = flat.shape[:-1]
        parts = flat.split([math.prod(shape) for shape in self.shapes], -1)
        leaves = [
            part.reshape((*lanes, *shape)) for part, shape in zip(parts, self.shapes, strict=True)
        ]
        return tree_unflatten(leaves, self.tree)


@dataclass(frozen=True)
class Constraints:
    """The constraints of a minimum: the functions, and what they return."""

    fn: Callable[..., Any]
    equalities: Callable[..., Any] | None
    inequalities: Callable[..., Any] | None
    parts: tuple[_Part | None, _Part | None]
    has_aux: bool

    @staticmethod
    def of(
        fn: Callable[..., Any],
        equalities: Any,
        inequalities: Any,
        structure: Structure,
        z0: Any,
        args: tuple[Any, ...],
        has_aux: bool,
    ) -> Constraints:
        """Evaluate the functions at ``z0``, and refuse what is unfit.

        Raises
        ------
        TypeError, ValueError
            If one is no function, or returns what is no constraint.
        """
        if structure.dtype.is_complex:
            raise ValueError(
                "equalities or inequalities are given, and z0 is complex: pass its real and "
                "imaginary parts as two tensors"
            )
        parts: list[_Part | None] = []
        for name, given in (("equalities", equalities), ("inequalities", inequalities)):
            if given is None:
                parts.append(None)
                continue
            if not callable(given) or isinstance(given, type):
                raise TypeError(
                    f"{name} is {_what(given)}: pass a function {name}(z, *args) that returns "
                    f"what is to be {'zero' if name == 'equalities' else 'at most zero'}"
                )
            fix = f"it is called as {name}(z, *args), with all of args"
            with torch.no_grad():
                out = called(given, (z0, *args), name, fix) if isinstance(args, tuple) else None
            parts.append(_Part.of(name, out, structure))
        return Constraints(fn, equalities, inequalities, (parts[0], parts[1]), has_aux)

    @property
    def sizes(self) -> tuple[int, int]:
        """Return how many equalities and inequalities there are."""
        first, second = (0 if part is None else part.size for part in self.parts)
        return first, second

    def function(self) -> Callable[..., Any]:
        """Return objective and constraints as one function of unknown and multipliers."""
        fn, functions, has_aux = self.fn, (self.equalities, self.inequalities), self.has_aux
        if not callable(fn):
            return fn

        def together(u: tuple[Any, Tensor], *args: Any) -> Any:
            z, _ = u
            value = fn(z, *args)
            rows = tuple(None if c is None else c(z, *args) for c in functions)
            if has_aux:
                if not isinstance(value, tuple) or len(value) != 2:
                    return value
                return (value[0], rows), value[1]
            return value, rows

        return functools.wraps(fn)(together)

    def read(self, read_objective: Read) -> Read:
        """Return what ravels and checks what `function` returns: ``(*lanes, 1 + m)``."""

        def read(out: Any, structure: Structure, lanes: Sequence[int]) -> Tensor:
            value, rows = out
            flat = [read_objective(value, structure, lanes).unsqueeze(-1)]
            for part, row in zip(self.parts, rows, strict=True):
                if part is not None:
                    flat.append(part.ravel(row, structure, lanes))
            return torch.cat(flat, -1)

        return read

    def start(self, z0: Any, structure: Structure) -> Any:
        """Return the start, or starts, of unknown and multipliers: these are zero."""
        if isinstance(z0, Starts):
            return Starts(tuple(self.start(one, structure) for one in z0.each))
        like = tree_flatten(z0)[0][0]
        return z0, like.detach().new_zeros((*structure.native, sum(self.sizes)))

    def bounds(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bounds of the unknown with those of the constraints beside them."""
        equal, less = self.sizes
        zeros = lo.new_zeros((*lo.shape[:-1], equal + less))
        below = torch.cat([zeros[..., :equal], zeros[..., equal:] - torch.inf], -1)
        return torch.cat([lo, below], -1), torch.cat([hi, zeros], -1)

    def multipliers(self, y: Tensor) -> Multipliers:
        """Return the multipliers as pytrees."""
        first, second = y.split(self.sizes, -1)
        equal, less = self.parts
        return Multipliers(
            () if equal is None else equal.unravel(first),
            () if less is None else less.unravel(second),
        )

    def flat(self, given: Any, structure: Structure) -> Tensor:
        """Return multipliers that are given as `Multipliers`, or as a pair of pytrees, in one."""
        if not isinstance(given, tuple) or len(given) != 2:
            raise TypeError(
                f"multipliers is {_what(given)}: pass a pair (of equalities, of inequalities), "
                "each like what the function returns, or ()"
            )
        rows = []
        for part, value in zip(self.parts, given, strict=True):
            if part is None:
                continue
            leaves, tree = tree_flatten(value)
            shapes = tuple(leaf.shape for leaf in leaves if isinstance(leaf, Tensor))
            wanted = tuple(torch.Size((*structure.native, *shape)) for shape in part.shapes)
            if tree != part.tree or shapes != wanted:
                raise ValueError(
                    f"the multipliers of {part.name} have {_shown(shapes)}: pass tensors like what "
                    f"{part.name} returns, {_shown(wanted)}"
                )
            _check(f"multipliers of {part.name}", leaves, structure, structure.native)
            rows += [
                leaf.reshape((*structure.native, math.prod(shape)))
                for leaf, shape in zip(leaves, part.shapes, strict=True)
            ]
        return torch.cat(rows, -1)


def _check(name: str, leaves: Sequence[Any], structure: Structure, lanes: Sequence[int]) -> None:
    if not leaves:
        raise ValueError(f"{name} returned no tensor: return the constraints, or leave {name} out")
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"{name} returned {_what(leaf)}: return tensors of constraints")
        if leaf.dtype != structure.dtype:
            raise TypeError(
                f"{name} returned {leaf.dtype} where z0 has {structure.dtype}: convert z0 or the "
                "tensors that the function uses, so that all have one dtype"
            )
        if leaf.shape[: len(lanes)] != tuple(lanes):
            raise ValueError(
                f"{name} returned constraints of shape {tuple(leaf.shape)}: they must begin with "
                f"the batch {tuple(lanes)}"
            )
    if all(0 in leaf.shape[len(lanes) :] for leaf in leaves):
        raise ValueError(f"{name} returned no number: return constraints, or leave {name} out")


def _what(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"a {type(value).__name__}"


def _shown(shapes: Sequence[Sequence[int]]) -> str:
    return "shapes " + ", ".join(str(tuple(shape)) for shape in shapes)
