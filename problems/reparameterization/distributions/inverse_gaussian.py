"""The inverse Gaussian distribution, when a Brownian motion with drift first reaches a level."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

import implicit_solvers as ims
from implicit_solvers.problems.reparameterization.inversion import quantile
from implicit_solvers.problems.reparameterization.precision import halves_in_single
from implicit_solvers.problems.reparameterization.quantile_quadrature import expectation
from implicit_solvers.problems.reparameterization.samples import implicit_sample
from implicit_solvers.problems.reparameterization.univariate import UnivariateDistribution
from implicit_solvers.problems.special_functions.normal import mills_ratio

__all__ = ["InverseGaussian"]


def _log_density(x: Tensor, loc: Tensor, concentration: Tensor) -> Tensor:
    a = (x - loc) / loc
    # ``x^3`` would overflow
    log_root = 0.5 * (concentration / (2 * math.pi)).log() - 1.5 * x.log()
    return log_root - 0.5 * concentration * a * a / x


def _sample_derivatives(x: Tensor, loc: Tensor, concentration: Tensor) -> list[Tensor]:
    r"""Return ``dx/dloc`` and ``dx/dconcentration``.

    With ``b = sqrt(concentration / x) (x / loc + 1)`` and ``E = exp(2 concentration / loc)
    Phi(-b) = phi(a) M(b)``, the normal densities in ``dF`` cancel against that in ``q``.
    """
    root = (concentration / x).sqrt()
    mills = mills_ratio(root * (x + loc) / loc)
    by_loc = 2 * concentration * mills * x / (root * loc * loc)
    by_concentration = x / (concentration * root) * (root - 2 * concentration / loc * mills)
    return [by_loc, by_concentration]


def _log_tail_values(*args: Tensor) -> tuple[Tensor, Tensor]:
    # the tails of a wide distribution differ by less than roundings of float32
    x, loc, concentration = (t.double() for t in args)
    root = (concentration / x).sqrt()
    a, b = root * (x - loc) / loc, root * (x + loc) / loc
    scaled = torch.special.erfcx(b / math.sqrt(2))
    shift = -0.5 * a * a - math.log(2)
    log_cdf = torch.logaddexp(torch.special.log_ndtr(a), shift + scaled.log())
    # above a = -1 the tails exp(-a^2/2) erfcx subtract without overflow
    clamped = a.clamp(min=-1)
    difference = torch.special.erfcx(clamped / math.sqrt(2)) - scaled
    log_survival = torch.where(a < -1, (-log_cdf.exp()).log1p(), shift + difference.log())
    # where F is near 1, from the other tail
    log_cdf = torch.where(a > 1, (-log_survival.exp()).log1p(), log_cdf)
    return log_cdf.to(args[0]), log_survival.to(args[0])


def _log_tail_slopes(
    tails: tuple[Tensor, Tensor], x: Tensor, loc: Tensor, concentration: Tensor
) -> list[tuple[Tensor, Tensor]]:
    log_density = _log_density(x, loc, concentration)
    below, above = ((log_density - tail).exp() for tail in tails)
    flow = [torch.ones_like(x), *(-d for d in _sample_derivatives(x, loc, concentration))]
    return [(below * f, -above * f) for f in flow]


_log_tails = ims.elementwise_function(
    _log_tail_values, _log_tail_slopes, name="tails of InverseGaussian"
)


@halves_in_single(
    "rsample", "log_prob", "log_tails", "cdf", "icdf", "entropy", "mean", "mode", "variance"
)
class InverseGaussian(UnivariateDistribution):
    r"""The inverse Gaussian (Wald) distribution.

    .. math:: q(x) = \sqrt{\frac{\lambda}{2 \pi x^3}}
              \exp\Bigl(-\frac{\lambda (x - \mu)^2}{2 \mu^2 x}\Bigr), \qquad
              F(x) = \Phi(a) + e^{2 \lambda / \mu} \Phi(-b)

    with ``a, b = sqrt(lambda / x) (x / mu -+ 1)``. Samples have the implicit derivatives

    .. math:: \frac{\partial x}{\partial \mu} = \frac{2 \lambda}{\mu^2} M(b)
              \sqrt{\frac{x^3}{\lambda}}, \qquad
              \frac{\partial x}{\partial \lambda} = \sqrt{\frac{x^3}{\lambda}}
              \Bigl(\frac{1}{\sqrt{\lambda x}} - \frac{2}{\mu} M(b)\Bigr)

    with the Mills ratio ``M(b) = Phi(-b) / phi(b)``.

    Parameters
    ----------
    loc
        The mean ``mu``, positive: a floating tensor ``(...)``, whose dtype samples have, or a
        number.
    concentration
        The shape ``lambda``, positive: a tensor or number that is broadcast with ``loc``.
    validate_args
        As in torch; False under ``torch.func.vmap``.

    Raises
    ------
    ValueError
        If arguments are validated and a parameter is not positive.

    Notes
    -----
    Source: Michael, Schucany and Haas, "Generating Random Variates Using Transformations with
    Multiple Roots" (1976) for samples; Giner and Smyth, "statmod: Probability Calculations for the
    Inverse Gaussian Distribution" (2016) for the tails; Figurnov, Mohamed and Mnih, "Implicit
    Reparameterization Gradients" (2018), equation 5, for derivatives.

    Examples
    --------
    >>> loc = torch.tensor(2.0, requires_grad=True)
    >>> q = InverseGaussian(loc, torch.tensor(4.0))
    >>> q.variance
    tensor(2., grad_fn=<...>)
    >>> z = q.rsample((1000,))
    >>> bool((torch.autograd.grad(z.mean(), loc)[0] - 1).abs() < 0.2)
    True
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.positive,
        "concentration": constraints.positive,
    }
    support = constraints.positive

    def __init__(
        self,
        loc: Tensor | float,
        concentration: Tensor | float,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.concentration = broadcast_all(loc, concentration)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> InverseGaussian:
        """Return the distribution with a larger batch shape; see torch."""
        new = self._get_checked_instance(InverseGaussian, _instance)
        shape = torch.Size(batch_shape)
        new.loc, new.concentration = self.loc.expand(shape), self.concentration.expand(shape)
        super(InverseGaussian, new).__init__(shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """The mean ``mu``."""
        return self.loc

    @property
    def mode(self) -> Tensor:
        """The mode ``mu (sqrt(1 + r^2) - r)`` with ``r = 3 mu / (2 lambda)``."""
        r = 1.5 * self.loc / self.concentration
        return self.loc / ((1 + r * r).sqrt() + r)

    @property
    def variance(self) -> Tensor:
        """The variance ``mu^3 / lambda``."""
        return self.loc**3 / self.concentration

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draw samples with derivatives in both parameters, without a quantile."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            loc, concentration = self.loc.detach(), self.concentration.detach()
            squared = torch.randn(shape, dtype=loc.dtype, device=loc.device).square()
            w = 0.5 * loc * squared / concentration
            smaller = loc / (1 + w + (w * (2 + w)).sqrt())
            first = torch.rand(shape, dtype=loc.dtype, device=loc.device) <= loc / (loc + smaller)
            x = torch.where(first, smaller, loc * (loc / smaller))
        return implicit_sample(x, _sample_derivatives, self.loc, self.concentration)

    def _log_prob(self, value: Tensor) -> Tensor:
        return _log_density(value, self.loc, self.concentration)

    def log_tails(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return `log_cdf` and `log_survival` from one evaluation."""
        both: tuple[Tensor, Tensor] = _log_tails(value, self.loc, self.concentration)
        return both

    def cdf(self, value: Tensor) -> Tensor:
        """Return ``F(x)``; what is not positive is refused if arguments are validated."""
        if self._validate_args:
            self._validate_sample(value)
        return super().cdf(value)

    def entropy(self) -> Tensor:
        """Return the differential entropy, by quadrature of ``E[ln x]``."""
        log_mean = expectation(
            torch.log, functools.partial(quantile, self), torch.full_like(self.loc, 0.5)
        )
        return 0.5 * (1 + math.log(2 * math.pi) - self.concentration.log()) + 1.5 * log_mean
