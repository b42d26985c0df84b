"""Training by Adam in epochs, one model after the other, with checkpoints in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from implicit_solvers.problems.experiments.harness.run_folder import (
    Checkpoint,
    RunFolder,
    record,
    restoring,
)

State = dict[str, Any]
Run = TypeVar("Run")


@dataclass(frozen=True)
class Schedule:
    """How long a model is trained, with which rates and weights.

    ``warm_up`` is the share of the epochs in which the weight of a divergence grows from 0 to 1:
    otherwise posteriors that start close to the prior stay there. Source: Sønderby et al., "Ladder
    variational autoencoders" (2016), section 2.2.
    """

    epochs: int
    batch: int
    warm_up: float = 0.0

    def rate(self, epoch: int) -> float:
        """Return the factor of Adam's rates: 1, from the middle on a line that ends at 0.

        Examples
        --------
        >>> schedule = Schedule(epochs=100, batch=128)
        >>> schedule.rate(0), schedule.rate(75)
        (1.0, 0.5)
        """
        return min(1.0, 2 * (1 - epoch / self.epochs))

    def weight(self, epoch: int) -> float:
        """Return the divergence's weight.

        Examples
        --------
        >>> schedule = Schedule(epochs=100, batch=128, warm_up=0.4)
        >>> schedule.weight(0), schedule.weight(20), schedule.weight(50)
        (0.0, 0.5, 1.0)
        """
        return min(1.0, epoch / max(1.0, self.warm_up * self.epochs))


@dataclass
class Curve:
    """What happened so far, epoch by epoch: the mean of ``loss``'s second value, and ``test``."""

    train: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Training:
    """One model's training: what `fit` yields, and then numbers and strings to keep.

    The progress bar says its ``name``. The state of a module is ``kept`` too.
    """

    name: str
    epochs: Iterator[tuple[Curve, Callable[[], State]]]
    result: Callable[[], State]
    kept: nn.Module | None = None


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Tensor,
    loss: Callable[[Tensor, float], tuple[Tensor, Tensor]],
    test: Callable[[], float],
    schedule: Schedule,
    seed: int,
    state: State | None = None,
) -> Iterator[tuple[Curve, Callable[[], State]]]:
    """Minimize a loss; yield after each epoch.

    Every epoch draws from a seed of its own, so that a training that goes on from a state draws
    what an uninterrupted one does.

    Yields the curve so far, and a function that returns the state to go on from. ``loss`` maps a
    batch of ``data`` and the divergence's weight to the loss, and what the curve shows of each
    example; ``test`` returns a point of the curve of held-out data. The global generator is seeded.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    curve = Curve()
    if state is not None:
        with restoring(state):
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            curve = record(Curve, state["curve"])

    def current() -> State:
        parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        return {**parts, "curve": asdict(curve)}

    for epoch in range(len(curve.test), schedule.epochs):
        torch.manual_seed(1_000_003 * seed + epoch)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule.rate(epoch)
        total = 0.0
        for batch in data[torch.randperm(len(data))].split(schedule.batch):
            value, shown = loss(batch, schedule.weight(epoch))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total += shown.detach().sum().item()
        curve.train.append(total / len(data))
        curve.test.append(test())
        yield curve, current


def train_all(
    runs: Sequence[Run],
    begin: Callable[[Run, State | None], Training],
    epochs: int,
    checkpoint: Checkpoint,
    every: int,
    folder: RunFolder,
) -> State:
    """Train what the checkpoint has not; it is written ``every`` epochs and after each training.

    ``begin`` maps a run, and the state in which it was left, to its training. The return value has
    the ``"results"`` of all runs, with curve and seconds, and the states of the modules to keep,
    ``"kept"``, by the number of the run.
    """
    content: State = checkpoint.content or {"results": [], "kept": {}, "current": None}
    results, kept, state = content["results"], content["kept"], content["current"]
    with folder.progress() as progress:
        bar = progress.add_task("epochs", total=len(runs) * epochs, note="")
        for number in range(len(results), len(runs)):
            clock = time.perf_counter()
            before = state["seconds"] if state is not None else 0.0
            training, curve = begin(runs[number], state), Curve()
            for curve, current in training.epochs:
                done = len(curve.test)
                if done % every == 0 and done < epochs:
                    seconds = before + time.perf_counter() - clock
                    left = {**current(), "seconds": seconds}
                    checkpoint.save(results=results, kept=kept, current=left)
                note = f"{training.name}: {curve.test[-1]:.2f}"
                progress.update(bar, completed=number * epochs + done, note=note)
            result = {**training.result(), **asdict(curve)}
            results.append({**result, "seconds": before + time.perf_counter() - clock})
            if training.kept is not None:
                kept[number] = training.kept.state_dict()
            state = None
            checkpoint.save(results=results, kept=kept, current=None)
    checkpoint.content = {"results": results, "kept": kept, "current": None}
    return checkpoint.content


def taken(results: Sequence[State], *keys: str) -> dict[str, list[float]]:
    """Remove the seconds from results, which then are the same in every run; return them.

    Examples
    --------
    >>> results = [{"model": "rnn", "seconds": 4.5, "processor_seconds": 4.0}]
    >>> taken(results, "seconds", "processor_seconds"), results
    ({'seconds': [4.5], 'processor_seconds': [4.0]}, [{'model': 'rnn'}])
    """
    values = {key: [one[key] for one in results] for key in keys}
    for one in results:
        for key in keys:
            del one[key]
    return values


def restored(model: nn.Module, state: State) -> nn.Module:
    """Return the model with the parameters of a state that `train_all` kept."""
    with restoring(state):
        model.load_state_dict(state)
    return model
