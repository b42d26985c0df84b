"""Pullbacks and pushforwards that compose with every mode of torch's automatic differentiation.

Nothing here knows of equations, lanes or solvers.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import GradientEdge
from torch.overrides import TorchFunctionMode

from implicit_solvers.compiling import compiling
from implicit_solvers.graph_height import ends_at, point
from implicit_solvers.torch_internals import (
    accumulate_gradients,
    add_legacy_batch,
    age_of,
    below_jvp,
    forward_level,
    graph_age,
    is_batched,
    is_legacy_batchedtensor,
    legacy_batches,
    pop_saved_tensor_hooks,
    push_saved_tensor_hooks,
    remove_legacy_batch,
    transforms_active,
    tree_flatten,
    tree_leaves,
    tree_map_only,
    tree_unflatten,
    unwrap_if_dead,
)

__all__ = [
    "Pushforward",
    "asked",
    "autocast_around",
    "batched",
    "differentiable",
    "leads_elsewhere",
    "leads_to",
    "legacy_batch",
    "live",
    "made_since",
    "may_have_tangent",
    "needs_backward",
    "nested_jvp",
    "no_saved_tensor_hooks",
    "products_by",
    "pullback_of_subtrahend",
    "pullback_on_graph",
    "pushforward",
    "recorded_if_asked",
    "rows",
    "some",
    "transformed",
    "unwatched",
    "vjp",
    "without_autocast",
]


def differentiable(tensor: Tensor) -> bool:
    """Tell whether a tensor is of a dtype that derivatives exist for."""
    return tensor.is_floating_point() or tensor.is_complex()


def asked(tensors: Sequence[Tensor], needed: Sequence[bool]) -> list[int]:
    """Return the places of the tensors of which derivatives exist and are needed."""
    return [i for i, t in enumerate(tensors) if needed[i] and differentiable(t)]


@contextlib.contextmanager
def no_saved_tensor_hooks() -> Iterator[None]:
    """Take off saved-tensor hooks: ``torch.func`` refuses to run under them.

    ``torch.utils.checkpoint`` and ``save_on_cpu`` install them; what a rule saves for itself
    while it runs needs neither.
    """
    if compiling():
        yield
        return
    hooks = pop_saved_tensor_hooks()
    try:
        yield
    finally:
        push_saved_tensor_hooks(hooks)


def vjp(fn: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
    """Evaluate ``fn`` and return its value with its pullback, as ``torch.func.vjp`` does.

    Where no transform is active the pullback is plain autograd's, which goes through whatever
    plain autograd goes through: custom functions, scripted modules, checkpoints.
    """
    if compiling():
        return cast(Any, torch.func.vjp(fn, *primals))
    if not (transforms_active() or forward_level() or legacy_batches()):
        return _plain_vjp(fn, primals)
    with no_saved_tensor_hooks():
        out, pull = cast(Any, torch.func.vjp(fn, *primals))

    def pullback(*cotangents: Any) -> Any:
        with no_saved_tensor_hooks():
            return pull(*cotangents)

    return out, pullback


class _Thread(threading.local):
    """The leaves of the pullbacks that run while a function is evaluated, if one is."""

    leaves: list[Tensor] | None = None


_THREAD = _Thread()


@contextlib.contextmanager
def _leaves_of_pullbacks() -> Iterator[list[Tensor]]:
    leaves: list[Tensor] = []
    before, _THREAD.leaves = _THREAD.leaves, leaves
    try:
        yield leaves
    finally:
        _THREAD.leaves = before


def _plain_vjp(fn: Callable[..., Any], primals: tuple[Any, ...]) -> Any:
    connected = torch.is_grad_enabled()

    def leaf(t: Tensor) -> Tensor:
        return t.view_as(t) if joins(t) else point(t)

    def joins(t: Any) -> bool:
        return connected and isinstance(t, Tensor) and t.requires_grad

    with torch.enable_grad(), no_saved_tensor_hooks(), _leaves_of_pullbacks() as leaves:
        inputs = tree_map_only(Tensor, leaf, primals)
        value = fn(*inputs)
    made = zip(tree_leaves(inputs), tree_leaves(primals), strict=True)
    leaves += [t for t, primal in made if isinstance(t, Tensor) and not joins(primal)]
    connected = connected and any(leads_elsewhere(out, leaves) for out in tree_leaves(value))
    pull = pullback_on_graph(inputs, value, connected)

    def pullback(cotangent: Any) -> Any:
        if _THREAD.leaves is not None:
            _THREAD.leaves += leaves
        try:
            return pull(cotangent)
        except RuntimeError as error:
            if not needs_backward(error) or torch.is_grad_enabled():
                raise
            return _by_backward(fn, primals, cotangent)

    return (value if connected else tree_map_only(Tensor, torch.detach, value)), pullback


def needs_backward(error: RuntimeError) -> bool:
    """Tell whether a pullback was refused that a plain ``backward()`` goes through."""
    return "use_reentrant" in str(error)


def _by_backward(fn: Callable[..., Any], primals: tuple[Any, ...], cotangent: Any) -> Any:
    """Pull back by ``backward()``: reentrant checkpoints refuse ``torch.autograd.grad``."""
    with torch.enable_grad(), no_saved_tensor_hooks(), _OwnGraph():
        inputs = tree_map_only(Tensor, lambda t: t.detach().requires_grad_(), primals)
        outputs, given = tree_leaves(fn(*inputs)), tree_leaves(cotangent)
        places = [i for i, out in enumerate(outputs) if out.requires_grad]
        torch.autograd.backward([outputs[i] for i in places], [given[i] for i in places])
    return tree_map_only(
        Tensor, lambda t: torch.zeros_like(t) if t.grad is None else t.grad, inputs
    )


def leads_to(out: Tensor, tensors: Sequence[Tensor], past: Sequence[Tensor]) -> bool:
    """Tell whether the graph of ``out`` leads to one of the tensors, not through those ``past``."""
    if out.grad_fn is None:
        return False
    ends = {id(t) for t in tensors if t.grad_fn is None}
    nodes = {t.grad_fn for t in tensors if t.grad_fn is not None}
    stops = {t.grad_fn for t in past if t.grad_fn is not None}
    return any(
        node in nodes or id(getattr(node, "variable", None)) in ends
        for node in _graph(out.grad_fn, stops)
    )


def _graph(root: Any, stops: set[Any]) -> Iterator[Any]:
    """Go through the nodes of a graph, not past the ``stops``."""
    nodes, seen = [root], set(stops)
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        if not ends_at(node):
            nodes += [following for following, _ in node.next_functions if following is not None]


def leads_elsewhere(out: Tensor, known: Sequence[Tensor], since: int = 0) -> bool:
    """Tell whether the graph of ``out`` leads to anything but the ``known`` tensors.

    With ``since``, nodes that are older than that are other tensors' too.
    """
    ours = {t.grad_fn for t in known if t.grad_fn is not None}
    leaves = {id(t) for t in known if t.grad_fn is None}
    if out.grad_fn is None:
        return out.requires_grad and id(out) not in leaves
    for node in _graph(out.grad_fn, ours):
        if (variable := getattr(node, "variable", None)) is not None:
            if id(variable) not in leaves:
                return True
        elif ends_at(node) or age_of(node) < since:
            return True
    return False


def made_since(tensor: Tensor, age: int) -> bool:
    """Tell whether a tensor was computed, with a graph, at that age or later."""
    return tensor.grad_fn is not None and age_of(tensor.grad_fn) >= age


class _OwnGraph(TorchFunctionMode):
    """A mode in which no graph reaches further than to what is made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.since = graph_age()
        self.made: dict[int, Tensor] = {}

    def _cut(self, t: Tensor) -> Tensor:
        ours = id(t) in self.made or made_since(t, self.since)
        return t if ours or not t.requires_grad else t.detach()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.autograd.backward:
            # no mode is in force while a function that it intercepted runs, and checkpoints
            # compute again what this one has to see
            with self:
                return accumulate_gradients(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(Tensor, self._cut, (args, kwargs or {}))
        out = func(*args, **kwargs)
        self.made.update({id(t): t for t in tree_leaves(out) if isinstance(t, Tensor)})
        return out


def pullback_on_graph(inputs: Any, value: Any, connected: bool = False) -> Callable[[Any], Any]:
    """Return the pullback of ``value`` to ``inputs``, of which it was computed with a graph.

    Its results have one if gradients are recorded, and the value is ``connected`` to more than the
    inputs or the cotangent has one.
    """
    leaves, structure = tree_flatten(inputs)
    outputs = tree_leaves(value)
    places = [i for i, out in enumerate(outputs) if out.requires_grad]

    def pullback(cotangent: Any) -> Any:
        if not places:
            return tree_unflatten([torch.zeros_like(t) for t in leaves], structure)
        given = tree_leaves(cotangent)
        with no_saved_tensor_hooks():
            slopes = torch.autograd.grad(
                [outputs[i] for i in places],
                leaves,
                [given[i] for i in places],
                retain_graph=True,
                create_graph=torch.is_grad_enabled()
                and (connected or any(given[i].requires_grad for i in places)),
                materialize_grads=True,
            )
        return tree_unflatten(slopes, structure)

    return pullback


def pullback_of_subtrahend(at: Tensor, value: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return ``w -> g'^T w`` if the graph says ``value = at - g(at)``; else None."""
    node = value.grad_fn
    if node is None or node.name() != "SubBackward0":
        return None
    (first, _), (second, place) = node.next_functions
    minuend = at.grad_fn is first if at.grad_fn else getattr(first, "variable", None) is at
    if second is None or second is first or not minuend:
        return None
    edge = GradientEdge(second, place)

    def pullback(w: Tensor) -> Tensor:
        with no_saved_tensor_hooks():
            how = {"retain_graph": True, "materialize_grads": True}
            found: Tensor = torch.autograd.grad([edge], [at], [w], **how)[0]
        return found

    return pullback


def products_by(
    pull: Callable[[Tensor], Tensor], value: Tensor, symmetric: bool
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return ``v -> J v`` and ``w -> J^T w`` by the pullback of a ``value``."""
    return (pull if symmetric else Pushforward(pull, value)), pull


class Pushforward:
    """``v -> J v`` by the pullback of a pullback ``w -> J^T w``, made when it is first needed."""

    def __init__(self, pull: Callable[[Tensor], Tensor], value: Tensor) -> None:
        self.pull, self.value = pull, value
        self.push: Callable[[Tensor], Any] | None = None
        if compiling():
            self.ready()

    def ready(self) -> None:
        """Linearize; what is needed under a ``vmap`` is made before."""
        if self.push is None:
            self.push = vjp(self.pull, torch.zeros_like(self.value))[1]

    def __call__(self, v: Tensor) -> Tensor:
        """Return the product."""
        self.ready()
        assert self.push is not None
        return cast(Tensor, self.push(v)[0])


def rows(
    pull: Callable[[Tensor], Tensor], value: Tensor, n: int, basis: Tensor | None = None
) -> Tensor:
    """Return the matrix ``(*lanes, m, n)`` of a pullback ``w -> J^T w`` by pulling back a basis.

    Lanes do not mix. What a pullback does to one cotangent and not to many at once, it does to
    one after the other. The ``basis`` is the identity, if it is at hand.
    """
    m = value.shape[-1]

    def row(e: Tensor) -> Tensor:
        return pull(e if value.dim() == 1 else e.expand(value.shape))

    if m == 0:
        return value.new_zeros(*value.shape, n)
    if basis is None or len(basis) != m:
        basis = torch.eye(m, dtype=value.dtype, device=value.device)
    if compiling():
        return torch.func.vmap(row, out_dims=-2)(basis)
    return batched(row, basis).movedim(0, -2)


def batched(product: Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
    """Return the products with each of the vectors, at once, or one after the other if need be."""
    with no_saved_tensor_hooks():
        try:
            return torch.func.vmap(product)(vectors)
        except RuntimeError:
            return torch.stack([product(v) for v in vectors])


def pushforward(
    fn: Callable[..., Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> Tensor:
    """Return ``J v`` by two pullbacks; a tangent of ``None`` is zero.

    ``torch.func.jvp`` refuses to run inside a plain ``forward_ad.dual_level`` (as ``gradcheck``
    opens one), two pullbacks run everywhere.
    """
    out, pull = vjp(fn, *primals)
    _, push = vjp(pull, torch.zeros_like(out))
    filled = tuple(
        torch.zeros_like(p) if t is None else t for p, t in zip(primals, tangents, strict=True)
    )
    return push(filled)[0]


def live(*tensors: Any) -> Any:
    """Take off functorch wrappers whose level has gone.

    A pullback of ``torch.func.vjp`` may run a ``Function``'s backward after its level has ended.
    """
    return tuple(unwrap_if_dead(t) if isinstance(t, Tensor) else t for t in tensors)


def recorded_if_asked(rule: Callable[..., Any]) -> Any:
    """Make ``rule(ctx, saved, *cotangents)`` a ``Function.backward``.

    It records gradients only if something that it is given asks for them: a pullback of
    ``torch.func`` runs with gradients recorded after its level has ended, whether or not anything
    is differentiated. What was saved is unpacked once, as checkpoints demand.
    """

    @functools.wraps(rule)
    def backward(ctx: Any, *cotangents: Any) -> Any:
        saved, cotangents = live(*ctx.saved_tensors), live(*cotangents)
        with _recording_for((*saved, *cotangents)), without_autocast(saved[0]):
            return rule(ctx, saved, *cotangents)

    return staticmethod(backward)


def _recording_for(tensors: Sequence[Any]) -> Any:
    """Return a context in which gradients are recorded if any of ``tensors`` asks for it."""
    asked = transforms_active() or any(isinstance(t, Tensor) and t.requires_grad for t in tensors)
    return contextlib.nullcontext() if asked else torch.no_grad()


def autocast_around(tensor: Tensor) -> bool:
    """Tell whether autocast is on, on the device of a tensor."""
    device = tensor.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def without_autocast(tensor: Tensor) -> Any:
    """Return a context in which autocast is off, on the device of a tensor."""
    if not autocast_around(tensor):
        return contextlib.nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def nested_jvp(rule: Callable[[Any, tuple[Tensor, ...], tuple[Any, ...]], Any]) -> Any:
    """Make ``rule(spec, saved, tangents)`` a ``Function.jvp`` that outer levels can see.

    Torch runs a ``jvp`` at its own functorch level with forward mode switched off, so that
    tangents of enclosing levels are silently lost. Here the level is unwrapped, the interpreter
    lowered, both modes enabled, the rule run, and its result wrapped again. The ``Function`` sets
    ``ctx.spec`` and saves its tensors for both modes.
    """

    @functools.wraps(rule)
    def jvp(ctx: Any, *tangents: Any) -> Any:
        def apply(saved: tuple[Tensor, ...], tangents: tuple[Any, ...]) -> Any:
            with _recording_for((*saved, *tangents)), without_autocast(saved[0]):
                return rule(ctx.spec, saved, tangents)

        if not transforms_active():
            return apply(ctx.saved_tensors, tangents)
        return below_jvp(apply, tuple(ctx.saved_tensors), tuple(tangents))

    return staticmethod(jvp)


def some(mask: Tensor) -> bool:
    """Tell whether any entry of ``mask`` is true; assume it where entries cannot be read."""
    return is_legacy_batchedtensor(mask) or is_batched(mask) or bool(mask.any())


def unwatched() -> bool:
    """Tell whether nothing differentiates or batches what is computed here."""
    if compiling():
        return False
    watched = transforms_active() or torch.is_grad_enabled() or forward_level()
    return not (watched or torch.is_inference_mode_enabled())


def transformed() -> bool:
    """Tell whether a ``torch.func`` transform, forward mode, or a compiler is at work.

    A fast path on plain tensors, written for ``backward()`` alone, has to step aside then.

    Returns
    -------
    bool
        True inside of ``vmap``, ``grad``, ``jvp`` and the other transforms, of a
        ``forward_ad.dual_level``, and while ``torch.compile`` traces; False otherwise, whether or
        not gradients are recorded.

    Examples
    --------
    >>> transformed(), torch.func.vmap(lambda x: x * transformed())(torch.ones(2))
    (False, tensor([1., 1.]))
    """
    return transforms_active() or forward_level() or compiling()


def may_have_tangent(tensor: Tensor) -> bool:
    """Tell whether a tensor has a plain dual level's tangent, or, under a ``vmap``, may have."""
    if transforms_active():
        return True
    return forward_ad.unpack_dual(tensor).tangent is not None


def legacy_batch(rule: Callable[..., Any], spec: Any, *tensors: Tensor | None) -> Any:
    """Apply a vmap rule to a dimension that ``autograd.grad(is_grads_batched=True)`` adds.

    It (and ``gradcheck``) batches by an older mechanism than ``torch.func.vmap``: a ``Function``
    under it gets its ``forward`` called with batched tensors and no ``vmap`` rule is asked. The
    dimension is hidden again in what is returned; None, if there is none.
    """
    dims = [0 if t is not None and is_legacy_batchedtensor(t) else None for t in tensors]
    if not any(dim == 0 for dim in dims):
        return None
    level = legacy_batches()
    bare: list[Any] = [
        t if dim is None or t is None else remove_legacy_batch(t, level)
        for t, dim in zip(tensors, dims, strict=True)
    ]
    info = SimpleNamespace(batch_size=len(bare[dims.index(0)]))
    out, out_dims = rule(info, (None, *dims), spec, *bare)
    return tuple(
        t if dim is None else add_legacy_batch(t.movedim(dim, 0), level)
        for t, dim in zip(out, out_dims, strict=True)
    )
