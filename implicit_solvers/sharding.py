"""Unknowns that are `DTensor`s: solved as the local tensors of each rank.

Where whole lanes are sharded, each rank solves its own. Where the rows of an unknown are, each has
its rows, and sums go over all ranks (`ranks`). It knows no solver by name.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.ranks import Ranks
from implicit_solvers.tolerance import rms
from implicit_solvers.torch_internals import (
    forward_level,
    transforms_active,
    tree_flatten,
    tree_map,
    tree_unflatten,
)

__all__ = [
    "Layout",
    "Parts",
    "Spread",
    "added_up",
    "check_spread",
    "over_ranks",
    "sharded",
    "telling",
]


def _kind() -> Any:
    # whoever has a DTensor has imported it, and begun a process group
    module = sys.modules.get("torch.distributed.tensor")
    if module is None or not torch.distributed.is_initialized():
        return ()
    return module.DTensor


def sharded(tree: Any) -> bool:
    """Tell whether there is a DTensor in a pytree."""
    kind = _kind()
    return kind != () and any(isinstance(leaf, kind) for leaf in tree_flatten(tree)[0])


def added_up(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors with gradients that lie as they do: those of replicated ones are added up."""
    kind = _kind()
    if kind == ():
        return list(tensors)
    return [Layout.of(t, "a tensor").same(t) if isinstance(t, kind) else t for t in tensors]


def telling(sync_failures: Any) -> Ranks | None:
    """Return the ranks that tell each other of failures: all of a group, or of the default one."""
    if sync_failures is False:
        return None
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    if sync_failures is True:
        return Ranks(together=distributed.group.WORLD)
    if not isinstance(sync_failures, distributed.ProcessGroup):
        raise TypeError(
            f"sync_failures is {sync_failures!r}: pass True, or the process group whose ranks tell "
            "each other of failures"
        )
    return Ranks(together=sync_failures)


@dataclass(frozen=True)
class Layout:
    """How a DTensor lies on its mesh."""

    mesh: Any
    placements: tuple[Any, ...]
    shape: torch.Size
    stride: tuple[int, ...]

    @staticmethod
    def of(tensor: Any, name: str) -> Layout:
        """Return the layout of a DTensor called ``name``; refuse sums that nobody has added up."""
        if any(p.is_partial() for p in tensor.placements):
            raise ValueError(
                f"{name} has the placements {tensor.placements}: a Partial tensor is a sum that is "
                "not added up yet; call redistribute(placements=[Replicate()]), or Shard, first"
            )
        return Layout(tensor.device_mesh, tensor.placements, tensor.shape, tensor.stride())

    @property
    def split(self) -> tuple[int, ...]:
        """The dimensions of the mesh over which the tensor is sharded."""
        return tuple(i for i, p in enumerate(self.placements) if p.is_shard())

    def zeros(self, shape: torch.Size, dtype: torch.dtype) -> Any:
        """Return a DTensor of zeros that lies so."""
        zeros = sys.modules["torch.distributed.tensor"].zeros
        how = {"device_mesh": self.mesh, "placements": self.placements}
        return zeros(shape, dtype=dtype, **how)

    def same(self, tensor: Any) -> Any:
        """Return a tensor in this layout, whose gradient comes back in its own."""
        return tensor.redistribute(self.mesh, self.placements)

    def whole(self, local: Tensor) -> Any:
        """Return the DTensor of a local part; gradients come back in this layout."""
        how = {"run_check": False, "shape": self.shape, "stride": self.stride}
        made = _kind().from_local(local, self.mesh, self.placements, **how)
        return self.same(made)

    def part(self, tensor: Any, gradient: Sequence[Any] | None = None) -> Tensor:
        """Return the local part; its gradient has this layout, or the placements given."""
        local: Tensor = self.same(tensor).to_local(grad_placements=gradient)
        return local


class Parts(NamedTuple):
    """A pytree of local parts, and the layouts of its leaves; None for what is no DTensor."""

    tree: Any
    layouts: list[Layout | None]

    def whole(self, tree: Any) -> Any:
        """Return a pytree like it with DTensors again."""
        leaves, spec = tree_flatten(tree)
        pairs = zip(leaves, self.layouts, strict=True)
        return tree_unflatten([t if k is None else k.whole(t) for t, k in pairs], spec)


@dataclass(frozen=True)
class Spread:
    """The ranks of a solve whose unknown, or right-hand side, is like ``first``.

    With ``lanes``, each rank has lanes of its own, and functions see local tensors. Without, a rank
    has rows, and functions see DTensors.
    """

    first: Layout
    lanes: bool
    ranks: Ranks

    @staticmethod
    def of(z: Any, name: str, batch_dims: int, ranks: Ranks | None) -> Spread:
        """Read how an unknown is spread; refuse what is spread in several ways."""
        if transforms_active() or forward_level():
            raise ValueError(
                f"{name} or an argument is a DTensor under a transform of torch.func or in forward "
                "mode, which DTensors do not go through: use backward()"
            )
        kind, layouts = _kind(), []
        for leaf in tree_flatten(z)[0]:
            if not isinstance(leaf, kind):
                raise TypeError(
                    f"{name} has a leaf that is a {type(leaf).__name__} and another tensor is a "
                    "DTensor: make it one too, by distribute_tensor(leaf, mesh, placements)"
                )
            layouts.append(Layout.of(leaf, name))
        first, dims = layouts[0], set()
        for layout in layouts:
            dims |= {p.dim < batch_dims for p in layout.placements if p.is_shard()}
            if (layout.mesh, layout.split) != (first.mesh, first.split):
                raise ValueError(
                    f"{name} has leaves on {first.mesh} {first.placements} and {layout.mesh} "
                    f"{layout.placements}: shard all over the same dimension of one mesh"
                )
        if len(first.split) > 1 or len(dims) > 1:
            raise ValueError(
                f"{name} has the placements {first.placements}: shard it over one dimension of the "
                "mesh, and replicate it over the others"
            )
        group = first.mesh.get_group(first.split[0]) if first.split else None
        lanes = dims == {True}
        tells = None if ranks is None else ranks.together
        tells = group if tells is torch.distributed.group.WORLD else tells
        return Spread(first, lanes, Ranks(None if lanes else group, tells))

    def parts(self, tree: Any, name: str) -> Parts:
        """Return the local parts of a pytree called ``name``."""
        leaves, spec = tree_flatten(tree)
        kind = _kind()
        layouts = [Layout.of(t, name) if isinstance(t, kind) else None for t in leaves]
        pairs = zip(leaves, layouts, strict=True)
        parts = [t if k is None else self._part(t, k, name) for t, k in pairs]
        return Parts(tree_unflatten(parts, spec), layouts)

    def _part(self, tensor: Any, layout: Layout, name: str) -> Tensor:
        if layout.mesh != self.first.mesh:
            raise ValueError(
                f"{name} has a DTensor on {layout.mesh}, and the unknown is on {self.first.mesh}: "
                "put both on one mesh"
            )
        if not self.lanes:
            return layout.part(tensor)
        if layout.split:
            if layout.placements != self.first.placements:
                raise ValueError(
                    f"{name} has a DTensor with {layout.placements}, and problems are spread by "
                    f"{self.first.placements}: shard it alike, or replicate it"
                )
            return layout.part(tensor)
        # what lanes share gets a part of its gradient from each rank
        partial = sys.modules["torch.distributed.tensor"].Partial
        split = self.first.split
        gradient = [partial() if i in split else p for i, p in enumerate(layout.placements)]
        return layout.part(tensor, gradient)

    def refuse(self, **what: Any) -> None:
        """Refuse what is given, by its name, and needs whole vectors."""
        for name, value in what.items():
            if value is not None and value is not False:
                name = name.replace("_or_", " or ")
                raise ValueError(
                    f"unknowns that are spread over ranks take no {name}: leave it out, or gather "
                    "them by full_tensor()"
                )

    def returned(self, out: Any, layouts: Sequence[Layout], what: str) -> Any:
        """Return the local parts of what a function returned, of these layouts."""
        leaves, spec = tree_flatten(out)
        if len(leaves) != len(layouts):
            return out
        parts = []
        for leaf, layout in zip(leaves, layouts, strict=True):
            if not isinstance(leaf, _kind()):
                raise TypeError(
                    f"{what} returned a {type(leaf).__name__}, and the rows of the unknown are "
                    "spread over ranks: return a DTensor, by DTensor.from_local(part, mesh, "
                    "placements)"
                )
            parts.append(layout.part(leaf) if leaf.shape == layout.shape else leaf)
        return tree_unflatten(parts, spec)

    @property
    def number(self) -> Layout:
        """The layout of a number that all ranks have."""
        replicate = sys.modules["torch.distributed.tensor"].Replicate
        placements = tuple(replicate() for _ in self.first.placements)
        return Layout(self.first.mesh, placements, torch.Size(), ())


def check_spread(ranks: Ranks | None, solver: Any, name: str = "solver") -> None:
    """Refuse a solver that knows vectors by more than products, inner products and sums."""
    if ranks is None or ranks.rows is None or solver is None:
        return
    if not solver.spreads:
        raise ValueError(
            f"{name} is {solver!r}, which needs whole vectors or matrices, and the rows of the "
            "unknown are spread over ranks: use CG(), MINRES(), GMRES(), BiCGStab() or LSMR() for "
            "linear systems, Anderson(), LBFGS() or Newton(GMRES()) for equations"
        )
    if getattr(solver, "norm", rms) is not rms:
        raise ValueError(f"{name} has a norm, which would see the rows of one rank: leave it out")
    if getattr(solver, "compile", False):
        raise ValueError(
            f"{name} has compile=True, and rows are spread over ranks: leave compile out"
        )


@functools.cache
def twice_differentiable(mesh: Any) -> bool:
    """Tell whether this torch differentiates the way to local parts, and back, more than once."""
    with torch.enable_grad():
        local = torch.ones((), device=mesh.device_type, requires_grad=True)
        placements = [sys.modules["torch.distributed.tensor"].Replicate()] * mesh.ndim
        value = _kind().from_local(local, mesh, placements, run_check=False).to_local() ** 3
        slope = torch.autograd.grad(value, local, create_graph=True)[0]
        return torch.autograd.grad(slope, local, allow_unused=True)[0] is not None


def over_ranks(
    solve: Callable[..., Any],
    task: Any,
    z0: Any,
    args: tuple[Any, ...],
    run: Any,
    ends: Any,
    own: tuple[Tensor, ...],
) -> Any:
    """Solve an equation whose unknown is spread over ranks."""
    spread = Spread.of(z0, "z0", task.batch_dims, task.ranks)
    spread.refuse(bracket_or_starts=ends, bounds_or_constraints=own or None)
    spread.refuse(jac_sparsity=task.sparsity)
    fn, unknown, given = task.fn, spread.parts(z0, "z0"), spread.parts(args, "args")
    call = fn
    if not spread.lanes:
        unrolls = not hasattr(task.adjoint, "solver_for")
        preconditioner = None if unrolls else task.adjoint.preconditioner
        spread.refuse(check=task.check, preconditioner=preconditioner, UnrolledAdjoint=unrolls)
        if run is not None or task.equation.fits:
            raise ValueError(
                f"{task.label} has a z0 whose rows are spread over ranks: state it for root, "
                "fixed_point or minimize, with a solver of the library"
            )
        check_spread(spread.ranks, task.solver)
        by_products = task.equation.kind == "minimize" or hasattr(task.solver, "linear_solver")
        if by_products and not twice_differentiable(spread.first.mesh):
            raise ValueError(
                f"torch {torch.__version__} differentiates DTensors once only, and "
                f"{type(task.solver).__name__}() multiplies with derivatives of derivatives: use "
                "Anderson(), or a newer torch"
            )
        scalar = task.equation.kind == "minimize"
        layouts: Any = [spread.number] if scalar else unknown.layouts

        def call(z: Any, *parts: Any) -> Any:
            out = fn(unknown.whole(z), *given.whole(parts))
            if task.has_aux and isinstance(out, tuple) and len(out) == 2:
                return spread.returned(out[0], layouts, "fn"), out[1]
            return spread.returned(out, layouts, "fn")

        call.__wrapped__ = fn  # type: ignore[attr-defined]
    task = replace(task, fn=call, ranks=spread.ranks)
    start = tree_map(torch.Tensor.detach, unknown.tree)
    solution = solve(task, start, given.tree, run)
    return replace(solution, value=unknown.whole(solution.value))
