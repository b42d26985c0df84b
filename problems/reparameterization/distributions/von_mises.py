"""The von Mises distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.reparameterization.distributions.draws import drawing
from implicit_solvers.problems.reparameterization.distributions.quantiles import (
    elementwise_root,
    probability,
)
from implicit_solvers.problems.reparameterization.precision import halves_in_single
from implicit_solvers.problems.special_functions.log_tails import von_mises_log_arcs
from implicit_solvers.problems.special_functions.von_mises import (
    log_scaled_normalizer,
    mean_deficit,
    von_mises_cdf,
    von_mises_logsf,
    von_mises_sample,
    von_mises_sample_derivative,
)

__all__ = ["VonMises"]

LAST = math.pi * (1 - 2**-52)


def angle_draw(k: Tensor) -> Tensor:
    """Draw angles around 0 by rejection from the wrapped Cauchy distribution.

    ``z = 2 atan(s tan(v / 2))`` for a uniform angle ``v``, accepted with the probability
    ``c exp(1 - c)``, ``c = k (r - cos z)``. Source: Best and Fisher, "Efficient simulation of the
    von Mises distribution" (1979), with ``k (r - 1)`` and ``s`` in place of differences.
    """
    shape, root = k.shape, (1 + 4 * k * k).sqrt()
    least = 0.5 * (1 + 1 / (root + 2 * k))  # k (r - 1)
    narrowing = (1 + 2 * k / least).rsqrt()
    z, todo = torch.empty_like(k).reshape(-1), torch.arange(k.numel(), device=k.device)
    k, least, narrowing = (t.reshape(-1) for t in (k, least, narrowing))
    while len(todo):
        v = torch.rand(len(todo), dtype=k.dtype, device=k.device).sub_(0.5).mul_(math.pi)
        tangent = v.tan_().mul_(narrowing)
        square = tangent * tangent
        c = least + 2 * k * (square / (1 + square))
        u = torch.empty_like(c).exponential_()
        rejected = c.log() + 1 - c + u < 0  # not NaN
        z[todo[~rejected]] = 2 * tangent[~rejected].atan()
        rest = rejected.nonzero().squeeze(-1)
        todo, k, least, narrowing = (t[rest] for t in (todo, k, least, narrowing))
    return z.reshape(shape)


def wrapped(angle: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a float64 angle modulo ``2 pi``, in the dtype, inside of [-pi, pi).

    Examples
    --------
    >>> wrapped(torch.tensor([3.0, 4.0], dtype=torch.float64), torch.float32)
    tensor([ 3.0000, -2.2832])
    """
    x = (torch.remainder(angle + math.pi, 2 * math.pi) - math.pi).to(dtype)
    end = torch.tensor(math.pi, dtype=dtype, device=x.device)
    below = torch.nextafter(end, torch.zeros_like(end))
    lowest = -below if end.item() > math.pi else -end
    return x + (x.clamp(lowest, below) - x).detach()


def log_arc_tails(angle: Tensor, loc: Tensor, concentration: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the logarithms of the probabilities of the arcs on both sides of an angle.

    .. math:: \ln \int_{-\pi}^x p, \qquad \ln \int_x^{\pi} p

    Both begin at ``-pi``, whatever the location: only so do the CDFs of several von Mises
    distributions add up to that of their mixture. The angle is modulo ``2 pi``. The results are
    differentiable in all arguments, with the dtype of ``loc``; one is a difference, with an
    absolute error of 1e-16 times the larger term.
    """
    x, m, k = torch.broadcast_tensors(*(t.to(torch.float64) for t in (angle, loc, concentration)))
    below, above = von_mises_log_arcs(
        wrapped(x - m, torch.float64), wrapped(-math.pi - m, torch.float64), k
    )
    return below.to(loc.dtype), above.to(loc.dtype)


_drawn = drawing(angle_draw)


@halves_in_single("variance")
class VonMises(torch.distributions.VonMises):
    r"""The von Mises distribution around ``m``, with implicit derivatives.

    .. math:: p(x) = \frac{e^{k \cos(x - m)}}{2 \pi I_0(k)}, \qquad
              \frac{dx}{dm} = 1, \qquad
              \frac{dx}{dk} = -\frac{\partial F(x - m; k) / \partial k}{p(x)}

    ``F`` is the CDF from the angle opposite to ``m``, and so are `cdf` and `icdf`. Everything is
    computed in float64; derivatives of samples and quantiles are right to second order in every
    mode of automatic differentiation. Source: Figurnov, Mohamed and Mnih, "Implicit
    Reparameterization Gradients" (2018), section 3.

    Parameters
    ----------
    loc : Tensor or float
        ``m``, an angle in radians, modulo ``2 pi``, ``(...)``, floating; samples have its dtype.
    concentration : Tensor or float
        ``k > 0``, broadcast with ``m``.
    validate_args : bool, optional
        Whether to check parameters and values, as in ``torch.distributions``; False under ``vmap``.

    Raises
    ------
    ValueError
        If a parameter is outside of its range, and ``validate_args`` is not False.

    Examples
    --------
    The mean of ``cos(x - m)`` is ``A(k) = I1(k) / I0(k)``, with ``A' = 1 - A / k - A^2``:

    >>> _ = torch.manual_seed(0)
    >>> m, k = torch.tensor(3.0), torch.tensor(2.0, requires_grad=True)
    >>> x = VonMises(m, k).rsample((100000,))
    >>> by_k = torch.autograd.grad((x - m).cos().mean(), k)[0]
    >>> round(by_k.item(), 2)
    0.16
    """

    has_rsample = True
    sample = torch.distributions.Distribution.sample  # not that of the base

    def _double(self) -> tuple[Tensor, Tensor]:
        return self.loc.to(torch.float64), self.concentration.to(torch.float64)

    @property
    def variance(self) -> Tensor:
        """The circular variance, ``1 - I1(k) / I0(k)``."""
        return mean_deficit(self._double()[1]).to(self.loc.dtype)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return a sample in [-pi, pi) with its derivatives by both parameters.

        Parameters
        ----------
        sample_shape : torch.Size
            Leading dimensions.

        Examples
        --------
        >>> VonMises(torch.zeros(3), torch.ones(3)).rsample((2,)).shape
        torch.Size([2, 3])
        """
        loc, k = self._double()
        k = k.expand(self._extended_shape(torch.Size(sample_shape)))
        return wrapped(loc + von_mises_sample(_drawn(k), k), self.loc.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the logarithm of the density.

        Parameters
        ----------
        value : Tensor
            An angle in radians, modulo ``2 pi``.

        Raises
        ------
        ValueError
            If arguments are validated and a value is NaN.

        Examples
        --------
        >>> VonMises(torch.tensor(0.0), torch.tensor(1.0)).log_prob(torch.tensor(0.0))
        tensor(-1.0738)
        """
        if self._validate_args:
            self._validate_sample(value)
        loc, k = self._double()
        fall = 2 * k * (0.5 * (value.to(torch.float64) - loc)).sin().square()
        return (-fall - log_scaled_normalizer(k)).to(self.loc.dtype)

    def entropy(self) -> Tensor:
        """Return ``ln(2 pi I0(k)) - k I1(k) / I0(k)``.

        Examples
        --------
        >>> VonMises(torch.tensor(0.0), torch.tensor(1e-6)).entropy().exp()  # 2 pi
        tensor(6.2832)
        """
        k = self._double()[1]
        return (log_scaled_normalizer(k) + k * mean_deficit(k)).to(self.loc.dtype)

    def cdf(self, value: Tensor) -> Tensor:
        """Return the probability of the arc from ``m - pi`` to the value, anticlockwise.

        Differentiable in the parameters too.

        Parameters
        ----------
        value : Tensor
            An angle in radians, modulo ``2 pi``.

        Raises
        ------
        ValueError
            If arguments are validated and a value is NaN.

        Examples
        --------
        >>> VonMises(torch.tensor(3.0), torch.tensor(1.0)).cdf(torch.tensor([3.0, -3.0]))
        tensor([0.5000, 0.5955])
        """
        if self._validate_args:
            self._validate_sample(value)
        loc, k = self._double()
        return von_mises_cdf(wrapped(value.to(torch.float64) - loc, torch.float64), k).to(
            self.loc.dtype
        )

    def icdf(self, value: Tensor) -> Tensor:
        """Return the angle at which the CDF has the value, with implicit derivatives.

        Solved by `implicit_solvers.root`. At 0 and 1 derivatives by ``p`` and ``k`` are zero.

        Parameters
        ----------
        value : Tensor
            Probabilities ``p``.

        Returns
        -------
        Tensor
            In [-pi, pi).

        Raises
        ------
        ValueError
            If arguments are validated and a probability is outside of [0, 1].

        Examples
        --------
        >>> VonMises(torch.tensor(3.0), torch.tensor(1.0)).icdf(torch.tensor([0.5, 0.8]))
        tensor([ 3.0000, -2.2567])
        """
        loc, k = self._double()
        z = von_mises_quantile(probability(self, value, self.loc), k)
        return wrapped(loc + z, self.loc.dtype)


def von_mises_quantile(p: Tensor, concentration: Tensor) -> Tensor:
    """Return the quantile of the von Mises distribution around 0, with implicit derivatives.

    It is float64, in [-pi, pi], and NaN for ``p`` outside of [0, 1].

    Examples
    --------
    >>> von_mises_quantile(torch.tensor([0.0, 0.5]), torch.tensor(1.0)).abs()
    tensor([3.1416, 0.0000], dtype=torch.float64)
    """
    p, k = torch.broadcast_tensors(p.to(torch.float64), concentration.to(torch.float64))
    tail = torch.where(p < 0.5, p, 1 - p)
    inside = tail > von_mises_logsf(torch.full_like(k, LAST), k).detach().exp()
    z = _tail_quantile(torch.where(inside, tail, 0.5), k)
    end = torch.where((p >= 0) & (p <= 1), torch.full_like(p, math.pi), torch.nan)
    z = torch.where(inside, z, end)
    return torch.where(p < 0.5, -z, z)


def _solve(tail: Tensor, k: Tensor) -> Tensor:
    """Return ``z >= 0`` with ``P(Z > z)`` given."""
    log_tail = tail.log()
    # near pi, the tail is resolved as far as the angle
    resolved = 1 + 1e-3 * (-2 * k - log_scaled_normalizer(k) - log_tail).exp()
    last = torch.full_like(k, LAST)
    return elementwise_root(
        lambda z, log_tail, k, resolved: (von_mises_logsf(z, k) - log_tail) / resolved,
        (-last, last),
        log_tail,
        k,
        resolved,
    )


_tail_quantile = ims.elementwise_function(
    _solve,
    lambda z, tail, k: [
        lambda: -(2 * k * (0.5 * z).sin().square() + log_scaled_normalizer(k)).exp(),
        lambda: von_mises_sample_derivative(k, z),
    ],
    name="von_mises quantile",
)
