r"""What keeps the equilibrium unique and its Jacobian regular.

For a nonlinearity whose slopes lie between 0 and ``L``, the matrix ``diag(phi') U - gamma`` is
regular and the equilibrium unique if the largest eigenvalue of the symmetric part of ``U`` is below
``gamma / L``; a spectral norm below ``gamma / L`` implies this, and makes the fixed-point iteration
a contraction. The margin is the relative distance to the bound.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Monotone", "SpectralNorm", "Unconstrained", "WellPosed"]


def _check(margin: float) -> None:
    if not 0 < margin < 1:
        raise ValueError(f"margin={margin} is not between 0 and 1: pass 0.05, say")


@dataclass(frozen=True)
class SpectralNorm:
    r"""Bound the spectral norm: ``|U| <= (1 - margin) gamma / L``.

    .. math:: U = V \min(1, (1 - m) \gamma / (L |V|))

    ``V``, ``(H, H)`` and of the cell's dtype, is what is trained: a matrix inside the ball is taken
    as it is, one outside is scaled onto its surface.

    Parameters
    ----------
    margin
        ``m``: fixed-point iterations contract by ``1 - m`` or better.

    Raises
    ------
    ValueError
        If it is not between 0 and 1.

    Notes
    -----
    Source: Gouk, Frank, Pfahringer and Cree, "Regularisation of neural networks by enforcing
    Lipschitz continuity" (2021).

    Examples
    --------
    >>> SpectralNorm()
    SpectralNorm(margin=0.05)
    """

    margin: float = 0.05

    def __post_init__(self) -> None:
        """Check the margin."""
        _check(self.margin)


@dataclass(frozen=True)
class Monotone:
    r"""Bound the symmetric part: ``(U + U^T) / 2 <= (1 - margin) gamma / L``.

    .. math:: U = (1 - m) \frac{\gamma}{L} I - A^T A + B - B^T

    ``A`` and ``B``, ``(H, H)`` and of the cell's dtype, are what is trained. The norm of ``U`` is
    not bounded: fixed-point iterations may diverge where Newton's method finds the one equilibrium.

    Parameters
    ----------
    margin
        ``m``.

    Raises
    ------
    ValueError
        If it is not between 0 and 1.

    Notes
    -----
    Source: Winston and Kolter, "Monotone Operator Equilibrium Networks" (2020), section 3.

    Examples
    --------
    >>> Monotone(margin=0.1).margin
    0.1
    """

    margin: float = 0.05

    def __post_init__(self) -> None:
        """Check the margin."""
        _check(self.margin)


@dataclass(frozen=True)
class Unconstrained:
    """Leave ``U`` free, ``(H, H)`` and of the cell's dtype, as in the paper.

    Parameters
    ----------
    check
        Whether a call in `Equilibrium` mode raises a ValueError where the margin
        ``1 - L lambda_max((U + U^T) / 2) / gamma`` is not positive, that is, where there may be
        several equilibria, or none, or a singular one. False leaves it to the solver to find one.

    Notes
    -----
    Source: Kag, Zhang and Saligrama, "RNNs Evolving on an Equilibrium Manifold: A Panacea for
    Vanishing and Exploding Gradients?" (2019), where nothing bounds ``U``.

    Examples
    --------
    >>> Unconstrained().check
    True
    """

    check: bool = True


WellPosed = SpectralNorm | Monotone | Unconstrained
