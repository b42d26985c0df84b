"""Half precision and autocast around a solve: what is solved is in float32 at least."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from implicit_solvers.autodiff import autocast_around, without_autocast
from implicit_solvers.linear.linear_operator import LinearOperator
from implicit_solvers.many_starts import Starts
from implicit_solvers.solution import Solution
from implicit_solvers.structure import Structure
from implicit_solvers.tolerance import Auto
from implicit_solvers.torch_internals import tree_leaves, tree_map_only, unseen

__all__ = ["in_full_precision", "wide"]

F = TypeVar("F", bound=Callable[..., Any])

_WIDE = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.complex32: torch.complex64,
}

_FUNCTIONS = {"fn", "equalities", "inequalities", "prox"}
_SETTINGS = {"solver", "adjoint", "equation", "jac_sparsity", "adjoint_start"}

_DTYPE = torch.Tensor.dtype.__get__  # type: ignore[attr-defined]

# What casts a tensor, looks at it or writes into it, and does not compute with its values.
_NAMES = ("to", "type", "half", "bfloat16", "backward", "register_hook", "__setitem__")
_LEFT_ALONE = {
    torch.autograd.grad,
    torch.autograd.backward,
    *(getattr(Tensor, name) for name in _NAMES),
    *(
        getattr(Tensor, name)
        for name in dir(Tensor)
        if name.endswith("_") and (not name.endswith("__") or name.startswith("__i"))
    ),
}


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which what has a ``dtype`` is solved: of half precision, float32."""
    return _WIDE.get(dtype, dtype)


class _Widening(TorchFunctionMode):
    """A mode in which operations read half precision tensors in a ``dtype`` that is no less."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == _DTYPE:
            found = func(*args, **kwargs)
            return self.dtype if found in _WIDE else found
        if not (func in _LEFT_ALONE or "out" in kwargs or func.__name__ == "__get__"):
            args, kwargs = tree_map_only(Tensor, self.widened, (args, kwargs))
        return func(*args, **kwargs)

    def widened(self, tensor: Tensor) -> Tensor:
        """Return a tensor of half precision in the dtype, any other as it is."""
        return _widened(tensor, self.dtype)


def _dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype, in the function of another solve too."""
    with unseen():
        return tensor.dtype


def _widened(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if _dtype(tensor) not in _WIDE:
        return tensor
    real = dtype.to_real() if dtype.is_complex else dtype
    return tensor.to(real.to_complex() if tensor.is_complex() else real)


class _InPrecision:
    """A user's function, whose operations see no half precision; or autocast, if it is asked for.

    ``autocast`` is the device and the dtype of that. What comes out in half precision is widened.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        dtype: torch.dtype,
        autocast: tuple[str, torch.dtype] | None = None,
    ) -> None:
        self.fn, self.dtype, self.autocast = fn, dtype, autocast
        self.__wrapped__ = fn

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        if self.autocast is None:
            scope: Any = _Widening(self.dtype)
        else:
            device, dtype = self.autocast
            # a weight that was cast without a graph must not be used again with one
            scope = torch.autocast(device, dtype=dtype, cache_enabled=False)
        try:
            with scope:
                out = self.fn(*args)
        except RuntimeError as error:
            if "TorchScript" not in str(error) or "dtype" not in str(error):
                raise
            raise TypeError(
                f"a scripted module in the function is given tensors of {self.dtype}, in which "
                f"unknowns of half precision are solved, and holds other ones: convert it, with "
                f".to({self.dtype}) ({error})"
            ) from error
        return tree_map_only(Tensor, lambda t: _widened(t, self.dtype), out)


class _Conversion:
    """From what a user gave to what is solved, where unknowns like ``leaf`` are in full precision.

    With ``autocast``, functions get that which is in force.
    """

    def __init__(self, leaf: Tensor, autocast: bool) -> None:
        self.kind, self.device = _dtype(leaf), leaf.device.type
        self.dtype = wide(self.kind)
        self.low = torch.get_autocast_dtype(self.device)
        self.autocast = (self.device, self.low) if autocast else None

    def function(self, value: Any) -> Any:
        """Return a function that is called with what is solved."""
        if isinstance(value, type) or not callable(value):
            return value
        return _InPrecision(value, self.dtype, self.autocast)

    def given(self, name: str, value: Any) -> Any:
        """Return an argument of a public function, by its name."""
        if name in _FUNCTIONS:
            return self.function(value)
        if isinstance(value, Starts):
            return Starts(self.wide(value.each))
        if isinstance(value, Solution):
            return replace(value, value=self.wide(value.value))
        if isinstance(value, LinearOperator):
            return self.operator(value)
        if name == "adjoint" and callable(given := getattr(value, "preconditioner", None)):
            return replace(value, preconditioner=self.function(given))
        if name == "preconditioner" and not is_dataclass(value):
            return self.function(value)
        if name == "solver" and self.autocast is not None and isinstance(value.rtol, Auto):
            return replace(value, rtol=torch.finfo(self.low).eps ** 0.75)
        return value if name in _SETTINGS else self.wide(value)

    def wide(self, tree: Any) -> Any:
        """Return a pytree without half precision."""
        return tree_map_only(Tensor, lambda t: _widened(t, self.dtype), tree)

    def operator(self, A: LinearOperator) -> LinearOperator:
        """Return an operator on vectors in full precision."""
        converted = copy.copy(A)
        for name, value in vars(A).items():
            if isinstance(value, Structure):
                value = replace(value, dtype=wide(value.dtype))
            elif name == "fn":
                value = self.function(value)
            else:
                value = self.given(name, value)
            object.__setattr__(converted, name, value)
        return converted

    def returned(self, result: Any) -> Any:
        """Return a result in kind."""
        if self.kind == self.dtype:
            return result
        if isinstance(result, Solution):
            value, multipliers = self.returned(result.value), self.returned(result.multipliers)
            return replace(result, value=value, multipliers=multipliers)
        return tree_map_only(Tensor, self._narrow, result)

    def _narrow(self, t: Tensor) -> Tensor:
        return t.to(self.kind) if t.dtype == self.dtype else t


def in_full_precision(*unknowns: str, body: bool = True) -> Callable[[F], F]:
    """Decorate a function, or ``forward`` of a module: what it computes is in float32 at least.

    Where the first of the arguments ``unknowns`` that is given is in half precision, or autocast
    is on around a call, autocast is off within it, all arguments come in the dtype of that
    argument, or float32 if it is in half precision, and so does every tensor in half precision that
    an operation reads, weights too. Results are returned in kind, like that argument. Other calls
    go on as they are. `root` and the other functions that solve do so of themselves.

    Parameters
    ----------
    *unknowns
        Names of arguments, of which the first that is given says the dtype.
    body
        Whether operations of the function itself read weights in float32; else only arguments are
        converted, and the functions that are called ``fn``, ``equalities``, ``inequalities`` and
        ``prox`` among them.

    Returns
    -------
    callable
        The decorator.

    Raises
    ------
    ValueError
        If the function has no argument of such a name.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> weight = torch.eye(2, dtype=torch.bfloat16)
    >>> @ims.in_full_precision("x")
    ... def inverse(x):  # torch has no inverse in bfloat16
    ...     return torch.linalg.inv(x + weight)
    >>> inverse(torch.eye(2, dtype=torch.bfloat16))
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]], dtype=torch.bfloat16)
    """

    def decorate(solve: F) -> F:
        names = list(inspect.signature(solve).parameters)
        for name in unknowns:
            if name not in names:
                raise ValueError(f"{solve.__name__} has no argument {name}: it has {names}")
        places = [names.index(name) for name in unknowns]

        @functools.wraps(solve)
        def call(*given: Any, **options: Any) -> Any:
            leaf = None
            for place, name in zip(places, unknowns, strict=True):
                if leaf is None:
                    leaf = _a_tensor(given[place] if len(given) > place else options.get(name))
            if leaf is None:
                return solve(*given, **options)
            around = autocast_around(leaf)
            if not around and _dtype(leaf) not in _WIDE:
                return solve(*given, **options)
            asked = around and getattr(options.get("solver"), "autocast", False)
            as_solved = _Conversion(leaf, asked)
            # a solution that is given is no better than its dtype
            judges = not body and "rtol" in names and as_solved.kind in _WIDE
            within = _Widening(as_solved.dtype) if body else contextlib.nullcontext()
            with without_autocast(leaf), within:
                named = list(map(as_solved.given, names, given))
                more = {name: as_solved.given(name, value) for name, value in options.items()}
                if judges and not isinstance(named[1], Solution) and more.get("rtol") is None:
                    more["rtol"] = torch.finfo(as_solved.kind).eps ** 0.5
                result = solve(*named, *given[len(names) :], **more)
                return as_solved.returned(result)

        return call  # type: ignore[return-value]

    return decorate


def _a_tensor(value: Any) -> Tensor | None:
    """Return a tensor of an unknown, if there is one."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Starts):
        value = value.each
    elif isinstance(value, Solution):
        value = value.value
    return next((leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)), None)
