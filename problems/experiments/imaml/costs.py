"""``implicit-solvers imaml costs``: memory and time of a meta-gradient against inner steps."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator

import implicit_solvers as ims
from implicit_solvers.problems import imaml
from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.data.glyphs import IMAGE_SIDE
from implicit_solvers.problems.experiments.harness import option
from implicit_solvers.problems.experiments.imaml.figures import draw_costs
from implicit_solvers.problems.imaml.few_shot_networks import classifier, initial_parameters
from implicit_solvers.testing.live_memory import LiveMemory

METHODS = ("iMAML", "MAML", "MAML, checkpointed", "first-order MAML")
WAYS = 5


@dataclass(frozen=True)
class Configuration:
    """What is measured."""

    seed: int = option(0, "of the network and the images", read=harness.WHOLE)
    width: int = option(32, "channels of the network")
    inner_steps: list[int] = option([2**k for k in range(9)], "gradient steps of a task")


@dataclass(frozen=True)
class CostRow:
    """What one meta-gradient of one task costs."""

    method: str  # of `METHODS`
    inner_steps: int
    memory: int  # bytes of live tensors, at most
    seconds: float  # of the processor's time, to which other processes do not add


def method_of(
    name: str,
    inner_steps: int,
    *,
    lr: float = 0.1,
    strength: float = 2.0,
    cg_steps: int | None = 5,
    **options: Any,
) -> imaml.Method:
    """Return one of `METHODS`, all with the same steps; CG goes to a tolerance without a budget."""
    if name == "iMAML":
        solver = ims.GradientDescent(lr, max_steps=inner_steps, rtol=None)
        cg = ims.CG() if cg_steps is None else ims.CG(max_steps=cg_steps, rtol=None)
        return imaml.Imaml(strength, solver, ims.ImplicitAdjoint(cg), **options)
    if name == "first-order MAML":
        return imaml.FirstOrderMaml(lr, inner_steps, proximal=strength)
    return imaml.Maml(lr, inner_steps, checkpoint="check" in name, proximal=strength)


def noise_task(width: int, queries: int = 10, seed: int = 0) -> tuple[Any, Any, Any, Any]:
    """Return a 5-way 1-shot task for the demo's network: model, loss, parameters, tensors.

    The images are noise: neither memory nor time depends on what is in them.
    """
    generator = Generator().manual_seed(seed)
    network = classifier(IMAGE_SIDE, 1, width, WAYS)
    model, _ = imaml.functional_model(network)
    theta = initial_parameters(network, generator)

    def images_of_each(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (1, WAYS * count, 1, IMAGE_SIDE, IMAGE_SIDE)
        labels = torch.arange(WAYS).repeat_interleave(count).unsqueeze(0)
        return torch.rand(shape, generator=generator), labels

    return model, F.cross_entropy, theta, (images_of_each(1), images_of_each(queries))


def measured(method: imaml.Method, *arguments: Any) -> imaml.MetaGradient:
    """Return a meta-gradient without a warning, whatever CG's estimate in it is worth."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ims.ConvergenceWarning)
        return method.meta_gradient(*arguments)


def measure_meta_gradients(
    model: imaml.Model,
    criterion: imaml.Criterion,
    theta: Any,
    data: tuple[Any, Any],
    inner_steps: Sequence[int],
    methods: Sequence[str] = METHODS,
    *,
    rounds: int = 2,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[CostRow]:
    """Measure meta-gradients of one task."""
    for steps in inner_steps:
        for name in methods:
            method = method_of(name, steps, **settings)
            with LiveMemory() as memory:
                measured(method, model, criterion, theta, *data)
            seconds = []
            for _ in range(rounds):
                start = time.process_time()
                measured(method, model, criterion, theta, *data)
                seconds.append(time.process_time() - start)
            yield CostRow(name, steps, memory.peak, min(seconds))


def _run(arguments: argparse.Namespace) -> int:
    c = harness.configuration_of(arguments, Configuration)
    with harness.RunFolder.of(arguments, asdict(c)) as folder:
        task, total = noise_task(c.width, seed=c.seed), len(c.inner_steps) * len(METHODS)
        costs = measure_meta_gradients(*task, c.inner_steps)
        rows = folder.collect("meta-gradients", costs, total)
        draw_costs(folder.path / "costs.png", rows)
        metrics = {"width": c.width, "threads": arguments.threads}
        folder.finish({**metrics, "rows": [asdict(row) for row in rows]})
    return 0


COMMAND = harness.Command(
    help="memory and time of a meta-gradient against inner steps (minutes)",
    description="Measure the memory of live tensors and the time of one task's meta-gradient, of "
    "iMAML and of MAML, against inner steps.",
    run=_run,
    out="runs/imaml-costs",
    folder={"resume": False, "threads": True},
    configuration=Configuration,
)
