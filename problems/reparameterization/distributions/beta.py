"""The beta distribution."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.reparameterization.distributions.draws import drawing
from implicit_solvers.problems.reparameterization.distributions.gamma import log_gamma_draw
from implicit_solvers.problems.reparameterization.distributions.quantiles import (
    between_ends,
    probability,
    quantile,
)
from implicit_solvers.problems.reparameterization.precision import halves_in_single
from implicit_solvers.problems.special_functions.beta import (
    beta_logit_sample_derivatives,
    betainc,
    log_betainc,
    log_betaincc,
    point,
)
from implicit_solvers.problems.special_functions.beta_partials import (
    imbalance_of_logit,
    log_density,
    slopes,
)
from implicit_solvers.problems.special_functions.derivatives import (
    differentiable_sample,
)
from implicit_solvers.problems.special_functions.log_gamma import (
    gamma_entropy,
    gamma_log_density,
)
from implicit_solvers.problems.special_functions.polygamma import digamma

__all__ = [
    "Beta",
    "beta_logit_quantile",
    "beta_logit_variable",
    "simplex_entropy",
    "simplex_log_density",
    "simplex_mode",
]


def beta_logit_variable(a: Tensor, b: Tensor) -> Tensor:
    """Return float64 logits of beta variables, with implicit derivatives.

    ``ln x - ln(1 - x)`` does not round to an end of the interval.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> t = beta_logit_variable(torch.full((1000,), 1e-4), torch.full((1000,), 1e-4))
    >>> t.isfinite().all(), (t.sigmoid() == 0).any()
    (tensor(True), tensor(True))
    """
    a, b = (p.to(torch.float64) for p in (a, b))
    return _logit(_drawn(a, b), a, b)


_drawn = drawing(lambda a, b: log_gamma_draw(a).sub_(log_gamma_draw(b)))


def _logit_partials(t: Tensor, a: Tensor, b: Tensor) -> list[Any]:
    both = functools.cache(lambda: slopes(a, b, t.sigmoid(), t, imbalance_of_logit(a, b, t)))
    return [lambda: both()[0], lambda: both()[1]]


_logit = differentiable_sample(_logit_partials, name="logit of a beta variable")


def beta_logit_quantile(p: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return the float64 logit of the quantile ``x``, ``I_x(a, b) = p``, with implicit derivatives.

    Examples
    --------
    >>> one = torch.tensor(1.0)
    >>> beta_logit_quantile(torch.tensor([0.0, 0.25]), one, one).sigmoid()
    tensor([0.0000, 0.2500], dtype=torch.float64)
    """
    return between_ends(_logit_quantile, p, a, b)


def _bracket(log_p: Tensor, log_q: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Bracket the logit: ``I_x(a, b) <= 2 x^a / (a B(a, b))`` for ``x <= 1/2``, and mirrored."""
    log_beta = a.lgamma() + b.lgamma() - (a + b).lgamma()
    low = (log_p + a.log() + log_beta) / a - 0.7 / a
    high = (log_q + b.log() + log_beta) / b - 0.7 / b
    return low.clamp(max=-0.7) - 1, 1 - high.clamp(max=-0.7)


def _logit_quantile_partials(t: Tensor, p: Tensor, a: Tensor, b: Tensor) -> list[Any]:
    both = functools.cache(lambda: beta_logit_sample_derivatives(a, b, t))
    at = point("beta quantile", a, b, None, t)
    log_mass = log_density(at.a, at.b, at.x, at.t, at.w)
    return [(-log_mass).exp(), lambda: both()[0], lambda: both()[1]]


_logit_quantile = ims.elementwise_function(
    lambda p, a, b: quantile(
        lambda t, a, b: log_betainc(a, b, logit_x=t),
        lambda t, a, b: log_betaincc(a, b, logit_x=t),
        _bracket,
        lambda log_p, log_q, a, b: (
            2 * torch.minimum(a, b) * (1 - torch.minimum(log_p, log_q))
        ).sqrt(),
        p,
        a,
        b,
    ),
    _logit_quantile_partials,
    name="beta quantile",
)


def simplex_mode(concentration: Tensor) -> Tensor:
    """Return the mode of a Dirichlet distribution, ``max(a_i - 1, 0)`` divided by their sum.

    Where all ``a_i`` are less than 1, it is the first vertex, one of the points where the density
    is infinite; it is NaN where the density is constant or the largest ``a_i`` is 1.

    Examples
    --------
    >>> simplex_mode(torch.tensor([[2.0, 4.0], [0.5, 0.5], [1.0, 1.0]]))
    tensor([[0.2500, 0.7500],
            [1.0000, 0.0000],
            [   nan,    nan]])
    """
    excess = (concentration - 1).clamp(min=0)
    everywhere = (concentration < 1).all(-1, keepdim=True)
    total = torch.where(everywhere, 1.0, excess.sum(-1, keepdim=True))
    vertex = torch.zeros_like(concentration)
    vertex[..., 0] = 1
    return torch.where(everywhere, vertex, excess / total)


def simplex_log_density(concentration: Tensor, value: Tensor) -> Tensor:
    """Return the logarithm of the density of a Dirichlet distribution.

    From gamma variables ``x_i`` with the sum ``S = sum(a)``, of which ``value`` are the shares:
    log-densities near the means, that do not cancel. The arguments are float64, ``(..., K)``.

    Examples
    --------
    >>> simplex_log_density(torch.tensor([2.0, 1.0]), torch.tensor([0.75, 0.25]))  # ln 1.5
    tensor(0.4055)
    """
    total = concentration.sum(-1)
    each = gamma_log_density(concentration, total.unsqueeze(-1) * value).sum(-1)
    # what the sum exceeds 1 by, exactly: heads are multiples of 2^-26
    head = (value + 2.0**26) - 2.0**26
    surplus = (head.sum(-1) - 1) + (value - head).sum(-1)
    count = concentration.shape[-1]
    return each - gamma_log_density(total, total) + (count - 1) * total.log() + total * surplus


def simplex_entropy(concentration: Tensor) -> Tensor:
    """Return the entropy of a Dirichlet distribution, of float64 ``a`` with the shape ``(..., K)``.

    Examples
    --------
    >>> simplex_entropy(torch.ones(2)).abs() < 1e-6
    tensor(True)
    """
    total, count = concentration.sum(-1), concentration.shape[-1]
    each = gamma_entropy(concentration).sum(-1)
    return each - gamma_entropy(total) - (count - 1) * digamma(total)


@halves_in_single("mean", "mode", "variance")
class Beta(torch.distributions.Beta):
    r"""The beta distribution with parameters ``a`` and ``b``, with implicit derivatives.

    .. math:: p(x) = \frac{x^{a-1} (1 - x)^{b-1}}{B(a, b)}, \qquad
              \frac{dx}{da} = -\frac{\partial I_x(a, b) / \partial a}{p(x)}, \qquad
              \frac{dx}{db} = -\frac{\partial I_x(a, b) / \partial b}{p(x)}

    Samples are drawn, and everything is computed, in float64 and in logits; derivatives of samples
    and quantiles are right to second order in every mode of automatic differentiation. Source:
    Figurnov, Mohamed and Mnih, "Implicit Reparameterization Gradients" (2018).

    Parameters
    ----------
    concentration1 : Tensor or float
        ``a > 0``, ``(...)``, floating; samples have its dtype.
    concentration0 : Tensor or float
        ``b > 0``, broadcast with ``a``.
    validate_args : bool, optional
        Whether to check parameters and values, as in ``torch.distributions``; False under ``vmap``.

    Raises
    ------
    ValueError
        If a parameter is outside of its range, and ``validate_args`` is not False.

    Examples
    --------
    The mean is ``a / (a + b)``, whose derivatives at ``a = b = 1`` are 1/4 and -1/4:

    >>> _ = torch.manual_seed(0)
    >>> a, b = torch.tensor(1.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    >>> x = Beta(a, b).rsample((10000,))
    >>> by_a, by_b = torch.autograd.grad(x.mean(), (a, b))
    >>> round(by_a.item(), 2), round(by_b.item(), 2)
    (0.25, -0.25)
    """

    def double(self) -> torch.distributions.Beta:
        """Return the distribution in float64, without checks.

        Examples
        --------
        >>> Beta(2.0, 2.0).double().mean
        tensor(0.5000, dtype=torch.float64)
        """
        a, b = self.concentration1.to(torch.float64), self.concentration0.to(torch.float64)
        return torch.distributions.Beta(a, b, validate_args=False)

    @property
    def mode(self) -> Tensor:
        """The mode as in torch, also under ``vmap``; see `simplex_mode`."""
        return simplex_mode(torch.stack([self.concentration1, self.concentration0], -1))[..., 0]

    def _rsample_logit(self, sample_shape: Sequence[int]) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return beta_logit_variable(
            self.concentration1.expand(shape), self.concentration0.expand(shape)
        )

    def rsample_logit(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return the logit of a sample, which does not round to an end of the interval.

        Parameters
        ----------
        sample_shape : torch.Size
            Leading dimensions.

        Examples
        --------
        >>> _ = torch.manual_seed(0)
        >>> Beta(1e-5, 1e-5).rsample_logit((100,)).isfinite().all()
        tensor(True)
        """
        return self._rsample_logit(sample_shape).to(self.concentration1.dtype)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return a sample with its derivatives by both parameters.

        What rounds to 0 or 1 is the next number inside, without derivatives, as in torch.

        Parameters
        ----------
        sample_shape : torch.Size
            Leading dimensions.

        Examples
        --------
        >>> Beta(torch.ones(3), 1.0).rsample((2,)).shape
        torch.Size([2, 3])
        """
        dtype = self.concentration1.dtype
        info = torch.finfo(dtype)
        x = self._rsample_logit(sample_shape).sigmoid().to(dtype)
        return x.clamp(min=info.tiny, max=1 - info.eps / 2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the logarithm of the density.

        Parameters
        ----------
        value : Tensor
            ``0 <= x <= 1``.

        Raises
        ------
        ValueError
            If arguments are validated and a value is outside of [0, 1].

        Examples
        --------
        >>> Beta(2.0, 1.0).log_prob(torch.tensor(0.75))  # ln 1.5
        tensor(0.4055)
        """
        if self._validate_args:
            self._validate_sample(value)
        x, exact = value.to(torch.float64), self.double()
        both = torch.stack([exact.concentration1, exact.concentration0], -1)
        log_density = simplex_log_density(both, torch.stack([x, 1 - x], -1))
        return log_density.to(self.concentration1.dtype)

    def entropy(self) -> Tensor:
        """Return the differential entropy.

        Examples
        --------
        >>> Beta(2.0, 1.0).entropy()  # 1/2 - ln 2
        tensor(-0.1931)
        """
        exact = self.double()
        both = torch.stack([exact.concentration1, exact.concentration0], -1)
        return simplex_entropy(both).to(self.concentration1.dtype)

    def cdf(self, value: Tensor) -> Tensor:
        """Return ``I_x(a, b)``, differentiable in the parameters too.

        Parameters
        ----------
        value : Tensor
            ``0 <= x <= 1``.

        Raises
        ------
        ValueError
            If arguments are validated and a value is outside of [0, 1].

        Examples
        --------
        >>> Beta(2.0, 1.0).cdf(torch.tensor(0.5))
        tensor(0.2500)
        """
        if self._validate_args:
            self._validate_sample(value)
        return betainc(self.concentration1, self.concentration0, value)

    def icdf(self, value: Tensor) -> Tensor:
        """Return the quantile, with implicit derivatives by ``p``, ``a`` and ``b``.

        Solved by `implicit_solvers.root` in the logit. At 0 and 1 derivatives are zero.

        Parameters
        ----------
        value : Tensor
            Probabilities ``p``.

        Raises
        ------
        ValueError
            If arguments are validated and a probability is outside of [0, 1].

        Examples
        --------
        >>> Beta(2.0, 1.0).icdf(torch.tensor([0.0, 0.25, 1.0]))
        tensor([0.0000, 0.5000, 1.0000])
        """
        a, b = self.concentration1, self.concentration0
        return beta_logit_quantile(probability(self, value, a), a, b).sigmoid().to(a.dtype)
