"""A CVXPY problem as a cone program whose data are affine in its parameters."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
import torch

import implicit_solvers as ims
from implicit_solvers.problems.convex.affine_map import AffineMap, Reading
from implicit_solvers.problems.convex.cones import Cones
from implicit_solvers.problems.convex.normal_map import ProgramPattern

if TYPE_CHECKING:
    import cvxpy

__all__ = ["ConeProgram"]

_SYMMETRIC = ("symmetric", "PSD", "NSD")


@dataclass(frozen=True, eq=False)
class ParameterReading:
    """What the program reads of a parameter.

    ``parameter`` is its place among them. ``entries`` are the places that CVXPY reads, row by row,
    if it is structured (symmetric, diagonal, sparse); None for all of them, column by column.
    ``logarithm`` tells whether their logarithms are read.
    """

    parameter: int
    entries: np.ndarray | None
    logarithm: bool


@dataclass(frozen=True, eq=False)
class ConeProgram:
    """``min x^T P x / 2 + c^T x + d`` such that ``A x + s = b``, ``s`` in ``cones``.

    The data are functions of what is read of the parameters, of ``P`` and ``A`` the entries in
    ``pattern``. ``variables`` are read off ``x``, ``duals`` off ``y``, a tuple for each constraint;
    ``sign`` is -1 if the objective is maximized. With ``logarithms`` (a geometric program), ``x``
    and the objective are logarithms of the problem's.
    """

    pattern: ProgramPattern
    parameters: tuple[ParameterReading, ...]
    P: AffineMap
    c: AffineMap
    d: AffineMap
    A: AffineMap
    b: AffineMap
    variables: tuple[Reading, ...]
    duals: tuple[tuple[Reading, ...], ...]
    sign: int
    logarithms: bool

    @staticmethod
    def of(
        problem: cvxpy.Problem,
        parameters: Sequence[cvxpy.Parameter],
        variables: Sequence[cvxpy.Variable],
        duals: Sequence[Any],
        gp: bool,
    ) -> ConeProgram:
        """Have CVXPY reduce the problem, once."""
        with warnings.catch_warnings(), _some_values(parameters if gp else ()):
            # CVXPY's own, of structured variables, in the name of its caller
            warnings.filterwarnings("ignore", "Reading from a sparse CVXPY expression")
            data, chain, inverse = problem.get_problem_data(_interface(), gp=gp, solver_opts={})
        program = data["param_prob"]
        cones = _read_cones(program.cone_dims)
        n, m = program.x.size, cones.size
        logs = chain.reductions[0].canon_methods if gp else None
        readings, offsets, sizes = _read_parameters(parameters, program, chain, logs)

        def read(matrix: Any) -> AffineMap:
            return AffineMap.of(matrix, offsets, sizes)

        width = program.A.shape[1]
        P, in_P = _entries(program.P, n, n, range(n), width)
        A, in_A = _entries(program.A, m, n + 1, range(n), width)
        b, _ = _entries(program.A, m, n + 1, range(n, n + 1), width, full=True)
        linear = program.q if hasattr(program, "q") else program.c  # older CVXPY
        return ConeProgram(
            ProgramPattern(in_P, in_A, cones),
            readings,
            read(P),
            read(linear[:-1]),
            read(linear[-1:]),
            read(-A),
            read(b),
            tuple(_read_variable(v, program, chain, inverse, logs) for v in variables),
            _read_duals(duals, n, m, chain, inverse) if duals else (),
            -1 if problem.objective.NAME == "maximize" else 1,
            gp,
        )


@contextmanager
def _some_values(parameters: Sequence[cvxpy.Parameter]) -> Iterator[None]:
    """Give values to parameters that have none; older CVXPY takes their logarithms at once."""
    without = [p for p in parameters if p.value is None]
    for parameter in without:
        parameter.value = parameter.project(np.ones(parameter.shape))
    try:
        yield
    finally:
        for parameter in without:
            parameter.value = None


def _interface() -> Any:
    """Return CVXPY's interface of Clarabel, without power cones of more than three entries.

    CVXPY reduces those to cones of three.
    """
    from cvxpy.constraints import PowConeND
    from cvxpy.reductions.solvers.conic_solvers.clarabel_conif import CLARABEL

    supported: list[Any] = CLARABEL.SUPPORTED_CONSTRAINTS
    if PowConeND not in supported:  # older CVXPY
        return "CLARABEL"

    class ThreeEntries(CLARABEL):
        def name(self) -> str:
            return "CLARABEL, cones of three entries"

    interface = ThreeEntries()
    interface.SUPPORTED_CONSTRAINTS = [cone for cone in supported if cone is not PowConeND]
    return interface


def entries_of(parameter: cvxpy.Parameter) -> np.ndarray | None:
    """Return which entries of a structured parameter or variable count, by their place in it.

    They are flat places, row by row; None stands for all.
    """
    attributes, shape = parameter.attributes, parameter.shape
    if any(attributes[name] for name in _SYMMETRIC):
        return np.ravel_multi_index(np.triu_indices(shape[0]), shape)
    if attributes["diag"]:
        return np.ravel_multi_index(np.diag_indices(shape[0]), shape)
    if attributes.get("sparsity"):
        return np.ravel_multi_index(tuple(parameter.sparse_idx), shape)
    return None


def _read_parameters(
    parameters: Sequence[cvxpy.Parameter], program: Any, chain: Any, logs: Any
) -> tuple[tuple[ParameterReading, ...], list[int], list[int]]:
    """Return what is read of the parameters, in which column each begins, and how many it has.

    A geometric program may read a parameter and its logarithm, if it is an exponent too.
    """
    reduced = {
        old.id: new.id
        for step in chain.reductions
        for old, new in getattr(step, "_parameters", {}).items()
    }
    readings, offsets, sizes = [], [], []
    for i, parameter in enumerate(parameters):
        leaves = [(parameter, False)]
        taken = getattr(logs, "_parameters", {})
        if parameter in taken:
            leaves.append((taken[parameter], True))
        for leaf, logarithm in leaves:
            offset = program.param_id_to_col.get(reduced.get(leaf.id, leaf.id))
            if offset is not None:
                entries = entries_of(leaf) if leaf.id in reduced else None
                readings.append(ParameterReading(i, entries, logarithm))
                offsets.append(offset)
                sizes.append(leaf.size if entries is None else entries.size)
    return tuple(readings), offsets, sizes


def _entries(
    tensor: Any, rows: int, columns: int, kept: range, width: int, full: bool = False
) -> tuple[Any, ims.SparsityPattern]:
    """Return the entries in some columns of a stack of matrices, and where they are.

    The matrices are flattened by columns in the rows of ``tensor``; the entries are sorted by rows.
    All count if ``full``, and otherwise those that are not zero for all parameters.
    """
    found = scipy.sparse.coo_array((rows * columns, width) if tensor is None else tensor)
    found.sum_duplicates()
    found.eliminate_zeros()
    places = found.row.astype(np.int64)
    i, j = places % rows, places // rows - kept.start
    own = (j >= 0) & (j < len(kept))
    flat = i[own] * len(kept) + j[own]
    every = np.arange(rows * len(kept)) if full else np.unique(flat)
    entries = (found.data[own], (np.searchsorted(every, flat), found.col[own]))
    where = every // len(kept), every % len(kept)
    pattern = scipy.sparse.coo_array((np.ones(len(every)), where), (rows, len(kept)))
    return scipy.sparse.coo_array(entries, (len(every), width)), ims.SparsityPattern(pattern)


def _read_cones(dims: Any) -> Cones:
    power = tuple(float(alpha) for alpha in dims.p3d)
    return Cones(dims.zero, dims.nonneg, tuple(dims.soc), tuple(dims.psd), dims.exp, power)


def _read_variable(variable: Any, program: Any, chain: Any, inverse: Any, logs: Any) -> Reading:
    """Find the variable, or its logarithm, among those that the reductions left."""
    name = variable.name()
    variable = getattr(logs, "_variables", {}).get(variable, variable)
    ident = variable.id
    for step, record in zip(chain.reductions, inverse, strict=False):
        if type(step).__name__ == "CvxAttr2Constr" and record:
            renamed = record[0].get(ident)
            ident = ident if renamed is None else renamed.id
    first = program.var_id_to_col.get(ident)
    if first is None:
        raise ValueError(f"variables has {name}, which the problem does not depend on")
    kept, shape = entries_of(variable), variable.shape
    place = np.zeros(max(variable.size, 1), dtype=np.int64)
    coefficient = np.ones_like(place, dtype=np.float64)
    if kept is None:
        order = np.arange(variable.size).reshape(shape, order="F").ravel()
        place[:] = first + order
    else:
        coefficient[:] = 0.0
        where = [kept]
        if any(variable.attributes[name] for name in _SYMMETRIC):
            row, column = np.unravel_index(kept, shape)
            where.append(np.ravel_multi_index((column, row), shape))
        for own in where:
            place[own], coefficient[own] = first + np.arange(kept.size), 1.0
    return Reading(
        torch.from_numpy(place.reshape(shape)), torch.from_numpy(coefficient.reshape(shape))
    )


def _read_duals(
    constraints: Sequence[Any], n: int, m: int, chain: Any, inverse: Any
) -> tuple[tuple[Reading, ...], ...]:
    """Find the dual variables as functions of ``y`` by what CVXPY makes of three vectors."""

    def recover(y: np.ndarray) -> list[list[np.ndarray]]:
        raw = SimpleNamespace(
            x=np.zeros(n), z=y, s=np.zeros(m), status="Solved", obj_val=0.0, iterations=0
        )
        raw.solve_time = 0.0
        found = chain.invert(raw, inverse).dual_vars
        values = []
        for constraint in constraints:
            before = [dual.value for dual in constraint.dual_variables]
            constraint.save_dual_value(found[constraint.id])
            values.append([np.asarray(dual.value) for dual in constraint.dual_variables])
            for dual, value in zip(constraint.dual_variables, before, strict=True):
                dual.save_value(value)
        return values

    ones, counts = recover(np.ones(m)), recover(np.arange(1.0, m + 1))
    probe = np.random.default_rng(0).normal(size=m)
    readings = []
    for one, count, truth in zip(ones, counts, recover(probe), strict=True):
        own = []
        for coefficient, weighted, expected in zip(one, count, truth, strict=True):
            safe = np.where(coefficient == 0, 1.0, coefficient)
            place = np.rint(weighted / safe).astype(np.int64) - 1
            place = np.where(coefficient == 0, 0, place).clip(0, m - 1)
            if not np.allclose(coefficient * probe[place], expected, rtol=1e-12, atol=1e-12):
                raise NotImplementedError(
                    "duals has a constraint whose dual variable is no selection of the cone "
                    "program's: leave it out"
                )
            own.append(Reading(torch.as_tensor(place), torch.as_tensor(coefficient * 1.0)))
        readings.append(tuple(own))
    return tuple(readings)
