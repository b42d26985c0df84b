"""What a meta-gradient costs as the inner loop grows: implicit and unrolled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.func import grad

import implicit_solvers as ims
from implicit_solvers.problems import imaml
from implicit_solvers.problems.live_memory import LiveMemory

__all__ = ["Cost", "measure_costs"]

Parameters = dict[str, Tensor]
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Cost:
    """What one meta-gradient of one task costs: the method, its steps, bytes and seconds."""

    method: str
    inner_steps: int
    memory: int
    seconds: float


def measure_costs(
    loss: Loss,
    theta: Parameters,
    support: Any,
    query: Any,
    *,
    inner_steps: Sequence[int],
    lr: float,
    strength: float,
    cg_steps: int,
) -> Iterator[Cost]:
    """Measure the peak of live memory and the time of meta-gradients, one after the other."""
    adjoint = ims.ImplicitAdjoint(ims.CG(max_steps=cg_steps, rtol=None))
    for steps in inner_steps:
        solver = ims.GradientDescent(lr, max_steps=steps, rtol=None)

        def implicit(theta: Parameters, solver: Any = solver) -> Tensor:
            options = {"solver": solver, "adjoint": adjoint, "on_failure": "mask"}
            return imaml.meta_loss(loss, theta, support, query, strength=strength, **options)

        def unrolled(theta: Parameters, steps: int = steps) -> Tensor:
            return imaml.unrolled_meta_loss(
                loss, theta, support, query, steps=steps, lr=lr, strength=strength
            )

        yield _measure("iMAML", steps, grad(implicit), theta)
        yield _measure("MAML", steps, grad(unrolled), theta)


def _measure(
    method: str, steps: int, gradient: Callable[[Parameters], Parameters], theta: Parameters
) -> Cost:
    with LiveMemory() as memory:
        gradient(theta)
    start = time.perf_counter()
    gradient(theta)
    return Cost(method, steps, memory.peak, time.perf_counter() - start)
