"""What a univariate distribution has by its tails alone: CDF, quantiles, samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from implicit_solvers.problems.reparameterization.inversion import quantile, uniform_noise
from implicit_solvers.problems.reparameterization.tails import like_parameters
from implicit_solvers.problems.reparameterization.validation import check_probability

__all__ = ["UnivariateDistribution"]


class UnivariateDistribution(Distribution):
    """A distribution on an interval, given by the method ``log_tails``.

    A subclass defines ``log_tails``, ``_log_prob``, ``support`` and ``expand``.
    """

    has_rsample = True

    @property
    def _precision(self) -> torch.dtype:
        """What probabilities are held in."""
        return like_parameters(self).dtype

    def _quantile(self, u: Tensor) -> Tensor:
        return quantile(self, u)

    def _log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the logarithm of the density.

        Parameters
        ----------
        value
            Points, of a shape that broadcasts with the batch shape.

        Returns
        -------
        Tensor
            The logarithms; of an interval, -inf outside.

        Raises
        ------
        ValueError
            If arguments are validated and a value is outside of the support.
        """
        if self._validate_args:
            self._validate_sample(value)
        return self._log_prob(value)

    def log_tails(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return `log_cdf` and `log_survival`, with one evaluation of what they share."""
        raise NotImplementedError

    def log_cdf(self, value: Tensor) -> Tensor:
        """Return ``ln F(z)``, also where ``F`` underflows; the arguments are those of `cdf`."""
        return self.log_tails(value)[0]

    def log_survival(self, value: Tensor) -> Tensor:
        """Return ``ln(1 - F(z))``, also where ``F`` is rounded to 1; arguments as for `cdf`."""
        return self.log_tails(value)[1]

    def cdf(self, value: Tensor) -> Tensor:
        """Return ``F(z)``.

        Parameters
        ----------
        value
            Points, of a shape that broadcasts with the batch shape.

        Returns
        -------
        Tensor
            Probabilities.
        """
        return self.log_cdf(value).exp()

    def icdf(self, value: Tensor) -> Tensor:
        """Return the quantile, differentiable in ``value`` and in every parameter.

        Parameters
        ----------
        value
            Probabilities, of a shape that broadcasts with the batch shape.

        Returns
        -------
        Tensor
            Points of the support; its ends for the probabilities 0 and 1.

        Raises
        ------
        ValueError
            If arguments are validated and a value is outside of [0, 1].
        """
        device = like_parameters(self).device
        value = torch.as_tensor(value, dtype=self._precision, device=device)
        if self._validate_args:
            check_probability(value)
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        return self._quantile(value.expand(shape))

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draw samples with derivatives in every parameter.

        Parameters
        ----------
        sample_shape
            The shape in front of the batch shape.

        Returns
        -------
        Tensor
            The samples.
        """
        return self._quantile(uniform_noise(self, sample_shape, self._precision))
