"""What type checkers see of the installed package: `make wheel-test` runs them on this file."""

from collections.abc import Callable
from typing import assert_type

import torch
from torch import Tensor, nn

import implicit_solvers as ims


def kepler(E: Tensor, M: Tensor, e: Tensor) -> Tensor:
    return E - e * torch.sin(E) - M


M = torch.tensor([0.5, 1.0], requires_grad=True)
sol = ims.root(kepler, M, args=(M, torch.tensor(0.3)), solver=ims.Newton(rtol=1e-6), batch_dims=1)
assert_type(sol, ims.Solution[Tensor])
assert_type(sol.value, Tensor)
assert_type(sol.converged, Tensor)
assert_type(sol.iterations, Tensor)

tree = ims.fixed_point(lambda z: {"x": z["x"] / 2}, {"x": M})
assert_type(tree.value, dict[str, Tensor])

system = ims.linear_solve(ims.MatrixOperator(torch.eye(2)), M, solver=ims.CG(max_steps=5))
assert_type(system.value, Tensor)

minimum = ims.minimize(lambda z: (z**2).sum(), M, bounds=(0.0, None), on_failure="mask")
assert_type(minimum.value, Tensor)

with ims.monitor() as log:
    assert_type(log, ims.Monitor)
assert_type(log.records, list[ims.SolveRecord])

layer: nn.Module = ims.nn.FixedPoint(nn.Linear(2, 2))


@ims.custom_root(kepler)
def bisected(E: Tensor, M: Tensor, e: Tensor) -> Tensor:
    return E


solve: Callable[..., object] = bisected
