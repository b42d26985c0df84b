"""A distribution given by any unnormalized log-density on an interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from implicit_solvers.problems.reparameterization.precision import halves_in_single
from implicit_solvers.problems.reparameterization.univariate import UnivariateDistribution
from implicit_solvers.problems.special_functions.normal import legendre_nodes

__all__ = ["IntervalDensity"]


@halves_in_single("rsample", "log_prob", "log_tails", "cdf", "icdf", "entropy", "mean", "variance")
class IntervalDensity(UnivariateDistribution):
    r"""The distribution on ``[low, high]`` with the density ``exp(log_density(z)) / Z``.

    .. math:: F(z) = \frac{1}{Z} \int_l^z e^{f(t)} \, dt, \quad Z = \int_l^h e^{f(t)} \, dt, \qquad
              dz = -\frac{\nabla_\phi F(z; \phi) \, d\phi}{q(z; \phi)}

    The integrals are Gauss-Legendre quadratures. Samples are quantiles of uniform noise and have
    derivatives in every tensor that ``log_density`` uses, and in the ends.

    Parameters
    ----------
    log_density
        ``f(z)``, elementwise and finite; its parameters may have the batch shape, which a tensor
        ``z`` of the shape ``(...,) + batch_shape`` broadcasts with.
    low, high
        The ends, finite tensors; a number, if the other is a tensor. Their shapes give the batch
        shape, and their dtype is that of the samples.
    nodes
        The number of quadrature nodes on either side of a point.
    validate_args
        As in torch; False under ``torch.func.vmap``.

    Raises
    ------
    TypeError
        If neither end is a real floating tensor, or ``log_density`` returns another dtype.
    ValueError
        If arguments are validated and an end is not finite, ``low`` is not below ``high``,
        ``log_density`` has another shape or is not finite, or its integral depends on the number
        of nodes.

    Notes
    -----
    Source: Figurnov, Mohamed and Mnih, "Implicit Reparameterization Gradients" (2018), equation 5.

    Examples
    --------
    >>> depth = torch.tensor(2.0, requires_grad=True)
    >>> low, high = torch.tensor(-2.0), torch.tensor(2.0)
    >>> q = IntervalDensity(lambda z: -depth * (z**2 - 1) ** 2, low, high)
    >>> q.cdf(torch.tensor([-2.0, 0.0, 2.0]))
    tensor([0.0000, 0.5000, 1.0000], grad_fn=<...>)
    >>> z = q.rsample((3,))
    >>> torch.autograd.grad(z.sum(), depth)[0].isfinite()
    tensor(True)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self,
        log_density: Callable[[Tensor], Tensor],
        low: Tensor | float,
        high: Tensor | float,
        nodes: int = 64,
        validate_args: bool | None = None,
    ) -> None:
        like = next((t for t in (low, high) if isinstance(t, Tensor)), None)
        if like is None or not like.is_floating_point():
            raise TypeError(f"low is {low!r} and high is {high!r}: pass a real floating tensor")
        if not isinstance(nodes, int) or nodes < 4:
            raise ValueError(f"nodes is {nodes!r}: pass an integer of at least 4")
        ends = (torch.as_tensor(end, dtype=like.dtype, device=like.device) for end in (low, high))
        self.low, self.high = torch.broadcast_tensors(*ends)
        self.log_density, self.nodes = log_density, nodes
        super().__init__(self.low.shape, validate_args=validate_args)
        if self._validate_args:
            self._check()

    def _check(self) -> None:
        low, high = self.low.detach(), self.high.detach()
        wrong = ~(low.isfinite() & high.isfinite() & (low < high))
        if bool(wrong.any()):
            raise ValueError(
                f"low is {low[wrong].flatten()[0]:g} and high is {high[wrong].flatten()[0]:g}: "
                "pass finite ends with low < high"
            )
        value = self.log_density(low).detach()
        if value.dtype != low.dtype:
            raise TypeError(f"log_density returned {value.dtype} for {low.dtype}: convert it")
        if value.shape != low.shape:
            raise ValueError(
                f"log_density returned the shape {tuple(value.shape)} for {tuple(low.shape)}: it "
                "must be elementwise, with ends of the batch shape"
            )
        fine, coarse = (self._log_integral(low, high, n).detach() for n in (None, self.nodes // 2))
        if not bool(fine.isfinite().all()):
            raise ValueError("log_density is not finite on the interval, or its integral is 0")
        if bool(((fine - coarse).abs() > torch.finfo(low.dtype).eps ** 0.5).any()):
            raise ValueError(
                f"log_density has an integral that changes by {(fine - coarse).abs().max():.1e}, "
                f"relatively, between {self.nodes // 2} and {self.nodes} nodes: it is not smooth, "
                "or has a narrow peak; increase nodes or shorten the interval"
            )

    @property
    def support(self) -> Any:
        """The closed interval."""
        return constraints.interval(self.low, self.high)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> IntervalDensity:
        """Return the distribution with a larger batch shape; see torch."""
        new = self._get_checked_instance(IntervalDensity, _instance)
        shape = torch.Size(batch_shape)
        new.low, new.high = self.low.expand(shape), self.high.expand(shape)
        new.log_density, new.nodes = self.log_density, self.nodes
        super(IntervalDensity, new).__init__(shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _points(
        self, a: Tensor, b: Tensor, nodes: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return nodes, their logarithmic weights, and the log-density, stacked in front."""
        rule = legendre_nodes(nodes or self.nodes)
        t = a.new_tensor([node for node, _ in rule]).reshape(-1, *(1,) * a.dim())
        w = a.new_tensor([weight for _, weight in rule]).reshape(t.shape)
        z = a + t * (b - a)
        return z, w.log() + (b - a).log(), self.log_density(z)

    def _log_integral(self, a: Tensor, b: Tensor, nodes: int | None = None) -> Tensor:
        """Return ``ln int_a^b exp(f)``."""
        a, b = torch.broadcast_tensors(a, b)
        some = a < b
        b = torch.where(some, b, a + 1)
        _, log_weight, value = self._points(a, b, nodes)
        return torch.where(some, torch.logsumexp(log_weight + value, 0), -torch.inf)

    def log_tails(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return `log_cdf` and `log_survival` from the same integrals."""
        value = torch.minimum(torch.maximum(value, self.low), self.high)
        below, above = self._log_integral(self.low, value), self._log_integral(value, self.high)
        total = torch.logaddexp(below, above)
        return below - total, above - total

    def _log_prob(self, value: Tensor) -> Tensor:
        inside = (value >= self.low) & (value <= self.high)
        safe = torch.minimum(torch.maximum(value, self.low), self.high)
        log_q = self.log_density(safe) - self._log_integral(self.low, self.high)
        return torch.where(inside, log_q, -torch.inf)

    def _expectation(self, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        z, log_weight, value = self._points(self.low, self.high)
        log_total = torch.logsumexp(log_weight + value, 0)
        weight = (log_weight + value - log_total).exp()
        return (weight * function(z, value - log_total)).sum(0)

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self._expectation(lambda z, _: z)

    @property
    def variance(self) -> Tensor:
        """The variance."""
        mean = self.mean
        return self._expectation(lambda z, _: (z - mean).square())

    def entropy(self) -> Tensor:
        """Return the differential entropy."""
        return self._expectation(lambda _, log_q: -log_q)
