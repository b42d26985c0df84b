"""How a cell finds its state: by its equilibrium, or by a few steps towards it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["Equilibrium", "Unrolled"]


@dataclass(frozen=True)
class Equilibrium:
    """The state is the equilibrium, differentiated by the implicit function theorem.

    With the state before ``p`` and ``d = W x + beta``, ``h = phi(U (h + a p) + d) / gamma - b p``,
    and ``dh/dp = -(Phi U - gamma)^-1 (a Phi U - b gamma)`` for the diagonal matrix ``Phi`` of the
    slopes of ``phi``: ``-a I`` where ``a = b``.

    Parameters
    ----------
    solver
        A solver of `implicit_solvers.fixed_point`. Left out, ``FixedPointIteration()`` where the
        spectral norm bounds ``U`` (a step costs one product for the whole batch), ``Dogleg()``
        elsewhere.
    adjoint
        Left out, ``ImplicitAdjoint(Neumann())`` and ``ImplicitAdjoint()``, alike.
    parallel
        Whether `ERNN` solves for all time steps at once: for ``a = b`` only. Left out, wherever
        that is so. False steps through time, each solve starting at the equilibrium before.
    block
        How many problems (time steps times sequences) are solved together in parallel mode: as many
        as fit in the processor's cache.
    on_failure
        ``"raise"``, ``"warn"`` or ``"mask"``, as in `implicit_solvers.fixed_point`. With
        ``"mask"``, a sequence with a NaN or an infinity has the state NaN from there on, and
        adds nothing to any gradient from there on.

    Raises
    ------
    ValueError
        If ``block`` is not positive, or ``on_failure`` none of the three. What `fixed_point` says
        of ``solver`` and ``adjoint``, it says in the first call.

    Notes
    -----
    States are ``(B, H)``, of the parameters' real floating dtype.

    Source: Kag, Zhang and Saligrama, "RNNs Evolving on an Equilibrium Manifold: A Panacea for
    Vanishing and Exploding Gradients?" (2019), where the equilibrium is not solved for but
    approached (`Unrolled`).

    Examples
    --------
    >>> Equilibrium(parallel=False).on_failure
    'raise'
    """

    solver: Any = None
    adjoint: Any = None
    parallel: bool | None = None
    block: int = 8192
    on_failure: Any = "raise"

    def __post_init__(self) -> None:
        """Check the values."""
        if self.block < 1:
            raise ValueError(f"block={self.block} is no number of problems: pass 8192, say")
        if self.on_failure not in ("raise", "warn", "mask"):
            raise ValueError(f'on_failure is {self.on_failure!r}: use "raise", "warn" or "mask"')


@dataclass(frozen=True)
class Unrolled:
    """The state is what a number of Euler steps from zero reach, differentiated step by step.

    ``h <- h + step (phi(U (h + a p) + d) - gamma (h + b p))``, once for each step, from ``h = 0``,
    with the state before ``p`` and ``d = W x + beta``, all ``(B, H)``, of the parameters' real
    floating dtype.

    The published cell. It is no equilibrium: ``dh_k / dh_{k-1}`` differs from ``-I``, the more so
    the fewer and the smaller the steps. Source: Kag, Zhang and Saligrama, "RNNs Incrementally
    Evolving on an Equilibrium Manifold" (2020), section 3.

    Parameters
    ----------
    steps
        The number ``K`` of steps.
    step_size
        Of each, or where training begins. With ``1 / gamma`` they are fixed-point iterations.
    learned
        Whether the step sizes, one for each step, are parameters of the cell.

    Raises
    ------
    ValueError
        If there is no step, or the size is not positive and finite.

    Examples
    --------
    >>> Unrolled(steps=3)
    Unrolled(steps=3, step_size=1.0, learned=True)
    """

    steps: int = 5
    step_size: float = 1.0
    learned: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps={self.steps!r} is no positive integer: pass 3, say")
        if not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size={self.step_size} is not positive and finite: pass 1.0")
