"""Derivatives of a network's states with respect to earlier ones, by automatic differentiation."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.nn.functional import linear

import implicit_solvers as ims
from implicit_solvers.problems.ernn import ERNN, Equilibrium, ERNNCell, Unconstrained, Unrolled

__all__ = ["distances_from_identity", "end_to_end", "norms_along", "step_of"]

Step = Callable[[Tensor, Tensor], Tensor]


def step_of(rnn: nn.Module) -> Step:
    """Return one step of a copy of a network, from ``x (I,)`` and ``h (H,)``, in float64.

    It is an `ERNN` or ``torch.nn.RNN`` of one layer. The equilibria of `ERNN` are solved one after
    the other, each to rounding, by Newton's method.
    """
    own = copy.deepcopy(rnn).double().requires_grad_(False)
    if isinstance(own, ERNN):
        cell = own.cells[0]
        assert isinstance(cell, ERNNCell)
        if isinstance(cell.mode, Equilibrium):
            cell.mode = Equilibrium(solver=ims.Newton(rtol=1e-14, atol=1e-14))
        return cell
    assert isinstance(own, nn.RNN)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    W, U, bias, other_bias = (own.get_parameter(name) for name in names)
    both = bias + other_bias
    return lambda x, h: torch.tanh(linear(x, W, both) + linear(h, U))


def _run(step: Step, x: Tensor, h: Tensor) -> Tensor:
    for row in x:
        h = step(row, h)
    return h


def _first(step: Step, x: Tensor, size: int) -> Tensor:
    return step(x[0], x.new_zeros(size))


def end_to_end(step: Step, x: Tensor, size: int) -> Tensor:
    r"""Return :math:`\partial h_T / \partial h_1`, ``(H, H)``, by one pass backward through time.

    ``x (T, I)`` is in float64, and ``size`` is ``H``.

    Examples
    --------
    >>> J = end_to_end(step_of(ERNN(2, 3)), torch.randn(4, 2).double(), 3)
    >>> torch.allclose(J, -torch.eye(3).double())
    True
    """
    return jacrev(lambda h: _run(step, x[1:], h))(_first(step, x, size))


def norms_along(step: Step, x: Tensor, size: int) -> list[float]:
    r"""Return :math:`\|\partial h_k / \partial h_1\|_2` for ``k = 2 ... T``.

    Each step's Jacobian is found by automatic differentiation; the chain rule multiplies them. The
    arguments are those of `end_to_end`.
    """
    h = _first(step, x, size)
    product = torch.eye(size, dtype=x.dtype)
    norms = []
    for row in x[1:]:
        product = jacrev(step, argnums=1)(row, h) @ product
        norms.append(float(torch.linalg.matrix_norm(product, 2)))
        h = step(row, h)
    return norms


def distances_from_identity(
    steps: int, step_size: float, *, norm: float, size: int = 32, draws: int = 8
) -> tuple[float, float]:
    r"""Return the means of :math:`\|J + I\|_2` and :math:`\|J\|_2` of the published cell.

    ``J`` is the Jacobian of one time step, :math:`\gamma = 1`; ``draws`` states, and inputs of as
    many channels as there are units, are standard normal. ``norm`` is the spectral norm of ``U``.

    Examples
    --------
    >>> distance, norm = distances_from_identity(40, 1.0, norm=0.5)
    >>> distance < 1e-9, abs(norm - 1) < 1e-9
    (True, True)
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cell = ERNNCell(
            size,
            size,
            mode=Unrolled(steps, step_size, learned=False),
            well_posed=Unconstrained(),
            initial_norm=norm,
            dtype=torch.float64,
        ).requires_grad_(False)
        x, h = torch.randn(2, draws, size, dtype=torch.float64)
    J = vmap(jacrev(cell, argnums=1))(x, h)
    eye = torch.eye(size, dtype=torch.float64)
    mean = [torch.linalg.matrix_norm(M, 2).mean().item() for M in (J + eye, J)]
    return mean[0], mean[1]
