"""The call of a user's function: what it must not do, what it may need, and why it failed.

It knows no equation and no solver.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from implicit_solvers.compiling import compiling
from implicit_solvers.evaluations import Counter
from implicit_solvers.solution import ConvergenceError
from implicit_solvers.structure import Structure
from implicit_solvers.torch_internals import (
    transforms_active,
    tree_leaves,
    tree_map_only,
    unseen,
    version,
)

__all__ = ["ExplainedCall", "GuardedCall", "called", "is_of_devices", "unwritten"]

# how a function is called, where it takes another number of arguments
IN_ARGS = "it is called as fn(z, *args), so args has what comes after z, as in args=(theta,)"

# What torch says where its functional transforms cannot go through an operation.
_NO_TRANSFORM = (
    "must override the setup_context staticmethod",
    "generate_vmap_rule",
    "call Tensor.requires_grad_()",
    "don't yet support saved tensor hooks",
    "data pointer of Tensor that doesn't have storage",
)


class GuardedCall:
    """Call ``fn(z, *args)``; refuse to go on if it wrote into what it was given.

    A function that takes a gradient itself is called with gradients recorded, which a solver does
    not do otherwise.
    """

    def __init__(self, fn: Callable[..., Any], label: str, fix: str = IN_ARGS) -> None:
        self.fn, self.label, self.fix, self.records = fn, label, fix, False

    def __call__(self, z: Any, args: Sequence[Any]) -> Any:
        """Return what the function returns."""
        if compiling():
            return self.fn(z, *args)
        given = (z, *args)
        before = _versions(given)
        try:
            out = self._recorded(z, args) if self.records else self.fn(z, *args)
        except RuntimeError as error:
            out = self._again(error, z, args)
        except TypeError as error:
            who = f"the function of {self.label}"
            why = _unfit(self.fn, given, who, self.fix)
            if why is None and not isinstance(z, Tensor) and not hasattr(self.fn, "__wrapped__"):
                why = f"{who} is given z as z0 is, a {type(z).__name__}: take it apart there"
            if why is None or isinstance(error.__cause__, TypeError):
                raise
            raise TypeError(f"{why} ({error})") from error
        _check_unwritten(given, before, f"the function of {self.label}", "z")
        return out

    def _recorded(self, z: Any, args: Sequence[Any]) -> Any:
        if torch.is_grad_enabled():
            return self.fn(z, *args)
        with torch.enable_grad():
            return tree_map_only(Tensor, torch.detach, self.fn(z, *args))

    def _again(self, error: RuntimeError, z: Any, args: Sequence[Any]) -> Any:
        text = str(error)
        if "does not require grad and does not have a grad_fn" in text:
            if not torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
                self.records = True
                return self._recorded(z, args)
        elif transforms_active() and any(words in text for words in _NO_TRANSFORM):
            raise RuntimeError(
                f"{text}\nThe function of {self.label} holds an operation that the transforms of "
                "torch.func (vmap, grad, jvp, ...) cannot go through, and plain backward() can: "
                "solve outside of the transform (batch_dims for batches), or write the operation "
                "as an autograd.Function with setup_context and generate_vmap_rule = True"
            ) from error
        elif "Can't call numpy()" in text:
            raise RuntimeError(
                f"the function of {self.label} calls NumPy: write it in torch, with arguments that "
                "are tensors (torch.as_tensor); a solution that NumPy or SciPy found can be given "
                f"to attach ({text})"
            ) from error
        raise error


def unwritten(fn: Callable[..., Any], given: Sequence[Any], who: str, first: str = "z") -> Any:
    """Return ``fn(*given)``; refuse to go on if it wrote into what it was given.

    Messages call what it is given ``first``, and then ``args``.
    """
    if compiling():
        return fn(*given)
    before = _versions(given)
    try:
        out = fn(*given)
    except RuntimeError as error:
        if "in-place operation" in str(error):  # torch may say so of what it differentiates
            copies = tree_map_only(Tensor, lambda t: t.detach().clone(), tuple(given))
            before = _versions(copies)
            fn(*copies)
            _check_unwritten(copies, before, who, first)
        raise
    _check_unwritten(given, before, who, first)
    return out


def _check_unwritten(
    given: Sequence[Any], before: Sequence[Sequence[int]], who: str, first: str
) -> None:
    after = _versions(given)
    if after == before:
        return
    place = [a != b for a, b in zip(after, before, strict=True)].index(True)
    name = first if place == 0 else f"args[{place - 1}]"
    raise ValueError(
        f"{who} wrote into {name} (an operation in place, as mul_ or out=), which is the tensor of "
        "the caller: write x = x.mul(2) in the place of x.mul_(2), or clone() it first"
    )


def _versions(given: Sequence[Any]) -> list[list[int]]:
    with unseen():
        return [
            [
                version(t)
                for t in ((value,) if isinstance(value, Tensor) else tree_leaves(value))
                if isinstance(t, Tensor) and not t.is_inference()
            ]
            for value in given
        ]


class _Explained(ValueError, RuntimeError):
    """What torch refused: whoever goes on without what raises a RuntimeError still does."""


class ExplainedCall:
    """Call a raveled ``fn(z, *tensors)``; what it raises is explained, where that can be told.

    ``join`` puts the tensors back into the user's arguments, and ``in_dims`` is what the user said
    of those. The ``counter`` counts calls.
    """

    def __init__(
        self,
        fn: Callable[..., Tensor],
        structure: Structure,
        join: Callable[[Sequence[Tensor]], Any],
        in_dims: Any,
        counter: Counter,
    ) -> None:
        self.fn, self.structure, self.join, self.in_dims = fn, structure, join, in_dims
        self.counter = counter
        self.__wrapped__ = fn

    def __call__(self, z: Tensor, *tensors: Tensor) -> Tensor:
        """Return what the function returns."""
        if compiling():
            return self.fn(z, *tensors)
        self.counter.function += 1
        try:
            return self.fn(z, *tensors)
        except ConvergenceError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            why = next(self._reasons(error, z, tensors), None)
            if why is None:
                raise
            raised = _Explained if isinstance(error, RuntimeError) else ValueError
            raise raised(f"{why} ({type(error).__name__}: {error})") from error

    def _reasons(self, error: Exception, z: Tensor, tensors: Sequence[Tensor]) -> Iterator[str]:
        for i, arg in enumerate(self.join(tensors)):
            for leaf in tree_leaves(arg):
                if isinstance(leaf, Tensor) and leaf.device != z.device and _matters(leaf):
                    yield (
                        f"args[{i}] is on {leaf.device} and z0 on {z.device}: move it, as "
                        f'.to("{z.device}")'
                    )
        if is_of_devices(error):
            yield (
                f"a tensor that the function uses is on another device than z0, {z.device}: move "
                f'it, as .to("{z.device}")'
            )
        lanes = z.shape[:-1]
        if self.in_dims is not None and lanes != self.structure.native:
            yield (
                f"the function fails on {lanes.numel()} of {_count(self.structure.native)} "
                "problems, which go on when the others have ended. A tensor with an entry for each "
                "problem that it captures is not cut to those: pass it in args, with 0 in in_dims"
            )


def called(fn: Callable[..., Any], given: Sequence[Any], who: str, fix: str) -> Any:
    """Return ``fn(*given)``; explain by ``fix`` that it takes another number of arguments."""
    if compiling():
        return fn(*given)
    try:
        return fn(*given)
    except TypeError as error:
        why = _unfit(fn, given, who, fix)
        if why is None:
            raise
        raise TypeError(f"{why} ({error})") from error


def _unfit(fn: Callable[..., Any], given: Sequence[Any], who: str, fix: str) -> str | None:
    try:
        taken = inspect.signature(getattr(fn, "forward", fn))
    except (TypeError, ValueError):  # what is not written in Python may not say
        return None
    try:
        taken.bind(*given)
    except TypeError:
        count = "one argument" if len(given) == 1 else f"{len(given)} arguments"
        return f"{who} takes {taken} and is given {count}: {fix}"
    return None


def is_of_devices(error: Exception) -> bool:
    """Tell whether torch refused tensors of several devices."""
    return re.search("not on the expected device|tensors to be on the same", str(error)) is not None


def _matters(leaf: Tensor) -> bool:
    """Tell whether torch minds the device of a tensor: numbers of the CPU go with any."""
    return leaf.dim() > 0 or leaf.device.type != "cpu"


def _count(lanes: tuple[int, ...]) -> int:
    return torch.Size(lanes).numel()
