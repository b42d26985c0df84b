"""What is checked: a layer, the tensors that it depends on, and its equation if that is known.

It knows nothing of what it is compared with.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from implicit_solvers.bounds import read_bounds
from implicit_solvers.driver import name_of
from implicit_solvers.nn import FixedPoint, Minimize, Root
from implicit_solvers.solution import Solution
from implicit_solvers.structure import Structure
from implicit_solvers.testing.captured import captured_tensors, prepared
from implicit_solvers.testing.kinds import SOLVE
from implicit_solvers.testing.statement import Statement
from implicit_solvers.tolerance import AUTO, equation_tolerance, largest, rms
from implicit_solvers.torch_internals import (
    keystr,
    tree_flatten,
    tree_flatten_with_path,
    tree_map_only,
    tree_unflatten,
)

__all__ = ["Input", "Solved", "Subject", "subject_of"]

_MODULES = {Root: "root", FixedPoint: "fixed_point", Minimize: "minimize"}


@dataclass(frozen=True)
class Input:
    """A floating tensor that the solution depends on; ``lanes`` says whether it carries them."""

    name: str
    tensor: Tensor
    captured: bool = False
    lanes: bool = False

    @property
    def scale(self) -> Tensor:
        """How far a step of order one goes: each entry's size; for zeros that of all, or one."""
        entries = self.tensor.detach().abs()
        size = float(rms(entries.reshape(1, -1))) if entries.numel() else 0.0
        whole = size if 0 < size < float("inf") else 1.0
        tiny = torch.finfo(entries.dtype).eps * whole
        return torch.where((entries > tiny) & entries.isfinite(), entries, whole)


@dataclass(frozen=True)
class Solved:
    """What a layer returned: raveled, and as a `Solution` if it was one."""

    z: Tensor
    solution: Solution | None


@dataclass(frozen=True)
class Subject:
    """A layer of ``args``, everything else fixed.

    ``inputs`` are the floating tensors in ``args``, of which ``join`` makes ``args``, then the
    captured ones; ``known`` are all captured ones, real and complex, inputs or not. If the library
    makes the solve, ``resolve`` solves from another start, or with another ``on_failure``.
    """

    name: str
    kind: str
    layer: Callable[..., Any]
    inputs: tuple[Input, ...]
    join: Callable[[Sequence[Tensor]], tuple[Any, ...]]
    statement: Statement | None = None
    resolve: Callable[..., Solution] | None = None
    start: Any = None
    solver: Any = None
    batch_dims: int = 0
    separable: bool = True
    known: tuple[Tensor, ...] = ()

    @property
    def in_args(self) -> tuple[Input, ...]:
        """The inputs that are arguments."""
        return tuple(given for given in self.inputs if not given.captured)

    @property
    def captured(self) -> tuple[Input, ...]:
        """The inputs that are captured."""
        return tuple(given for given in self.inputs if given.captured)

    def arguments(self) -> list[Tensor]:
        """Return fresh copies of the floating tensors in ``args``."""
        return [given.tensor.detach().clone() for given in self.in_args]

    def solve(self, tensors: Sequence[Tensor]) -> Solved:
        """Call the layer."""
        return _solved(self.layer(*self.join(tensors)))

    def value(self, tensors: Sequence[Tensor]) -> Tensor:
        """Call the layer; return its value, raveled."""
        return self.solve(tensors).z

    def masked(self) -> Subject | None:
        """Return the subject with ``on_failure="mask"``, if the library solves it."""
        again, start = self.resolve, self.start
        if again is None:
            return None
        return replace(self, layer=lambda *args: again(start, args, on_failure="mask"))

    @property
    def lane_index(self) -> Tensor:
        """Where in the raveled solution the unknowns of each native lane are, ``(lanes, n)``."""
        whole = Structure.of(self.start, "z0")
        of_lanes = Structure.of(self.start, "z0", self.batch_dims)
        index = whole.unravel(torch.arange(whole.size))
        return of_lanes.ravel(index).reshape(-1, of_lanes.size)

    def norm(self, lanes: Tensor) -> Tensor:
        """Return the norm of each lane of ``(lanes, n)``, as the solver takes it."""
        return getattr(self.solver, "norm", rms)(lanes)

    def size(self, z: Tensor) -> Tensor:
        """Return the size of each lane of ``z (lanes, n)``, or of a start that is far larger."""
        start = Structure.of(self.start, "z0").ravel(self.start).detach()
        start, size = largest(start[self.lane_index]), self.norm(z)
        return torch.where(size > torch.finfo(z.dtype).eps ** 0.75 * start, size, start)

    def tolerance(self, z: Tensor) -> Tensor:
        """Return the error that ``z (lanes, n)`` may have, as the solver is told."""
        rtol, atol = getattr(self.solver, "rtol", AUTO), getattr(self.solver, "atol", AUTO)
        eps = torch.finfo(z.dtype).eps
        if self.resolve is None:
            rtol = eps**0.5
        rtol = AUTO if rtol is None else rtol
        return equation_tolerance(rtol, atol, eps, self.size(z))


def _solved(out: Any) -> Solved:
    solution = out if isinstance(out, Solution) else None
    leaves = tree_flatten(out.value if isinstance(out, Solution) else out)[0]
    _refuse_complex_ones((leaf, "the layer's value") for leaf in leaves)
    floating = [t.reshape(-1) for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]
    if not floating:
        raise TypeError(
            f"the layer returned a {type(out).__name__} without floating tensors: return a "
            "tensor, a pytree of tensors, or a Solution"
        )
    return Solved(floating[0] if len(floating) == 1 else torch.cat(floating), solution)


def subject_of(
    fn: Any,
    z0: Any,
    args: tuple[Any, ...],
    *,
    kind: str,
    equation: Callable[..., Any] | None,
    parameters: Any,
    dtype: torch.dtype | None,
    options: dict[str, Any],
) -> Subject:
    """Read what is to be checked, and refuse what is unfit."""
    bracket = options.get("bracket")
    if z0 is None and isinstance(bracket, tuple) and bracket and isinstance(bracket[0], Tensor):
        z0 = bracket[0]  # with a bracket, the start only says what z looks like
    _refuse(fn, z0, args, kind, equation)
    if dtype is not None:
        sides = {name: options[name] for name in ("bracket", "bounds") if name in options}
        z0, args, sides = (
            tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, tree)
            for tree in (z0, args, sides)
        )
        options = {**options, **sides}
    found = captured_tensors(fn, equation)
    wanted = _named(parameters, found)
    known = tuple({id(t): t for t in (*found.values(), *wanted.values())}.values())
    with prepared(known, (), dtype):
        if isinstance(fn, tuple(_MODULES)):
            given = _module(fn, args)
        elif z0 is not None:
            given = _equation(fn, z0, kind, options)
        else:
            given = _layer(fn, args, kind, equation, options)
    inputs, join = _split(args, given.in_dims, _names(given.equation, args))
    inputs += [Input(f"captured {name}", t, captured=True) for name, t in wanted.items()]
    statement = None
    if given.equation is not None:
        structure = Structure.of(given.start, "z0")
        has_aux = bool(options.get("has_aux", False))
        bounds = options.get("bounds")
        if bounds is not None:
            lo, hi = read_bounds(bounds, given.start, 0)
            bounds = lo.detach(), hi.detach()
        statement = Statement(given.equation, given.kind, structure, join, has_aux, bounds)
    return Subject(
        name=name_of(fn),
        kind="layer" if statement is None else given.kind,
        layer=given.layer,
        inputs=tuple(inputs),
        join=join,
        statement=statement,
        resolve=given.resolve,
        start=given.start,
        solver=given.solver,
        batch_dims=given.batch_dims,
        separable=given.batch_dims == 0 or given.in_dims is not None,
        known=known,
    )


def _refuse(fn: Any, z0: Any, args: Any, kind: str, equation: Any) -> None:
    if not callable(fn):
        raise TypeError(
            f"equation_or_layer is a {type(fn).__name__}: pass a function fn(z, *args), or a layer"
        )
    if not isinstance(args, tuple):
        raise TypeError(
            f"args is a {type(args).__name__}: pass a tuple, as args=(theta,) for one argument"
        )
    if kind not in SOLVE:
        raise ValueError(f"kind is {kind!r}: use {', '.join(map(repr, SOLVE))}")
    if equation is not None and z0 is not None:
        raise ValueError(
            "z0 and equation are given: z0 is the start of the library's solve; leave it out to "
            "check a layer against its equation"
        )
    if z0 is not None:
        _refuse_complex(z0, "z0")


def _refuse_complex_ones(named: Iterable[tuple[Any, str]]) -> None:
    for value, name in named:
        if isinstance(value, Tensor) and value.is_complex():
            _refuse_complex(value, name)


def _refuse_complex(value: Any, name: str) -> Structure:
    structure = Structure.of(value, name)
    if structure.dtype.is_complex:
        raise TypeError(
            f"{name} is complex ({structure.dtype}): check a function of its real and imaginary "
            "parts (torch.view_as_real)"
        )
    return structure


@dataclass(frozen=True)
class _Given:
    """What was given, whichever way it was."""

    layer: Callable[..., Any]
    kind: str
    equation: Callable[..., Any] | None = None
    start: Any = None
    resolve: Callable[..., Solution] | None = None
    solver: Any = None
    batch_dims: int = 0
    in_dims: Any = None


def _equation(fn: Any, z0: Any, kind: str, options: dict[str, Any]) -> _Given:
    """Read an equation that the library is to solve from ``z0``."""

    def resolve(start: Any, args: tuple[Any, ...], **more: Any) -> Solution:
        return SOLVE[kind](fn, _copy(start), args, **{**options, **more})

    return _Given(
        lambda *args: resolve(z0, args),
        kind,
        fn,
        z0,
        resolve,
        options.get("solver"),
        options.get("batch_dims", 0),
        options.get("in_dims"),
    )


def _module(module: Any, args: tuple[Any, ...]) -> _Given:
    """Read a module of ``implicit_solvers.nn``, which knows its equation."""
    if not args:
        raise ValueError("args is empty: pass the inputs of the module, as args=(x,)")
    kind = next(name for cls, name in _MODULES.items() if isinstance(module, cls))
    in_dims = 0 if module.in_dims is None and module.batch_dims else module.in_dims
    options = {
        "solver": module.solver,
        "adjoint": module.adjoint,
        "on_failure": module.on_failure,
        "batch_dims": module.batch_dims,
        "in_dims": in_dims,
    }
    given = _equation(module.cell, _copy(module.init(args[0])), kind, options)
    return replace(given, layer=module)


def _layer(fn: Any, args: tuple[Any, ...], kind: str, equation: Any, options: Any) -> _Given:
    """Read a layer that somebody else wrote, with its equation if that was given."""
    unknown = set(options) - {"batch_dims", "in_dims"}
    if unknown:
        raise TypeError(
            f"{', '.join(sorted(unknown))}: options of a solve, and a layer makes its own; leave "
            "them out, or pass an equation with its start z0"
        )
    start = None
    if equation is not None:
        with torch.no_grad():
            out = fn(*_copy(args))
        start = _copy(out.value if isinstance(out, Solution) else out)
        _refuse_equation(equation, start, args, kind)
    lanes = {"batch_dims": options.get("batch_dims", 0), "in_dims": options.get("in_dims")}
    return _Given(fn, kind, equation, start, **lanes)


def _refuse_equation(equation: Any, z: Any, args: tuple[Any, ...], kind: str) -> None:
    """Refuse an equation that does not have the shape of what the layer returned."""
    structure = _refuse_complex(z, "the layer's value")
    if kind in ("root", "fixed_point"):
        with torch.no_grad():
            out = equation(_copy(z), *_copy(args))
        structure.check_like(out, (), "equation", "the layer's value")


def _copy(tree: Any) -> Any:
    return tree_map_only(Tensor, lambda t: t.detach().clone(), tree)


def _split(
    args: tuple[Any, ...], in_dims: Any, names: Sequence[str]
) -> tuple[list[Input], Callable[[Sequence[Tensor]], tuple[Any, ...]]]:
    """Split ``args`` into its floating tensors and a function that puts tensors in their places."""
    with_paths, spec = tree_flatten_with_path(args)
    leaves = [leaf for _, leaf in with_paths]
    _refuse_complex_ones((leaf, _label(path, names)) for path, leaf in with_paths)
    places = [i for i, t in enumerate(leaves) if isinstance(t, Tensor) and t.is_floating_point()]
    carried = _carried(args, in_dims)
    inputs = [
        Input(_label(with_paths[i][0], names), leaves[i].detach().clone(), lanes=carried[i])
        for i in places
    ]

    def join(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        filled = [t.clone() if isinstance(t, Tensor) else t for t in leaves]
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return tree_unflatten(filled, spec)

    return inputs, join


def _carried(args: tuple[Any, ...], in_dims: Any) -> list[bool]:
    """Tell for each leaf of ``args`` whether ``in_dims``, a prefix of it, gives it lanes."""
    dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(args)
    carried: list[bool] = []
    for i, arg in enumerate(args):
        dim = dims[i] if i < len(dims) else None
        leaves = tree_flatten(arg)[0]
        if dim is None or isinstance(dim, int):
            carried += [dim is not None] * len(leaves)
        else:
            given = tree_flatten(dim, is_leaf=lambda d: d is None)[0]
            carried += [d is not None for d in given]
    return carried


def _names(equation: Any, args: tuple[Any, ...]) -> list[str]:
    """Return the names of the parameters that take ``args``, as far as the signature tells."""
    if isinstance(equation, nn.Module):
        equation = equation.forward
    try:
        parameters = list(inspect.signature(equation).parameters.values())
    except (TypeError, ValueError):
        return []
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.kind in plain][1 : len(args) + 1]


def _label(path: Any, names: Sequence[str]) -> str:
    index = path[0].idx
    label = f"args{keystr(path)}"
    return f"{label} ({names[index]})" if index < len(names) else label


def _named(parameters: Any, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the captured tensors to differentiate in: those given, else those with gradients."""
    if parameters is None:
        wanted = {name: t for name, t in found.items() if t.requires_grad}
        _refuse_complex_ones((t, f"captured {name}") for name, t in wanted.items())
        return wanted
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    known = {id(t): name for name, t in found.items()}
    if isinstance(parameters, dict):
        pairs = list(parameters.items())
    else:
        pairs = [(known.get(id(t), str(i)), t) for i, t in enumerate(parameters)]
    for name, tensor in pairs:
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise TypeError(f"parameters has no floating tensor at {name}: pass tensors")
    return dict(pairs)
