"""Sparse Jacobians: the pattern that a user gave, and one that is found by products.

It knows no solve.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from implicit_solvers.linear.choice import sparse_linear_solver
from implicit_solvers.linear.sparsity import SparsityPattern
from implicit_solvers.structure import Structure
from implicit_solvers.task import Task

__all__ = ["with_sparsity"]


def with_sparsity(task: Task, structure: Structure) -> Task:
    """Return a task whose ``sparsity`` has been read, and whose solver factors sparse Jacobians."""
    if task.sparsity is None:
        return task
    given, n = task.sparsity, structure.size
    if not isinstance(given, SparsityPattern):
        given = SparsityPattern(given)
    if given.shape != (n, n):
        raise ValueError(
            f"jac_sparsity has shape {given.shape} and z0 has {n} unknowns (real numbers, of a "
            f"problem): pass a pattern ({n}, {n})"
        )
    if getattr(task.solver, "compile", False):
        raise ValueError(
            f"jac_sparsity is given and {type(task.solver).__name__} has compile=True: SciPy "
            "factors sparse Jacobians, which is not compiled; leave one out"
        )
    pattern = task.equation.pattern_from(given).on(structure.device)
    solver: Any = task.solver
    factors = hasattr(solver, "direct_solver")
    if factors and solver.linear_solver is None:
        solver = replace(solver, linear_solver=sparse_linear_solver(pattern))
    return replace(task, solver=solver, sparsity=pattern)
