r"""The fixed point of `definition.memoryless`, with a loop that works in place.

The library's general path judges, stops and reports every lane on its own, and multiplies with
Jacobians by automatic differentiation: on a processor's core most of its time goes into passes over
memory. Here the products are written out, and all lanes step until the last has converged. What
this path cannot do is left to the general one: a lane that fails, derivatives of second order,
``torch.func`` transforms and forward mode, other solvers and nonlinearities.

With :math:`z = G (\phi(z) - \mu z) + d` and :math:`D = \text{diag}\,\phi'(z) - \mu`, a gradient
:math:`g` with respect to :math:`\phi(z)` is pulled back to :math:`w = \phi' g + D G^T w` with
respect to ``d``, and :math:`w (\phi(z) - \mu z)^T` with respect to ``G``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

import implicit_solvers as ims
from implicit_solvers.problems.ernn.definition import Phi, memoryless

__all__ = ["FUSED", "fused_memoryless"]

MAX_STEPS = 1000

FUSED: dict[Any, tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]] = {
    torch.sigmoid: (torch.sigmoid, lambda y: torch.addcmul(y, y, y, value=-1)),
    torch.relu: (partial(torch.clamp, min=0), lambda y: (y > 0).to(y.dtype)),
}
"""From a nonlinearity to one that takes ``out``, and the slope as a function of the value."""


def fused_memoryless(drive: Tensor, G: Tensor, phi: Phi, share: float, **options: Any) -> Tensor:
    """Return ``phi(z)``, for the ``z`` of `definition.memoryless`.

    Parameters
    ----------
    drive, G, phi, share, **options
        As in `definition.memoryless`; ``phi`` is one of `FUSED`, ``drive`` is ``(N, H)``. The
        options are those of the general path, where it is taken.

    Returns
    -------
    Tensor
        Like ``drive``.

    Raises
    ------
    ConvergenceError
        If a lane fails and ``on_failure="raise"``.

    Examples
    --------
    >>> drive, G = torch.tensor([[3.0], [-3.0]]), torch.ones(1, 1) / 2
    >>> fused_memoryless(drive, G, torch.relu, share=0.0).round(decimals=4).tolist()
    [[6.0], [0.0]]
    """
    if not ims.transformed():
        try:
            return _Settle.apply(drive, G, phi, share, options)
        except _UnsettledError:
            pass
    return phi(memoryless(drive, G, phi, share, **options))


class _UnsettledError(ArithmeticError):
    """A lane has not converged."""


class _Settle(Function):
    @staticmethod
    def forward(
        ctx: Any, drive: Tensor, G: Tensor, phi: Any, share: float, options: dict[str, Any]
    ) -> Tensor:
        z, y = _solve(drive.detach(), G.detach(), FUSED[phi][0], share)
        ctx.phi, ctx.share, ctx.options = phi, share, options
        ctx.save_for_backward(drive, G, z, y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        drive, G, z, y = ctx.saved_tensors
        if not torch.is_grad_enabled():
            try:
                return (*_pull(g, G, z, y, FUSED[ctx.phi][1](y), ctx.share), None, None, None)
            except _UnsettledError:
                pass
        higher = torch.is_grad_enabled()
        with torch.enable_grad():
            if not higher:
                drive, G = drive.detach().requires_grad_(), G.detach().requires_grad_()
            again = ctx.phi(memoryless(drive, G, ctx.phi, ctx.share, **ctx.options))
            wanted = [t for t in (drive, G) if t.requires_grad]
            slopes = iter(torch.autograd.grad(again, wanted, g, create_graph=higher))
        return (*(next(slopes) if t.requires_grad else None for t in (drive, G)), None, None, None)


def _solve(
    drive: Tensor, G: Tensor, phi: Callable[..., Tensor], share: float
) -> tuple[Tensor, Tensor]:
    """Return ``z`` and ``phi(z)``: where the general path's criterion is met in every lane."""
    # rms(residual) <= eps^(3/4), where the general path allows eps^(3/4) (1 + rms(z))
    goal = torch.finfo(drive.dtype).eps ** 0.75 * math.sqrt(drive.shape[-1])
    z, y, new, Gt = drive.clone(), torch.empty_like(drive), torch.empty_like(drive), G.mT
    for _ in range(MAX_STEPS):
        phi(z, out=y)
        y.sub_(z, alpha=share)
        torch.addmm(drive, y, Gt, out=new)
        error = _largest(torch.linalg.vector_norm(z.sub_(new), dim=-1))
        z, new = new, z
        if error <= goal:
            return z, phi(z, out=y)
    raise _UnsettledError


def _pull(
    g: Tensor, G: Tensor, z: Tensor, y: Tensor, slope: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients with respect to ``drive`` and ``G``."""
    b = g * slope
    D = slope.sub_(share)
    goal = torch.finfo(g.dtype).eps ** (2 / 3) * torch.linalg.vector_norm(b, dim=-1)
    w, new = b.clone(), torch.empty_like(b)
    for _ in range(MAX_STEPS):
        torch.mm(w, G, out=new)
        torch.addcmul(b, D, new, out=new)
        excess = _largest(torch.linalg.vector_norm(w.sub_(new), dim=-1).sub_(goal))
        w, new = new, w
        if excess <= 0:
            torch.sub(y, z, alpha=share, out=new)
            return w, w.mT @ new
    raise _UnsettledError


def _largest(errors: Tensor) -> float:
    """Return the largest of some errors, if all are finite."""
    largest = errors.max().item() if len(errors) else 0.0
    if not math.isfinite(largest):
        raise _UnsettledError
    return largest
