"""Joint distributions of any marginals, by a copula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from implicit_solvers.problems.reparameterization.distributions.copulas import (
    Copula,
    admissible,
    inside,
)
from implicit_solvers.problems.reparameterization.distributions.quantiles import probability
from implicit_solvers.problems.reparameterization.inversion import quantile
from implicit_solvers.problems.reparameterization.precision import halves_in_single
from implicit_solvers.problems.reparameterization.tails import log_tails
from implicit_solvers.problems.reparameterization.validation import check_continuous

__all__ = ["CopulaDistribution"]

Pair = tuple[Tensor, Tensor]


@halves_in_single("mean", "variance", "rsample", "log_prob", "rosenblatt", "inverse_rosenblatt")
class CopulaDistribution(Distribution):
    r"""The joint distribution of variables with given marginals and a given copula.

    .. math:: x_i = F_i^{-1}(u_i), \quad u \sim c, \qquad
              q(x) = c(F_1(x_1), ..., F_d(x_d)) \prod_i f_i(x_i)

    Samples have implicit derivatives in the parameters of the copula and of the marginals. Both
    tails of the marginals are known in logarithms. Source: Sklar, "Fonctions de répartition à n
    dimensions et leurs marges" (1959).

    Parameters
    ----------
    copula
        `GaussianCopula`, `ClaytonCopula` or `FrankCopula`.
    marginals
        A continuous univariate distribution whose last batch dimension, of length ``d``, counts the
        variables; or a sequence of ``d`` of them, of any families. With ``icdf``, or a CDF of which
        `implicit_solvers.root` finds the inverse.
    validate_args
        As in torch; False under ``torch.func.vmap``, for all of them.

    Raises
    ------
    TypeError
        If ``copula`` is not a copula, or a marginal no distribution.
    ValueError
        If a marginal is discrete or multivariate, or their number is not that of the copula.

    Examples
    --------
    >>> from torch.distributions import Exponential, Normal
    >>> from implicit_solvers.problems.reparameterization import ClaytonCopula
    >>> copula = ClaytonCopula(torch.tensor(2.0))
    >>> q = CopulaDistribution(copula, [Normal(0.0, 1.0), Exponential(torch.tensor(2.0))])
    >>> q.rsample((3,)).shape
    torch.Size([3, 2])
    >>> round(q.log_prob(torch.tensor([0.0, 0.35])).item(), 2)
    -0.53
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(
        self,
        copula: Copula,
        marginals: Distribution | Sequence[Distribution],
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(copula, Copula):
            raise TypeError(f"copula is a {type(copula).__name__}: pass one of the copulas here")
        several = not isinstance(marginals, Distribution)
        given: list[Any] = [marginals] if isinstance(marginals, Distribution) else list(marginals)
        for marginal in given:
            check_continuous(marginal, "marginals")
            if marginal.event_shape:
                raise ValueError(
                    f"marginals has a {type(marginal).__name__} with events of the shape "
                    f"{tuple(marginal.event_shape)}: pass univariate distributions"
                )
        shapes = [marginal.batch_shape for marginal in given]
        count = len(given) if several else (shapes[0][-1] if shapes[0] else 0)
        if count != copula.dim:
            raise ValueError(
                f"marginals are {count} and the copula has {copula.dim} variables: pass one for "
                "each, in a sequence or in the last batch dimension"
            )
        lanes = shapes if several else [shapes[0][:-1]]
        shape = torch.broadcast_shapes(copula.batch_shape, *lanes)
        self._several = several
        self._place(copula, given, shape)
        super().__init__(shape, copula.event_shape, validate_args=validate_args)

    def _place(self, copula: Copula, marginals: Sequence[Any], shape: torch.Size) -> None:
        own = torch.Size() if self._several else copula.event_shape
        self.copula = copula.expand(shape)
        self.marginals = [marginal.expand(shape + own) for marginal in marginals]

    def expand(self, batch_shape: Any, _instance: Any = None) -> CopulaDistribution:
        """Return the distribution with a larger batch shape; see torch."""
        new = self._get_checked_instance(CopulaDistribution, _instance)
        shape = torch.Size(batch_shape)
        new._several = self._several
        new._place(self.copula, self.marginals, shape)
        super(CopulaDistribution, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        return (
            torch.stack(tuple(torch.broadcast_tensors(*parts)), -1) if self._several else parts[0]
        )

    def _split(self, value: Tensor) -> Sequence[Tensor]:
        return value.unbind(-1) if self._several else [value]

    @property
    def support(self) -> Any:
        """The product of those of the marginals."""
        supports = [marginal.support for marginal in self.marginals]
        if self._several:
            return constraints.stack(supports, -1)
        return constraints.independent(supports[0], 1)

    @property
    def mean(self) -> Tensor:
        """The means of the marginals."""
        return self._join([marginal.mean for marginal in self.marginals])

    @property
    def variance(self) -> Tensor:
        """The variances of the marginals."""
        return self._join([marginal.variance for marginal in self.marginals])

    def entropy(self) -> Tensor:
        """Return that of the copula (if it is Gaussian) and those of the marginals, added."""
        marginal = self._join([marginal.entropy() for marginal in self.marginals]).sum(-1)
        return self.copula.entropy().to(marginal.dtype) + marginal

    def _tails(self, value: Tensor) -> Pair:
        pairs = [
            log_tails(marginal, x)
            for marginal, x in zip(self.marginals, self._split(value), strict=True)
        ]
        below, above = (self._join(tails).to(torch.float64) for tails in zip(*pairs, strict=True))
        return below, above

    def _quantiles(self, logs: Pair) -> Tensor:
        u = self._split(logs[0].exp())
        pairs = zip(self.marginals, u, strict=True)
        return self._join([_quantile(marginal, part) for marginal, part in pairs])

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw samples with derivatives in the parameters of copula and marginals.

        Parameters
        ----------
        sample_shape
            The shape in front of the batch shape.

        Returns
        -------
        Tensor
            The samples, ``(..., d)``.
        """
        return self._quantiles(self.copula._invert(self.copula._noise(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of the copula, and those of the marginals, added.

        Parameters
        ----------
        value
            ``x``, ``(..., d)``.

        Returns
        -------
        Tensor
            The logarithms.

        Raises
        ------
        ValueError
            If arguments are validated and a value is outside of the support.
        """
        if self._validate_args:
            self._validate_sample(value)
        parts = zip(self.marginals, self._split(value), strict=True)
        marginal = self._join([q.log_prob(x) for q, x in parts]).sum(-1)
        return self.copula._log_density(*self._tails(value)).to(marginal.dtype) + marginal

    def rosenblatt(self, value: Tensor) -> Tensor:
        """Return the Rosenblatt transform, independent uniform variables.

        Parameters
        ----------
        value
            ``x``, ``(..., d)``.

        Returns
        -------
        Tensor
            ``(..., d)``.

        Raises
        ------
        ValueError
            If arguments are validated and a value is outside of the support.
        """
        if self._validate_args:
            self._validate_sample(value)
        return self.copula._transform(*self._tails(value)).to(value.dtype)

    def inverse_rosenblatt(self, u: Tensor) -> Tensor:
        """Return the vector whose Rosenblatt transform is ``u``, with implicit derivatives.

        Parameters
        ----------
        u
            Probabilities, ``(..., d)``.

        Returns
        -------
        Tensor
            ``x``, ``(..., d)``.

        Raises
        ------
        ValueError
            If arguments are validated and a probability is outside of [0, 1].
        """
        return self._quantiles(self.copula._invert(admissible(probability(self, u, u))))


def _quantile(marginal: Any, u: Tensor) -> Tensor:
    u = inside(u.to(marginal.mean.dtype))
    try:
        value: Tensor = marginal.icdf(u)
    except NotImplementedError:
        value = quantile(marginal, u.expand(torch.broadcast_shapes(u.shape, marginal.batch_shape)))
    return value
