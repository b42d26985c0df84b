"""Mixtures, reparameterized in their components' parameters and in their weights."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MultivariateNormal,
    VonMises,
    constraints,
)

import implicit_solvers as ims
from implicit_solvers.problems.reparameterization.distributions.motion import motion, rebuild
from implicit_solvers.problems.reparameterization.distributions.von_mises import (
    log_arc_tails,
    von_mises_quantile,
)
from implicit_solvers.problems.reparameterization.inversion import (
    draw_from,
    place,
    quantile,
    solve_tails,
    with_derivatives,
)
from implicit_solvers.problems.reparameterization.precision import halves_in_single
from implicit_solvers.problems.reparameterization.quantile_quadrature import (
    entropy_between,
    expectation,
)
from implicit_solvers.problems.reparameterization.supports import between
from implicit_solvers.problems.reparameterization.tails import (
    bounds,
    log_odds,
    log_tails,
)
from implicit_solvers.problems.reparameterization.univariate import UnivariateDistribution
from implicit_solvers.problems.reparameterization.validation import (
    check_cdf,
    check_continuous,
    check_method,
    unchecked,
)
from implicit_solvers.problems.special_functions.normal import log_normal_tails

__all__ = ["MixtureSameFamily"]


@halves_in_single(
    "sample",
    "rsample",
    "log_prob",
    "log_tails",
    "cdf",
    "icdf",
    "entropy",
    "rosenblatt",
    "inverse_rosenblatt",
    "mean",
    "variance",
)
class MixtureSameFamily(UnivariateDistribution, torch.distributions.MixtureSameFamily):
    r"""A mixture of ``K`` distributions of one family.

    .. math:: F(z) = \sum_k w_k F_k(z), \qquad
              dz = \sum_k r_k \frac{\partial z_k}{\partial \phi_k} d\phi_k
                   - \sum_k \frac{F_k(z)}{q(z)} dw_k

    with the responsibilities ``r_k = w_k q_k(z) / q(z)`` and the implicit derivatives of the
    components ``dz_k / dphi_k = -(dF_k / dphi_k) / q_k``. Samples are drawn as usual, a component
    first, and get gradients to the weights nevertheless. In several dimensions, the weights of the
    coordinate ``i`` are the responsibilities of the coordinates before it.

    Parameters
    ----------
    mixture_distribution
        ``torch.distributions.Categorical`` with ``logits`` or ``probs`` ``(..., K)``, which get
        gradients.
    component_distribution
        Univariate with a CDF; or ``Independent`` of such; or ``MultivariateNormal``; or any with a
        method ``rosenblatt``, to first order. The last batch dimension, of length ``K``, counts
        the components. Without ``rsample`` it will do; a univariate one needs no sampler. Samples
        are ``(..., *event_shape)``, of its floating dtype.
    validate_args
        As in torch; False under ``torch.func.vmap``, for both distributions too.

    Raises
    ------
    NotImplementedError
        On sampling, if the components have neither a CDF nor known conditional CDFs.
    ValueError
        If the components are discrete, or the distributions do not fit each other.

    Notes
    -----
    Source: Figurnov, Mohamed and Mnih, "Implicit Reparameterization Gradients" (2018), section 4;
    Graves, "Stochastic Backpropagation through Mixture Density Distributions" (2016).

    Examples
    --------
    >>> from torch.distributions import Normal
    >>> logits = torch.zeros(2, requires_grad=True)
    >>> q = MixtureSameFamily(
    ...     Categorical(logits=logits), Normal(torch.tensor([-3.0, 3.0]), torch.ones(2))
    ... )
    >>> z = q.rsample((1000,))
    >>> (slope,) = torch.autograd.grad(z.mean(), logits)  # of E[z] = 3 (w_2 - w_1)
    >>> bool((slope - torch.tensor([-1.5, 1.5])).abs().max() < 0.5)
    True
    """

    _mixture_distribution: Categorical
    _component_distribution: Distribution

    def __init__(
        self,
        mixture_distribution: Categorical,
        component_distribution: Distribution,
        validate_args: bool | None = None,
    ) -> None:
        check_continuous(component_distribution, "component_distribution")
        if not component_distribution.event_shape and not isinstance(
            component_distribution, VonMises
        ):
            check_cdf(component_distribution, "component_distribution")
        # a value is in the support of some component, not of all
        component_distribution = unchecked(component_distribution)
        super().__init__(mixture_distribution, component_distribution, validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> MixtureSameFamily:
        """Return the distribution with a larger batch shape; see torch."""
        check_method(self.component_distribution, "expand", "component_distribution")
        new = self._get_checked_instance(MixtureSameFamily, _instance)
        return super().expand(torch.Size(batch_shape), _instance=new)

    @property
    def support(self) -> Any:
        """The components' support; of intervals the smallest one that holds all of them."""
        support: Any = self.component_distribution.support
        interval = getattr(support, "base_constraint", support)
        ends = [getattr(interval, f"{side}_bound", None) for side in ("lower", "upper")]
        if not any(isinstance(end, Tensor) and end.dim() for end in ends):
            return support
        whole = between(*bounds(self))
        return constraints.independent(whole, support.event_dim) if self.event_shape else whole

    @property
    def _log_weights(self) -> Tensor:
        return self.mixture_distribution.logits.log_softmax(-1)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draw samples with derivatives in the weights and the parameters of the components."""
        z = self.sample(torch.Size(sample_shape)).detach()
        if not self.event_shape:
            return self._attach(z)
        lanes = z.dim() - len(self.event_shape)
        if not self._on_simplex:
            return with_derivatives(self._conditional_log_odds, z, (), lanes)
        free = z[..., :-1]
        moved = with_derivatives(lambda y: self._conditional_log_odds(_filled(y)), free, (), lanes)
        return torch.cat([moved, z[..., -1:] + (free - moved).sum(-1, keepdim=True)], -1)

    @property
    def _on_simplex(self) -> bool:
        """Whether the last coordinate is what the others leave of 1."""
        return self.component_distribution.support is constraints.simplex

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draw a component first, then a sample of it alone, where the family is known."""
        component, events = self.component_distribution, len(self.event_shape)
        family = rebuild(component)
        with torch.no_grad():
            which = self.mixture_distribution.sample(torch.Size(sample_shape)).unsqueeze(-1)
            if family is None:
                z = draw_from(component, torch.Size(sample_shape))
                which = which.reshape(*which.shape, *(1,) * events)
                which = which.expand(*which.shape[: which.dim() - events], *self.event_shape)
                return z.gather(-1 - events, which).squeeze(-1 - events)
            make, parameters = family
            shape = (*which.shape[:-1], self._log_weights.shape[-1])
            drawn = (p.expand(shape).gather(-1, which).squeeze(-1) for p in parameters)
            return make(*drawn).sample()

    def _attach(self, z: Tensor) -> Tensor:
        """Return samples of a univariate mixture with their derivatives."""
        family = rebuild(self.component_distribution)
        if family is None:
            return with_derivatives(lambda z: log_odds(self, z), z, (), z.dim())
        make, parameters = family
        shape = self.component_distribution.batch_shape
        columns = [p.expand(shape).unbind(-1) for p in (self._log_weights, *parameters)]
        move = ims.elementwise_function(
            lambda z, *_: z.clone(),
            functools.partial(_partials, make, shape[-1]),
            name="sample of a mixture",
        )
        return move(z, *itertools.chain(*columns))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the logarithm of the density; see torch.

        Raises
        ------
        NotImplementedError
            If the components have none.
        """
        check_method(self.component_distribution, "log_prob", "component_distribution")
        return torch.distributions.MixtureSameFamily.log_prob(self, value)

    def log_tails(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return `log_cdf` and `log_survival` from one evaluation of the components."""
        tails = _component_tails(self.component_distribution, value.unsqueeze(-1))
        below, above = (torch.logsumexp(self._log_weights + tail, -1) for tail in tails)
        return below, above

    def cdf(self, value: Tensor) -> Tensor:
        """Return ``F(z)`` of a univariate mixture.

        Raises
        ------
        NotImplementedError
            If the mixture is multivariate: use `rosenblatt`.
        """
        self._univariate("cdf", "rosenblatt")
        if self._validate_args:
            self._validate_sample(value)
        return super().cdf(value)

    def icdf(self, value: Tensor) -> Tensor:
        """Return the quantile of a univariate mixture, differentiable in everything.

        Raises
        ------
        NotImplementedError
            If the mixture is multivariate: use `inverse_rosenblatt`.
        ValueError
            If arguments are validated and a value is outside of [0, 1].
        """
        self._univariate("icdf", "inverse_rosenblatt")
        return super().icdf(value)

    def entropy(self) -> Tensor:
        """Return the differential entropy of a univariate mixture.

        By quadrature between the quantiles of all components, whatever their scales; where that
        does not find the mass one, as at a singular end, over the quantiles of each. The error is
        about 1e-12 in float64 if the densities are smooth; NaN where neither sees all components.

        Raises
        ------
        NotImplementedError
            If the mixture is multivariate.
        """
        self._univariate("entropy", "a Monte Carlo estimate")
        component, weights = self.component_distribution, self._log_weights
        level = torch.arange(-LEVELS, LEVELS + 1, dtype=torch.float64, device=weights.device)
        level = level.reshape(-1, *(1,) * len(component.batch_shape))
        level = level.expand(-1, *component.batch_shape)
        points = _component_quantile(component, level.sigmoid(), (-level).sigmoid())
        points = points.movedim(-1, 0).flatten(0, 1)
        if isinstance(component, VonMises):
            ends = torch.full_like(points[:1], math.pi)
            points = torch.cat([-ends, (points + math.pi).remainder(2 * math.pi) - math.pi, ends])
        missing = max(1e-9, 10 * torch.finfo(weights.dtype).eps)
        between = entropy_between(self._log_density, points.sort(0).values, missing)
        if not (ims.transformed() or bool(between.isnan().any())):
            return between.to(weights.dtype)

        def over(function: Callable[[Tensor], Tensor]) -> Tensor:
            """Return the expectation over the quantiles of each component."""
            each = expectation(
                lambda z: function(z.movedim(-1, 0)).movedim(0, -1),
                functools.partial(_component_quantile, component),
                torch.full_like(weights, 0.5).expand(component.batch_shape),
            )
            return (weights.exp() * each).sum(-1)

        def shares(z: Tensor) -> Tensor:
            return (self._log_each(z) - self._log_density(z).unsqueeze(-1)).exp().sum(-1)

        with torch.no_grad():
            count = over(shares)
        seen = (count - component.batch_shape[-1]).abs() <= missing
        each = torch.where(seen, over(lambda z: -self._log_density(z)), torch.nan)
        return torch.where(between.isnan(), each, between).to(weights.dtype)

    def _log_each(self, z: Tensor) -> Tensor:
        each: Tensor = self.component_distribution.log_prob(z.unsqueeze(-1))
        return each

    def _log_density(self, z: Tensor) -> Tensor:
        return torch.logsumexp(self._log_weights + self._log_each(z), -1)

    def _univariate(self, method: str, instead: str) -> None:
        if self.event_shape:
            raise NotImplementedError(
                f"{method} of a mixture with events of the shape {tuple(self.event_shape)}: use "
                f"{instead}"
            )

    def _components(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``ln F_ki``, ``ln(1 - F_ki)``, ``ln q_ki`` given the coordinates before ``i``.

        All have the shape ``(..., K, d)``.
        """
        component = self.component_distribution
        z = z.flatten(z.dim() - len(self.event_shape)).unsqueeze(-2)
        if isinstance(component, MultivariateNormal):
            scale = component.scale_tril
            gap = (z - component.loc).unsqueeze(-1)
            x = torch.linalg.solve_triangular(scale, gap, upper=False).squeeze(-1)
            spread = torch.diagonal(scale, dim1=-2, dim2=-1)
            log_density = -0.5 * (x * x + math.log(2 * math.pi)) - spread.log()
            return *log_normal_tails(x), log_density
        if isinstance(component, Independent) and not component.base_dist.event_shape:
            marginal = component.base_dist
            shape = torch.broadcast_shapes(
                z.shape, (*component.batch_shape, component.event_shape.numel())
            )
            z = z.expand(shape).unflatten(-1, component.event_shape)
            tensors = (*_component_tails(marginal, z), marginal.log_prob(z))
            below, above, log_density = (
                t.flatten(t.dim() - len(self.event_shape)) for t in tensors
            )
            return below, above, log_density
        if not hasattr(component, "rosenblatt"):
            raise NotImplementedError(
                f"component_distribution is a {type(component).__name__}, of which no conditional "
                "CDFs are known: define its method rosenblatt, or use Independent(univariate, n) "
                "or MultivariateNormal"
            )
        return self._by_transform(component, z)

    def _by_transform(self, component: Any, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same from a Rosenblatt transform, whose slopes are the densities."""
        free = z[..., :-1] if self._on_simplex else z
        free = free.expand(*free.shape[:-2], component.batch_shape[-1], -1)

        def transform(y: Tensor) -> Tensor:
            filled = _filled(y) if self._on_simplex else y
            of_each: Tensor = component.rosenblatt(filled.unflatten(-1, component.event_shape))
            return of_each.flatten(y.dim() - 1)

        vjp: Any = torch.func.vjp(transform, free)
        u, pull = vjp
        units = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
        slopes = [pull(unit.expand(u.shape))[0][..., i] for i, unit in enumerate(units)]
        least = torch.finfo(u.dtype).tiny
        log_density = torch.stack(slopes, -1).clamp(min=least).log()
        return u.clamp(min=least).log(), (1 - u).clamp(min=least).log(), log_density

    def _conditional_log_tails(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithms of the tails of each coordinate given those before it."""
        log_cdf, log_survival, log_density = self._components(z)
        # not a difference, which is NaN outside of a component's support
        before = torch.nn.functional.pad(log_density[..., :-1], (1, 0)).cumsum(-1)
        log_weights = (self._log_weights.unsqueeze(-1) + before).log_softmax(-2)
        below, above = (torch.logsumexp(log_weights + tail, -2) for tail in (log_cdf, log_survival))
        if self._on_simplex:
            return below, above
        return below.unflatten(-1, self.event_shape), above.unflatten(-1, self.event_shape)

    def _conditional_log_odds(self, z: Tensor) -> Tensor:
        below, above = self._conditional_log_tails(z)
        return below - above

    def rosenblatt(self, value: Tensor) -> Tensor:
        r"""Return the Rosenblatt transform, independent uniform variables.

        .. math:: u_i = \sum_k r_{ki} F_{ki}(z_i), \qquad
                  r_{ki} \propto w_k \prod_{j < i} q_{kj}(z_j)

        Parameters
        ----------
        value
            Samples ``z`` of a shape that ends in the event shape.

        Returns
        -------
        Tensor
            Of the same shape, in (0, 1).

        Raises
        ------
        NotImplementedError
            If no conditional CDFs of the components are known.
        """
        return self._conditional_log_tails(value)[0].exp()

    def inverse_rosenblatt(self, u: Tensor) -> Tensor:
        """Return the sample whose Rosenblatt transform is ``u``, with implicit derivatives.

        Parameters
        ----------
        u
            Probabilities in (0, 1), of a shape that ends in batch and event shape.

        Returns
        -------
        Tensor
            The samples, differentiable in ``u`` too.

        Raises
        ------
        NotImplementedError
            If no conditional CDFs of the components are known.
        """
        if self._on_simplex:
            raise NotImplementedError(
                "inverse_rosenblatt of a mixture on the simplex: use sample or rsample"
            )
        u = u.expand(torch.broadcast_shapes(u.shape, self.batch_shape + self.event_shape))
        with torch.no_grad():
            z = self._invert(u.detach())
        lanes = z.dim() - len(self.event_shape)
        return with_derivatives(
            lambda z, u: self._conditional_log_odds(z) - u.logit(), z, (u,), lanes
        )

    def _invert(self, u: Tensor) -> Tensor:
        """Solve for one coordinate after another."""
        shape = u.shape
        ends = (torch.as_tensor(end).to(u).expand(shape) for end in bounds(self))
        u, low, high = (t.flatten(len(shape) - len(self.event_shape)) for t in (u, *ends))
        z = place(torch.zeros_like(u), low, high)
        for i in range(z.shape[-1]):
            z[..., i] = self._coordinate(i, z, u[..., i], low[..., i], high[..., i])
        return z.reshape(shape)

    def _coordinate(self, i: int, z: Tensor, u: Tensor, low: Any, high: Any) -> Tensor:
        def tails(x: Tensor) -> tuple[Tensor, Tensor]:
            moved = torch.cat([z[..., :i], x.unsqueeze(-1), z[..., i + 1 :]], -1)
            below, above = self._conditional_log_tails(moved.unflatten(-1, self.event_shape))
            lanes = z.dim() - 1
            return below.flatten(lanes)[..., i], above.flatten(lanes)[..., i]

        return solve_tails(tails, u, low, high)


def _filled(y: Tensor) -> Tensor:
    """Return the vectors of the simplex that begin with ``y``."""
    return torch.cat([y, 1 - y.sum(-1, keepdim=True)], -1)


def _component_tails(component: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(component, VonMises):
        return log_arc_tails(z, component.loc, component.concentration)
    return log_tails(component, z)


def _component_quantile(component: Any, u: Tensor, rest: Tensor | None = None) -> Tensor:
    if isinstance(component, VonMises):
        return component.loc + von_mises_quantile(u, component.concentration).to(u.dtype)
    return quantile(component, u, rest)


LEVELS = 36  # of the logarithm of the odds
SIZE = 1 << 16  # elements times components that are evaluated at once


def _partials(
    make: Callable[..., Any], count: int, y: Tensor, _: Tensor, *columns: Tensor
) -> list[Any]:
    """Return ``dz`` by the logarithms of the weights, then by each parameter, of all components."""
    groups = [columns[i : i + count] for i in range(0, len(columns), count)]
    if torch.is_grad_enabled() or ims.transformed():
        of_all = _shares(make, y, *(torch.stack(g) for g in groups))
        shares = [functools.cache(share) for share in of_all]
    else:
        # nothing is recorded: what is wanted at once, in parts that stay in the cache
        wanted = [any(t.requires_grad for t in g) for g in groups]
        found = functools.cache(lambda: _in_parts(make, y, groups, wanted))
        shares = [lambda i=i: found()[i] for i in range(len(groups))]  # type: ignore[misc]
    return [None, *(lambda s=s, k=k: s()[k] for s in shares for k in range(count))]


def _in_parts(
    make: Callable[..., Any], y: Tensor, groups: Sequence[Sequence[Tensor]], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Evaluate the shares in parts; what all samples share is not repeated for each."""
    place = y.reshape(-1)
    shared = [all(not any(t.stride()) for t in g) for g in groups]
    flat = [
        torch.stack([t.as_strided((1,), (1,)) if one else t.reshape(-1) for t in g])
        for g, one in zip(groups, shared, strict=True)
    ]
    found = [
        place.new_empty((len(g), len(place))) if w else None
        for g, w in zip(groups, wanted, strict=True)
    ]
    size = max(1, SIZE // len(groups[0]))
    for start in range(0, len(place), size):
        part = slice(start, start + size)
        parameters = (t if one else t[:, part] for t, one in zip(flat, shared, strict=True))
        for whole, share in zip(found, _shares(make, place[part], *parameters), strict=True):
            if whole is not None:
                whole[:, part] = share()
    return [None if f is None else f.view(-1, *y.shape) for f in found]


def _shares(
    make: Callable[..., Any], z: Tensor, log_weights: Tensor, *parameters: Tensor
) -> list[Callable[[], Tensor]]:
    r"""Return how each component moves a sample, ``dz = sum_k (...)_k``; all are ``(K, ...)``.

    .. math:: r_k \frac{\partial z_k}{\partial \phi_k}, \qquad
              -\frac{w_k (F_k - F)}{q} = \frac{w_k ((1 - F_k) - (1 - F))}{q}
              \quad \text{by } \ln w_k

    What overflows is cut off below the largest number: so it is not NaN in the gradients of other
    samples.
    """
    most = math.log(torch.finfo(z.dtype).max) - math.log(8 * len(log_weights))
    component = make(*parameters)
    moved = functools.cache(lambda: motion(component, z))
    density = functools.cache(lambda: log_weights + component.log_prob(z))
    log_q = functools.cache(lambda: density().logsumexp(0))
    responsibility = functools.cache(lambda: (density() - log_q()).exp())

    def by_log_weight() -> Tensor:
        below, above = moved().tails()
        weights = log_weights.exp()
        lower = ((weights * below.exp()).sum(0) < 0.5).detach()
        of_each = torch.where(lower, below, above) + (log_weights - log_q())
        of_each = of_each.clamp(max=most).exp()
        excess = of_each - weights * of_each.sum(0)
        return torch.where(lower, -excess, excess)

    def by_parameter(place: int) -> Tensor:
        slope = moved().slopes[place]
        return responsibility() * (slope() if callable(slope) else slope)

    places = range(len(parameters))
    return [by_log_weight, *(functools.partial(by_parameter, i) for i in places)]
