"""The gamma distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.reparameterization.distributions.draws import drawing
from implicit_solvers.problems.reparameterization.distributions.quantiles import (
    between_ends,
    probability,
    quantile,
)
from implicit_solvers.problems.reparameterization.precision import halves_in_single
from implicit_solvers.problems.special_functions.derivatives import (
    differentiable_sample,
)
from implicit_solvers.problems.special_functions.gamma import (
    gamma_log_sample,
    gamma_log_sample_derivative,
    gammainc,
    log_density,
    log_gammainc,
    log_gammaincc,
    slope,
)
from implicit_solvers.problems.special_functions.log_gamma import (
    gamma_entropy,
    gamma_log_density,
)

__all__ = ["Gamma", "log_gamma_variable"]


SMALL = 0.1  # smaller shapes have variables that underflow


def log_gamma_draw(a: Tensor) -> Tensor:
    """Draw logarithms of gamma variables: ``G(a + 1) U**(1/a)`` has the shape ``a``."""
    small = ~(a >= SMALL)  # NaN too, which torch draws as 0
    some = bool(small.any())
    shape = a + small if some else a
    one = torch.ones((), dtype=a.dtype, device=a.device)
    log_z = torch.distributions.Gamma(shape, one, validate_args=False).sample().log_()
    if some:
        log_z[small] -= torch.empty_like(a[small]).exponential_() / a[small]  # -ln U
    return log_z


def _draw(a: Tensor, rate: Tensor) -> Tensor:
    """Draw gamma variables; what underflows is the smallest normal number."""
    return (log_gamma_draw(a) - rate.log()).exp_().clamp_(min=torch.finfo(a.dtype).tiny)


_drawn, _drawn_log = drawing(_draw), drawing(log_gamma_draw)


def _by_shape(z: Tensor, a: Tensor, rate: Tensor) -> Tensor:
    place = rate * z
    return z * slope(a, place, place.log())


_variable = differentiable_sample(
    lambda z, a, rate: [lambda: _by_shape(z, a, rate), lambda: -z / rate], name="gamma variable"
)


def log_gamma_variable(concentration: Tensor) -> Tensor:
    """Return float64 logarithms of standard gamma variables, with implicit derivatives.

    For the shape ``a = 1e-3``, half of all variables themselves underflow.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> log_z = log_gamma_variable(torch.full((10000,), 1e-3))
    >>> round(log_z.mean().item() / torch.special.digamma(torch.tensor(1e-3)).item(), 1)
    1.0
    """
    return gamma_log_sample(_drawn_log(concentration), concentration)


@halves_in_single("mean", "mode", "variance")
class Gamma(torch.distributions.Gamma):
    r"""The gamma distribution with shape ``a`` and rate ``r``, with implicit derivatives.

    .. math:: p(z) = \frac{r^a}{\Gamma(a)} z^{a-1} e^{-r z}, \qquad
              \frac{dz}{da} = -\frac{\partial P(a, r z) / \partial a}{p(z)}, \qquad
              \frac{dz}{dr} = -\frac{z}{r}

    Samples are drawn, and everything is computed, in float64 and in logarithms; derivatives of
    samples and quantiles are right to second order in every mode of automatic differentiation.
    Source: Figurnov, Mohamed and Mnih, "Implicit Reparameterization Gradients" (2018).

    Parameters
    ----------
    concentration : Tensor or float
        ``a > 0``, ``(...)``, floating; samples have its dtype.
    rate : Tensor or float
        ``r > 0``, broadcast with ``a``.
    validate_args : bool, optional
        Whether to check parameters and values, as in ``torch.distributions``; False under ``vmap``.

    Raises
    ------
    ValueError
        If a parameter is outside of its range, and ``validate_args`` is not False.

    Examples
    --------
    The mean is ``a / r``, whose derivatives at ``a = 2``, ``r = 1`` are 1 and -2:

    >>> _ = torch.manual_seed(0)
    >>> a, r = torch.tensor(2.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    >>> z = Gamma(a, r).rsample((10000,))
    >>> by_a, by_r = torch.autograd.grad(z.mean(), (a, r))
    >>> round(by_a.item(), 1), round(by_r.item(), 1)
    (1.0, -2.0)
    """

    def double(self) -> torch.distributions.Gamma:
        """Return the distribution in float64, without checks.

        Examples
        --------
        >>> Gamma(2.0, 1.0).double().mean
        tensor(2., dtype=torch.float64)
        """
        parameters = self.concentration.to(torch.float64), self.rate.to(torch.float64)
        return torch.distributions.Gamma(*parameters, validate_args=False)

    def _rsample_log(self, sample_shape: Sequence[int]) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        log_z = log_gamma_variable(self.concentration.expand(shape))
        return log_z - self.rate.to(torch.float64).log()

    def rsample_log(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return the logarithm of a sample, which does not underflow for small shapes.

        Parameters
        ----------
        sample_shape : torch.Size
            Leading dimensions.

        Examples
        --------
        >>> _ = torch.manual_seed(0)
        >>> Gamma(1e-5, 1.0).rsample_log((100,)).isfinite().all()
        tensor(True)
        """
        return self._rsample_log(sample_shape).to(self.rate.dtype)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return a sample with its derivatives by both parameters.

        What underflows is the smallest normal number, without derivatives, as in torch.

        Parameters
        ----------
        sample_shape : torch.Size
            Leading dimensions.

        Examples
        --------
        >>> Gamma(torch.ones(3), 1.0).rsample((2,)).shape
        torch.Size([2, 3])
        """
        shape, dtype = self._extended_shape(torch.Size(sample_shape)), self.rate.dtype
        a, rate = (p.to(torch.float64).expand(shape) for p in (self.concentration, self.rate))
        z = _variable(_drawn(a, rate), a, rate)
        return z if dtype == z.dtype else z.to(dtype).clamp(min=torch.finfo(dtype).tiny)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return a sample without derivatives, drawn with the default generator.

        Parameters
        ----------
        sample_shape : torch.Size
            Leading dimensions.

        Examples
        --------
        >>> Gamma(torch.ones(3, requires_grad=True), 1.0).sample((2,)).requires_grad
        False
        """
        with torch.no_grad():  # that of torch 2.15 gives rsample a generator
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the logarithm of the density.

        Parameters
        ----------
        value : Tensor
            ``z >= 0``.

        Raises
        ------
        ValueError
            If arguments are validated and a value is negative or NaN.

        Examples
        --------
        >>> Gamma(1.0, 2.0).log_prob(torch.tensor(0.0))
        tensor(0.6931)
        """
        if self._validate_args:
            self._validate_sample(value)
        exact = self.double()
        log_density = gamma_log_density(exact.concentration, exact.rate * value.to(torch.float64))
        return (exact.rate.log() + log_density).to(self.rate.dtype)

    def entropy(self) -> Tensor:
        """Return ``a - ln r + lgamma(a) + (1 - a) psi(a)``.

        Examples
        --------
        >>> Gamma(1.0, 1.0).entropy()
        tensor(1.)
        """
        exact = self.double()
        return (gamma_entropy(exact.concentration) - exact.rate.log()).to(self.rate.dtype)

    def cdf(self, value: Tensor) -> Tensor:
        """Return ``P(a, r z)``, differentiable in the parameters too.

        Parameters
        ----------
        value : Tensor
            ``z >= 0``.

        Raises
        ------
        ValueError
            If arguments are validated and a value is negative or NaN.

        Examples
        --------
        >>> Gamma(1.0, 2.0).cdf(torch.tensor(1.0))
        tensor(0.8647)
        """
        if self._validate_args:
            self._validate_sample(value)
        exact = self.double()
        return gammainc(exact.concentration, exact.rate * value.to(torch.float64)).to(
            self.rate.dtype
        )

    def icdf(self, value: Tensor) -> Tensor:
        """Return the quantile, with implicit derivatives by ``p``, ``a`` and ``r``.

        Solved by `implicit_solvers.root` in ``ln z``. At 0 and 1 derivatives are zero.

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
        >>> Gamma(1.0, 2.0).icdf(torch.tensor([0.0, 0.8647, 1.0]))
        tensor([0.0000, 1.0001,    inf])
        """
        p = probability(self, value, self.rate)
        exact = self.double()
        log_z = between_ends(gamma_log_quantile, p, exact.concentration)
        return (log_z.exp() / exact.rate).to(self.rate.dtype)


def _bracket(log_p: Tensor, log_q: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Bracket ``ln z``.

    ``P(a, z) <= z^a / Gamma(a + 1)``, and ``P(Z > a + sqrt(2 a t) + t) <= exp(-t)``: Boucheron,
    Lugosi and Massart, "Concentration Inequalities" (2013), section 2.4.
    """
    t = 1 - log_q
    return (log_p + (a + 1).lgamma()) / a - 1, (a + (2 * a * t).sqrt() + t).log()


# ln z of the quantile, a function of (p, a)
gamma_log_quantile = ims.elementwise_function(
    lambda p, a: quantile(
        lambda u, a: log_gammainc(a, log_z=u),
        lambda u, a: log_gammaincc(a, log_z=u),
        _bracket,
        lambda log_p, log_q, a: (2 * a * (1 - torch.minimum(log_p, log_q))).sqrt(),
        p,
        a,
    ),
    lambda u, p, a: [
        lambda: (-log_density(a, u.exp(), u)).exp(),
        lambda: gamma_log_sample_derivative(a, u),
    ],
    name="gamma quantile",
)
