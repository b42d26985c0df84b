"""``implicit-solvers imaml truth``: meta-gradients against the exact one, on quadratic tasks."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from implicit_solvers.problems import imaml
from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.harness import option
from implicit_solvers.problems.experiments.imaml.costs import measured, method_of
from implicit_solvers.problems.experiments.imaml.figures import draw_truth

INNER_STEPS = tuple(2**k for k in range(11))
CG_STEPS = (2, 5, 10, 20)
TOLERANCE = "iMAML, CG to tolerance"


@dataclass(frozen=True)
class Configuration:
    """What is measured."""

    seed: int = option(0, "of the tasks", read=harness.WHOLE)
    tasks: int = option(8, "in a meta-gradient")
    dimension: int = option(50, "of a task")
    inner_steps: list[int] = option(list(INNER_STEPS), "gradient steps of a task")


@dataclass(frozen=True)
class Spectrum:
    """Curvatures of the tasks' loss, and the strength of the regularization."""

    lowest: float
    highest: float
    strength: float  # above ``-lowest``, so that each task has one solution
    logarithmic: bool = False  # whether curvatures are spaced evenly in their logarithm

    @property
    def lr(self) -> float:
        """The step length with which gradient descent converges fastest."""
        return 2 / (self.lowest + self.highest + 2 * self.strength)

    def curvatures(self, dimension: int) -> Tensor:
        """Return the eigenvalues of a task's Hessian ``(dimension,)``, float64."""
        if self.logarithmic:
            low, high = math.log(self.lowest), math.log(self.highest)
            return torch.linspace(low, high, dimension, dtype=torch.float64).exp()
        return torch.linspace(self.lowest, self.highest, dimension, dtype=torch.float64)


SPECTRA = {
    "convex": Spectrum(0.1, 4.0, strength=2.0),
    "ill-conditioned": Spectrum(0.01, 100.0, strength=1.0, logarithmic=True),
    "indefinite": Spectrum(-1.0, 4.0, strength=2.0),
}


@dataclass(frozen=True)
class TruthRow:
    """One meta-gradient's relative error ``|g - exact| / |exact|``."""

    spectrum: str
    method: str
    inner_steps: int
    error: float


@dataclass(frozen=True)
class QuadraticTasks:
    """Tasks with ``L(phi, support) = phi^T A phi / 2 - c^T phi`` and the query ``|phi - y|²/2``."""

    theta: Tensor  # the meta-parameters ``(n,)``
    supports: tuple[Tensor, Tensor]  # ``(A, c)`` of all tasks
    queries: tuple[Tensor, Tensor]  # ``(I, y)`` of all tasks
    exact: Tensor  # mean strength (A + strength)^-1 (phi - y) at the minima phi


def model(phi: Tensor, A: Tensor) -> Tensor:
    """Return ``(phi, A phi)``, of which `criterion` makes a quadratic function."""
    return torch.stack([phi, A @ phi])


def criterion(out: Tensor, c: Tensor) -> Tensor:
    """Return ``phi^T A phi / 2 - c^T phi``."""
    phi, product = out
    return phi @ product / 2 - c @ phi


def quadratic_tasks(
    spectrum: Spectrum, tasks: int, dimension: int, generator: Generator
) -> QuadraticTasks:
    """Return random tasks, whose Hessians have that spectrum in random bases."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(normal(tasks, dimension, dimension)).Q
    A = (basis * spectrum.curvatures(dimension)) @ basis.mT
    A = (A + A.mT) / 2
    c, y, theta = normal(tasks, dimension), normal(tasks, dimension), normal(dimension)
    eye = torch.eye(dimension, dtype=torch.float64)
    factor = torch.linalg.cholesky(A + spectrum.strength * eye)
    phi = torch.cholesky_solve((c + spectrum.strength * theta).unsqueeze(-1), factor)
    slope = spectrum.strength * torch.cholesky_solve(phi - y.unsqueeze(-1), factor)
    return QuadraticTasks(theta, (A, c), (eye.expand_as(A), y), slope.squeeze(-1).mean(0))


def methods_of(
    spectrum: Spectrum, inner_steps: int, cg_steps: Sequence[int]
) -> dict[str, imaml.Method]:
    """Return the methods compared, all with the same steps on the same objective."""

    def method(name: str, cg_steps: int | None = None) -> imaml.Method:
        own: Any = {"lr": spectrum.lr, "strength": spectrum.strength, "on_failure": "warn"}
        return method_of(name, inner_steps, cg_steps=cg_steps, **own)

    methods = {f"iMAML, {steps} CG steps": method("iMAML", steps) for steps in cg_steps}
    methods[TOLERANCE] = method("iMAML")
    return methods | {name: method(name) for name in ("MAML", "first-order MAML")}


def measure_truth(
    spectra: dict[str, Spectrum] | None = None,
    inner_steps: Sequence[int] = INNER_STEPS,
    cg_steps: Sequence[int] = CG_STEPS,
    *,
    tasks: int = 8,
    dimension: int = 50,
    seed: int = 0,
) -> Iterator[TruthRow]:
    """Measure the error of each method's meta-gradient against the number of inner steps.

    Examples
    --------
    >>> rows = list(measure_truth(inner_steps=[64], cg_steps=[2], tasks=1, dimension=3))
    >>> [row.method for row in rows if row.spectrum == "convex" and row.error < 1e-8]
    ['iMAML, CG to tolerance', 'MAML']
    """
    for name, spectrum in (SPECTRA if spectra is None else spectra).items():
        data = quadratic_tasks(spectrum, tasks, dimension, Generator().manual_seed(seed))
        parts = (data.theta, data.supports, data.queries)
        for steps in inner_steps:
            for label, method in methods_of(spectrum, steps, cg_steps).items():
                gradient = measured(method, model, criterion, *parts).gradient
                error = (gradient - data.exact).norm() / data.exact.norm()
                yield TruthRow(name, label, steps, float(error))


def _run(arguments: argparse.Namespace) -> int:
    c = harness.configuration_of(arguments, Configuration)
    with harness.RunFolder.of(arguments, asdict(c)) as folder:
        total = len(SPECTRA) * len(c.inner_steps) * (len(CG_STEPS) + 3)
        sizes: Any = {"tasks": c.tasks, "dimension": c.dimension}
        errors = measure_truth(inner_steps=c.inner_steps, seed=c.seed, **sizes)
        rows = folder.collect("meta-gradients", errors, total)
        titles = {
            name: f"{name}: curvatures {s.lowest:g} to {s.highest:g}, λ = {s.strength:g}"
            for name, s in SPECTRA.items()
        }
        draw_truth(folder.path / "truth.png", rows, titles)
        spectra = {name: asdict(spectrum) for name, spectrum in SPECTRA.items()}
        folder.finish({"spectra": spectra, **sizes, "rows": [asdict(row) for row in rows]})
    return 0


COMMAND = harness.Command(
    help="meta-gradients against the exact one, on quadratic tasks (a minute)",
    description="Compare the meta-gradients of iMAML, MAML and first-order MAML with the exact "
    "one against inner steps, on quadratic tasks with a closed form.",
    run=_run,
    out="runs/imaml-truth",
    folder={"resume": False},
    configuration=Configuration,
)
