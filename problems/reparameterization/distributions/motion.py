"""How the variables of a family move with its parameters: ``dz/dphi = -(dF/dphi) / q``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributions
from torch.distributions import Distribution

from implicit_solvers.problems.reparameterization.distributions.beta import Beta
from implicit_solvers.problems.reparameterization.distributions.gamma import Gamma
from implicit_solvers.problems.reparameterization.distributions.student_t import StudentT
from implicit_solvers.problems.reparameterization.distributions.truncated import TruncatedNormal
from implicit_solvers.problems.reparameterization.tails import log_tails
from implicit_solvers.problems.special_functions.beta import beta_sample_derivatives
from implicit_solvers.problems.special_functions.gamma import gamma_sample_derivative
from implicit_solvers.problems.special_functions.log_tails import student_t_motion
from implicit_solvers.problems.special_functions.normal import log_normal_tails

__all__ = ["Motion", "Slope", "motion", "rebuild"]

Slope = Tensor | Callable[[], Tensor]


@dataclass(frozen=True)
class Motion:
    """What a mixture has to know of its components at a point.

    ``tails`` returns ``ln F`` and ``ln(1 - F)``; ``slopes`` holds ``dz/dphi`` for each parameter,
    in the order of ``arg_constraints``, or functions that return it.
    """

    tails: Callable[[], tuple[Tensor, Tensor]]
    slopes: Sequence[Slope]


@functools.singledispatch
def motion(distribution: Any, z: Tensor) -> Motion:
    """Return how variables of a family move at ``z``, evaluated where it is called for.

    The distribution is univariate, of one of the families registered here, and no subclass.

    Examples
    --------
    >>> q = distributions.Normal(torch.tensor(1.0), torch.tensor(2.0))
    >>> motion(q, torch.tensor(4.0)).slopes
    (tensor(1.), tensor(1.5000))
    """
    raise NotImplementedError(
        f"distribution is a {type(distribution).__name__}, whose samples' derivatives are only "
        "known from its CDF"
    )


def _with_log_tails(distribution: Any, z: Tensor, *slopes: Slope) -> Motion:
    return Motion(lambda: log_tails(distribution, z), slopes)


@motion.register(distributions.Cauchy)
@motion.register(distributions.Laplace)
def _of_location_and_scale(distribution: Any, z: Tensor) -> Motion:
    by_scale = (z - distribution.loc) / distribution.scale
    return _with_log_tails(distribution, z, torch.ones_like(z), by_scale)


@motion.register(distributions.Normal)
def _of_normal(distribution: Any, z: Tensor) -> Motion:
    x = (z - distribution.loc) / distribution.scale
    return Motion(lambda: log_normal_tails(x), (torch.ones_like(z), x))


@motion.register(distributions.Exponential)
def _of_rate(distribution: Any, z: Tensor) -> Motion:
    return _with_log_tails(distribution, z, -z / distribution.rate)


@motion.register(StudentT)
@motion.register(distributions.StudentT)
def _of_student_t(distribution: Any, z: Tensor) -> Motion:
    t = (z - distribution.loc) / distribution.scale
    moved = functools.cache(lambda: student_t_motion(t, distribution.df))
    slopes = [lambda: distribution.scale * moved()[2], torch.ones_like(z), t]
    return Motion(lambda: moved()[:2], slopes)


@motion.register(Gamma)
@motion.register(distributions.Gamma)
def _of_gamma(distribution: Any, z: Tensor) -> Motion:
    a, rate = distribution.concentration, distribution.rate
    by_a = lambda: gamma_sample_derivative(a, rate * z) / rate  # noqa: E731
    return _with_log_tails(distribution, z, by_a, -z / rate)


@motion.register(Beta)
@motion.register(distributions.Beta)
def _of_beta(distribution: Any, z: Tensor) -> Motion:
    a, b = distribution.concentration1, distribution.concentration0
    both = functools.cache(lambda: beta_sample_derivatives(a, b, z))
    return _with_log_tails(distribution, z, lambda: both()[0], lambda: both()[1])


@motion.register
def _of_truncated_normal(distribution: TruncatedNormal, z: Tensor) -> Motion:
    slopes = [lambda s=s: s().to(z.dtype) for s in distribution.slopes(z)]
    return _with_log_tails(distribution, z, *slopes)


def rebuild(distribution: Distribution) -> tuple[Callable[..., Any], tuple[Tensor, ...]] | None:
    """Return a function that makes a distribution of its parameters, and these.

    The parameters are in the order of `motion`. The result is None if it does not know the family.

    Examples
    --------
    >>> make, parameters = rebuild(distributions.Exponential(torch.tensor(2.0)))
    >>> make(*parameters)
    Exponential(rate: 2.0)
    """
    kind: Any = type(distribution)
    if kind not in motion.registry or kind is object:
        return None
    names = tuple(kind.arg_constraints)

    def make(*parameters: Tensor) -> Any:
        return kind(**dict(zip(names, parameters, strict=True)), validate_args=False)

    return make, tuple(getattr(distribution, name) for name in names)
