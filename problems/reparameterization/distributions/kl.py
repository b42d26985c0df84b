"""Kullback-Leibler divergences, registered with ``torch.distributions.kl_divergence``.

The classes here inherit every divergence of torch's classes, as ``KL(Beta, Normal)``. Those between
two of one class, one of them torch's or none, are computed here in float64, from terms that are not
negative: differences of large numbers have no digits of a small divergence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributions
from torch.distributions import Distribution, register_kl
from torch.nn.functional import logsigmoid

from implicit_solvers.problems.reparameterization.distributions.beta import Beta
from implicit_solvers.problems.reparameterization.distributions.dirichlet import Dirichlet
from implicit_solvers.problems.reparameterization.distributions.gamma import Gamma
from implicit_solvers.problems.reparameterization.distributions.lkj_cholesky import LKJCholesky
from implicit_solvers.problems.reparameterization.distributions.mixture import MixtureSameFamily
from implicit_solvers.problems.reparameterization.distributions.student_t import (
    StudentT,
    standard_log_density,
)
from implicit_solvers.problems.reparameterization.distributions.truncated import TruncatedNormal
from implicit_solvers.problems.reparameterization.distributions.von_mises import VonMises
from implicit_solvers.problems.reparameterization.distributions.von_mises_fisher import (
    VonMisesFisher,
)
from implicit_solvers.problems.special_functions.log_gamma import (
    gamma_divergence,
    log1p_minus,
)
from implicit_solvers.problems.special_functions.von_mises_fisher import angle

__all__: list[str] = []

Divergence = Callable[[Any, Any], Tensor]


def _with_torchs(ours: type, theirs: type) -> Callable[[Divergence], Divergence]:
    """Register a divergence between two of our class, and between ours and torch's."""

    def register(divergence: Divergence) -> Divergence:
        for pair in ((ours, ours), (ours, theirs), (theirs, ours)):
            register_kl(*pair)(divergence)
        return divergence

    return register


def _doubles(distribution: Any, *names: str) -> list[Tensor]:
    return [getattr(distribution, name).to(torch.float64) for name in names]


@_with_torchs(Gamma, distributions.Gamma)
def _gamma(p: Any, q: Any) -> Tensor:
    (a, r), (b, s) = (_doubles(d, "concentration", "rate") for d in (p, q))
    excess = (a * (s - r) - (b - a) * r) / (b * r)
    return gamma_divergence(a, b, a / b * (s / r), excess).to(p.rate.dtype)


def _simplex(a: Tensor, b: Tensor) -> Tensor:
    """Return the divergence of gamma variables less that of their sum, of equal rates."""
    total, other, more = a.sum(-1), b.sum(-1), (b - a).sum(-1)
    ratio = (a / b) * (other / total).unsqueeze(-1)
    excess = (a * more.unsqueeze(-1) - (b - a) * total.unsqueeze(-1)) / (b * total.unsqueeze(-1))
    one = torch.ones_like(total)
    each = gamma_divergence(a, b, ratio, excess).sum(-1)
    return each - gamma_divergence(total, other, one, 0 * one)


@_with_torchs(Beta, distributions.Beta)
def _beta(p: Any, q: Any) -> Tensor:
    both = (_doubles(d, "concentration1", "concentration0") for d in (p, q))
    a, b = (torch.stack(parameters, -1) for parameters in both)
    return _simplex(a, b).to(p.concentration1.dtype)


@_with_torchs(Dirichlet, distributions.Dirichlet)
def _dirichlet(p: Any, q: Any) -> Tensor:
    (a,), (b,) = (_doubles(d, "concentration") for d in (p, q))
    return _simplex(a, b).to(p.concentration.dtype)


@_with_torchs(LKJCholesky, distributions.LKJCholesky)
def _lkj_cholesky(p: Any, q: Any) -> Tensor:
    """Return the sum over the rows: their directions have one law, their lengths are beta."""
    if p.dim != q.dim:
        raise ValueError(f"dim is {p.dim} and {q.dim}: pass distributions of one dim")
    row = torch.arange(1, p.dim, dtype=torch.float64, device=p.concentration.device)

    def parameters(concentration: Tensor) -> Tensor:
        b = concentration.to(torch.float64).unsqueeze(-1) + 0.5 * (p.dim - 1 - row)
        return torch.stack([(0.5 * row).expand(b.shape), b], -1)

    rows = _simplex(parameters(p.concentration), parameters(q.concentration))
    return rows.sum(-1).to(p.concentration.dtype)


@_with_torchs(VonMises, distributions.VonMises)
def _von_mises(p: Any, q: Any) -> Tensor:
    """Return ``E_p[k cos(x - m)]``, with ``E_p[cos(x - m_p)] = A = I1(k_p) / I0(k_p)``."""
    (loc, k), (other, rate) = (_doubles(d, "loc", "concentration") for d in (p, q))
    apart = 2 * (0.5 * (loc - other)).sin().square()  # 1 - cos
    circle = angle(2)
    kl = circle.divergence(rate, k) + rate * circle.mean(k) * apart
    return kl.to(p.loc.dtype)


@register_kl(VonMisesFisher, VonMisesFisher)
def _von_mises_fisher(p: VonMisesFisher, q: VonMisesFisher) -> Tensor:
    if p.event_shape != q.event_shape:
        raise ValueError(
            f"vectors have {p.event_shape[0]} and {q.event_shape[0]} components: pass "
            "distributions of one dimension"
        )
    (loc, k), (other, rate) = (_doubles(d, "loc", "concentration") for d in (p, q))
    functions = angle(p.event_shape[0])
    apart = 0.5 * (loc - other).square().sum(-1)  # 1 - cos
    kl = functions.divergence(rate, k) + rate * functions.mean(k) * apart
    return kl.to(p.loc.dtype)


def _double_truncated_normal(d: Any) -> TruncatedNormal:
    loc, scale = _doubles(d, "loc", "scale")
    if not isinstance(d, TruncatedNormal):
        return TruncatedNormal(loc, scale, validate_args=False)
    low, high = _doubles(d, "low", "high")
    return TruncatedNormal(loc, scale, low, high, validate_args=False)


@register_kl(TruncatedNormal, distributions.Normal)
@register_kl(TruncatedNormal, TruncatedNormal)
def _truncated_normal(p: TruncatedNormal, q: Any) -> Tensor:
    """Return the mean of ``ln p - ln q``, a quadratic; infinite where q does not cover p."""
    kind = p.low.dtype
    p, q = _double_truncated_normal(p), _double_truncated_normal(q)
    covered = (p.low >= q.low) & (p.high <= q.high)
    mean = p.mean
    place = torch.where(covered, mean, 0 * mean + q.mean.detach())
    at_mean = p.log_prob(mean) - q.log_prob(place)
    curvature = q.scale.square().reciprocal() - p.scale.square().reciprocal()
    return torch.where(covered, at_mean + 0.5 * curvature * p.variance, torch.inf).to(kind)


STEP = 0.15  # of the trapezoidal rule in logarithms of a distance
FAR = 230.0  # the logarithm from where on a t density is a power


def _nodes(like: Tensor) -> Tensor:
    """Return nodes in front of a batch shape, from -52 to 52."""
    nodes = STEP * torch.arange(-347, 348, dtype=torch.float64, device=like.device)
    return nodes.reshape(-1, *(1,) * like.dim())


@_with_torchs(StudentT, distributions.StudentT)
def _student_t(p: Any, q: Any) -> Tensor:
    r"""Return the integral of ``q - p + p ln(p / q)``, which is nowhere negative.

    In units of p, q lies around ``c``. By the trapezoidal rule, of three intervals: those outside
    of 0 and ``c``, in the logarithm of the distance, and that between, in the logit of its share.
    """
    (df, loc, scale), (other_df, other, other_scale) = (
        torch.broadcast_tensors(*_doubles(d, "df", "loc", "scale")) for d in (p, q)
    )
    ratio, shift = scale / other_scale, (loc - other) / other_scale
    centre = (-shift / ratio).detach()
    apart, moved = centre.abs(), shift - shift.detach() + (ratio - ratio.detach()) * centre
    s = _nodes(apart)
    # right and left of both: the nearer of 0 and c is on the side of c, or opposite to it
    log_v = s + (s - 30).exp()
    v, beyond = log_v.clamp(max=FAR).exp(), (log_v - FAR).clamp(min=0)
    log_outer = log_v + (s - 30).exp().log1p()
    log_share, log_rest = logsigmoid(s), logsigmoid(-s)
    side = torch.where(centre < 0, -torch.ones_like(centre), 1.0)
    none = torch.zeros_like(beyond)
    intervals = [
        (v + apart, v, beyond, log_outer),
        (-v, -v - apart, beyond, log_outer),
        (
            apart * log_share.exp(),
            -apart * log_rest.exp(),
            none,
            log_share + log_rest + apart.log(),
        ),
    ]
    total = torch.zeros_like(apart)
    for from_zero, from_centre, beyond, log_weight in intervals:
        place = ratio * side * from_centre + moved
        log_p = standard_log_density(side * from_zero, df) - (df + 1) * beyond
        log_q = standard_log_density(place, other_df) - (other_df + 1) * beyond + ratio.log()
        log_ratio = log_p - log_q
        near = log_ratio.abs() < 1
        of_p, of_q = (log_p + log_weight).exp(), (log_q + log_weight).exp()
        nearly = -of_p * log1p_minus(torch.where(near, -log_ratio, 0.0).expm1())
        apart_by = of_q - of_p + of_p * log_ratio
        total = total + STEP * torch.where(near, nearly, apart_by).sum(0)
    return total.to(p.df.dtype)


@register_kl(MixtureSameFamily, MixtureSameFamily)
@register_kl(MixtureSameFamily, Distribution)
@register_kl(Distribution, MixtureSameFamily)
def _mixture(p: Distribution, q: Distribution) -> Tensor:
    raise NotImplementedError(
        f"the divergence of a {type(p).__name__} from a {type(q).__name__} has no closed form: use "
        "a Monte Carlo estimate, (p.log_prob(z) - q.log_prob(z)).mean(0) with "
        "z = p.rsample((1000,))"
    )
