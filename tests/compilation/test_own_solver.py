"""A solver of the user's own: its loop compiled, and in a graph."""

import functools
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers import compiled_step

from .comparison import agree


class HeavyBallState(NamedTuple):
    z: Tensor
    error: Tensor
    flag: Tensor
    velocity: Tensor


@dataclass(frozen=True)
class HeavyBall:
    damping: float = 0.5
    momentum: float = 0.3
    rtol: float | ims.Auto | None = ims.AUTO
    atol: float | ims.Auto = ims.AUTO
    max_steps: int = 1000
    norm: object = ims.rms
    compact: bool = True
    compile: bool = False
    check_every: int = 1
    monotone: ClassVar[bool] = False
    traceable: ClassVar[bool] = True
    solves: ClassVar[tuple[str, ...]] = ("fixed_point",)

    def init(self, problem, z):
        error = self.norm(problem.residual(z))
        flag = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return HeavyBallState(z, error, flag, torch.zeros_like(z))

    def step(self, problem, state):
        velocity = self.momentum * state.velocity - self.damping * problem.residual(state.z)
        z = state.z + velocity
        return HeavyBallState(z, self.norm(problem.residual(z)), state.flag, velocity)


@dataclass(frozen=True)
class Branching(HeavyBall):
    """It decides by values, and says so."""

    traceable: ClassVar[bool] = False

    def step(self, problem, state):
        return super().step(problem, state) if bool(state.error.isfinite().all()) else state


def cosine(z, a):
    return a * torch.cos(z)


A = torch.tensor([0.5, 1.0, float("nan"), 1.2], dtype=torch.float64)


def layer(a, **options):
    lanes = {"batch_dims": 1, "in_dims": (0,), "on_failure": "mask"}
    return ims.fixed_point(cosine, 0 * a, (a,), solver=HeavyBall(**options), **lanes)


@pytest.mark.parametrize("check_every", [1, 4])
def test_in_a_graph(check_every):
    (sol, (slope,)), _ = agree(functools.partial(layer, check_every=check_every), (A,))
    assert sol.converged.tolist() == [True, True, False, True] and slope[2] == 0


def test_its_loop_compiled(traced_only):
    plain, compiled = layer(A), layer(A, compile=True)
    assert len(compiled_step._STEPS) == 1
    assert torch.equal(plain.status, compiled.status)
    assert torch.equal(plain.iterations, compiled.iterations)
    torch.testing.assert_close(plain.value, compiled.value, equal_nan=True)


def test_one_that_branches_is_refused_in_a_graph():
    def run(a):
        return ims.fixed_point(cosine, 0 * a, (a,), solver=Branching(), on_failure="mask").value

    with pytest.raises(torch._dynamo.exc.Unsupported, match="Branching.*is not traceable"):
        torch.compile(run, fullgraph=True, backend="eager")(A[:2])
