"""The incomplete beta function and its derivatives, each by its partial derivatives.

Functions of ``(a, b, x, t, w)``, where ``x = sigmoid(t)`` and ``w = b x - a (1 - x)`` are connected
to the graph too: the derivatives are taken by a, b and t, and x and w are there for their
precision.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.special_functions import beta_evaluation as evaluation
from implicit_solvers.problems.special_functions.polygamma import (
    digamma_difference,
    trigamma,
    trigamma_difference,
)

__all__ = [
    "edge_slope",
    "imbalance",
    "imbalance_of_logit",
    "log_lower",
    "log_upper",
    "lower",
    "slopes",
    "upper",
]


def _only_at_edges(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Evaluate ``function(a, b)`` where ``edge`` is not 1; the rest is 0."""

    def value(a: Tensor, b: Tensor, edge: Tensor) -> Tensor:
        at = edge != 1
        out = torch.zeros_like(a)
        out[at] = function(a[at], b[at])
        return out

    return value


# At x = 0: -dt/db = (psi(a + b) - psi(b)) / a, and its derivatives.
edge_slope_by_a = ims.elementwise_function(
    _only_at_edges(lambda a, b: (trigamma(a + b) - digamma_difference(b, a) / a) / a),
    None,
    name="second derivative of a beta variable at an edge",
)
edge_slope_by_b = ims.elementwise_function(
    _only_at_edges(lambda a, b: trigamma_difference(b, a) / a),
    None,
    name="second derivative of a beta variable at an edge",
)
edge_slope = ims.elementwise_function(
    _only_at_edges(lambda a, b: digamma_difference(b, a) / a),
    lambda _, a, b, edge: [
        lambda: edge_slope_by_a(a, b, edge),
        lambda: edge_slope_by_b(a, b, edge),
        None,
    ],
    name="derivative of a beta variable at an edge",
)
imbalance = ims.elementwise_function(
    lambda a, b, x: evaluation.imbalance(a, b, x)[0],
    lambda w, a, b, x: [x - 1, x, a + b],
    name="b x - a y",
)
imbalance_of_logit = ims.elementwise_function(
    lambda a, b, t: evaluation.imbalance_of_logit(a, b, t)[0],
    lambda w, a, b, t: [-(-t).sigmoid(), t.sigmoid(), (a + b) * t.sigmoid() * (-t).sigmoid()],
    name="b x - a y",
)
scores = ims.elementwise_function(
    evaluation.scores,
    lambda _, a, b, x, t, w: [
        lambda: (trigamma(a + b) - trigamma(a), trigamma(a + b)),
        lambda: (trigamma(a + b), trigamma(a + b) - trigamma(b)),
        None,
        lambda: ((-t).sigmoid(), -t.sigmoid()),
        None,
    ],
    name="scores of the beta density",
)


def _log_density_partials(_: Tensor, *args: Tensor) -> list[Any]:
    both = functools.cache(lambda: scores(*args))
    return [lambda: both()[0], lambda: both()[1], None, -args[-1], None]


log_density = ims.elementwise_function(
    lambda *args: evaluation.log_density(*args)[0],
    _log_density_partials,
    name="logarithm of the beta density",
)
curvatures = ims.elementwise_function(
    evaluation.curvatures, None, name="second derivatives of a beta variable"
)


def _slope_partials(
    slope: tuple[Tensor, Tensor], a: Tensor, b: Tensor, x: Tensor, t: Tensor, w: Tensor
) -> list[Any]:
    second = functools.cache(lambda: curvatures(a, b, x, t, w))

    def by_logit() -> tuple[Tensor, ...]:
        return tuple(w * d - s for d, s in zip(slope, scores(a, b, x, t, w), strict=True))

    return [lambda: second()[0::2], lambda: second()[1::2], None, by_logit, None]


slopes = ims.elementwise_function(
    evaluation.slopes, _slope_partials, name="derivatives of a beta variable"
)


def _cdf_partials(sign: float, of_log: bool) -> Callable[..., list[Any]]:
    """Return ``partials`` of I (sign 1), 1 - I (sign -1), or of their logarithms."""

    def partials(value: Tensor, a: Tensor, b: Tensor, x: Tensor, t: Tensor, w: Tensor) -> list[Any]:
        rate = sign * (log_density(a, b, x, t, w) - (value if of_log else 0.0)).exp()
        both = functools.cache(lambda: slopes(a, b, x, t, w))
        return [lambda: -rate * both()[0], lambda: -rate * both()[1], None, rate, None]

    return partials


lower, upper, log_lower, log_upper = (
    ims.elementwise_function(
        lambda *args, i=i: evaluation.tails(*args)[i], _cdf_partials(sign, of_log), name=name
    )
    for i, (name, sign, of_log) in enumerate(
        [
            ("betainc", 1.0, False),
            ("betaincc", -1.0, False),
            ("log_betainc", 1.0, True),
            ("log_betaincc", -1.0, True),
        ]
    )
)
