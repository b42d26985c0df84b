r"""The cell of a recurrent network on an equilibrium manifold.

At each time step the hidden state ``h_k`` is the equilibrium, from ``h_{k-1}`` and the input, of

.. math:: h'(t) = \phi(U (h(t) + a h_{k-1}) + W x_k + \beta) - \gamma (h(t) + b h_{k-1})

with ``a = b = 1`` in the paper, ``a = b = -1`` in its later version, and ``a != b`` for the leaky
cell. By the implicit function theorem

.. math:: \frac{\partial h_k}{\partial h_{k-1}}
          = -(\Phi U - \gamma)^{-1} (a \Phi U - b \gamma), \qquad \Phi = \text{diag}\,\phi',

which is ``-a I`` where ``a = b``, for every regular ``Phi U - gamma``.

Source: Kag, Zhang and Saligrama, "RNNs Evolving on an Equilibrium Manifold: A Panacea for Vanishing
and Exploding Gradients?" (2019), equations 4 and 5; "RNNs Incrementally Evolving on an Equilibrium
Manifold" (2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

import implicit_solvers as ims
from implicit_solvers.problems.ernn.nonlinearity import without_share

__all__ = ["Coefficients", "Phi", "equilibrium", "evolution", "memoryless", "scan", "unrolled"]

Phi = Callable[[Tensor], Tensor]


class Coefficients(NamedTuple):
    """What the evolution is made of, the input aside.

    Attributes
    ----------
    U
        The recurrent matrix, ``(H, H)``, of a real floating dtype, like all that follow.
    gamma
        The rate of decay, 0-d, positive.
    a, b
        The shares of the previous state inside and outside of ``phi``, 0-d.

    Examples
    --------
    >>> c = Coefficients(torch.eye(2) / 2, *torch.tensor([1.0, -1.0, -1.0]))
    >>> c.gamma, c.a
    (tensor(1.), tensor(-1.))
    """

    U: Tensor
    gamma: Tensor
    a: Tensor
    b: Tensor


def evolution(h: Tensor, previous: Tensor, drive: Tensor, c: Coefficients, phi: Phi) -> Tensor:
    """Return ``h'(t) = phi(U (h + a previous) + drive) - gamma (h + b previous)``.

    Parameters
    ----------
    h, previous
        The state and that of the time step before, ``(..., H)``, of the dtype of ``c``.
    drive
        ``W x + bias``, ``(..., H)``.
    c
        The coefficients.
    phi
        The nonlinearity, elementwise.

    Returns
    -------
    Tensor
        Like ``h``.

    Examples
    --------
    >>> c = Coefficients(torch.zeros(1, 1), *torch.tensor([2.0, 1.0, 1.0]))
    >>> evolution(torch.ones(1), torch.ones(1), torch.zeros(1), c, torch.tanh)
    tensor([-4.])
    """
    return phi(linear(h + c.a * previous, c.U) + drive) - c.gamma * (h + c.b * previous)


def equilibrium(
    drive: Tensor, previous: Tensor, c: Coefficients, phi: Phi, start: Tensor, **options: Any
) -> Tensor:
    """Return the state ``h`` at which `evolution` vanishes, differentiable in every argument.

    It is the fixed point of ``h = phi(U (h + a previous) + drive) / gamma - b previous``, unique if
    ``slope |U| < gamma``, for the largest slope of ``phi``.

    Parameters
    ----------
    drive, previous, c, phi
        As in `evolution`; leading dimensions are a batch.
    start
        Where the solver begins, like ``drive``.
    **options
        ``solver``, ``adjoint``, ``on_failure``: as in `implicit_solvers.fixed_point`.

    Returns
    -------
    Tensor
        Like ``drive``.

    Raises
    ------
    ConvergenceError
        If a problem fails and ``on_failure="raise"``.

    Examples
    --------
    Without ``U`` it is ``phi(drive) / gamma - b previous``:

    >>> c = Coefficients(torch.zeros(1, 1), *torch.tensor([2.0, 1.0, 1.0]))
    >>> drive, previous = torch.tensor([4.0]), torch.tensor([3.0])
    >>> equilibrium(drive, previous, c, torch.relu, start=torch.zeros(1))
    tensor([-1.])
    """

    def relaxed(h: Tensor, drive: Tensor, previous: Tensor, c: Coefficients) -> Tensor:
        return phi(linear(h + c.a * previous, c.U) + drive) / c.gamma - c.b * previous

    lanes = drive.dim() - 1
    options |= {"batch_dims": lanes, "in_dims": (0, 0, None) if lanes else None}
    return ims.fixed_point(relaxed, start, (drive, previous, c), **options).value


def memoryless(drive: Tensor, G: Tensor, phi: Phi, share: Tensor | float, **options: Any) -> Tensor:
    r"""Return what ``phi`` is taken of at the equilibrium of a cell with ``a = b``.

    In :math:`s_k = h_k + a h_{k-1}` the equation is :math:`\phi(U s_k + d_k) = \gamma s_k`: no
    previous state is left, and all time steps can be one batch. With :math:`z = U s_k + d_k` and
    :math:`V = U / \gamma` it says :math:`z = V \phi(z) + d_k`, or, for any number :math:`\mu` and
    :math:`R = (I - \mu V)^{-1}`,

    .. math:: z = R V (\phi(z) - \mu z) + R d_k,

    the fixed point that is found; then :math:`s_k = \phi(z) / \gamma`. A good :math:`\mu` is the
    mean slope of ``phi``. Where ``V`` times the largest slope has the norm ``q < 1``, the iteration
    contracts by ``q / (2 - q)`` for half of that slope, by no more than ``q`` for less; that of
    ``phi(V y + d)`` contracts by ``q``.

    Parameters
    ----------
    drive
        ``R d``, ``(..., H)``.
    G
        ``R V``, ``(H, H)``.
    phi
        The nonlinearity, elementwise.
    share
        The number ``mu``, 0-d if it is a tensor; it gets no gradient.
    **options
        As in `equilibrium`.

    Returns
    -------
    Tensor
        ``z``, like ``drive``.

    Raises
    ------
    ConvergenceError
        If a problem fails and ``on_failure="raise"``.

    Examples
    --------
    >>> z = memoryless(torch.tensor([[3.0], [-3.0]]), torch.ones(1, 1) / 2, torch.relu, share=0.0)
    >>> z.round(decimals=4).tolist()
    [[6.0], [-3.0]]
    """
    rest = without_share(phi)

    def relaxed(z: Tensor, drive: Tensor, G: Tensor) -> Tensor:
        return torch.addmm(drive, rest(z, share), G.mT)

    flat = drive.reshape(-1, drive.shape[-1])
    options |= {"batch_dims": 1, "in_dims": (0, None)}
    return ims.fixed_point(relaxed, flat, (flat, G), **options).value.reshape(drive.shape)


def unrolled(
    drive: Tensor, previous: Tensor, c: Coefficients, phi: Phi, steps: Sequence[Tensor] | Tensor
) -> Tensor:
    """Return the state after Euler steps from zero: the cell as published.

    ``h <- h + step (phi(U (h + a previous) + drive) - gamma (h + b previous))``, once for each
    step, from ``h = 0``. After few steps, or small ones, it is far from the equilibrium, and
    ``dh_k / dh_{k-1}`` far from ``-I``.

    Parameters
    ----------
    drive, previous, c, phi
        As in `evolution`.
    steps
        The step sizes, ``(K,)``.

    Returns
    -------
    Tensor
        Like ``drive``.

    Notes
    -----
    Source: the paper's algorithm 1.

    Examples
    --------
    >>> c = Coefficients(torch.zeros(1, 1), *torch.tensor([1.0, 1.0, 1.0]))
    >>> unrolled(torch.tensor([4.0]), torch.tensor([3.0]), c, torch.relu, torch.tensor([1.0]))
    tensor([1.])
    """
    h = torch.zeros_like(previous)
    for step in steps:
        h = h + step * evolution(h, previous, drive, c, phi)
    return h


def scan(s: Tensor, first: Tensor, factor: float, span: int = 64) -> Tensor:
    r"""Return all states ``h_k = s_k - factor h_{k-1}``, of many time steps at once.

    :math:`h_k = \sum_{j \le k} (-a)^{k-j} s_j + (-a)^k h_0` is, for the factor ``a``, a product
    with a triangular matrix: an alternating sum for 1, a plain one for -1. A longer sequence takes
    one product after the other.

    Parameters
    ----------
    s
        ``(T, ..., H)``.
    first
        The state before the first, ``(..., H)``.
    factor
        ``a = b`` of the cell.
    span
        How many time steps make a product.

    Returns
    -------
    Tensor
        Like ``s``.

    Examples
    --------
    >>> scan(torch.tensor([1.0, 1.0, 1.0]), torch.tensor(5.0), 1.0)
    tensor([-4.,  5., -4.])
    """
    k = torch.arange(min(len(s), span), dtype=s.dtype, device=s.device)
    # not **: in what Dynamo writes, -1.0 ** k is -(1.0 ** k)
    weights = torch.pow(-float(factor), (k.unsqueeze(-1) - k).clamp(min=0)).tril()
    states, h = [], first
    for part in s.split(span):
        n = len(part)
        part = torch.cat([(part[0] - factor * h).unsqueeze(0), part[1:]])
        states.append(torch.tensordot(weights[:n, :n], part, 1))
        h = states[-1][-1]
    return torch.cat(states)
