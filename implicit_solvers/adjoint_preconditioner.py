"""The preconditioner of an adjoint: an operator made at the solution.

It knows nothing of the solve that found the solution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from implicit_solvers.adjoint import UnrolledAdjoint
from implicit_solvers.linear.lanewise import in_lanes
from implicit_solvers.linear.preconditioners import Preconditioner
from implicit_solvers.linear.solve import operator_template
from implicit_solvers.structure import Structure
from implicit_solvers.task import Task
from implicit_solvers.torch_internals import tree_map

__all__ = ["adjoint_preconditioner"]


def adjoint_preconditioner(
    task: Task, structure: Structure, z: Tensor, args: Any
) -> tuple[Any, list[Tensor]]:
    """Return the template of a preconditioner at ``z (*lanes, n)``, and its tensors."""
    assert not isinstance(task.adjoint, UnrolledAdjoint)
    given = task.adjoint.preconditioner
    if given is None or isinstance(given, Preconditioner):
        return given, []
    with torch.no_grad():
        point = structure.unravel(z.detach())
        operator = in_lanes(given(point, *tree_map(_detach, tuple(args))), structure)
        template, tensors, _ = operator_template(operator, point, structure, "preconditioner")
    return template, [t.detach() for t in tensors]


def _detach(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf
