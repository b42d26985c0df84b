"""Roots: ``f(z, theta) = 0``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor

from implicit_solvers.adjoint import Adjoint, ImplicitAdjoint
from implicit_solvers.driver import Task, solve_equation
from implicit_solvers.problem import Equation
from implicit_solvers.solution import OnFailure, Solution
from implicit_solvers.solvers.newton import Newton
from implicit_solvers.structure import Structure

__all__ = ["RootEquation", "like_unknown", "root"]


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


def root(
    fn: Callable[..., Any],
    z0: Any,
    args: tuple[Any, ...] = (),
    *,
    solver: Any = None,
    adjoint: Adjoint | None = None,
    batch_dims: int = 0,
    in_dims: Any = None,
    has_aux: bool = False,
    on_failure: OnFailure = "raise",
) -> Solution:
    """Find a root ``z`` of ``fn(z, *args) = 0``, differentiable in everything that ``fn`` uses.

    The derivative is that of the implicit function theorem,
    ``dz = -(df/dz)^-1 (df/dtheta) dtheta``, at the point returned, whichever solver found it: in
    reverse and forward mode, to any order, under ``torch.func`` transforms, and with respect to
    ``args`` and to tensors that ``fn`` captures.

    Parameters
    ----------
    fn
        ``fn(z, *args)`` returns the residual, with the structure, shapes and dtype of ``z``.
    z0
        The start: a tensor (0-d too) or a pytree of tensors of one real floating dtype and
        device. It gets no gradient.
    args
        Further arguments, pytrees; other leaves than tensors are passed on as they are.
    solver
        `Newton`, by default.
    adjoint
        How to differentiate: `ImplicitAdjoint`, by default.
    batch_dims
        How many leading dimensions of every leaf of ``z`` are lanes, independent problems, that
        ``fn`` handles already. (``torch.func.vmap`` makes lanes of its own accord.)
    in_dims
        With ``batch_dims``: a tuple with 0 or None for each of ``args`` (or a pytree of these),
        as in ``torch.func.vmap``, that says which carry the lanes. Left out, lanes can be stopped
        on their own, but not be left out of the computation.
    has_aux
        Whether ``fn`` returns ``(residual, aux)``; aux is evaluated once more at the solution
        and differentiates like any tensor.
    on_failure
        ``"raise"``: `ConvergenceError` if a lane fails, out of ``backward()`` too; ``"warn"``:
        `ConvergenceWarning`, best iterate kept; ``"mask"``: best iterate kept, and the lane
        contributes nothing to gradients.

    Returns
    -------
    Solution
        The root and, for each lane, whether it converged, the iterations, the residual.

    Raises
    ------
    ConvergenceError
        If a lane fails and ``on_failure="raise"``.
    TypeError, ValueError
        If an argument is unfit, or ``fn`` returns another structure, shape or dtype than ``z0``;
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
    task = Task(
        RootEquation,
        fn,
        like_unknown,
        Newton() if solver is None else solver,
        ImplicitAdjoint() if adjoint is None else adjoint,
        batch_dims,
        in_dims,
        has_aux,
        on_failure,
    )
    return solve_equation(task, z0, args)
