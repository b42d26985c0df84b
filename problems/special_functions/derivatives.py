"""How a special function computed in double precision becomes a differentiable torch function.

``implicit_solvers.elementwise_function`` joins a value with its partial derivatives; here is what
the values have in common: double precision in blocks, regions, and samples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import implicit_solvers as ims

__all__ = ["check_real", "differentiable_sample", "doubles", "in_double", "piecewise"]

Values = tuple[Tensor, ...]
BLOCK = 1 << 16  # elements: large against the cost of a call, small against the cache


def check_real(name: str, **args: Tensor | float) -> list[Tensor]:
    """Return the tensors among the arguments of a function; refuse what is not real and floating.

    Examples
    --------
    >>> check_real("f", a=2.0, x=torch.tensor(0.5))
    [tensor(0.5000)]
    """
    tensors = [t for t in args.values() if isinstance(t, Tensor)]
    if not tensors:
        raise TypeError(f"{name}: at least one of {', '.join(args)} must be a tensor")
    for label, arg in args.items():
        if isinstance(arg, Tensor) and not arg.is_floating_point():
            raise TypeError(f"{name}: {label} has dtype {arg.dtype}; pass a real floating dtype")
        if not isinstance(arg, Tensor | int | float):
            raise TypeError(f"{name}: {label} is a {type(arg).__name__}; pass a tensor")
    return tensors


def doubles(name: str, **args: Tensor | float) -> tuple[Any, ...]:
    """Return the common dtype of the arguments of a function, and each as float64.

    A `TypeError` names the function if none is a tensor, or one is not real and floating.

    Examples
    --------
    >>> doubles("f", a=2.0, x=torch.tensor(0.5))
    (torch.float32, tensor(2., dtype=torch.float64), tensor(0.5000, dtype=torch.float64))
    """
    tensors = check_real(name, **args)
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors))
    device = next((t.device for t in tensors if t.dim()), tensors[0].device)
    return (
        dtype,
        *(
            t.to(torch.float64)
            if isinstance(t, Tensor)
            else torch.tensor(t, dtype=torch.float64, device=device)
            for t in args.values()
        ),
    )


def in_double(
    double: int, single: int | None = None
) -> Callable[[Callable[..., Values]], Callable[..., Values]]:
    """Evaluate a function of flat float64 tensors on tensors of any shape and dtype.

    The decorated function is called as ``function(*args, nodes=...)`` with one-dimensional float64
    tensors of one length, and returns a tuple of such. It sees blocks of at most ``BLOCK``
    elements, so that its intermediate results stay in the cache. It gets ``double`` nodes for
    float64 arguments and ``single`` for lower precision; results have their shape and dtype.

    Examples
    --------
    >>> @in_double(24, 12)
    ... def triple(x, *, nodes):
    ...     return (3 * x, nodes + 0 * x)
    >>> triple(torch.tensor([[1.0, 2.0]]))
    (tensor([[3., 6.]]), tensor([[12., 12.]]))
    """

    def decorate(function: Callable[..., Values]) -> Callable[..., Values]:
        @functools.wraps(function)
        def value(*args: Tensor) -> Values:
            shape, dtype = args[0].shape, args[0].dtype
            nodes = double if single is None or dtype == torch.float64 else single
            flat = [t.detach().to(torch.float64).reshape(-1) for t in args]
            if len(flat[0]) <= BLOCK:
                return tuple(t.to(dtype).reshape(shape) for t in function(*flat, nodes=nodes))
            blocks = zip(*(t.split(BLOCK) for t in flat), strict=True)
            parts = [function(*block, nodes=nodes) for block in blocks]
            return tuple(torch.cat(p).to(dtype).reshape(shape) for p in zip(*parts, strict=True))

        return value

    return decorate


def piecewise(
    count: int,
    args: Sequence[Tensor],
    *pieces: tuple[Tensor | Callable[[], Tensor], Callable[..., Values]],
) -> Values:
    """Evaluate each region of the arguments by its own formula.

    ``args`` are flat tensors of one length. A piece is a mask, or a function that returns it,
    called where elements are left; and a function of the arguments inside it that returns ``count``
    tensors. Masks are disjoint. Elements outside of all of them get NaN.

    Examples
    --------
    >>> x = torch.tensor([1.0, -4.0, float("nan")])
    >>> piecewise(1, [x], (x >= 0, lambda x: (x,)), (x < 0, lambda x: (-2 * x,)))
    (tensor([1., 8., nan]),)
    """
    out: Values | None = None
    left = len(args[0])
    for mask, function in pieces:
        if not left:
            break
        mask = mask() if callable(mask) else mask
        index = mask.nonzero().squeeze(-1)
        if len(index) == len(mask):
            return function(*args)
        if len(index):
            left -= len(index)
            if out is None:
                out = tuple(torch.full_like(args[0], torch.nan) for _ in range(count))
            results = function(*(t.index_select(0, index) for t in args))
            for whole, part in zip(out, results, strict=True):
                whole.index_copy_(0, index, part)
    return out or tuple(torch.full_like(args[0], torch.nan) for _ in range(count))


def differentiable_sample(
    derivatives: Callable[..., Sequence[object]], *, name: str | None = None
) -> Callable[..., Tensor]:
    """Build the function ``(z, *phi) -> z`` that gives samples their derivatives by ``phi``.

    ``derivatives(z, *phi)`` returns one ``dz/dphi_j`` for each parameter, as ``partials`` does in
    ``implicit_solvers.elementwise_function``. Its ``z`` is the sample connected to the graph, so
    that second derivatives are right too.

    Examples
    --------
    An exponential variable with rate ``r``: ``F = 1 - exp(-r z)``, ``dz/dr = -z / r``.

    >>> attach = differentiable_sample(lambda z, r: [-z / r])
    >>> r = torch.tensor(2.0)
    >>> torch.func.grad(lambda r: attach(torch.tensor(3.0), r))(r)
    tensor(-1.5000)
    >>> torch.func.hessian(lambda r: attach(torch.tensor(3.0), r))(r)
    tensor(1.5000)
    """
    return ims.elementwise_function(
        lambda z, *phi: z.clone(), lambda z, _, *phi: [None, *derivatives(z, *phi)], name=name
    )
