"""Elementwise functions whose derivatives are given, not traced.

A special function is computed by series and quadratures that must not be differentiated operation
by operation. What is known instead are its partial derivatives, as functions of the same kind.
Nothing here knows an equation.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.autodiff import live, nested_jvp, transformed
from implicit_solvers.compiling import compiling
from implicit_solvers.elementwise_in_graph import drawn_in_graph, evaluated_in_graph, in_graphs
from implicit_solvers.torch_internals import Function, tree_map_only

__all__ = ["elementwise_function"]


def elementwise_function(
    value: Callable[..., Any],
    partials: Callable[..., Sequence[Any]] | None,
    *,
    name: str | None = None,
    random: bool = False,
) -> Callable[..., Any]:
    r"""Build a differentiable function ``y = g(x_1, ..., x_n)`` from its partial derivatives.

    The derivatives are ``dy = sum_j (dg/dx_j) dx_j``. They are correct in every composition of
    reverse and forward mode and under ``vmap``, to the order to which ``partials`` can be
    differentiated.

    Parameters
    ----------
    value : callable
        ``value(*args)`` computes ``y``, a tensor or a tuple of two or more. Its arguments are plain
        tensors that have been broadcast to one shape and promoted to one real floating dtype;
        nothing is recorded, so it may use loops, masks and in-place operations. Each result has
        the shape of the arguments, and none is an argument itself.
    partials : callable or None
        ``partials(y, *args)`` returns one entry for each argument: the partial derivative as a
        tensor (a tuple of them where ``y`` is a tuple); or a function without arguments that
        returns it, called only if it is needed; or None if it is zero. It is made of
        differentiable torch operations and of other elementwise functions; ``y`` is connected
        to the graph, so that a formula in ``y`` can be differentiated again. None if no
        derivative is available: then asking for one is an error.
    name : str, optional
        The name used in messages, by default that of ``value``.
    random : bool, optional
        Whether ``value`` draws random numbers; then it gets the arguments of the whole batch at
        once. Under ``vmap(randomness="same")`` each problem draws from the same state of the
        generator.

    Returns
    -------
    callable
        A function of tensors and Python numbers, at least one tensor among them, that broadcasts
        its arguments.

    Raises
    ------
    TypeError
        If, when called, no argument is a tensor, or one is not real and floating.
    NotImplementedError
        If, when differentiated, ``partials`` is None.
    ValueError
        If, when differentiated, ``partials`` does not return one entry for each argument.

    Notes
    -----
    Source: Griewank and Walther, "Evaluating Derivatives" (2008), chapters 2 and 3: elemental
    functions and their partial derivatives.

    Examples
    --------
    The Gudermannian function, ``gd'(x) = 1 / cosh x = cos(gd x)``:

    >>> import torch
    >>> import implicit_solvers as ims
    >>> gd = ims.elementwise_function(
    ...     lambda x: 2 * torch.atan(torch.tanh(x / 2)), lambda y, x: [torch.cos(y)]
    ... )
    >>> x = torch.tensor(0.5, dtype=torch.float64)
    >>> slope, curvature = torch.func.grad(gd)(x), torch.func.hessian(gd)(x)
    >>> bool(torch.isclose(slope, 1 / torch.cosh(x)))
    True
    >>> bool(torch.isclose(curvature, -torch.sinh(x) / torch.cosh(x) ** 2))
    True
    """
    label = name or str(getattr(value, "__name__", "elementwise function"))
    spec = ElementwiseSpec(value, partials, label, random)
    place = None if compiling() else in_graphs(spec)  # what is made in a graph breaks it
    operator = drawn_in_graph if random else evaluated_in_graph

    @functools.wraps(value)
    def function(*args: Tensor | float) -> Any:
        tensors = _broadcast(label, args)
        if place is not None and compiling():
            return operator(place, tensors)
        watched = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        return Elementwise.apply(spec, *tensors) if watched or transformed() else value(*tensors)

    return function


@dataclass(frozen=True)
class ElementwiseSpec:
    """An elementwise function and its partial derivatives."""

    value: Callable[..., Any]
    partials: Callable[..., Sequence[Any]] | None
    label: str
    random: bool = False

    def columns(
        self, saved: Sequence[Tensor], wanted: Sequence[bool]
    ) -> list[tuple[Tensor, ...] | None]:
        """Return the derivatives of every output by each argument that is wanted."""
        count = len(saved) - len(wanted)
        outputs, args = saved[:count], saved[count:]
        if not any(wanted):
            return [None] * len(wanted)
        if self.partials is None:
            raise NotImplementedError(
                f"{self.label} has no derivative: no further order of this function is available"
            )
        entries = self.partials(outputs[0] if count == 1 else tuple(outputs), *args)
        if len(entries) != len(args):
            raise ValueError(
                f"{self.label}: partials returned {len(entries)} entries for {len(args)} arguments"
            )
        columns: list[tuple[Tensor, ...] | None] = []
        for entry, needed in zip(entries, wanted, strict=True):
            column = (entry() if callable(entry) else entry) if needed else None
            columns.append((column,) if isinstance(column, Tensor) else column)
        return columns


class Elementwise(Function):
    """Evaluate ``value``; differentiate by ``partials``."""

    @staticmethod
    def forward(spec: ElementwiseSpec, *args: Tensor) -> Any:
        """Return the value."""
        return spec.value(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep arguments and value, both connected to the graph."""
        ctx.spec, *args = inputs
        ctx.set_materialize_grads(False)
        outputs = output if isinstance(output, tuple) else (output,)
        ctx.save_for_backward(*outputs, *args)
        ctx.save_for_forward(*outputs, *args)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        """Multiply the cotangents with the partial derivatives."""
        gs: Sequence[Tensor | None] = live(*cotangents)
        saved = live(*ctx.saved_tensors)
        wanted = [n and any(g is not None for g in gs) for n in ctx.needs_input_grad[1:]]
        plain = not (torch.is_grad_enabled() or transformed())
        nothing: tuple[Any, Any] = (None, None)
        of, columns = getattr(ctx, "kept", nothing) if plain else nothing
        if of != wanted:
            columns = ctx.spec.columns(saved, wanted)
            if plain and of is not None:
                # a graph that is pulled back twice is that of a solver, which goes on
                columns = tree_map_only(Tensor, torch.detach, columns)
                ctx.kept = wanted, columns
            elif plain:
                ctx.kept = (), None
        return (None, *(None if c is None else _paired(gs, c) for c in columns))

    @nested_jvp
    def jvp(spec: ElementwiseSpec, saved: tuple[Tensor, ...], tangents: tuple[Any, ...]) -> Any:
        """Multiply the tangents with the partial derivatives."""
        moved = tangents[1:]
        columns = spec.columns(saved, [t is not None for t in moved])
        result = []
        for i in range(len(saved) - len(moved)):
            parts = [c[i] * t for c, t in zip(columns, moved, strict=True) if c is not None]
            result.append(sum(parts[1:], parts[0]) if parts else torch.zeros_like(saved[i]))
        return result[0] if len(result) == 1 else tuple(result)

    @staticmethod
    def vmap(info: Any, in_dims: Any, spec: ElementwiseSpec, *args: Tensor) -> Any:
        """Move the new lanes to the front and apply the rule again."""
        lanes = [
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(args, in_dims[1:], strict=True)
        ]
        if spec.random and info.randomness == "same":
            return _drawn_alike(functools.partial(Elementwise.apply, spec), lanes), 0
        out = Elementwise.apply(spec, *lanes)
        return out, (0,) * len(out) if isinstance(out, tuple) else 0


# what torch would work out again at every call
Elementwise.forward.__signature__ = inspect.signature(Elementwise.forward)  # type: ignore[attr-defined]


def _drawn_alike(draw: Callable[..., Tensor], lanes: Sequence[Tensor]) -> Tensor:
    """Draw for one lane after the other, from one state of the generator."""
    drawn = []
    for i, lane in enumerate(zip(*lanes, strict=True), 1):
        devices = [t.device for t in lane[:1] if t.device.type == "cuda"]
        with torch.random.fork_rng(devices, enabled=i < len(lanes[0])):
            drawn.append(draw(*lane))
    return torch.stack(drawn)


def _paired(cotangents: Sequence[Tensor | None], column: tuple[Tensor, ...]) -> Tensor:
    """Return ``sum_i cotangent_i dy_i/dx``."""
    parts = [g * d for g, d in zip(cotangents, column, strict=True) if g is not None]
    return sum(parts[1:], parts[0])


def _broadcast(label: str, args: Sequence[Tensor | float]) -> Sequence[Tensor]:
    """Return the arguments as tensors of one shape, dtype and device."""
    tensors = [t for t in args if isinstance(t, Tensor)]
    if not tensors:
        raise TypeError(f"{label}: at least one argument must be a tensor")
    for place, arg in enumerate(args):
        if isinstance(arg, Tensor) and not arg.is_floating_point():
            raise TypeError(
                f"{label}: argument {place} has dtype {arg.dtype}; pass a real floating dtype"
            )
        if not isinstance(arg, Tensor | int | float):
            raise TypeError(f"{label}: argument {place} is a {type(arg).__name__}; pass a tensor")
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors))
    device = next((t.device for t in tensors if t.dim()), tensors[0].device)
    return torch.broadcast_tensors(
        *(
            t.to(dtype) if isinstance(t, Tensor) else torch.tensor(t, dtype=dtype, device=device)
            for t in args
        )
    )
