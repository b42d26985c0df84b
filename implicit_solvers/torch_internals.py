"""What is private in torch and needed here: its names stand in this file and nowhere else.

Torch's public API does not let the rules of an ``autograd.Function`` be differentiated at all
levels at once. A new release of torch has to be compared with this file. It knows nothing of ours.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C._dynamo.eval_frame import (
    _FrameAction,
    _FrameExecStrategy,
    get_eval_frame_callback,
    set_code_exec_strategy,
)
from torch._C._functorch import (  # type: ignore[import-untyped,unused-ignore]
    TransformType,
    _unwrap_for_grad,
    _wrap_for_grad,
    get_interpreter_stack,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    is_legacy_batchedtensor,
    peek_interpreter_stack,
    unwrap_if_dead,
)
from torch._C._functorch import get_unwrapped as unwrap_once
from torch._C._functorch import maybe_get_level as level_of
from torch._functorch.pyfunctorch import (
    retrieve_current_functorch_interpreter,
    temporarily_clear_interpreter_stack,
)
from torch._guards import detect_fake_mode
from torch.autograd import forward_ad
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import (
    TreeSpec,
    keystr,
    register_pytree_node,
    tree_flatten,
    tree_flatten_with_path,
    tree_leaves,
    tree_map,
    tree_map_only,
    tree_structure,
    tree_unflatten,
)

__all__ = [
    "Function",
    "ShardedForward",
    "TorchDispatchMode",
    "TreeSpec",
    "accumulate_gradients",
    "active_dropout",
    "add_legacy_batch",
    "age_of",
    "ambient_level",
    "below_jvp",
    "break_graph",
    "detect_fake_mode",
    "dynamo_limits",
    "forward_level",
    "forward_mode_disabled",
    "frames_compiled",
    "graph_age",
    "is_batched",
    "is_batchedtensor",
    "is_functorch_wrapped_tensor",
    "is_legacy_batchedtensor",
    "keystr",
    "legacy_batches",
    "let_lanes_vary",
    "level_of",
    "never_compiled",
    "numbers",
    "peel",
    "pop_saved_tensor_hooks",
    "push_saved_tensor_hooks",
    "register_pytree_node",
    "remove_legacy_batch",
    "saved_tensor_hooks_restored",
    "tensor_dicts",
    "transforms_active",
    "tree_flatten",
    "tree_flatten_with_path",
    "tree_leaves",
    "tree_map",
    "tree_map_only",
    "tree_structure",
    "tree_unflatten",
    "unseen",
    "untraced",
    "unwrap_if_dead",
    "unwrap_once",
    "version",
]

F = TypeVar("F", bound=Callable[..., Any])


class Function(torch.autograd.Function):
    """The ``autograd.Function`` of torch, which asks for the signature of ``forward`` in each call.

    To find it takes longer than a small solve's step; here it is found once.
    """

    def __init_subclass__(cls) -> None:
        """Keep the signature where `inspect.signature` looks for it first."""
        super().__init_subclass__()
        cls.forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]


def transforms_active() -> bool:
    """Tell whether a ``torch.func`` transform is active."""
    return peek_interpreter_stack() is not None


def ambient_level() -> int:
    """Return the level of the innermost active functorch transform, 0 outside of all."""
    top = peek_interpreter_stack()
    return 0 if top is None else int(top.level())


def peel(tensor: Tensor, level: int) -> Tensor:
    """Take off the functorch wrappers of ``tensor`` above ``level``."""
    while is_functorch_wrapped_tensor(tensor) and level_of(tensor) > level:
        tensor = unwrap_once(tensor)
    return tensor


def numbers(tensor: Tensor) -> list[Any]:
    """Return ``tensor.tolist()``, which torch 2.8 refuses under gradients of ``torch.func``."""
    while is_functorch_wrapped_tensor(tensor) and not is_batchedtensor(tensor):
        tensor = unwrap_once(tensor)
    with temporarily_clear_interpreter_stack():
        return list(tensor.tolist())


def is_batched(tensor: Tensor) -> bool:
    """Tell whether a ``vmap`` level is among the wrappers of ``tensor``."""
    while is_functorch_wrapped_tensor(tensor):
        if is_batchedtensor(tensor):
            return True
        tensor = unwrap_once(tensor)
    return False


def version(tensor: Tensor) -> int:
    """Return how often ``tensor``, or what a transform wraps in it, has been written to."""
    while is_functorch_wrapped_tensor(tensor):
        tensor = unwrap_once(tensor)
    return tensor._version


def below_jvp(fn: Callable[..., Any], *values: Any) -> Any:
    """Return ``fn(*values)`` as computed below the innermost functorch level, that of a ``jvp``.

    Gradients are recorded and tangents propagated there.
    """
    interpreter = retrieve_current_functorch_interpreter()
    if interpreter.key() != TransformType.Jvp:
        raise RuntimeError(f"a jvp rule was reached at a {interpreter.key()} level")
    level = interpreter.level()
    values = tree_map_only(Tensor, lambda t: _unwrap_for_grad(t, level), values)
    # lower() alone restores the modes that held outside this level, forward mode off included
    with torch.enable_grad(), _set_fwd_grad_enabled(True), interpreter.lower():
        out = fn(*values)
    return tree_map_only(Tensor, lambda t: _wrap_for_grad(t, level), out)


def forward_level() -> bool:
    """Tell whether tensors may carry tangents of a plain ``forward_ad.dual_level``.

    ``torch.func.jvp`` opens such a level too, but keeps its tangents in wrappers.
    """
    if forward_ad._current_level < 0 or not torch._C._is_fwd_grad_enabled():
        return False
    return all(level.key() != TransformType.Jvp for level in get_interpreter_stack() or ())


def forward_mode_disabled() -> Any:
    """Return a context in which tangents are not propagated."""
    return _set_fwd_grad_enabled(False)


def legacy_batches() -> int:
    """Return how many dimensions the older ``vmap`` batches here."""
    torch._C._vmapmode_increment_nesting()
    return int(torch._C._vmapmode_decrement_nesting())


def add_legacy_batch(tensor: Tensor, level: int) -> Tensor:
    """Hide the first dimension, as one of the older ``vmap``."""
    return torch._add_batch_dim(tensor, 0, level)


def remove_legacy_batch(tensor: Tensor, level: int) -> Tensor:
    """Show a dimension of the older ``vmap``, as the first."""
    return torch._remove_batch_dim(tensor, level, 1, 0)


def graph_age() -> int:
    """Return the number that the next node of a graph in this thread gets."""
    return int(torch.autograd._get_sequence_nr())


def age_of(node: Any) -> int:
    """Return the number of a graph's node."""
    return int(node._sequence_nr())


def accumulate_gradients(
    tensors: Sequence[Tensor], grad_tensors: Sequence[Tensor], **_: Any
) -> None:
    """Do what ``torch.autograd.backward`` does, past the function modes that it asks."""
    torch.autograd.Variable._execution_engine.run_backward(
        tuple(tensors),
        tuple(grad_tensors),
        False,
        False,
        (),
        allow_unreachable=True,
        accumulate_grad=True,
    )


def pop_saved_tensor_hooks() -> list[Any]:
    """Take off all saved-tensor hooks and return them, the innermost first."""
    hooks = []
    while (top := torch._C._autograd._top_saved_tensors_default_hooks(False)) is not None:
        hooks.append(top)
        torch._C._autograd._pop_saved_tensors_default_hooks()
    return hooks


def push_saved_tensor_hooks(hooks: Sequence[Any]) -> None:
    """Put back what `pop_saved_tensor_hooks` returned."""
    for pair in reversed(hooks):
        torch._C._autograd._push_saved_tensors_default_hooks(*pair)


@contextlib.contextmanager
def saved_tensor_hooks_restored() -> Iterator[None]:
    """Allow saved-tensor hooks again afterwards, if they were allowed before.

    Dynamo switches them off where it traces a pullback, and does not always switch them on again:
    ``torch.utils.checkpoint`` would be refused from then on.
    """
    api: Any = torch._C._autograd
    allowed = api._saved_tensors_hooks_is_enabled()
    try:
        yield
    finally:
        if allowed and not api._saved_tensors_hooks_is_enabled():
            api._saved_tensors_hooks_enable()


def unseen() -> Any:
    """Return a context in which no function mode sees what is asked of tensors."""
    return torch._C.DisableTorchFunction()


def tensor_dicts(module: torch.nn.Module) -> tuple[dict[str, Any], ...]:
    """Return the dictionaries in which a module holds its own parameters and buffers."""
    return module._parameters, module._buffers


class ShardedForward:
    """A forward pass of a module that ``fully_shard`` sharded, in which its own hooks are quiet.

    They do nothing where a backward pass computes values again.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.module, self.state = module, module._get_fsdp_state()  # type: ignore[operator]
        self.states = type(self.state._training_state)

    def begin(self) -> bool:
        """Gather the parameters; tell whether this has begun what is to `end`."""
        if self.state._training_state == self.states.PRE_BACKWARD:
            return False
        self.state._pre_forward(self.module, (), {})
        self.state._training_state = self.states.PRE_BACKWARD
        return True

    def end(self, output: Any) -> Any:
        """Return the output, whose gradient gathers the parameters again."""
        self.state._training_state = self.states.FORWARD
        return self.state._post_forward(self.module, (), output)


def frames_compiled() -> bool:
    """Tell whether Dynamo compiles the functions that are called from here, one by one.

    It does where it could not put a call in a graph. A solve is not made for that: parts of it
    would take themselves to be in a graph.
    """
    return get_eval_frame_callback() not in (None, False)


def never_compiled(fn: F) -> F:
    """Do what ``torch.compiler.disable`` does, without importing Dynamo.

    To import that takes longer than to import torch.
    """
    skip = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)  # itself, and what it calls
    set_code_exec_strategy(fn.__code__, skip)
    vars(fn)["_torchdynamo_disable"] = True  # where it would be part of another's graph
    return fn


def break_graph(why: str) -> None:
    """End the graph that Dynamo makes, here."""
    torch._dynamo.graph_break(msg=why)


def let_lanes_vary(lanes: int, *trees: Any) -> None:
    """Let what is compiled for tensors ``(lanes, ...)`` serve any number of lanes but one."""
    for t in tree_leaves(trees):
        if isinstance(t, Tensor) and lanes > 1 and t.dim() > 0 and len(t) == lanes:
            torch._dynamo.maybe_mark_dynamic(t, 0)


def untraced(error: Exception) -> bool:
    """Tell whether Dynamo could not trace a function; too many graphs of it are another matter."""
    errors = torch._dynamo.exc
    if isinstance(error, errors.FailOnRecompileLimitHit):
        return False
    return isinstance(error, (errors.TorchDynamoException, AssertionError))


@contextlib.contextmanager
def dynamo_limits(graphs: int) -> Iterator[None]:
    """Let a function have so many graphs in this thread, and raise if it needs more."""
    config = torch._dynamo.config
    # config.patch would take three times as long
    before = config.recompile_limit, config.fail_on_recompile_limit_hit
    config.recompile_limit, config.fail_on_recompile_limit_hit = graphs, True
    try:
        yield
    finally:
        config.recompile_limit, config.fail_on_recompile_limit_hit = before


def active_dropout(module: torch.nn.Module) -> list[str]:
    """Return the names of the module's dropout layers that are in training mode."""
    drops = ((n, m) for n, m in module.named_modules() if isinstance(m, _DropoutNd))
    return [name or type(drop).__name__ for name, drop in drops if drop.training and drop.p > 0]
