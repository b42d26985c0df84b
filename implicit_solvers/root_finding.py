"""Roots: ``f(z, theta) = 0``. It states the task, and knows no step of the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from implicit_solvers.adjoint import Adjoint, ImplicitAdjoint
from implicit_solvers.driver import Task, solve_equation
from implicit_solvers.foreign_names import explains_names
from implicit_solvers.linear.adjoint_start import AdjointStart
from implicit_solvers.many_starts import NO_USE, Starts
from implicit_solvers.precision import in_full_precision
from implicit_solvers.problem import Equation
from implicit_solvers.sharding import telling
from implicit_solvers.solution import OnFailure, Solution
from implicit_solvers.solver import EquationMethod
from implicit_solvers.solvers.chandrupatla import Chandrupatla
from implicit_solvers.solvers.newton import Newton
from implicit_solvers.solvers.newton_dogleg import NewtonDogleg
from implicit_solvers.structure import Structure, filled
from implicit_solvers.torch_internals import tree_flatten

__all__ = ["RootEquation", "like_unknown", "root"]

T = TypeVar("T")


class RootEquation(Equation):
    """The condition ``f(z, theta) = 0``."""

    kind: ClassVar[str] = "root"
    symmetric: ClassVar[bool] = False

    def condition(self, z: Tensor, *operands: Tensor) -> Tensor:
        """Return ``f(z, theta)``."""
        return self.fn(z, *operands)


def like_unknown(out: Any, structure: Structure, lanes: Sequence[int]) -> Tensor:
    """Ravel what a function returned that must look like ``z``."""
    return structure.check_like(out, lanes, "fn", "z0")


@explains_names("Newton")
@in_full_precision("z0", "bracket", body=False)
def root(
    fn: Callable[..., Any],
    z0: T | None,
    args: tuple[Any, ...] = (),
    *,
    bracket: tuple[T | float, T | float] | None = None,
    solver: EquationMethod | None = None,
    adjoint: Adjoint | None = None,
    jac_sparsity: Any = None,
    batch_dims: int = 0,
    in_dims: Any = None,
    has_aux: bool = False,
    on_failure: OnFailure = "raise",
    adjoint_start: AdjointStart | None = None,
    check: bool = False,
    sync_failures: Any = False,
) -> Solution[T]:
    """Find a root ``z`` of ``fn(z, *args) = 0``, differentiable in everything that ``fn`` uses.

    The derivative is that of the implicit function theorem, ``dz = -(df/dz)^-1 (df/dtheta)
    dtheta``, at the returned point, whichever solver found it: in reverse and forward mode, to any
    order, under ``torch.func`` transforms, and with respect to ``args`` and to tensors that ``fn``
    captures.

    Parameters
    ----------
    fn
        ``fn(z, *args)`` returns the residual, with the structure, shapes and dtype of ``z``.
    z0
        The start: a tensor (0-d too) or a pytree of tensors of one floating dtype and
        device. It gets no gradient. If it is complex, its real and imaginary parts are solved for,
        so that ``fn`` need not be holomorphic; gradients follow torch's convention. With a
        bracket it only says what ``z`` looks like, and may be None.
    args
        Further arguments, pytrees; other leaves than tensors are passed on as they are.
    bracket
        For one unknown in each problem: two ends ``(lo, hi)`` like ``z0`` (or numbers), where
        ``fn`` has different signs. They get no gradient.
    solver
        `NewtonDogleg`, by default; with a bracket, `Chandrupatla`; with a pattern, `Newton`.
    adjoint
        How to differentiate: `ImplicitAdjoint`, by default.
    jac_sparsity
        Which entries of the Jacobian ``(n, n)``, over the raveled ``z`` of one problem, may be
        nonzero: a `SparsityPattern`, a sparse tensor, a tensor of bools, or a SciPy matrix.
        `jacobian_sparsity` finds it. The Jacobian then takes one product for each color, and
        `SuperLU` factors it, at any ``n``: for the steps of `Newton` (the default then), for the
        verdict, and for derivatives. If the pattern misses an entry, an error names it. All
        problems share the pattern.
    batch_dims
        How many leading dimensions of every leaf of ``z`` are a batch of independent problems,
        which ``fn`` handles itself. (``torch.func.vmap`` adds batch dimensions by itself.)
    in_dims
        With ``batch_dims``: a tuple with 0 or None for each of ``args`` (or a pytree of these), as
        in ``torch.func.vmap``, that says which have the batch dimensions. Without it, problems stop
        on their own, but cannot leave the computation.
    has_aux
        Whether ``fn`` returns ``(residual, aux)``; aux is evaluated once more at the solution
        and differentiates like any tensor.
    on_failure
        ``"raise"``: `ConvergenceError` if a problem fails, out of ``backward()`` too; ``"warn"``:
        `ConvergenceWarning`, best iterate kept; ``"mask"``: best iterate kept, and the problem
        contributes nothing to gradients.
    adjoint_start
        An `AdjointStart`, for an adjoint with an iterative linear solver: where it starts, and
        where it leaves its solution for the next one.
    check
        Whether to look, at the cost of two products, for what makes derivatives silently wrong:
        values that ``fn`` reads out of tensors (``item()``, ``float()``, ``numpy()``), and, with
        ``batch_dims``, problems that ``fn`` mixes.
    sync_failures
        Whether the ranks of ``torch.distributed``, each with its own problems, exchange failures
        before one raises, so that all raise: True, or their process group.

    Returns
    -------
    Solution
        The root and, for each problem, whether it converged, the iterations, the residual.

    Raises
    ------
    ConvergenceError
        If a problem fails and ``on_failure="raise"``.
    TypeError, ValueError
        If an argument is invalid, or ``fn`` returns another structure, shape or dtype than ``z0``;
        the message names the argument and what to do.

    See Also
    --------
    fixed_point, minimize, least_squares, attach

    Notes
    -----
    Source: Krantz and Parks, "The Implicit Function Theorem" (2002), chapter 3; the adjoint as a
    rule of automatic differentiation: Blondel et al., "Efficient and Modular Implicit
    Differentiation" (2022).

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> def kepler(E, M, e):
    ...     return E - e * torch.sin(E) - M
    >>> M = torch.tensor([0.5, 1.0], requires_grad=True)
    >>> sol = ims.root(kepler, M, args=(M, torch.tensor(0.1)))
    >>> sol.value
    tensor([0.5525, 1.0886], grad_fn=<...>)
    >>> sol.value.sum().backward()
    >>> M.grad  # 1 / (1 - e cos E)
    tensor([1.0930, 1.0486])
    """
    if solver is None and bracket is not None:
        solver = Chandrupatla()
    elif solver is None:
        solver = NewtonDogleg() if jac_sparsity is None else Newton()
    ends = None
    if bracket is not None:
        z0, ends = _read_bracket(z0, bracket, solver)
    adjoint = ImplicitAdjoint() if adjoint is None else adjoint
    ranks = telling(sync_failures)
    how = adjoint, batch_dims, in_dims, has_aux, on_failure, adjoint_start, check, ranks
    task = Task(RootEquation, fn, like_unknown, solver, *how, sparsity=jac_sparsity)
    return solve_equation(task, z0, args, ends=ends)


def _read_bracket(z0: Any, bracket: Any, solver: Any) -> tuple[Any, tuple[Any, Any]]:
    if not isinstance(bracket, tuple) or len(bracket) != 2:
        raise TypeError(f"bracket is {bracket!r}: pass a pair (lo, hi)")
    if not getattr(solver, "brackets", False):
        raise ValueError(
            f"bracket is given, and solver={type(solver).__name__}() does not use one: leave it "
            "out, or choose Chandrupatla() or Bisection()"
        )
    if isinstance(z0, Starts):
        raise ValueError(NO_USE)
    if z0 is None:
        z0 = bracket[0]
    if not all(isinstance(leaf, Tensor) for leaf in tree_flatten(z0)[0]):
        raise TypeError("z0 is None and bracket[0] is no tensor: pass at least one as a tensor")
    return z0, (filled(bracket[0], "bracket[0]", z0), filled(bracket[1], "bracket[1]", z0))
