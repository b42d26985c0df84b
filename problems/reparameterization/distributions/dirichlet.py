"""The Dirichlet distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from implicit_solvers.problems.reparameterization.distributions.beta import (
    beta_logit_quantile,
    simplex_entropy,
    simplex_log_density,
    simplex_mode,
)
from implicit_solvers.problems.reparameterization.distributions.gamma import log_gamma_variable
from implicit_solvers.problems.reparameterization.distributions.quantiles import probability
from implicit_solvers.problems.reparameterization.precision import halves_in_single
from implicit_solvers.problems.special_functions.beta import betainc

__all__ = ["Dirichlet"]


@halves_in_single("mean", "mode", "variance")
class Dirichlet(torch.distributions.Dirichlet):
    r"""The Dirichlet distribution with parameters ``a_1, ..., a_K``, with implicit derivatives.

    .. math:: p(z) = \frac{\Gamma(\sum_i a_i)}{\prod_i \Gamma(a_i)} \prod_i z_i^{a_i - 1}, \qquad
              z = \operatorname{softmax}(\ln g), \qquad
              \frac{dg_i}{da_i} = -\frac{\partial P(a_i, g_i) / \partial a_i}{p(g_i)}

    with gamma variables ``g_i``, all in float64 and in logarithms, so that no small parameters
    make them all vanish. Derivatives of samples are right to second order in every mode of
    automatic differentiation. Source: Figurnov, Mohamed and Mnih, "Implicit Reparameterization
    Gradients" (2018), section 3.

    In place of the CDF, the Rosenblatt transform: Rosenblatt, "Remarks on a multivariate
    transformation" (1952), here of the broken stick, ``z_i / (z_i + ... + z_K)``, which are
    independent beta variables with ``a_i`` and ``a_(i+1) + ... + a_K``.

    Parameters
    ----------
    concentration : Tensor
        ``a > 0``, ``(..., K)``.
    validate_args : bool, optional
        Whether to check parameters and values, as in ``torch.distributions``; False under ``vmap``.

    Raises
    ------
    ValueError
        If a parameter is outside of its range, and ``validate_args`` is not False.

    Examples
    --------
    The mean is ``a_i / sum(a)``, that of ``z_1`` has the derivatives 2/9, -1/9, -1/9 here:

    >>> _ = torch.manual_seed(0)
    >>> a = torch.ones(3, requires_grad=True)
    >>> z = Dirichlet(a).rsample((10000,))
    >>> (9 * torch.autograd.grad(z[:, 0].mean(), a)[0]).round()
    tensor([ 2., -1., -1.])
    """

    def double(self) -> torch.distributions.Dirichlet:
        """Return the distribution in float64, without checks.

        Examples
        --------
        >>> Dirichlet(torch.ones(2)).double().mean
        tensor([0.5000, 0.5000], dtype=torch.float64)
        """
        concentration = self.concentration.to(torch.float64)
        return torch.distributions.Dirichlet(concentration, validate_args=False)

    @property
    def mode(self) -> Tensor:
        """The mode as in torch, also under ``vmap``; see `simplex_mode`."""
        return simplex_mode(self.concentration)

    def _rsample_log(self, sample_shape: Sequence[int]) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return log_gamma_variable(self.concentration.expand(shape)).log_softmax(-1)

    def rsample_log(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return the logarithms of a sample, which do not underflow for small parameters.

        Parameters
        ----------
        sample_shape : torch.Size
            Leading dimensions.

        Examples
        --------
        >>> _ = torch.manual_seed(0)
        >>> Dirichlet(torch.full((3,), 1e-5)).rsample_log((100,)).isfinite().all()
        tensor(True)
        """
        return self._rsample_log(sample_shape).to(self.concentration.dtype)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return a sample with its derivatives by all parameters.

        What underflows is the smallest normal number, without derivatives, as in torch.

        Parameters
        ----------
        sample_shape : torch.Size
            Leading dimensions.

        Examples
        --------
        >>> Dirichlet(torch.ones(4, 3)).rsample((2,)).shape
        torch.Size([2, 4, 3])
        """
        dtype = self.concentration.dtype
        return self._rsample_log(sample_shape).exp().to(dtype).clamp(min=torch.finfo(dtype).tiny)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the logarithm of the density.

        Parameters
        ----------
        value : Tensor
            Vectors of the simplex.

        Raises
        ------
        ValueError
            If arguments are validated and a value is not in the simplex.

        Examples
        --------
        >>> Dirichlet(torch.tensor([2.0, 1.0])).log_prob(torch.tensor([0.75, 0.25]))  # ln 1.5
        tensor(0.4055)
        """
        if self._validate_args:
            self._validate_sample(value)
        concentration = self.concentration.to(torch.float64)
        log_density = simplex_log_density(concentration, value.to(torch.float64))
        return log_density.to(self.concentration.dtype)

    def entropy(self) -> Tensor:
        """Return the differential entropy.

        Examples
        --------
        >>> Dirichlet(torch.ones(3)).entropy()  # -ln 2
        tensor(-0.6931)
        """
        return simplex_entropy(self.concentration.to(torch.float64)).to(self.concentration.dtype)

    def _rest(self) -> Tensor:
        """Return ``a_(i+1) + ... + a_K`` for all but the last ``i``."""
        return _sums_from(self.concentration.to(torch.float64))[..., 1:]

    def rosenblatt(self, value: Tensor) -> Tensor:
        """Return the Rosenblatt transform, independent uniform variables.

        ``u_i = I(z_i / (z_i + ... + z_K); a_i, a_(i+1) + ... + a_K)``, differentiable in all.

        Parameters
        ----------
        value : Tensor
            Vectors of the simplex, ``(..., K)``. Where a vector has only zeros from an ``i`` on,
            ``u_i`` is NaN.

        Returns
        -------
        Tensor
            ``(..., K - 1)``.

        Raises
        ------
        ValueError
            If arguments are validated and a value is not in the simplex.

        Examples
        --------
        >>> Dirichlet(torch.ones(3)).rosenblatt(torch.tensor([0.5, 0.25, 0.25]))
        tensor([0.7500, 0.5000])
        """
        if self._validate_args:
            self._validate_sample(value)
        z = value.to(torch.float64)
        logit = z[..., :-1].log() - _sums_from(z)[..., 1:].log()
        a = self.concentration.to(torch.float64)[..., :-1]
        return betainc(a, self._rest(), logit_x=logit).to(self.concentration.dtype)

    def inverse_rosenblatt(self, u: Tensor) -> Tensor:
        """Return the vector whose Rosenblatt transform is ``u``, with implicit derivatives.

        Parameters
        ----------
        u : Tensor
            Probabilities, ``(..., K - 1)``.

        Returns
        -------
        Tensor
            Vectors of the simplex, ``(..., K)``.

        Raises
        ------
        ValueError
            If arguments are validated and a probability is outside of [0, 1].

        Examples
        --------
        >>> Dirichlet(torch.ones(3)).inverse_rosenblatt(torch.tensor([0.75, 0.5]))
        tensor([0.5000, 0.2500, 0.2500])
        """
        p = probability(self, u, self.concentration)
        a = self.concentration.to(torch.float64)[..., :-1]
        logit = beta_logit_quantile(p, a, self._rest())
        broken = torch.nn.functional.logsigmoid(logit)
        left = torch.nn.functional.logsigmoid(-logit).cumsum(-1)
        start = torch.zeros_like(left[..., :1])
        log_z = torch.cat([broken, start], -1) + torch.cat([start, left], -1)
        return log_z.exp().to(self.concentration.dtype)


def _sums_from(x: Tensor) -> Tensor:
    """Return ``x_i + ... + x_K`` for every ``i``."""
    return x.flip(-1).cumsum(-1).flip(-1)
