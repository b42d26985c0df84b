"""Training by Adam in epochs, one model after the other, with checkpoints in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from torch import Tensor, nn

from implicit_solvers.problems.experiments.harness.progress_bar import progress_bar
from implicit_solvers.problems.experiments.harness.run_folder import save_checkpoint

__all__ = ["Curve", "Schedule", "Training", "fit", "train_all"]

State = dict[str, Any]
Run = TypeVar("Run")


@dataclass(frozen=True)
class Schedule:
    """How a variational model is trained.

    Parameters
    ----------
    epochs
        Passes over the data.
    batch
        Examples in a step of Adam.
    warm_up
        The share of the epochs in which the weight of the divergence grows from 0 to 1: otherwise
        posteriors that start close to the prior stay there. Source: Sønderby et al., "Ladder
        variational autoencoders" (2016), section 2.2.
    """

    epochs: int
    batch: int
    warm_up: float

    def rate(self, epoch: int) -> float:
        """Return the factor of Adam's rates: 1, from the middle on a line that ends at 0.

        Examples
        --------
        >>> schedule = Schedule(epochs=100, batch=128, warm_up=0.4)
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
    """What happened so far, epoch by epoch.

    Attributes
    ----------
    train
        The mean ELBO of an example, while it was trained on.
    test
        What is measured on held-out data after the epoch.
    """

    train: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)


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

    Parameters
    ----------
    model, optimizer
        Are changed.
    data
        ``(examples, ...)``.
    loss
        Maps a batch and the divergence's weight to the loss and the ELBO of each example.
    test
        Returns a point of the curve of held-out data.
    schedule
        Epochs and rates.
    seed
        Of the order of examples and of samples: the global generator is seeded with it.
    state
        Where to go on: what the second value that is yielded returned.

    Yields
    ------
    tuple
        The curve so far, and a function that returns the state.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    curve = Curve()
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        curve = Curve(**state["curve"])

    def current() -> State:
        parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        return {**parts, "curve": asdict(curve)}

    for epoch in range(len(curve.test), schedule.epochs):
        torch.manual_seed(1_000_003 * seed + epoch)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule.rate(epoch)
        total = 0.0
        for batch in data[torch.randperm(len(data))].split(schedule.batch):
            value, elbo = loss(batch, schedule.weight(epoch))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total += elbo.detach().sum().item()
        curve.train.append(total / len(data))
        curve.test.append(test())
        yield curve, current


@dataclass(frozen=True)
class Training:
    """One model's training.

    Parameters
    ----------
    name
        What the progress bar says.
    epochs
        What `fit` returns.
    result
        Returns what is to be kept when it has ended: numbers and strings.
    kept
        A module whose state is to be kept too.
    """

    name: str
    epochs: Iterator[tuple[Curve, Callable[[], State]]]
    result: Callable[[], dict[str, Any]]
    kept: nn.Module | None = None


def train_all(
    runs: Sequence[Run],
    begin: Callable[[Run, State | None], Training],
    configuration: dict[str, Any],
    path: Path,
    checkpoint: State | None,
    checkpoint_every: int,
    console: Console,
) -> State:
    """Train what the checkpoint has not.

    Parameters
    ----------
    runs
        What to train, one after the other.
    begin
        Maps one of them, and the state in which it was left, to its training.
    configuration
        Goes into the checkpoint; its ``"epochs"`` are those of each run.
    path
        Where checkpoints go, every ``checkpoint_every`` epochs and after each training.
    checkpoint
        Where to go on, as `run_folder.load_checkpoint` returned it.
    console
        Of the progress bar.

    Returns
    -------
    dict
        The last checkpoint: ``"results"``, one for each run, with its curve and seconds, and
        ``"kept"``, the states of the modules to keep, by the number of the run.
    """
    start: State = {"configuration": configuration, "results": [], "kept": {}, "current": None}
    content = start if checkpoint is None else checkpoint
    results, epochs = content["results"], configuration["epochs"]
    with progress_bar(console) as progress:
        bar = progress.add_task("epochs", total=len(runs) * epochs, note="")
        for number in range(len(results), len(runs)):
            state, clock = content["current"], time.perf_counter()
            before = state["seconds"] if state is not None else 0.0
            training = begin(runs[number], state)
            curve = Curve()
            for curve, current in training.epochs:
                done = len(curve.test)
                if done % checkpoint_every == 0 and done < epochs:
                    seconds = before + time.perf_counter() - clock
                    content["current"] = {**current(), "seconds": seconds}
                    save_checkpoint(path, content)
                note = f"{training.name}: {curve.test[-1]:.2f}"
                progress.update(bar, completed=number * epochs + done, note=note)
            result = {**training.result(), **asdict(curve)}
            result["seconds"] = before + time.perf_counter() - clock
            results.append(result)
            if training.kept is not None:
                content["kept"][number] = training.kept.state_dict()
            content["current"] = None
            save_checkpoint(path, content)
    return content
