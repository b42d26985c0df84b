"""Linear solvers of a user's own, wherever a linear solver is taken, against LU."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch.func import grad, jacfwd, jacrev, vmap

import implicit_solvers as ims
from implicit_solvers.compiling import COMPILES
from tests.linear.systems import F64, near, seeded


class Residual(NamedTuple):
    z: torch.Tensor
    residual: torch.Tensor
    error: torch.Tensor
    flag: torch.Tensor


@dataclass(frozen=True)
class Richardson(ims.LinearMethod):
    """``x <- x + damping M (b - A x)``."""

    damping: float = 0.9

    def init(self, problem, x):
        r = problem.residual(x)
        return Residual(x, r, ims.rms(r), torch.zeros(len(x), dtype=torch.int64))

    def step(self, problem, state):
        return self.init(problem, state.z + self.damping * problem.precondition(state.residual))


class Singular(ims.DirectSolver):
    """Division by the singular values."""

    def factor_dense(self, matrix):
        return torch.linalg.svd(matrix)

    def solve(self, factors, b, transposed):
        u, s, vh = factors
        left, right = (vh.mH, u.mH) if not transposed else (u, vh)
        return left @ ((right @ b) / s.unsqueeze(-1))

    def status(self, factors):
        return torch.where(factors[1].amin(-1) > 1e-12, 0, int(ims.Status.SINGULAR))


def root(A, b, **options):
    return ims.root(lambda z, A, b: A @ z + 0.01 * z**3 - b, 0 * b, (A, b), **options).value


USES = {
    "linear_solve": lambda s: lambda A, b: ims.linear_solve(A, b, solver=s).value,
    "ImplicitAdjoint": lambda s: lambda A, b: root(A, b, adjoint=ims.ImplicitAdjoint(s)),
    "Newton": lambda s: lambda A, b: root(A, b, solver=ims.Newton(linear_solver=s)),
}
MANY = torch.stack([near(0.2 * seeded(4, 4, seed=i)) for i in range(3)]), seeded(3, 4, seed=3)


def derivatives(f):
    size = lambda A, b: f(A, b).square().sum()
    (A, *_), b = MANY
    yield f(A, b[0])
    yield from jacrev(f, (0, 1))(A, b[0])
    yield from jacfwd(f, (0, 1))(A, b[0])
    yield jacfwd(jacrev(size))(A, b[0])
    yield vmap(f, (None, 0))(A, b)
    yield from vmap(grad(size, (0, 1)))(*MANY)


# relative residuals of eps**(2/3), 3.7e-11, at conditions below 10; a second derivative squares it
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("solver", [Richardson(), Singular()], ids=lambda s: type(s).__name__)
def test_a_solver_of_ones_own_is_as_good_as_any(solver, use):
    mine, theirs = (derivatives(USES[use](s)) for s in (solver, ims.LU()))
    for ours, expected in zip(mine, theirs, strict=True):
        assert ours.dtype == F64
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.skipif(not COMPILES, reason="compiles from torch 2.13 on")
@pytest.mark.parametrize("solver", [Richardson(), Singular()], ids=lambda s: type(s).__name__)
def test_it_can_be_part_of_a_graph(solver):
    (A, *_), b = MANY
    layer = lambda A, b: ims.linear_solve(A, b, solver=solver, on_failure="mask").value
    got = torch.compile(layer, fullgraph=True, backend="eager")(A, b[0])
    torch.testing.assert_close(got, torch.linalg.inv(A) @ b[0], rtol=1e-8, atol=1e-9)
