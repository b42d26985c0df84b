"""The pattern of a Jacobian, found by products with random vectors.

It knows no formula of the function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from implicit_solvers.autodiff import batched, pullback_on_graph, transformed
from implicit_solvers.custom_solvers import stated
from implicit_solvers.linear.lane_map import MANY_PROBES
from implicit_solvers.linear.sparsity import SparsityPattern, greedy_colors, on_host
from implicit_solvers.precision import in_full_precision
from implicit_solvers.root_finding import root
from implicit_solvers.solution import Solution
from implicit_solvers.structure import Structure, split_tensors
from implicit_solvers.task import check_task
from implicit_solvers.torch_internals import tree_leaves, tree_map

__all__ = ["jacobian_sparsity"]

_PARTS = 4
# what has no slope on one side of a kink, or takes one of its arguments
_KINKED = {"abs", "clamp", "clip", "clamp_min", "clamp_max", "relu", "relu6", "leaky_relu"}
_KINKED |= {"hardtanh", "where", "maximum", "minimum", "fmax", "fmin", "max", "min"}


@in_full_precision("z0", body=False)
def jacobian_sparsity(
    fn: Callable[..., Any],
    z0: Any,
    args: tuple[Any, ...] = (),
    *,
    equation: Callable[..., Solution] = root,
    batch_dims: int = 0,
) -> SparsityPattern:
    """Find which entries of the Jacobian of ``fn`` are not zero, for ``jac_sparsity``.

    Rows are summed in groups with random weights, by products with the transpose at a random point
    near ``z0``. Groups with entries are divided in four until they are rows; groups without a
    common column share one product. A five-point stencil of any size takes about 150. At ``where``,
    ``relu``, ``abs``, ``clamp``, ``maximum`` and the like all branches are followed. With
    probability one this finds all entries that do not vanish for these ``args``; a solve that meets
    another one raises an error. Source: Griewank and Mitev, "Detecting Jacobian sparsity patterns
    by Bayesian probing", Math. Program. 93 (2002).

    Parameters
    ----------
    fn, z0, args
        As for the ``equation``.
    equation
        Which function is to solve: `root`, `fixed_point` or `minimize`, whose pattern is that of
        the Hessian.
    batch_dims
        As in `root`; the problems share one pattern, with the entries of all of them.

    Returns
    -------
    SparsityPattern
        The pattern ``(n, n)`` over the raveled ``z`` of one problem, colored: pass it to any number
        of solves.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; under a ``torch.func`` transform; if the Jacobian is not sparse:
        more than a million entries, and a hundred for each row.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> def heat(u, source):
    ...     ends = torch.nn.functional.pad(u, (1, 1))
    ...     return ends[2:] - 2 * u + ends[:-2] + source * torch.exp(u)
    >>> u0, source = torch.zeros(6), torch.tensor(0.05)
    >>> pattern = ims.jacobian_sparsity(heat, u0, (source,))
    >>> pattern
    SparsityPattern(6 x 6, 16 entries, 3 colors)
    >>> ims.root(heat, u0, (source,), jac_sparsity=pattern).value[:3]
    tensor([0.2108, 0.3599, 0.4373])
    """
    if transformed():
        raise ValueError(
            "jacobian_sparsity was called inside a torch.func transform or a compiled graph: call "
            "it before, and pass the pattern in"
        )
    task = stated(equation, fn, None, batch_dims)
    check_task(task, args)
    structure = Structure.of(z0, "z0", batch_dims).as_real()
    tensors, join = split_tensors(tree_map(_detach, args))
    with torch.enable_grad():
        z = _nearby(structure.ravel(z0).detach()).requires_grad_()
        with _EverySide():
            condition = task.equation(task.raveled(structure, join)).condition
            value = condition(z, *tensors)
    pull = pullback_on_graph(z, value)

    def columns(w: Tensor) -> Tensor:
        found: Tensor = pull(w.expand_as(value).contiguous())
        return (found != 0).reshape(-1, structure.size).any(0)

    import scipy.sparse

    with torch.no_grad():
        rows, found = _divided(columns, structure.size, z)
    where, n = (on_host(rows), on_host(found)), structure.size
    return SparsityPattern(scipy.sparse.coo_array((np.ones(len(rows)), where), (n, n)))


def _detach(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _nearby(z: Tensor) -> Tensor:
    """Return a random point near ``z``, of the same signs, and positive where that is zero."""
    generator = torch.Generator(device=z.device).manual_seed(0)
    draw = torch.rand(z.shape, dtype=z.dtype, device=z.device, generator=generator)
    size = z.abs().max() if z.numel() else z.sum()
    return torch.where(z == 0, 0.01 * torch.where(size > 0, size, 1.0), 0.01 * z) * draw + z


def _divided(columns: Callable[[Tensor], Tensor], n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows and columns of all entries, by groups of rows that are divided."""
    generator = torch.Generator(device=like.device).manual_seed(1)
    weights = torch.empty_like(like[..., :].reshape(-1, n)[0]).normal_(generator=generator)
    row, size, most = torch.arange(n, device=like.device), 1, 1_000_000 + 100 * n
    while size < n:
        size *= _PARTS
    group, column = torch.zeros_like(row), row
    while True:
        count = -(-n // size)
        colors = greedy_colors(group, column, (count, n)).to(like.device)
        mine, every = colors[row // size], torch.arange(int(colors.max()) + 1, device=like.device)
        some = max(1, MANY_PROBES // like.numel())
        seen = [
            batched(columns, (mine == part.unsqueeze(-1)) * weights) for part in every.split(some)
        ]
        there = torch.cat(seen)[colors[group], column]
        group, column = group[there], column[there]
        if len(group) > most:
            raise ValueError(
                f"the Jacobian of {n} unknowns is not sparse, more than {most} entries were "
                "found: leave jac_sparsity out"
            )
        if size == 1:
            return group, column
        size //= _PARTS
        group = (_PARTS * group.unsqueeze(-1) + torch.arange(_PARTS, device=row.device)).flatten()
        column = column.repeat_interleave(_PARTS)
        inside = group * size < n
        order = group[inside].argsort(stable=True)
        group, column = group[inside][order], column[inside][order]


class _EverySide(TorchFunctionMode):
    """A mode in which kinked functions keep their values, and have a slope in every argument."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") not in _KINKED or not isinstance(out, Tensor):
            return out
        given = [
            t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.requires_grad
        ]
        given = [t for t in given if torch.broadcast_shapes(t.shape, out.shape) == out.shape]
        if not given:
            return out
        out = out.detach()
        for place, t in enumerate(given, start=1):
            out = out + (place**0.5) * (t - t.detach())
        return out
