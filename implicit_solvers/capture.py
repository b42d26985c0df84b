"""Captured tensors: what a function reads besides its arguments.

A derivative, or a ``vmap``, must reach the weights of a module, a closure's variables, a partial's
arguments. `capture` evaluates the function once and records the tensors that it reads; a
`Substitution` then puts operands of ours in their places, so that the rules can differentiate the
function as one of explicit arguments. It knows neither equations nor solvers.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from implicit_solvers.affine_norms import WeightsApart, is_written_out
from implicit_solvers.autodiff import (
    leads_elsewhere,
    leads_to,
    made_since,
    may_have_tangent,
    no_saved_tensor_hooks,
)
from implicit_solvers.closures import globals_read, parts_held
from implicit_solvers.compiling import compiling
from implicit_solvers.torch_internals import (
    ambient_level,
    forward_level,
    graph_age,
    is_functorch_wrapped_tensor,
    level_of,
    never_compiled,
    peel,
    tensor_dicts,
    transforms_active,
    tree_leaves,
    tree_map_only,
    unwrap_once,
    version,
)

__all__ = [
    "Captured",
    "Substitution",
    "capture",
    "evaluate_connected",
    "isolated",
    "nested",
    "note",
    "resolve",
]


class _Thread(threading.local):
    """The scopes in force in this thread, innermost last; None stands for a rule of ours.

    Torch's function modes are per thread too.
    """

    def __init__(self) -> None:
        self.scopes: list[Any] = []


_THREAD = _Thread()

_IN_ARGS = "pass it in args (the function of an operator, by JacobianOperator(fn, z, args))"
_PASS_IN_ARGS = (
    "a tensor that the function captures is handed to an inner transform (torch.func.grad, vmap, "
    f"...) as its argument, where it cannot be told apart: {_IN_ARGS}"
)


def _innermost() -> Any:
    return _THREAD.scopes[-1] if _THREAD.scopes else None


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Switch all substitutions off, for the rules of a layer that runs inside another's function.

    Within, every tensor is what it is.
    """
    _THREAD.scopes.append(None)
    try:
        yield
    finally:
        _THREAD.scopes.pop()


def nested() -> bool:
    """Tell whether the function of another layer is being evaluated."""
    return _innermost() is not None


def resolve(tensor: Tensor) -> Tensor:
    """Return what the enclosing layer, if any, puts in the place of ``tensor``."""
    scope = _innermost()
    return tensor if scope is None else scope.see(tensor)


def note(outputs: Any) -> None:
    """Tell enclosing recordings that ``outputs`` were computed inside, by a layer."""
    for scope in filter(None, _THREAD.scopes):
        scope.after(outputs)


_PLAIN = frozenset({int, float, bool, str, slice, type(None), torch.dtype, torch.device})


class _Scope(TorchFunctionMode):
    """A mode that replaces the tensors that operations read, while it is the innermost scope."""

    def __enter__(self) -> Any:
        self.outer = _innermost()
        _THREAD.scopes.append(self)
        return super().__enter__()

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        _THREAD.scopes.pop()

    def see(self, tensor: Tensor) -> Tensor:
        """Return what stands in the place of ``tensor``."""
        raise NotImplementedError

    def after(self, out: Any) -> None:
        """Take note of what an operation returned."""

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Do an operation on what stands in the places of its tensors."""
        return func(*_seen(args, self.see), **_seen(kwargs, self.see))

    @never_compiled
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _innermost() is self:
            return self.call(func, args, kwargs)
        return func(*args, **kwargs)


def _seen(value: Any, see: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``see`` to the tensors among arguments, in a tenth of the time of a pytree map."""
    if isinstance(value, Tensor):
        return see(value)
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([_seen(part, see) for part in value])
    if kind is dict:
        return {key: _seen(part, see) for key, part in value.items()}
    if kind in _PLAIN:
        return value
    return tree_map_only(Tensor, see, value)


@dataclass(frozen=True)
class Captured:
    """What a function reads besides its arguments.

    ``tensors`` matter to derivatives or to a ``vmap``; ``constants`` do not, and come with the
    versions that they had; ``buffers`` are those that it writes, such as running statistics.
    ``slots`` are the modules' dictionaries and names that held what was read:
    ``torch.func.functional_call`` puts others there before a backward pass runs. ``normalizes``
    tells whether the function calls a normalization of `affine_norms`, and ``read_out`` by which
    operations it reads values out of tensors that a derivative is asked for. ``inside`` are
    leaves of a graph that it makes itself, and ``since`` is the age of its first node. ``globals``
    are as `globals_read` tells.
    """

    tensors: tuple[Tensor, ...] = ()
    constants: tuple[tuple[Tensor, int], ...] = ()
    buffers: tuple[Tensor, ...] = ()
    slots: tuple[tuple[dict[str, Any], str, Tensor], ...] = ()
    normalizes: bool = False
    read_out: tuple[str, ...] = ()
    inside: tuple[Tensor, ...] = ()
    since: int = 0
    globals: tuple[tuple[dict[str, Any], str, Any], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.tensors or self.buffers or self.slots)

    def unmoved(self, operands: Sequence[Tensor]) -> bool:
        """Tell whether a substitution by the last of ``operands`` would change no value."""
        if self.buffers or self.normalizes:
            return False
        if any(slots.get(name) is not tensor for slots, name, tensor in self.slots):
            return False
        given = operands[len(operands) - len(self.tensors) :]
        return not any(map(is_functorch_wrapped_tensor, self.tensors)) and all(
            t.shape == c.shape and t.stride() == c.stride() and t.data_ptr() == c.data_ptr()
            for t, c in zip(given, self.tensors, strict=True)
        )

    def check_unchanged(self, name: str) -> None:
        """Raise, as torch does, if a tensor that the function read has been written to since."""
        if compiling():
            return
        for tensor, before in self.constants:
            if version(tensor) != before:
                raise RuntimeError(
                    f"a tensor that {name} captures, {_described(tensor, self.slots)}, has been "
                    "modified by an inplace operation since the solve, so that the gradient would "
                    f"be that of another problem: it is at version {version(tensor)}, expected "
                    f"{before}. Replace the tensor instead of writing into it, or take the "
                    "derivative first"
                )

    def check_globals(self, name: str) -> None:
        """Raise if a global that the function reads is another one since."""
        for scope, called, before in self.globals:
            now = scope.get(called)
            equal = not isinstance(before, Tensor) and not isinstance(now, Tensor) and now == before
            if not (now is before or equal):
                raise RuntimeError(
                    f"{name} reads the global {called}, which has been given another value since "
                    "the solve, so that the derivative would be that of another problem: pass it "
                    f"in args, or keep its value, as in lambda z, {called}={called}: ..."
                )

    def reach(self, out: Tensor, point: Tensor) -> bool:
        """Tell whether ``out``, computed at ``point``, leads to anything that requires grad."""
        return out.requires_grad and leads_elsewhere(out, (point, *self.inside))

    def check_replaced(self, out: Tensor, operands: Sequence[Tensor], fn: Any) -> None:
        """Raise if the graph of ``out`` leads to captured tensors past the operands.

        An operation that was given one in secret has it still, whatever a `Substitution` shows.
        """
        if transforms_active() or not out.requires_grad:
            return
        given = {id(t) for t in operands}
        originals = [t for t in self.tensors if id(t) not in given]
        if originals and leads_to(out, originals, operands):
            raise RuntimeError(_hidden("the function") + _FIRST_ORDER)

    def check_seen(self, out: Tensor, operands: Sequence[Tensor], name: str) -> None:
        """Raise if the graph of ``out`` leads to more than the operands, and so would be cut."""
        if out.requires_grad and leads_elsewhere(out, (*operands, *self.inside), self.since):
            raise RuntimeError(_hidden(name) + _FIRST_ORDER)

    def __or__(self, other: Captured) -> Captured:
        return Captured(
            _union(self.tensors, other.tensors),
            # what was seen later counts
            tuple({id(c[0]): c for c in (*self.constants, *other.constants)}.values()),
            _union(self.buffers, other.buffers),
            self.slots + other.slots,
            self.normalizes or other.normalizes,
            tuple(dict.fromkeys(self.read_out + other.read_out)),
            self.inside + other.inside,
            max(self.since, other.since),
            self.globals or other.globals,
        )


def _union(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple({id(t): t for t in (*a, *b)}.values())


def _described(tensor: Tensor, slots: Sequence[tuple[dict[str, Any], str, Tensor]]) -> str:
    shape = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
    names = [f"called {name!r} in its module, " for _, name, held in slots if held is tensor]
    return "".join(names[:1]) + shape


class Substitution(_Scope):
    """Put the last of ``operands`` in the places of the captured tensors, one for each.

    The operands before them are the function's explicit arguments: they may hold a captured tensor
    inside, since one tensor can be both. What the function writes into buffers goes into copies.
    On leaving, every one of the ``expected`` tensors must have been read.
    """

    def __init__(
        self, captured: Captured, operands: Sequence[Tensor], expected: Sequence[Tensor] = ()
    ) -> None:
        super().__init__()
        self.expected = {id(t) for t in expected}
        replacements = operands[len(operands) - len(captured.tensors) :]
        self.table = {id(c): r for c, r in zip(captured.tensors, replacements, strict=True)}
        self.table.update({id(buffer): buffer.clone() for buffer in captured.buffers})
        self.ours = {id(r) for r in (*operands, *self.table.values())}
        self.operands = operands
        self.instead = _instead(captured)
        # kept alive, so that no other tensor gets the id of one
        self.present = [(slots, name, slots.get(name)) for slots, name, _ in captured.slots]

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        for slots, name, present in self.present:
            # a module that was given what stands in the place of its buffer gets that back
            if (now := slots.get(name)) is not present and id(now) in self.ours:
                slots[name] = present
        if self.expected and exc[0] is None:
            raise RuntimeError(
                "the function does not read a tensor any more that it captured in the forward "
                "pass (was an attribute or variable given another tensor before the derivative "
                f"was taken?), so that its gradient would be lost: {_IN_ARGS}"
            )

    def see(self, tensor: Tensor) -> Tensor:
        """Return the replacement of a captured tensor, any other as it is."""
        if self.instead:
            tensor = self.instead.get(id(tensor), tensor)
        if (found := self.table.get(id(tensor))) is not None:
            self.expected.discard(id(tensor))
            return found
        inside = tensor
        while is_functorch_wrapped_tensor(inside) and id(inside) not in self.ours:
            inside = unwrap_once(inside)
            if id(inside) in self.table and id(inside) not in self.ours:
                raise RuntimeError(_PASS_IN_ARGS)
        return tensor


def _instead(captured: Captured) -> dict[int, Tensor]:
    """Return what was read in the place of each tensor that a module holds by now.

    Nothing is written into modules: other threads may be using them.
    """
    instead: dict[int, Tensor] = {}
    for slots, name, tensor in captured.slots:
        now = slots.get(name)
        if (
            now is not None
            and now is not tensor
            and instead.setdefault(id(now), tensor) is not tensor
        ):
            raise RuntimeError(
                f"the module's tensor {name!r} stands for two tensors that it held in the forward "
                "pass: pass them in args"
            )
    return instead


class _Recording(_Scope):
    """Record the tensors that a function reads and did not get or make.

    They are cut off, unless the evaluation is one of plain autograd, whose graph is younger than
    ``since``.
    """

    def __init__(
        self, inputs: Sequence[Tensor], given: Sequence[Tensor], since: int | None
    ) -> None:
        super().__init__()
        self.level, self.cuts = ambient_level(), since is None
        self.since = graph_age() if since is None else since
        self.known: dict[int, Tensor] = {id(t): t for t in inputs}
        self.found: dict[int, tuple[Tensor, Tensor]] = {}
        self.constants: dict[int, Tensor] = {}
        self.buffers: list[tuple[Tensor, Tensor, int]] = []
        self.normalizes = False
        self.read_out: dict[str, None] = {}
        self.concerned = {id(t) for t, g in zip(inputs, given, strict=True) if _must_reach(g)}

    def after(self, out: Any) -> None:
        """Remember the tensors in ``out``: they were computed inside."""
        for leaf in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.known[id(leaf)] = leaf

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Do the operation; a normalization as it is done when it is differentiated.

        Buffers that it is about to write are remembered.
        """
        normalizes, name = is_written_out(func, args, kwargs), getattr(func, "__name__", "")
        self.normalizes = self.normalizes or normalizes
        for leaf in tree_leaves((args, kwargs)) if _writes(func, args, kwargs) else ():
            if not isinstance(leaf, Tensor) or id(leaf) in self.known:
                continue
            if not (leaf.requires_grad or is_functorch_wrapped_tensor(leaf)):
                self.buffers.append((leaf, leaf.clone(), version(leaf)))
        args, kwargs = _seen(args, self.see), _seen(kwargs, self.see)
        if name in _READS_OUT and args and self._is_concerned(args[0]):
            self.read_out[_READS_OUT[name]] = None
        with WeightsApart() if normalizes else contextlib.nullcontext():
            out = func(*args, **kwargs)
        if self.concerned and name != "detach" and any(map(self._is_concerned, args)):
            self.concerned.update(id(t) for t in tree_leaves(out) if isinstance(t, Tensor))
        self.after(out)
        return out

    def _is_concerned(self, value: Any) -> bool:
        return isinstance(value, Tensor) and (value.requires_grad or id(value) in self.concerned)

    def kept(self, out: list[Any], name: str) -> tuple[list[Tensor], list[Tensor]]:
        """Return the captured tensors, and the constants, that somebody else still holds.

        The rest are results of inner transforms and custom functions, which no operation seen
        here returned: they went with the evaluation. What they lead to has been seen, or is
        hidden, which is an error where the graph is cut. ``out`` is emptied.
        """
        self.inside = [t for t in self.known.values() if t.requires_grad and t.is_leaf]
        found = [pair[0] for pair in self.found.values()]
        constants = list(self.constants.values())
        self.found.clear()
        self.constants.clear()
        self.known.clear()
        hidden = self.cuts and any(map(self._hides, tree_leaves(out)))
        out.clear()
        held, gone = _held(found)
        if hidden or (self.cuts and any(map(self._hides, gone))):
            raise RuntimeError(_hidden(name))
        return held, _held(constants)[0]

    def _hides(self, value: Any) -> bool:
        if not _requires_grad(value):
            return False
        return is_functorch_wrapped_tensor(value) or leads_elsewhere(value, self.inside)

    def restore(self) -> None:
        """Undo what was written into buffers."""
        for buffer, value, before in reversed(self.buffers):
            if version(buffer) != before:
                # not a change that a graph must notice
                buffer.data.copy_(value)

    def see(self, tensor: Tensor) -> Tensor:
        """Return a captured tensor's detached stand-in, any other as it is."""
        if id(tensor) in self.known:
            return tensor
        if (found := self.found.get(id(tensor))) is not None:
            return found[1]
        given = tensor if self.outer is None else self.outer.see(tensor)
        if given is tensor:
            bare = peel(tensor, self.level)
            if bare is not tensor:
                # made by a transform inside the function, which may hold a captured tensor
                inside = not self.cuts or id(bare) in self.known
                if not inside and (bare.requires_grad or id(bare) in self.found):
                    raise RuntimeError(_PASS_IN_ARGS)
                return tensor
            if not _must_reach(tensor):
                self.constants[id(tensor)] = tensor
                return tensor
            if made_since(tensor, self.since):
                self.after(tensor)
                return tensor
        stand_in = given.detach() if self.cuts else given
        if stand_in is not tensor:
            self.after(stand_in)
            self.concerned.add(id(stand_in))
        self.found[id(tensor)] = (tensor, stand_in)
        return stand_in


_READS_OUT = {
    "item": "item()",
    "__float__": "float()",
    "__int__": "int()",
    "numpy": "numpy()",
    "tolist": "tolist()",
    "tensor": "torch.tensor()",
}


def _held(tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Part tensors in those that somebody else holds, and the others."""
    held: list[Tensor] = []
    gone: list[Tensor] = []
    while tensors:
        tensor = tensors.pop(0)
        # references: this variable and the argument of getrefcount
        (held if sys.getrefcount(tensor) > 2 else gone).append(tensor)
    return held, gone


def _hidden(name: str) -> str:
    return (
        f"{name} depends on a tensor that requires grad and that it neither gets in args nor "
        "reads through torch operations (a custom autograd.Function or a scripted module that "
        f"holds it?): {_IN_ARGS}"
    )


_FIRST_ORDER = (
    " (what goes through such an operation is a gradient of first order, by backward(); and none "
    'with on_failure="mask" where a problem failed)'
)


def _writes(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    name = getattr(func, "__name__", "")
    if name in ("batch_norm", "instance_norm"):
        # statistics are updated when the input's own are used: the sixth argument of both
        flag = "training" if name == "batch_norm" else "use_input_stats"
        return bool(kwargs.get(flag, args[5] if len(args) > 5 else name == "instance_norm"))
    in_place = name.endswith("_") and not name.endswith("__")
    operator = name in ("__setitem__",) or (name.startswith("__i") and name.endswith("__"))
    return in_place or operator or "out" in kwargs


def _must_reach(tensor: Tensor) -> bool:
    """Tell whether a derivative, a ``vmap``, or a clone for inference mode concerns a tensor."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return is_functorch_wrapped_tensor(tensor)
    return (
        tensor.requires_grad
        or is_functorch_wrapped_tensor(tensor)
        or (forward_level() and may_have_tangent(tensor))
        or tensor.is_inference()
    )


def _modules_in(value: Any, seen: set[int], depth: int = 6) -> Iterator[torch.nn.Module]:
    """Find the modules that a function or object holds."""
    if depth == 0 or id(value) in seen:
        return
    seen.add(id(value))
    inner: list[Any] = []
    if isinstance(value, torch.nn.Module):
        yield value
    elif parts := parts_held(value):
        inner = parts
    elif isinstance(value, (list, tuple, dict)):
        # a long container holds data; what is missed in it is an error later, never a wrong zero
        inner = list(value.values() if isinstance(value, dict) else value)[:1000]
    elif not isinstance(value, (type, Tensor, types.ModuleType)) and hasattr(value, "__dict__"):
        inner = list(vars(value).values())
    for part in inner:
        yield from _modules_in(part, seen, depth - 1)


def _slots_of(
    owner: Any, tensors: Sequence[Tensor]
) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    wanted, seen = {id(t) for t in tensors}, set()
    for root in _modules_in(owner, set()):
        for module in root.modules():
            for slots in tensor_dicts(module):
                for name, tensor in slots.items():
                    key = (id(slots), name)
                    if tensor is not None and id(tensor) in wanted and key not in seen:
                        seen.add(key)
                        yield slots, name, tensor


def capture(
    fn: Callable[..., Any], inputs: Sequence[Tensor], name: str, owner: Any = None
) -> Captured:
    """Return what ``fn(*inputs)`` reads besides its inputs and that matters.

    ``owner`` is what the user wrote: modules are looked for in it.

    The function is evaluated once, on detached inputs; the random generator and the buffers that
    it writes are put back. Where nothing is differentiated or batched, nothing is evaluated.

    Raises
    ------
    RuntimeError
        If the function reads a tensor that requires grad where it cannot be seen (inside a custom
        ``autograd.Function``, say), or hands a captured tensor to an inner transform.
    """
    differentiated = torch.is_grad_enabled() or forward_level()
    if not (transforms_active() or differentiated or torch.is_inference_mode_enabled() or nested()):
        return Captured()
    with no_saved_tensor_hooks():
        return _record(fn, [t.detach() for t in inputs], inputs, name, owner)[1]


def evaluate_connected(
    fn: Callable[..., Tensor], inputs: Sequence[Tensor], name: str, owner: Any
) -> tuple[Tensor, Captured]:
    """Return ``fn(*inputs)`` with its graph, and what the function read, as `capture` does.

    For plain autograd: the graph holds what an operation hides from us, too.
    """
    since = graph_age()
    # what is also captured is told apart
    aliases = [t.view_as(t) if t.requires_grad else t for t in inputs[1:]]
    return _record(fn, (inputs[0], *aliases), inputs, name, owner, since)


def _record(
    fn: Callable[..., Any],
    inputs: Sequence[Tensor],
    given: Sequence[Tensor],
    name: str,
    owner: Any,
    since: int | None = None,
) -> tuple[Any, Captured]:
    """Evaluate and record; with the graph from the age of ``since``, or cut off."""
    devices = sorted({t.device.index for t in inputs if t.device.type == "cuda"})
    recording = _Recording(inputs, given, since)
    with torch.random.fork_rng(devices=devices), torch.enable_grad(), recording:
        out = [fn(*inputs)]
    with isolated():  # what is looked at here, no scope around has to see
        recording.restore()
        value = None if since is None else out[0]
        tensors, constants = recording.kept(out, name)
        buffers = _union((), tuple(buffer for buffer, _, _ in recording.buffers))
        written = {id(buffer) for buffer in buffers}
        read = (*tensors, *constants)
        captured = Captured(
            tuple(tensors),
            tuple((t, version(t)) for t in constants if id(t) not in written),
            buffers,
            tuple(_slots_of(owner, read)) if read else (),
            recording.normalizes,
            tuple(recording.read_out),
            tuple(recording.inside),
            since or 0,
            tuple(globals_read(owner)),
        )
    return value, captured


def _requires_grad(value: Any) -> bool:
    while isinstance(value, Tensor):
        if value.requires_grad:
            return True
        if not is_functorch_wrapped_tensor(value) or level_of(value) < 0:
            return False
        value = unwrap_once(value)
    return False
