"""Solve ``A x = b``, differentiably in ``b`` and in every tensor that ``A`` is made of.

It states the system, and knows no step of the way.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.func import vmap

from implicit_solvers.affine_norms import WeightsApart
from implicit_solvers.autodiff import unwatched
from implicit_solvers.capture import Captured, Substitution, capture, isolated, nested, resolve
from implicit_solvers.checks import check_reads
from implicit_solvers.compiling import compiling, outside_of_graphs
from implicit_solvers.foreign_names import explains_names
from implicit_solvers.guarded_call import is_of_devices
from implicit_solvers.lanes import Lanes
from implicit_solvers.linear.adjoint_start import AdjointMemory, AdjointStart
from implicit_solvers.linear.choice import default_linear_solver
from implicit_solvers.linear.lanewise import in_lanes
from implicit_solvers.linear.linear_operator import LinearOperator, as_read
from implicit_solvers.linear.mixed_precision import made_of_tensors
from implicit_solvers.linear.operator_lanes import carried_lanes, read_operator_dims
from implicit_solvers.linear.operator_template import OperatorTemplate
from implicit_solvers.linear.operators import FunctionOperator, JacobianOperator, MatrixOperator
from implicit_solvers.linear.preconditioners import Preconditioner
from implicit_solvers.linear.rule import solve_linear
from implicit_solvers.linear.solve_memory import SolveMemory
from implicit_solvers.linear.sparse import SparseOperator
from implicit_solvers.linear.specification import LinearSolveSpec
from implicit_solvers.linear.spread_operator import spread_operator
from implicit_solvers.linear.traced_system import solve_linear_in_graph, system_obstacle
from implicit_solvers.monitoring import monitors
from implicit_solvers.precision import in_full_precision
from implicit_solvers.ranks import Ranks
from implicit_solvers.sharded_modules import gathering
from implicit_solvers.sharding import Spread, added_up, check_spread, sharded, telling
from implicit_solvers.solution import OnFailure, Solution, Status
from implicit_solvers.solver import LinearSolver, refuse_other_solvers
from implicit_solvers.structure import Structure, shown, split_tensors
from implicit_solvers.torch_internals import (
    frames_compiled,
    transforms_active,
    tree_flatten,
    tree_map,
    tree_unflatten,
)

__all__ = [
    "check_adjoint_start",
    "linear_solve",
    "operator_template",
]


T = TypeVar("T")


@explains_names("CG")
@in_full_precision("b", body=False)
def linear_solve(
    A: LinearOperator | Tensor,
    b: T,
    *,
    solver: LinearSolver | None = None,
    x0: Any = None,
    preconditioner: LinearOperator | Callable[[Any], Any] | Preconditioner | None = None,
    check: bool = False,
    batch_dims: int = 0,
    in_dims: Any = None,
    on_failure: OnFailure = "raise",
    adjoint_start: AdjointStart | None = None,
    sync_failures: Any = False,
) -> Solution[T]:
    """Solve ``A x = b``, and differentiate by ``dx = A^-1 (db - dA x)``.

    If ``A`` is rectangular, or the solver is `SVD`, the solution is ``A^+ b``: of all ``x`` with
    least ``norm(b - A x)`` the one of least norm.

    The solution is differentiable, in both modes and to any order, in ``b`` and in every tensor
    that ``A`` is made of or that its function captures; ``torch.func.vmap`` solves many systems,
    and those with the same ``A`` share its factorization. Source of the rule: Giles, "Collected
    matrix derivative results for forward and reverse mode algorithmic differentiation" (2008),
    section 2.3.1.

    Parameters
    ----------
    A
        A `LinearOperator`, or a matrix ``(*batch, m, n)``: a tensor is a `MatrixOperator`, a sparse
        one a `SparseOperator`.
    b
        The right-hand side: a tensor or pytree of tensors of one floating dtype, with the
        structure that ``A`` returns. With one dimension more at the end, ``(n, k)`` for a
        `MatrixOperator`, it is ``k`` right-hand sides.
    solver
        How to solve: `LU`, `Cholesky`, `QR`, `SVD`, `Diagonal`, `Banded`, `SuperLU`, `CG`,
        `MINRES`, `GMRES`, `BiCGStab`, `LSMR`, `Neumann`. Left out, `Diagonal` for a diagonal
        operator, on the CPU `Banded` for a banded one, `SuperLU` for a sparse one; of the others,
        up to 512 unknowns, `Cholesky` for a positive definite one, `QR` for a rectangular one,
        else `LU`; beyond, `CG`, `LSMR` or `GMRES`.
    x0
        Where an iterative solver starts, like ``b``; zero if left out. It gets no gradient.
    preconditioner
        For iterative solvers: an operator or function that approximates ``A^-1``, or
        ``Jacobi()`` or ``ILU()``. The backward pass uses its transpose. It gets no gradient.
    check
        Whether to test the operator's flags with random vectors, at the cost of three products, and
        to refuse a function that reads values out of tensors.
    batch_dims
        How many leading dimensions of every leaf of ``b`` are a batch that ``A`` handles itself.
    in_dims
        With ``batch_dims``: which tensors of ``A`` have the batch dimensions, 0 for all of them, or
        a tuple with 0 or None for each, in their order (of a `JacobianOperator`, those of ``z``,
        then those of ``args``). Captured tensors are shared. Operators made of tensors alone
        (`MatrixOperator`, `DiagonalOperator`, ..., their sums and products) do not need it. With
        others, problems stop on their own without it, but cannot be left out of the computation or
        of gradients.
    on_failure
        ``"raise"``: `ConvergenceError` if a problem fails; ``"warn"``: `ConvergenceWarning`;
        ``"mask"``: neither, and the problem contributes nothing to gradients.
    adjoint_start
        An `AdjointStart`, for iterative solvers: where the adjoint starts, and where it leaves its
        solution for the next one.
    sync_failures
        As in `root`.

    Returns
    -------
    Solution
        ``residual`` is ``rms(b - A x)`` for each problem. ``error`` is ``|A^-1 (b - A x)|`` plus
        the effect of rounding, for direct solvers; ``inf`` for iterative ones.

    Raises
    ------
    ConvergenceError
        If a problem fails and ``on_failure="raise"``; out of ``backward()`` too.
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> M = torch.tensor([[2.0, 1.0], [0.0, 4.0]], requires_grad=True)
    >>> sol = ims.linear_solve(M, torch.tensor([3.0, 4.0]))
    >>> sol.value
    tensor([1., 1.], grad_fn=<...>)
    >>> sol.value.sum().backward()
    >>> M.grad
    tensor([[-0.5000, -0.5000],
            [-0.1250, -0.1250]])
    """
    if isinstance(A, Tensor):
        A = MatrixOperator(A) if A.layout == torch.strided else SparseOperator(A)
    if not isinstance(A, LinearOperator):
        raise TypeError(
            f"A is a {type(A).__name__}: wrap it, as MatrixOperator(matrix) or "
            "FunctionOperator(fn, like=b), or pass a matrix that is a tensor"
        )
    if on_failure not in ("raise", "warn", "mask"):
        raise ValueError(f'on_failure is {on_failure!r}: use "raise", "warn" or "mask"')
    if not isinstance(batch_dims, int) or batch_dims < 0:
        raise ValueError(f"batch_dims is {batch_dims!r}: pass the number of batch dimensions")
    ranks = telling(sync_failures)
    returned: Callable[[Any], Any] | None = None
    if not compiling() and sharded((A, b, x0, preconditioner)):
        spread = Spread.of(b, "b", batch_dims, ranks)
        ranks = spread.ranks
        given: Any = A, b, x0, preconditioner, solver, check
        A, b, x0, preconditioner, solver, returned = _over_ranks(spread, *given)
    A = in_lanes(cast(LinearOperator, A), Structure.of(b, "b", batch_dims))
    structure, columns = _right_hand_side(A, b, batch_dims)
    unknowns = _unknowns(A, structure)
    if structure.device.type == "meta":
        raise ValueError("b is on the meta device, which holds no values: pass one that does")
    carried = read_operator_dims(in_dims, A, structure.native)
    _check_solver(solver, preconditioner)
    if check and not compiling():
        _check_flags(A, structure)
    if solver is None:
        on_cpu = structure.device.type == "cpu"
        solver = default_linear_solver(
            max(structure.size, unknowns.size),
            positive_definite=A.positive_definite,
            diagonal=A.diagonal,
            banded=A.bands is not None and on_cpu,
            sparse=isinstance(A, SparseOperator) and on_cpu,
            detect=isinstance(A, JacobianOperator) and A.detect,
            rectangular=A.rectangular,
        )
    if A.rectangular and not any(solver.nullspaces(structure.size, unknowns.size)):
        raise ValueError(
            f"A is rectangular, {structure.size} x {unknowns.size}, and {type(solver).__name__} "
            "solves square systems: use QR(), SVD() or LSMR()"
        )
    check_adjoint_start(adjoint_start, solver)
    if not (solver.starts or (x0 is None and preconditioner is None)):
        what = "preconditioner" if x0 is None else "x0"
        raise ValueError(
            f"{what} is given, and {type(solver).__name__}() takes none: leave it out, solve for "
            "what is left of b (b - A x0), or use CG() or GMRES()"
        )
    if x0 is not None:
        _check_start(x0, b)
    if in_dims is not None and not _lanes_known(preconditioner, structure):
        raise ValueError(
            "in_dims is given, and of this preconditioner it is not known which of its tensors "
            "have the batch: pass one that is made of tensors, as a MatrixOperator, or Jacobi()"
        )

    if compiling() or frames_compiled():
        options: dict[str, Any] = {"solver": solver, "x0": x0, "preconditioner": preconditioner}
        options |= {"check": check, "batch_dims": batch_dims, "in_dims": in_dims}
        options |= {"on_failure": on_failure, "adjoint_start": adjoint_start}
        options |= {"sync_failures": sync_failures}
        if not compiling():
            solution: Solution[T] = torch.compiler.disable(linear_solve)(A, b, **options)
            return solution
        why = system_obstacle(
            A, b, solver, preconditioner, columns, check, adjoint_start, on_failure
        )
        if why is not None:
            return outside_of_graphs(why, linear_solve, A, b, **options)

    how = carried, on_failure, adjoint_start, ranks, check
    system = A, structure, unknowns, solver, preconditioner, *how

    def one(b: Any, x0: Any) -> Solution[T]:
        return _solve(b, x0, *system)

    if not compiling():
        one = _explaining_devices(one, structure.device)
    solve = one
    if columns:
        starts = None if x0 is None else -1
        solve = vmap(one, in_dims=(-1, starts), out_dims=-1)
    if compiling():
        return solve(b, x0)
    with gathering(isolated) as gathered:
        solution = solve(b, x0)
        if gathered.forwards:
            solution = replace(solution, value=gathered.returned(solution.value))
    return solution if returned is None else replace(solution, value=returned(solution.value))


def _over_ranks(
    spread: Spread, A: Any, b: Any, x0: Any, preconditioner: Any, solver: Any, check: bool
) -> tuple[Any, ...]:
    """Return the system on each rank, its solver, and how its solution becomes a DTensor."""
    whole, parts = A, spread.parts(b, "b")
    A = spread_operator(whole, b, spread, "A")
    start = spread.parts(x0, "x0").tree
    if spread.lanes:
        preconditioner = spread.parts(preconditioner, "preconditioner").tree
        return A, parts.tree, start, preconditioner, solver, parts.whole
    spread.refuse(check=check)
    if solver is None:
        kind = {"positive_definite": whole.positive_definite, "rectangular": whole.rectangular}
        solver = default_linear_solver(math.inf, **kind)
    check_spread(spread.ranks, solver)
    if isinstance(preconditioner, Preconditioner):
        raise ValueError(
            f"preconditioner is {preconditioner!r}, which needs the matrix, and rows are spread "
            "over ranks: pass a function v -> M v of DTensors"
        )
    if preconditioner is not None:
        if not isinstance(preconditioner, LinearOperator):
            preconditioner = FunctionOperator(preconditioner, like=b, symmetric=whole.symmetric)
        preconditioner = spread_operator(preconditioner, b, spread, "preconditioner")
    return A, parts.tree, start, preconditioner, solver, A.vectors.whole


def _explaining_devices(solve: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        try:
            return solve(*args)
        except RuntimeError as error:
            if not is_of_devices(error):
                raise
            raise ValueError(
                f"a tensor of A or the preconditioner is on another device than b, {device}: "
                f'move it, as .to("{device}") ({error})'
            ) from error

    return call


def _lanes_known(preconditioner: Any, structure: Structure) -> bool:
    if preconditioner is None or isinstance(preconditioner, Preconditioner):
        return True
    operator = isinstance(preconditioner, LinearOperator)
    return operator and carried_lanes(in_lanes(preconditioner, structure)) is not None


def _check_solver(solver: Any, preconditioner: Any) -> None:
    if solver is not None:
        refuse_other_solvers(solver)
    if isinstance(preconditioner, type) or not (
        preconditioner is None
        or isinstance(preconditioner, (LinearOperator, Preconditioner))
        or callable(preconditioner)
    ):
        name = getattr(preconditioner, "__name__", type(preconditioner).__name__)
        raise TypeError(
            f"preconditioner is {name}: pass Jacobi(), an operator, or a function v -> M v"
        )


def check_adjoint_start(start: Any, solver: LinearSolver | None) -> None:
    """Refuse a start of the backward solve that is none, or a solver that does not begin at one."""
    if start is None:
        return
    if not isinstance(start, AdjointStart):
        raise TypeError(
            f"adjoint_start is a {type(start).__name__}: pass an AdjointStart(), or "
            "AdjointStart(value) with a value like the solution"
        )
    if solver is None:
        raise ValueError("adjoint_start is given, and the adjoint makes no solve: leave it out")
    if not solver.starts:
        raise ValueError(
            f"adjoint_start is given, and the backward solve by {type(solver).__name__} has no "
            "start: leave it out, or name an iterative solver, as GMRES() or CG()"
        )


def _check_start(x0: Any, b: Any) -> None:
    leaves, tree = tree_flatten(x0)
    wanted, wanted_tree = tree_flatten(b)
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or leaf.dtype != wanted[0].dtype:
            kind = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
            raise TypeError(f"x0 is {kind}: pass tensors of the dtype of b, {wanted[0].dtype}")
    if tree != wanted_tree:
        raise ValueError(
            f"x0 has the structure {shown(tree)} and b has {shown(wanted_tree)}: pass x0 in the "
            "same containers"
        )
    if any(x.shape != w.shape for x, w in zip(leaves, wanted, strict=True)):
        raise ValueError(
            f"x0 has shapes {[tuple(x.shape) for x in leaves]} where b has "
            f"{[tuple(w.shape) for w in wanted]}: give the start the shapes of b"
        )


def _right_hand_side(A: LinearOperator, b: Any, batch_dims: int) -> tuple[Structure, bool]:
    """Return the structure of one right-hand side and whether ``b`` holds several."""
    structure = Structure.of(b, "b", batch_dims)
    wanted = A.out_structure
    if wanted is None:
        return structure, False
    if wanted.tree != structure.tree:
        raise ValueError(
            f"b has the structure {shown(structure.tree)} and A takes {shown(wanted.tree)}: pass "
            "b in the same containers"
        )
    if wanted.dtype != structure.dtype or wanted.device != structure.device:
        raise TypeError(
            f"b has {structure.dtype} on {structure.device} and A has {wanted.dtype} on "
            f"{wanted.device}: convert one of them"
        )
    shared = len(wanted.native) == 0
    if not shared and wanted.native != structure.native:
        raise ValueError(
            f"b has leaves of shapes {[(*structure.native, *s) for s in structure.shapes]} and A "
            f"has the batch {wanted.native}, and with batch_dims={len(structure.native)} b has "
            f"{structure.native}: give b the same batch in front, and pass batch_dims="
            f"{len(wanted.native)}"
        )
    shapes = [(*structure.native, *s) for s in structure.shapes]
    whole = [(*wanted.native, *s) for s in wanted.shapes]
    alone = [tuple(s) for s in structure.shapes]
    if shapes == whole or (shared and alone == [tuple(s) for s in wanted.shapes]):
        return structure, False
    tails = {s[-1] if s else None for s in shapes}
    cut = [s[:-1] for s in shapes]
    if (
        len(tails) == 1
        and None not in tails
        and (
            cut == whole
            or (shared and [s[:-1] for s in alone] == [tuple(s) for s in wanted.shapes])
        )
    ):
        shapes_one = tuple(torch.Size(s[:-1]) for s in structure.shapes)
        one = Structure(
            structure.tree, shapes_one, structure.native, structure.dtype, structure.device
        )
        return one, True
    raise ValueError(
        f"b has leaves of shapes {shapes} and A takes {whole}: pass vectors of those shapes, or "
        "several as one more dimension at the end; the batch comes first, and batch_dims counts "
        "its dimensions"
    )


def _unknowns(A: LinearOperator, b: Structure) -> Structure:
    """Return the structure of the solution, in the lanes of the right-hand side."""
    x = A.structure
    return b if x is None else replace(x, native=b.native, real_view=b.real_view)


def _solve(
    b: Any,
    x0: Any,
    A: LinearOperator,
    structure: Structure,
    unknowns: Structure,
    solver: LinearSolver,
    preconditioner: Any,
    carried: list[bool] | None,
    on_failure: OnFailure,
    adjoint_start: AdjointStart | None,
    ranks: Ranks | None,
    check: bool,
) -> Solution[Any]:
    label = f"linear_solve with {type(A).__name__}"
    template, tensors, captured = operator_template(A, b, structure, "A")
    check_reads(captured, label, check)
    M: Any = preconditioner
    M_tensors: list[Tensor] = []
    M_carried: list[bool] | None = []
    if preconditioner is not None and not isinstance(preconditioner, Preconditioner):
        if not isinstance(preconditioner, LinearOperator):
            zeros = tree_map(lambda t: torch.zeros(t.shape, dtype=t.dtype, device=t.device), b)
            M = FunctionOperator(preconditioner, like=zeros, symmetric=A.symmetric)
        M = in_lanes(M, structure)
        M_carried = carried_lanes(M)
        M, M_tensors, _ = operator_template(M, b, structure, "preconditioner")
        M_tensors = [t.detach() for t in M_tensors]
    native = len(structure.native)
    count = len(M_tensors) + len(tensors)
    known: list[bool] | None = None
    if carried is not None and M_carried is not None:
        # what a function captures is shared
        M_carried += [False] * (len(M_tensors) - len(M_carried))
        known = M_carried + carried + [False] * (len(tensors) - len(carried))
    spec = LinearSolveSpec(
        template,
        solver,
        Lanes.of(count, native, known, ranks),
        label,
        on_failure,
        preconditioner=M,
        preconditioner_tensors=len(M_tensors),
        adjoint_start=None if adjoint_start is None else AdjointMemory(adjoint_start, structure),
        monitors=monitors(),
        memory=SolveMemory(),
    )
    start = None
    if x0 is not None:
        start = structure.check_like(x0, structure.native, "x0", "b").detach()
    operands = added_up([resolve(t) for t in (*M_tensors, *tensors)])
    rhs = structure.ravel(tree_map(resolve, b))
    if compiling():
        x, status, *how = solve_linear_in_graph(spec, rhs, start, operands)
    else:
        with isolated():
            x, status, *how = solve_linear(spec, rhs, start, None, operands)
    value = unknowns.unravel(x)
    iterations, residual, error = how
    return Solution(value, status == int(Status.CONVERGED), iterations, residual, error, status)


def operator_template(
    A: LinearOperator, b: Any, structure: Structure, name: str
) -> tuple[OperatorTemplate, list[Tensor], Captured]:
    """Write an operator as a function of all its tensors, those that it ``Captured`` included.

    ``structure`` is that of its products, ``b`` a product or anything like one.
    """
    wanted = A.out_structure
    if name != "A" and A.rectangular:
        raise ValueError(
            f"{name} is rectangular, and approximates the inverse of A, which is square: pass an "
            "operator whose products are like its vectors"
        )
    if wanted is not None and (wanted.tree, wanted.shapes, wanted.dtype) != (
        structure.tree,
        structure.shapes,
        structure.dtype,
    ):
        raise ValueError(
            f"{name} takes vectors of shapes {[tuple(s) for s in wanted.shapes]} ({wanted.dtype}) "
            f"and b has {[tuple(s) for s in structure.shapes]} ({structure.dtype}): give it "
            "operators and vectors of one structure and dtype"
        )
    A = A if compiling() else as_read(A)
    own, join = split_tensors(A)
    unknowns = _unknowns(A, structure)
    if A.rectangular:
        b = unknowns.unravel(structure.ravel(b).new_zeros(*structure.native, unknowns.size))
    leaves, tree = tree_flatten(b)

    def evaluate(*tensors: Tensor) -> Any:
        v = tree_unflatten(list(tensors[: len(leaves)]), tree)
        return join(tensors[len(leaves) :]).mv(v)

    captured = Captured()
    functionless = made_of_tensors(A)
    # a compiler sees what a function captures
    if not (compiling() or functionless):
        with torch.inference_mode(False), torch.no_grad():
            # what is written into these is noticed
            copies = [t.clone() for t in leaves]
        read = f"the function of {type(A).__name__}"
        captured = capture(evaluate, (*copies, *own), read, getattr(A, "fn", A))
    count = len(own)
    outermost = not (transforms_active() or torch.is_inference_mode_enabled() or nested())

    def build(tensors: Sequence[Tensor]) -> LinearOperator:
        return join(tensors[:count])

    def bare(tensors: Sequence[Tensor]) -> bool:
        captured.check_unchanged(f"the function of {type(A).__name__}")
        captured.check_globals(f"the function of {type(A).__name__}")
        if not (captured or captured.normalizes):
            return True
        return outermost and unwatched() and captured.unmoved(tensors)

    def within(tensors: Sequence[Tensor]) -> Any:
        if bare(tensors):
            return contextlib.nullcontext()
        scope = contextlib.ExitStack()
        if captured:
            # a preconditioner has no derivative that could be lost
            expected = captured.tensors if name == "A" else ()
            scope.enter_context(Substitution(captured, tensors, expected))
        if captured.normalizes:
            scope.enter_context(WeightsApart())
        return scope

    template = OperatorTemplate(
        build,
        bare,
        within,
        unknowns,
        structure,
        A.symmetric,
        A.positive_definite,
        A.diagonal,
        A.bands,
        A.costly,
        f"the product of {name}",
        functionless,
        getattr(A, "fn", type(A)),
        A.structure is not None and bool(A.structure.native),
    )
    return template, [*own, *captured.tensors], captured


def _check_flags(A: LinearOperator, structure: Structure) -> None:
    """Refute, if a random vector can, that ``A`` is symmetric or positive definite."""
    if not (A.symmetric or A.positive_definite):
        return
    generator = torch.Generator(device=structure.device).manual_seed(0)

    def probe() -> Any:
        draw = torch.randn(
            *structure.native,
            structure.size,
            dtype=structure.dtype,
            device=structure.device,
            generator=generator,
        )
        return structure.unravel(draw)

    def dot(a: Any, b: Any) -> Tensor:
        return (structure.ravel(a).conj() * structure.ravel(b)).sum(-1)

    u, v = probe(), probe()
    with torch.no_grad():
        Au, Av = A.mv(u), A.mv(v)
        left, right = dot(u, Av), dot(Au, v)
        size = (dot(u, u) * dot(Av, Av)).abs().sqrt() + (dot(v, v) * dot(Au, Au)).abs().sqrt()
        tolerance = 100 * torch.finfo(structure.dtype).eps * size
        if bool(((left - right).abs() > tolerance).any()):
            raise ValueError(
                f"A says symmetric=True, and u.Av = {left.flatten()[0].item():.6g} differs from "
                f"Au.v = {right.flatten()[0].item():.6g} for random u, v: leave the flag out"
            )
        if A.positive_definite and bool(
            (torch.minimum(dot(u, Au).real, dot(v, Av).real) <= 0).any()
        ):
            raise ValueError(
                "A says positive_definite=True, and u.Au <= 0 for a random u: leave the flag out"
            )
