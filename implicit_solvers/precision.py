"""Half precision and autocast around a solve: what is solved is in float32 at least.

It knows names of arguments, and nothing of what is solved.
"""

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

from implicit_solvers.autodiff import autocast_around, differentiable, without_autocast
from implicit_solvers.compiling import compiling
from implicit_solvers.linear.linear_operator import LinearOperator
from implicit_solvers.solution import OnFailure, Solution, Status, enforce, failed
from implicit_solvers.structure import Structure
from implicit_solvers.tolerance import Auto
from implicit_solvers.torch_internals import is_batched, tree_leaves, tree_map_only

__all__ = ["in_full_precision"]

F = TypeVar("F", bound=Callable[..., Any])

_WIDE = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.complex32: torch.complex64,
}

_FUNCTIONS = {"fn", "equalities", "inequalities", "prox"}
_SETTINGS = {"solver", "adjoint", "equation", "jac_sparsity", "adjoint_start"}

# What looks at a tensor or writes into it, and does not compute with its values.
_LEFT_ALONE = {
    torch.autograd.grad,
    torch.autograd.backward,
    *(getattr(Tensor, name) for name in ("backward", "register_hook", "__setitem__")),
    *(
        getattr(Tensor, name)
        for name in dir(Tensor)
        if name.endswith("_") and (not name.endswith("__") or name.startswith("__i"))
    ),
}
_CASTS = {Tensor.half, Tensor.bfloat16}


class _Widening(TorchFunctionMode):
    """A mode in which operations read and make no half precision, but a ``dtype`` no less."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _CASTS:
            return args[0].to(self.dtype)
        if not (func in _LEFT_ALONE or "out" in kwargs or func.__name__ == "__get__"):
            args = [self.widened(value) for value in args]
            kwargs = {name: self.widened(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def widened(self, value: Any) -> Any:
        """Return a tensor or dtype of half precision as the other, any other as it is."""
        if isinstance(value, Tensor):
            return _widened(value, self.dtype)
        if isinstance(value, torch.dtype):
            return _as_wide(value, self.dtype)
        kind = type(value)
        return kind([self.widened(v) for v in value]) if kind in (tuple, list) else value


def _as_wide(dtype: torch.dtype, like: torch.dtype) -> torch.dtype:
    """Return the dtype for that of half precision, where one ``like`` this is solved in."""
    if dtype not in _WIDE:
        return dtype
    real = like.to_real() if like.is_complex else like
    return real.to_complex() if dtype.is_complex else real


def _widened(tensor: Tensor, like: torch.dtype) -> Tensor:
    return tensor.to(_as_wide(tensor.dtype, like)) if tensor.dtype in _WIDE else tensor


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
        self.kind, self.device = leaf.dtype, leaf.device.type
        self.dtype = _WIDE.get(self.kind, self.kind)
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
        if isinstance(value, LinearOperator):
            return self.operator(value)
        if hasattr(value, "each"):  # many starts
            return replace(value, each=self.wide(value.each))
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
                value = replace(value, dtype=_as_wide(value.dtype, self.dtype))
            elif name == "fn":
                value = self.function(value)
            else:
                value = self.given(name, value)
            object.__setattr__(converted, name, value)
        return converted

    def rtol(self, given: float | None) -> float | None:
        """Return the tolerance of a solution in half precision, ``sqrt(eps)`` if none is given."""
        chosen = given is not None or self.kind == self.dtype
        return given if chosen else torch.finfo(self.kind).eps ** 0.5

    def returned(self, result: Any, on_failure: OnFailure = "raise") -> Any:
        """Return a result in kind."""
        if self.kind == self.dtype:
            return result
        if isinstance(result, Solution):
            value, multipliers = self.returned(result.value), self.returned(result.multipliers)
            return self._within_range(replace(result, multipliers=multipliers), value, on_failure)
        return tree_map_only(Tensor, self._narrow, result)

    def _within_range(self, solution: Any, value: Any, on_failure: OnFailure) -> Any:
        """Return a solution with its value in kind; what is too large for that has failed."""
        shape = solution.status.shape
        pairs = zip(tree_leaves(value), tree_leaves(solution.value), strict=True)
        lost = [(v.isinf() & w.isfinite()).reshape((*shape, -1)).any(-1) for v, w in pairs]
        over = torch.stack(lost).any(0) & ~failed(solution.status)
        status = torch.where(over, int(Status.NONFINITE), solution.status)
        if not (compiling() or is_batched(over)) and over.any():
            why = f"The solution is beyond the range of {self.kind}: pass z0 in float32."
            how = status, solution.iterations, solution.residual
            enforce(on_failure, "a solve in half precision", *how, cause=lambda: why)

        def cut(t: Tensor) -> Tensor:
            lanes = over.reshape(over.shape + (1,) * (t.dim() - over.dim()))
            return torch.where(lanes, t.detach(), t)

        return replace(
            solution,
            value=tree_map_only(Tensor, cut, value),
            status=status,
            converged=solution.converged & ~over,
            error=torch.where(over, torch.inf, solution.error),
        )

    def _narrow(self, t: Tensor) -> Tensor:
        return t.to(self.kind) if t.dtype == self.dtype else t


def in_full_precision(*unknowns: str, body: bool = True) -> Callable[[F], F]:
    """Decorate a function, or ``forward`` of a module: what it computes is in float32 at least.

    If the first given argument of ``unknowns`` is in half precision, or autocast is on around a
    call, autocast is off inside. Every half-precision tensor that an operation reads, weights too,
    or makes is in float32 there, or in the dtype of that argument. Results have the dtype of that
    argument. Other calls are unchanged. `root` and the other functions that solve do this by
    themselves.

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
                raise ValueError(
                    f"{solve.__name__} has no argument {name}: it has {names}, name one of these"
                )

        @functools.wraps(solve)
        def call(*given: Any, **options: Any) -> Any:
            known = {name: given[i] for i, name in enumerate(names[: len(given)])} | options
            unknown = next((v for name in unknowns if (v := known.get(name)) is not None), None)
            leaf = _a_tensor(unknown)
            around = leaf is not None and autocast_around(leaf)
            if leaf is None or not (around or leaf.dtype in _WIDE):
                return solve(*given, **options)
            as_solved = _Conversion(
                leaf, around and getattr(options.get("solver"), "autocast", False)
            )
            reads = body and not (given and _is_wide(given[0]))
            within = _Widening(as_solved.dtype) if reads else contextlib.nullcontext()
            with without_autocast(leaf):
                given = (*map(as_solved.given, names, given), *given[len(names) :])
                options = {name: as_solved.given(name, value) for name, value in options.items()}
                if not (body or isinstance(unknown, Solution)) and "rtol" in names:
                    # a point that is given is as good as its dtype
                    options["rtol"] = as_solved.rtol(options.get("rtol"))
                with within:
                    result = solve(*given, **options)
                return as_solved.returned(result, known.get("on_failure", "raise"))

        return call  # type: ignore[return-value]

    return decorate


def _is_wide(value: Any) -> bool:
    """Tell whether a value is a module without weights in half precision."""
    if not isinstance(value, torch.nn.Module):
        return False
    return all(t.dtype not in _WIDE for t in (*value.parameters(), *value.buffers()))


def _a_tensor(value: Any) -> Tensor | None:
    """Return a tensor of an unknown, if there is one, and all with derivatives are of one dtype."""
    value = value.value if isinstance(value, Solution) else getattr(value, "each", value)
    leaves = [value] if isinstance(value, Tensor) else tree_leaves(value)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and differentiable(leaf)]
    return tensors[0] if len({leaf.dtype for leaf in tensors}) == 1 else None
