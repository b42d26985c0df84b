"""Distributions restricted to an interval."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, constraints

from implicit_solvers.problems.reparameterization.inversion import place, quantile
from implicit_solvers.problems.reparameterization.precision import halves_in_single
from implicit_solvers.problems.reparameterization.quantile_quadrature import ROUNDED, expectation
from implicit_solvers.problems.reparameterization.supports import between
from implicit_solvers.problems.reparameterization.tails import (
    bounds,
    has_accurate_tails,
    like_parameters,
    log_tails,
)
from implicit_solvers.problems.reparameterization.univariate import UnivariateDistribution
from implicit_solvers.problems.reparameterization.validation import (
    check_cdf,
    check_continuous,
    check_method,
)
from implicit_solvers.problems.special_functions.normal import legendre_nodes
from implicit_solvers.problems.special_functions.truncated_normal import (
    truncated_normal_quantile,
    truncated_normal_slopes,
    truncated_normal_tails,
)

__all__ = ["Truncated", "TruncatedNormal"]


@halves_in_single(
    "rsample", "log_prob", "log_tails", "cdf", "icdf", "entropy", "mean", "variance", "_check_mass"
)
class Truncated(UnivariateDistribution):
    r"""A univariate distribution given that it lies between ``low`` and ``high``.

    .. math:: F(z) = \frac{F_0(z) - F_0(l)}{F_0(h) - F_0(l)}, \qquad
              dz = -\frac{\nabla_\phi F \, d\phi}{q(z)}, \quad \phi = (\text{base}, l, h)

    Samples are quantiles of uniform noise, solved for in the logarithms of both tails. That of a
    ``Normal`` becomes a `TruncatedNormal`, which has closed forms.

    Parameters
    ----------
    base
        A continuous univariate distribution with ``cdf`` and ``log_prob``. Far in a tail it needs
        ``log_cdf`` and ``log_survival`` (some of torch's distributions are known).
    low, high
        The ends, tensors or numbers that broadcast with the batch shape; infinite for none.
    validate_args
        As in torch; False under ``torch.func.vmap``, for the base too.

    Raises
    ------
    NotImplementedError
        If the base has no CDF.
    TypeError
        If the base is not a distribution, or an end has another dtype.
    ValueError
        If the base is discrete or multivariate, ``low`` is not below ``high``, or the base has no
        probability, or in floating point not enough, between them.

    Notes
    -----
    Source: Figurnov, Mohamed and Mnih, "Implicit Reparameterization Gradients" (2018), equation 5.
    Mean, variance and entropy are quadratures over quantiles, whose error is about 1e-12 in
    float64 for densities that are smooth, but for a kink at the base's median. Quantiles
    are known up to the tail 1e-299, or 1e-15 if the base has no tails in logarithms; NaN is
    returned where a tail is so heavy that more than about 1e-9, or 1e-6, of them lies beyond.

    Examples
    --------
    >>> low = torch.tensor(1.0, requires_grad=True)
    >>> q = Truncated(torch.distributions.Exponential(2.0), low)
    >>> z = q.rsample((3,))
    >>> (slope,) = torch.autograd.grad(z.sum(), low)
    >>> bool(torch.isclose(slope, torch.tensor(3.0)))  # no memory: z - low stays as it is
    True
    >>> round(q.mean.item(), 4)
    1.5
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self,
        base: Distribution,
        low: Tensor | float = -torch.inf,
        high: Tensor | float = torch.inf,
        validate_args: bool | None = None,
    ) -> None:
        check_continuous(base, "base")
        if base.event_shape:
            raise ValueError(
                f"base is a {type(base).__name__} with events of the shape "
                f"{tuple(base.event_shape)}: pass a univariate distribution"
            )
        check_method(base, "expand", "base")
        check_cdf(base, "base")
        like = like_parameters(base)
        low, high = (_end(end, name, like) for end, name in ((low, "low"), (high, "high")))
        shape = torch.broadcast_shapes(base.batch_shape, low.shape, high.shape)
        self.base = base.expand(shape)
        self.low, self.high = low.expand(shape), high.expand(shape)
        super().__init__(shape, validate_args=validate_args)
        if type(self) is Truncated and type(base) is Normal:
            self.__class__ = TruncatedNormal
        if self._validate_args:
            self._check()

    def _check(self) -> None:
        wrong = ~(self.low < self.high)
        if bool(wrong.any()):
            raise ValueError(
                f"low is {self.low[wrong].flatten()[0]:g} and high is "
                f"{self.high[wrong].flatten()[0]:g}: pass low < high"
            )
        self._check_mass()

    def _check_mass(self) -> None:
        log_mass = self._log_total.detach()
        exact = has_accurate_tails(self.base)
        enough = log_mass.isfinite()
        if not exact:
            enough &= log_mass.exp() > torch.finfo(self.low.dtype).eps ** 0.5
        if not bool(enough.all()):
            reason = "" if exact else " to know from cdf: give it log_cdf and log_survival"
            raise ValueError(
                f"base has the probability exp({log_mass[~enough].flatten()[0]:g}) between low and "
                f"high: that is too little{reason}"
            )

    @property
    def _ends(self) -> tuple[Tensor, Tensor]:
        """Return the ends, at most those of the base's support."""
        low, high = bounds(self.base)
        return (
            torch.maximum(self.low, torch.as_tensor(low).to(self.low)),
            torch.minimum(self.high, torch.as_tensor(high).to(self.low)),
        )

    @property
    def support(self) -> Any:
        """The closed interval; open at infinite ends."""
        return between(*self._ends)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Truncated:
        """Return the distribution with a larger batch shape; see torch."""
        new = self._get_checked_instance(type(self), _instance)
        shape = torch.Size(batch_shape)
        new.base = self.base.expand(shape)
        new.low, new.high = self.low.expand(shape), self.high.expand(shape)
        super(Truncated, new).__init__(shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _base_tails(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithms of the base's tails; 0 and 1 at the ends of its support."""
        return _with_ends(lambda z: log_tails(self.base, z), z, *bounds(self.base))

    @property
    def _log_total(self) -> Tensor:
        low, high = self._ends
        return _between(self._base_tails(low), self._base_tails(high))

    def _tails(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return both tails in logarithms, between the ends."""
        below, here, above = (self._base_tails(t) for t in (self._ends[0], z, self._ends[1]))
        total = _between(below, above)
        return _between(below, here) - total, _between(here, above) - total

    def _log_density(self, z: Tensor) -> Tensor:
        return self.base.log_prob(z) - self._log_total

    def _precise(self, value: Tensor) -> tuple[Tensor, torch.dtype]:
        """Return a value in that precision, and the dtype of what is a function of it."""
        kind = torch.promote_types(value.dtype, self.low.dtype)
        return value.to(torch.promote_types(kind, self._precision)), kind

    def _log_prob(self, value: Tensor) -> Tensor:
        z, kind = self._precise(value)
        low, high = self._ends
        inside = (z >= low) & (z <= high) & z.isfinite()
        safe = torch.where(inside, z, place(torch.zeros_like(z), low, high).detach())
        log_q = torch.where(inside, self._log_density(safe), -torch.inf)
        return torch.where(z.isnan(), z, log_q).to(kind)

    def log_tails(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return `log_cdf` and `log_survival`, with one evaluation of what they share."""
        z, kind = self._precise(value)
        below, above = _with_ends(self._tails, z, *self._ends)
        return below.to(kind), above.to(kind)

    def _expectation(
        self, function: Callable[[Tensor], Tensor], least: Tensor | float = ROUNDED
    ) -> Tensor:
        with torch.no_grad():
            log_cdf = self._base_tails(self._ends[0])[0]
            split = ((0.5 - log_cdf.exp()) / self._log_total.exp()).clamp(0, 1)
        return expectation(function, functools.partial(quantile, self), split, least)

    def _moment(self, moment: Callable[..., Tensor], of_base: Callable[[], Tensor]) -> Tensor:
        """Return a moment; that of the base where it diverges, and where nothing is cut off."""
        low, high = (end.isfinite() for end in self._ends)
        if bool((low & high).all()):
            return moment(ROUNDED)
        exists = of_base().isfinite()
        # a heavy tail is followed as far as numbers go
        heavy = exists & (low ^ high) & has_accurate_tails(self.base)
        found = moment(torch.where(heavy, 0.0, ROUNDED))
        return torch.where((low & high) | (exists & (low | high)), found, of_base())

    @property
    def mean(self) -> Tensor:
        """The mean, by quadrature."""
        return self._moment(
            lambda least: self._expectation(lambda z: z, least), lambda: self.base.mean
        )

    @property
    def variance(self) -> Tensor:
        """The variance, by quadrature."""

        def spread(least: Tensor | float) -> Tensor:
            mean = self._expectation(lambda z: z, least)
            return self._expectation(lambda z: (z - mean).square(), least)

        return self._moment(spread, lambda: self.base.variance)

    def entropy(self) -> Tensor:
        """Return the differential entropy, by quadrature."""
        total = self._log_total
        return self._expectation(lambda z: total - self.base.log_prob(z))


class TruncatedNormal(Truncated):
    r"""A normal variable given that it lies between ``low`` and ``high``.

    .. math:: q(z) = \frac{\varphi(x)}{\sigma (\Phi(\beta) - \Phi(\alpha))}, \quad
              x, \alpha, \beta = \frac{z - \mu, \ l - \mu, \ h - \mu}{\sigma}, \qquad
              \frac{dz}{dl} = (1 - F) \frac{\varphi(\alpha)}{\varphi(x)}, \quad
              \frac{dz}{dh} = F \frac{\varphi(\beta)}{\varphi(x)}

    Everything is computed in float64, in differences from the ends, without cancellation far in a
    tail and for narrow intervals; see `special_functions.truncated_normal`.

    Parameters
    ----------
    loc, scale
        Of the normal distribution that is truncated; tensors or numbers.
    low, high
        The ends, which may be infinite.
    validate_args
        As in torch; False under ``torch.func.vmap``.

    Raises
    ------
    TypeError
        If an end has another dtype.
    ValueError
        If ``scale`` is not positive, or ``low`` not below ``high``.

    Notes
    -----
    Source: Figurnov, Mohamed and Mnih, "Implicit Reparameterization Gradients" (2018), section 4.
    For ends of up to 1e5 standard deviations and any width from 1e-8 of them, derivatives are right
    to 1e-11, at the sample as it is rounded. Moments by Gauss-Legendre quadrature around the mode.

    Examples
    --------
    >>> q = TruncatedNormal(0.0, 1.0, low=10.0)
    >>> q.mean
    tensor(10.0981)
    >>> q.rsample((4,)).shape
    torch.Size([4])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "low": constraints.dependent,
        "high": constraints.dependent,
    }
    _precision = torch.float64

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        low: Tensor | float = -torch.inf,
        high: Tensor | float = torch.inf,
        validate_args: bool | None = None,
    ) -> None:
        base = Normal(loc, scale, validate_args=validate_args)
        super().__init__(base, low, high, validate_args)

    @property
    def loc(self) -> Tensor:
        """The mean of the normal distribution that is truncated."""
        return self.base.loc

    @property
    def scale(self) -> Tensor:
        """The standard deviation of the normal distribution that is truncated."""
        return self.base.scale

    def _check_mass(self) -> None:
        """Any interval has mass enough."""

    @property
    def _parameters(self) -> tuple[Tensor, ...]:
        parameters = (self.loc, self.scale, self.low, self.high)
        return tuple(t.to(self._precision) for t in parameters)

    def _tails(self, z: Tensor) -> tuple[Tensor, Tensor]:
        below, above, _ = truncated_normal_tails(z, *self._parameters)
        return below, above

    def _log_density(self, z: Tensor) -> Tensor:
        return truncated_normal_tails(z, *self._parameters)[2]

    def slopes(self, value: Tensor) -> list[Callable[[], Tensor]]:
        """Return functions for the implicit derivatives of a sample by all parameters.

        In float64, in the order of ``arg_constraints``; they share one evaluation.
        """
        return truncated_normal_slopes(value.to(self._precision), *self._parameters)

    def _quantile(self, u: Tensor) -> Tensor:
        return truncated_normal_quantile(u, *self._parameters, dtype=self.low.dtype)

    def _excess(self, function: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mode, and ``E[g(t, m)]`` of the standardized distance from it.

        Integrated from where the density is exp(-40) of its largest value.
        """
        loc, scale, low, high = self._parameters
        mode = torch.minimum(torch.maximum(loc, low), high)
        m = (mode - loc) / scale
        low = torch.where(low.isfinite(), low, mode - 20 * scale)
        high = torch.where(high.isfinite(), high, mode + 20 * scale)
        left = torch.minimum((mode - low) / scale, _fall(-m))
        right = torch.minimum((high - mode) / scale, _fall(m))
        total, mass = torch.zeros_like(mode), torch.zeros_like(mode)
        for node, weight in legendre_nodes(96):
            t = node * (left + right) - left
            density = weight * (-t * (m + 0.5 * t)).exp()
            mass = mass + density
            total = total + density * function(t, m)
        return mode, total / mass

    @property
    def mean(self) -> Tensor:
        """The mean."""
        mode, excess = self._excess(lambda t, _: t)
        return (mode + self.scale * excess).to(self.low.dtype)

    @property
    def variance(self) -> Tensor:
        """The variance."""
        _, mean = self._excess(lambda t, _: t)
        _, square = self._excess(lambda t, _: (t - mean).square())
        return (self.scale.square() * square).to(self.low.dtype)

    def entropy(self) -> Tensor:
        """Return the differential entropy."""
        mode, fall = self._excess(lambda t, m: t * (m + 0.5 * t))
        return (fall - self._log_density(mode)).to(self.low.dtype)


def _with_ends(
    tails: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor, low: Any, high: Any
) -> tuple[Tensor, Tensor]:
    """Return the logarithms of both tails; 0 and 1 at the ends of the interval."""
    low, high = (torch.as_tensor(end).to(z) for end in (low, high))
    below, above = z <= low, z >= high
    inner = place(torch.zeros_like(z), low, high).detach()
    log_cdf, log_survival = tails(torch.where(below | above, inner, z))
    log_cdf = torch.where(below, -torch.inf, torch.where(above, 0.0, log_cdf))
    return log_cdf, torch.where(above, -torch.inf, torch.where(below, 0.0, log_survival))


def _between(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """Return ``ln(F_0(b) - F_0(a))`` from the smaller of both tails at ``a`` and ``b``."""
    (cdf_a, survival_a), (cdf_b, survival_b) = a, b
    upper, lower = survival_a < cdf_a, cdf_b < survival_b
    larger = torch.where(upper, survival_a, torch.where(lower, cdf_b, 0.0))
    from_above = torch.where(upper, survival_b, torch.where(lower, -torch.inf, survival_b))
    from_below = torch.where(upper, -torch.inf, cdf_a)
    rest = (from_above - larger).exp() + (from_below - larger).exp()
    some = rest < 1
    return torch.where(some, larger + torch.log1p(-torch.where(some, rest, 0.0)), -torch.inf)


def _fall(slope: Tensor) -> Tensor:
    """Return ``s > 0`` with ``slope s + s^2 / 2 = 40``, for ``slope >= 0``."""
    slope = slope.clamp(min=0)
    return 80 / (slope + (slope * slope + 80).sqrt())


def _end(end: Tensor | float, name: str, like: Tensor) -> Tensor:
    if isinstance(end, Tensor) and end.dtype != like.dtype:
        raise TypeError(f"{name} has dtype {end.dtype} and the base {like.dtype}: convert it")
    return torch.as_tensor(end, dtype=like.dtype, device=like.device)
