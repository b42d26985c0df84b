"""Implicit reparameterization: gradients of a sample, whatever algorithm drew it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

import implicit_solvers as ims
from implicit_solvers.problems.reparameterization.inversion import draw_from
from implicit_solvers.problems.reparameterization.tails import log_odds
from implicit_solvers.problems.reparameterization.validation import (
    check_continuous,
    check_ends,
    check_increasing,
    check_sample,
    rosenblatt_of,
)

__all__ = ["ImplicitReparameterization"]


class ImplicitReparameterization:
    r"""Give ``rsample`` to any distribution with a CDF or a chain of conditional CDFs.

    .. math:: F(z; \phi) = \varepsilon \quad\Rightarrow\quad
              \nabla_\phi z = -\frac{\nabla_\phi F(z; \phi)}{q(z; \phi)}

    In several dimensions ``F`` is the distributional (Rosenblatt) transform
    ``F_i(z_i | z_1, ..., z_(i-1))``, whose Jacobian is triangular. The sample comes from the
    distribution's own sampler, without gradients, or, if it has none, from solving ``F(z) = u``.

    Parameters
    ----------
    distribution
        A ``torch.distributions.Distribution``, continuous, with ``cdf`` (best with ``log_cdf`` and
        ``log_survival``) or, for vectors, ``rosenblatt``. Gradients go to the tensors that these
        use. Samples are ``(..., *batch_shape, *event_shape)``, of its floating dtype.
    transform
        ``F(z)`` instead of the distribution's: each component of the result is uniform, or any
        increasing function of a uniform variable that does not depend on the parameters. It
        returns the shape of ``z``.
    validate_args
        Whether to check samples and ``F`` by their values; False under ``torch.func.vmap``.

    Raises
    ------
    ValueError
        If the distribution is discrete; on sampling, if ``F`` does not increase with ``z``, does
        not go from 0 to 1, or the sample is outside the support.
    NotImplementedError
        If the distribution has no CDF, or neither a sampler nor what inverts its transform.

    Notes
    -----
    Source: Figurnov, Mohamed and Mnih, "Implicit Reparameterization Gradients" (2018), equations 5
    and 6.

    Examples
    --------
    >>> from torch.distributions import Weibull
    >>> scale = torch.tensor(2.0, requires_grad=True)
    >>> tool = ImplicitReparameterization(Weibull(scale, torch.tensor(3.0)))
    >>> z = tool.rsample((5,))
    >>> (slope,) = torch.autograd.grad(z.sum(), scale)
    >>> bool(torch.isclose(slope, (z / scale).sum(), rtol=1e-3))
    True
    """

    def __init__(
        self,
        distribution: Distribution,
        transform: Callable[[Tensor], Tensor] | None = None,
        *,
        validate_args: bool = True,
    ) -> None:
        check_continuous(distribution)
        self.distribution = distribution
        self.validate_args = validate_args
        self.univariate = transform is None and not distribution.event_shape
        if transform is not None:
            self.F = transform
        elif distribution.event_shape:
            self.F = rosenblatt_of(distribution)
        else:
            self.F = lambda z: log_odds(distribution, z)
        if self.univariate and validate_args:
            check_ends(distribution)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw samples with derivatives.

        Parameters
        ----------
        sample_shape
            The shape of independent samples, in front of the batch shape.

        Returns
        -------
        Tensor
            Of the shape ``sample_shape + batch_shape + event_shape``.
        """
        with torch.no_grad():
            z = draw_from(self.distribution, torch.Size(sample_shape))
        return self.attach(z)

    def attach(self, z: Tensor) -> Tensor:
        """Return samples that were drawn by whatever means with their derivatives.

        Parameters
        ----------
        z
            Samples of the distribution; they get no gradient.

        Returns
        -------
        Tensor
            The same values.
        """
        z, lanes = z.detach(), z.dim() - len(self.distribution.event_shape)
        if self.validate_args:
            check_sample(self.distribution, z)
            check_increasing(self.F, z, lanes)
        noise = self.F(z).detach()
        return ims.attach(
            lambda z, noise: self.F(z) - noise,
            z,
            (noise,),
            batch_dims=lanes,
            in_dims=(0,) if lanes else None,
        )
