"""How much of the previous state a cell takes in."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["LEAKY", "Leak"]


@dataclass(frozen=True)
class Leak:
    r"""The coefficients ``a`` and ``b`` of the previous state.

    .. math:: \phi(U (h + a h_{k-1}) + W x_k + \beta) = \gamma (h + b h_{k-1})

    Where ``a = b``, the sum ``h_k + a h_{k-1}`` depends on ``x_k`` alone: the states are sums of
    features without memory, and ``dh_k / dh_{k-1} = -a I``. With ``a != b`` the previous state is
    seen through ``phi``, ``(a - b) U h_{k-1}`` of it, as in a usual recurrent network.

    Parameters
    ----------
    a, b
        1 and 1 in the paper, -1 and -1 in its later version; or where training begins.
    learned
        Whether they are parameters of the cell.

    Raises
    ------
    ValueError
        If one is not finite.

    Notes
    -----
    ``h`` is ``(..., H)``; ``a`` and ``b`` are numbers here, and 0-d tensors of the parameters'
    dtype in a cell.

    Source: Kag, Zhang and Saligrama, "RNNs Evolving on an Equilibrium Manifold: A Panacea for
    Vanishing and Exploding Gradients?" (2019), equation 5, for ``a = b = 1``; "RNNs Incrementally
    Evolving on an Equilibrium Manifold" (2020) for ``a = b = -1``.

    Examples
    --------
    >>> Leak(-1.0, -1.0).parallel, LEAKY.parallel
    (True, False)
    """

    a: float = 1.0
    b: float = 1.0
    learned: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that are none."""
        if not (math.isfinite(self.a) and math.isfinite(self.b)):
            raise ValueError(f"leak has a={self.a} and b={self.b}: pass finite numbers")

    @property
    def parallel(self) -> bool:
        """Whether all time steps can be computed at once: ``a`` and ``b`` are and stay equal."""
        return self.a == self.b and not self.learned


LEAKY = Leak(2.0, -0.5, learned=True)
"""Where the leaky cell begins to learn.

What carries memory from step to step is ``a U``, what the equilibrium bends is ``U``. With
``|U| = 0.3`` the equilibrium is far from where it gets slow and singular, ``|U| = gamma``, and
``a = 2`` makes ``a U`` a recurrence of norm 0.6: with ``a = 1`` both would have to be the same
matrix, and a strong memory a badly conditioned equilibrium. ``b = -0.5`` lets half of the previous
state through as it is. The singular values of a step, of ``(1 - U)^-1 (a U - b)`` where ``phi`` is
steepest, then lie between 0.05 and 1.5, where ``a = 6`` makes all directions expand by 1.2 to 2.9,
and training chaotic.
"""
