"""Meta-training with checkpoints: an interrupted run goes on as if nothing had happened."""

from __future__ import annotations

import functools
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.imaml.configuration import Configuration
from implicit_solvers.problems.experiments.imaml.problem import Problem, task_scores
from implicit_solvers.problems.experiments.imaml.processes import decided_by_first
from implicit_solvers.problems.imaml import Batching, BatchingChoice, faster_batching
from implicit_solvers.problems.imaml.distributed import distributed_meta_gradient
from implicit_solvers.problems.imaml.meta_gradient import failures

TIMED_TASKS = 4


@dataclass
class History:
    """What happened so far. None stands for a number that a method does not have.

    Of each meta-step: the mean query loss before it, the mean norm of the inner objective's
    gradient, the mean relative residual of the outer solve (that of every task, if it is followed
    closely). ``left_out`` has pairs of a meta-step and a task, ``failures`` how many tasks were
    left out and how many were kept, by how a solve failed; ``validation`` pairs of a number of
    meta-steps and the score after them; ``batching`` is "vmap" or "loop".
    """

    loss: list[float | None] = field(default_factory=list)
    inner_residual: list[float | None] = field(default_factory=list)
    adjoint_residual: list[float | None] = field(default_factory=list)
    task_residuals: list[list[float]] = field(default_factory=list)
    left_out: list[list[int]] = field(default_factory=list)
    failures: dict[str, dict[str, int]] = field(
        default_factory=lambda: {"left out": {}, "kept": {}}
    )
    validation: list[list[float]] = field(default_factory=list)
    batching: str | None = None
    batching_seconds: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    processor_seconds: float = 0.0

    @property
    def steps(self) -> int:
        """The meta-steps made."""
        return len(self.loss)


def meta_train(
    problem: Problem,
    configuration: Configuration,
    checkpoint: harness.Checkpoint | None,
    *,
    checkpoint_every: int = 10,
    tasks_at_once: int | None = None,
    closely: bool = False,
    report: Callable[[History], None] = lambda history: None,
) -> tuple[dict[str, Tensor], History]:
    """Descend the meta-gradients by Adam, with rates that fall to zero along a cosine."""
    theta = {name: value.clone().requires_grad_() for name, value in problem.first.items()}
    optimizer = _optimizer(theta, configuration)
    history = History()
    if checkpoint is not None and checkpoint.content is not None:
        content = checkpoint.content
        with torch.no_grad(), harness.restoring(content):
            for name, value in theta.items():
                value.copy_(content["theta"][name])
            optimizer.load_state_dict(content["optimizer"])
            history = harness.record(History, content["history"])
    if history.batching is None:
        _choose_batching(history, problem, configuration, tasks_at_once)
    batching = Batching(history.batching)
    validate_every = math.ceil(configuration.steps / configuration.validations)
    count = configuration.meta_batch

    def validate() -> None:
        numbers = range(configuration.validation_tasks)
        scores = task_scores(
            problem, _detached(theta), problem.validation, numbers, batching=batching
        )
        history.validation.append([history.steps, float(scores.mean())])

    start, processor = time.perf_counter(), time.process_time()
    if closely and not history.validation:
        validate()
    while history.steps < configuration.steps:
        report(history)
        step = history.steps
        tasks = problem.train.batch(range(count * step, count * (step + 1)))
        result = distributed_meta_gradient(
            problem.method,
            problem.model,
            problem.criterion,
            _detached(theta),
            (tasks.support_x, tasks.support_y),
            (tasks.query_x, tasks.query_y),
            tasks_at_once=tasks_at_once,
            batching=batching,
        )
        # Adam moves on a gradient of zero too, by its memory of earlier ones
        if not result.left_out.all():
            for name, value in theta.items():
                value.grad = result.gradient[name]
            for group in optimizer.param_groups:
                group["lr"] = group["highest_lr"] * _cosine(step / configuration.steps)
            optimizer.step()
        history.loss.append(_mean(result.loss))
        history.inner_residual.append(_mean(result.inner_residual))
        history.adjoint_residual.append(_mean(result.adjoint_residual))
        if closely:
            history.task_residuals.append(result.adjoint_residual.tolist())
        for task in result.left_out.nonzero().flatten().tolist():
            history.left_out.append([step, count * step + task])
        for kind, counts in history.failures.items():
            counts |= Counter(counts) + failures(result, left_out=kind == "left out")
        last = history.steps == configuration.steps
        if last or history.steps % validate_every == 0:
            validate()
        now, processed = time.perf_counter(), time.process_time()
        history.seconds += now - start
        history.processor_seconds += processed - processor
        start, processor = now, processed
        if checkpoint is not None and (last or history.steps % checkpoint_every == 0):
            checkpoint.save(
                theta=_detached(theta), optimizer=optimizer.state_dict(), history=asdict(history)
            )
    report(history)
    return _detached(theta), history


def _choose_batching(
    history: History, problem: Problem, configuration: Configuration, tasks_at_once: int | None
) -> None:
    """Set the history's batching: what the configuration says, or the faster one on this machine.

    It stays in the checkpoint, because the two differ in the last bits.
    """
    if configuration.batching != "auto":
        history.batching = configuration.batching
        return
    count = min(configuration.meta_batch, tasks_at_once or TIMED_TASKS, TIMED_TASKS)

    def choose() -> BatchingChoice:
        tasks = problem.train.batch(range(count))
        meta_gradient = functools.partial(
            problem.method.meta_gradient, problem.model, problem.criterion, problem.first
        )
        supports, queries = tasks[:2], tasks[2:]
        return faster_batching(meta_gradient, supports, queries, rounds=1)

    choice = decided_by_first(choose)
    history.batching = choice.batching.value
    history.batching_seconds = {"vmap": choice.vmap_seconds, "loop": choice.loop_seconds}


def _optimizer(theta: dict[str, Tensor], configuration: Configuration) -> torch.optim.Adam:
    """Return Adam with faster convolutions: their scale is large (`initial_parameters`)."""
    groups = []
    for rate, convolutions in ((configuration.convolution_lr, True), (configuration.lr, False)):
        values = [value for value in theta.values() if (value.dim() == 4) is convolutions]
        if values:
            groups.append({"params": values, "highest_lr": rate})
    return torch.optim.Adam(groups)


def _cosine(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


def _mean(values: Tensor) -> float | None:
    """Return the mean of the finite values; None if there are none."""
    finite = values[torch.isfinite(values)]
    return float(finite.double().mean()) if len(finite) else None


def _detached(theta: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in theta.items()}
