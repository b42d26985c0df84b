"""``implicit-solvers imaml costs``: memory and time of a meta-gradient against inner steps."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Generator

import implicit_solvers as ims
from implicit_solvers.problems import imaml
from implicit_solvers.problems.experiments.data.glyphs import IMAGE_SIDE
from implicit_solvers.problems.experiments.harness.options import positive_integer, whole
from implicit_solvers.problems.experiments.harness.progress_bar import progress_bar
from implicit_solvers.problems.experiments.harness.run_folder import write_json
from implicit_solvers.problems.experiments.imaml.few_shot import (
    WAYS,
    classifier,
    initial_parameters,
)
from implicit_solvers.problems.live_memory import LiveMemory

__all__ = ["CostRow", "add_arguments", "measure_meta_gradients", "run"]

INNER_STEPS = tuple(2**k for k in range(9))
METHODS = ("iMAML", "MAML", "MAML, checkpointed", "first-order MAML")
LR, STRENGTH, CG_STEPS = 0.1, 2.0, 5


@dataclass(frozen=True)
class CostRow:
    """What one meta-gradient of one task costs.

    Attributes
    ----------
    method, inner_steps
        Which of `METHODS`, and the gradient steps of the task.
    memory
        Bytes of live tensors, at most.
    seconds
        Of the processor's time, which other processes on the machine do not add to.
    """

    method: str
    inner_steps: int
    memory: int
    seconds: float


def method_of(name: str, inner_steps: int) -> imaml.Method:
    """Return one of `METHODS`, all with the same steps on the same objective."""
    if name == "iMAML":
        solver = ims.GradientDescent(LR, max_steps=inner_steps, rtol=None)
        adjoint = ims.ImplicitAdjoint(ims.CG(max_steps=CG_STEPS, rtol=None))
        return imaml.Imaml(STRENGTH, solver, adjoint)
    if name == "first-order MAML":
        return imaml.FirstOrderMaml(LR, inner_steps, proximal=STRENGTH)
    return imaml.Maml(LR, inner_steps, checkpoint="check" in name, proximal=STRENGTH)


def measure_meta_gradients(
    inner_steps: Sequence[int] = INNER_STEPS,
    methods: Sequence[str] = METHODS,
    *,
    width: int = 32,
    queries: int = 10,
    rounds: int = 2,
    seed: int = 0,
) -> Iterator[CostRow]:
    """Measure meta-gradients of one 5-way 1-shot task with the convolutional network of the demo.

    The images are noise: neither memory nor time depends on what is in them.

    Parameters
    ----------
    inner_steps
        The numbers of gradient steps of a task.
    methods
        Some of `METHODS`.
    width
        Channels of the network.
    queries
        Query images of each class.
    rounds
        Timed calls, of which the fastest counts; memory is measured in a call of its own.
    seed
        Of the images and the network.
    """
    generator = Generator().manual_seed(seed)
    network = classifier(width)
    model, _ = imaml.functional_model(network)
    theta = initial_parameters(network, generator)

    def images_of_each(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (1, WAYS * count, 1, IMAGE_SIDE, IMAGE_SIDE)
        labels = torch.arange(WAYS).repeat_interleave(count).unsqueeze(0)
        return torch.rand(shape, generator=generator), labels

    data = (images_of_each(1), images_of_each(queries))
    for steps in inner_steps:
        for name in methods:
            method = method_of(name, steps)

            def call(method: imaml.Method = method) -> imaml.MetaGradient:
                return method.meta_gradient(model, F.cross_entropy, theta, *data)

            with LiveMemory() as memory:
                call()
            seconds = []
            for _ in range(rounds):
                start = time.process_time()
                call()
                seconds.append(time.process_time() - start)
            yield CostRow(name, steps, memory.peak, min(seconds))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--out", type=Path, default=Path("runs/imaml-costs"), help="folder of the results"
    )
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="of the network")
    parser.add_argument(
        "--width", type=positive_integer, default=32, metavar="N", help="channels of the network"
    )
    parser.add_argument(
        "--inner-steps",
        type=positive_integer,
        nargs="+",
        default=list(INNER_STEPS),
        metavar="N",
        help="gradient steps of a task, one or more numbers",
    )
    parser.add_argument("--threads", type=positive_integer, default=1, metavar="N", help="of torch")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from implicit_solvers.problems.experiments.imaml.costs_figure import draw_costs_figure

    start, console, out = time.perf_counter(), Console(), arguments.out
    torch.set_num_threads(arguments.threads)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows: list[CostRow] = []
    with progress_bar(console) as progress:
        total = len(arguments.inner_steps) * len(METHODS)
        bar = progress.add_task("meta-gradients", total=total, note="")
        for row in measure_meta_gradients(
            arguments.inner_steps, width=arguments.width, seed=arguments.seed
        ):
            rows.append(row)
            progress.update(bar, advance=1, note=f"{row.inner_steps} inner steps")
    draw_costs_figure(out / "costs.png", rows)
    metrics = {
        "width": arguments.width,
        "threads": arguments.threads,
        "rows": [asdict(row) for row in rows],
        "timing": {"total": time.perf_counter() - start},
    }
    write_json(out / "metrics.json", metrics)
    console.print(f"wrote {out / 'costs.png'} and {out / 'metrics.json'}")
    return 0
