"""R2D2: a ridge regression on learned features, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from implicit_solvers.problems.imaml.meta_gradient import (
    Evaluate,
    OverTasks,
    TaskGradients,
    gradient_of_each,
    without_solver,
)
from implicit_solvers.problems.imaml.method import Criterion, Method, Model, Predictor

__all__ = ["R2D2", "ridge_weights"]

LOG_RIDGE, SCALE, BIAS = "r2d2.log_ridge", "r2d2.scale", "r2d2.bias"
KEYS = (LOG_RIDGE, SCALE, BIAS)


def ridge_weights(features: Tensor, targets: Tensor, ridge: Tensor | float) -> Tensor:
    """Return ``W = (X^T X + ridge I)^-1 X^T Y``, which minimizes ``|X W - Y|² + ridge |W|²``.

    The system solved is the smaller one: with fewer examples than features, by Woodbury,
    ``W = X^T (X X^T + ridge I)^-1 Y``. The features ``X`` are ``(n, d)``, the targets ``Y (n, k)``.
    """
    n, d = features.shape
    wide = n < d
    gram = features @ features.mT if wide else features.mT @ features
    system = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky_ex(system).L
    if wide:
        return features.mT @ torch.cholesky_solve(targets, factor)
    return torch.cholesky_solve(features.mT @ targets, factor)


@dataclass(frozen=True)
class R2D2(Method):
    """Ridge regression on features that the model gives: the inner problem has a closed form.

    ``W = (X^T X + ridge I)^-1 X^T Y`` is the ridge solution on the support features ``X`` and
    targets ``Y``, the outputs for features ``X'`` are ``scale X' W + bias``, and ``theta`` descends
    the query loss through all of it.

    Parameters
    ----------
    ways
        The number of classes: integer targets ``(n,)`` become one-hot rows. None: the targets are
        floating, ``(n, k)`` or ``(n,)``.
    ridge
        The ridge, and where its learning begins.
    scale, bias
        Of the outputs, and where their learning begins.

    Raises
    ------
    ValueError
        If ``ridge`` or ``scale`` is not positive and finite, or ``ways`` no number of classes; when
        used, if the targets do not fit ``ways``, or the model does not return features ``(n, d)``.

    Notes
    -----
    ``model(theta, x)`` returns features ``(n, d)``, floating. What `extend` adds to ``theta``,
    under the keys ``r2d2.log_ridge``, ``r2d2.scale`` and ``r2d2.bias``, is learned with the
    features; the model does not see it. Without those keys the fields hold, unlearned.

    Source: Bertinetto, Henriques, Torr and Vedaldi, "Meta-learning with differentiable closed-form
    solvers" (2019).

    Examples
    --------
    >>> method = R2D2(ridge=1.0)
    >>> features, criterion = (
    ...     lambda theta, x: theta["w"] * x,
    ...     lambda out, y: (out - y).square().mean(),
    ... )
    >>> theta = method.extend({"w": torch.tensor(1.0)})
    >>> predict = method.adapt(features, criterion, theta, (torch.eye(2), torch.tensor([2.0, 4.0])))
    >>> predict(torch.eye(2))
    tensor([1., 2.])
    """

    ways: int | None = None
    ridge: float = 1.0
    scale: float = 1.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        for name in ("ridge", "scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"R2D2 has {name}={getattr(self, name)}: pass a positive number")
        if self.ways is not None and (not isinstance(self.ways, int) or self.ways < 2):
            raise ValueError(f"R2D2 has ways={self.ways!r}: pass the number of classes, or None")

    def extend(self, theta: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return ``theta`` with the parameters of the head, to be learned too.

        Examples
        --------
        >>> sorted(R2D2().extend({"w": torch.zeros(2)}))
        ['r2d2.bias', 'r2d2.log_ridge', 'r2d2.scale', 'w']
        """
        like = next(iter(theta.values()))
        values = {LOG_RIDGE: math.log(self.ridge), SCALE: self.scale, BIAS: self.bias}
        head = {
            name: torch.tensor(value, dtype=like.dtype, device=like.device)
            for name, value in values.items()
        }
        return {**theta, **head}

    def adapt(self, model: Model, criterion: Criterion, theta: Any, support: Any) -> Predictor:
        """Return the predictor with the ridge solution on the support; as in `Method`."""
        head = theta if isinstance(theta, dict) else {}
        parameters = theta
        if any(name in head for name in KEYS):
            parameters = {name: value for name, value in theta.items() if name not in KEYS}
        x, y = support
        targets, squeeze = self._targets(y)
        features = _features(model(parameters, x))
        ridge = head[LOG_RIDGE].exp() if LOG_RIDGE in head else self.ridge
        W = ridge_weights(features, targets.to(features.dtype), ridge)

        def predict(x: Any) -> Tensor:
            out = head.get(SCALE, self.scale) * (_features(model(parameters, x)) @ W)
            out = out + head.get(BIAS, self.bias)
            return out.squeeze(-1) if squeeze else out

        return predict

    def _tasks(self, model: Model, criterion: Criterion, theta: Any) -> Evaluate:
        """Return the gradients through the closed form."""

        def query_loss(theta: Any, support: Any, query: Any) -> tuple[Tensor, ...]:
            x, y = query
            return (criterion(self.adapt(model, criterion, theta, support)(x), y),)

        def evaluate(over_tasks: OverTasks, supports: Any, queries: Any) -> TaskGradients:
            gradient, loss = gradient_of_each(over_tasks, query_loss, theta, supports, queries)
            return without_solver(gradient, loss)

        return evaluate

    def _targets(self, y: Tensor) -> tuple[Tensor, bool]:
        """Return the rows to fit, and whether outputs lose their last dimension."""
        if self.ways is not None:
            if y.is_floating_point() or y.dim() != 1:
                raise ValueError(
                    f"targets are {y.dtype} of shape {tuple(y.shape)} for ways={self.ways}: pass "
                    "integer classes (n,), or ways=None for regression"
                )
            return F.one_hot(y, self.ways), False
        if not y.is_floating_point():
            raise ValueError(f"targets are {y.dtype}: pass ways, the number of classes")
        return (y.unsqueeze(-1), True) if y.dim() == 1 else (y, False)


def _features(out: Tensor) -> Tensor:
    if out.dim() != 2:
        raise ValueError(
            f"the model returned {tuple(out.shape)}: R2D2 needs features of shape (examples, "
            "features), flatten them"
        )
    return out
