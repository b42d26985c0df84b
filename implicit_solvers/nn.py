"""Equations as modules: the parameters of the function that states the equation are trained.

It knows no rule and no loop: `driver` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from implicit_solvers.adjoint import Adjoint
from implicit_solvers.driver import name_of
from implicit_solvers.fixed_points import fixed_point
from implicit_solvers.foreign_names import explains_names
from implicit_solvers.guarded_call import called
from implicit_solvers.minimization import minimize
from implicit_solvers.root_finding import root
from implicit_solvers.solution import OnFailure, Solution
from implicit_solvers.solver import EquationMethod
from implicit_solvers.structure import Structure
from implicit_solvers.task import check_adjoint

__all__ = ["FixedPoint", "Minimize", "Root"]


def _brief(value: Any) -> str:
    """Write a solver or an adjoint with the fields that are not the default."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return repr(value)
    chosen = [
        f"{field.name}={_brief(given)}"
        for field in dataclasses.fields(value)
        if (given := getattr(value, field.name)) != field.default
    ]
    return f"{type(value).__name__}({', '.join(chosen)})"


class _Layer(nn.Module):
    """An equation over ``cell``, solved in every forward pass; subclasses say which equation.

    A solve leaves nothing on the module.
    """

    _solve: Callable[..., Solution[Any]]

    @explains_names("Newton")
    def __init__(
        self,
        cell: Callable[..., Any],
        solver: EquationMethod | None = None,
        adjoint: Adjoint | None = None,
        init: Callable[[Any], Any] = torch.zeros_like,
        batch_dims: int = 0,
        in_dims: Any = None,
        on_failure: OnFailure = "raise",
        return_solution: bool = False,
        sync_failures: Any = False,
    ) -> None:
        if isinstance(cell, type):
            raise TypeError(
                f"cell is the class {cell.__name__}: pass an instance of it, as "
                f"{cell.__name__}(...)"
            )
        if not callable(cell):
            raise TypeError(
                f"cell is a {type(cell).__name__}: pass a function or a module cell(z, x, *more)"
            )
        if not callable(init):
            raise TypeError(
                f"init is a {type(init).__name__}: pass a function of the input that returns the "
                "start, as torch.zeros_like"
            )
        if adjoint is not None:
            check_adjoint(adjoint)
        super().__init__()
        self.cell, self.init = cell, init
        self.solver, self.adjoint = solver, adjoint
        self.batch_dims, self.in_dims = batch_dims, in_dims
        self.on_failure = on_failure
        self.return_solution = return_solution
        self.sync_failures = sync_failures

    def forward(self, x: Any, *more: Any) -> Any:
        """Solve for the inputs ``x, *more``; return the value, or the whole `Solution`."""
        start = called(self.init, (x,), "init", "it is called as init(x), with the first input")
        Structure.of(start, "init(x)")
        in_dims = 0 if self.in_dims is None and self.batch_dims != 0 else self.in_dims
        solution = self._solve(
            self.cell,
            start,
            (x, *more),
            solver=self.solver,
            adjoint=self.adjoint,
            batch_dims=self.batch_dims,
            in_dims=in_dims,
            on_failure=self.on_failure,
            sync_failures=self.sync_failures,
        )
        return solution if self.return_solution else solution.value

    def extra_repr(self) -> str:
        """Show the options; ``cell`` is shown below them if it is a module."""
        shown = [f"solver={_brief(self.solver)}", f"adjoint={_brief(self.adjoint)}"]
        if not isinstance(self.cell, nn.Module):
            shown.insert(0, f"cell={name_of(self.cell)}")
        if self.batch_dims != 0:
            shown.append(f"batch_dims={self.batch_dims}")
        if self.in_dims is not None:
            shown.append(f"in_dims={self.in_dims}")
        if self.on_failure != "raise":
            shown.append(f"on_failure={self.on_failure!r}")
        return ", ".join(shown)


class FixedPoint(_Layer):
    """The layer ``x -> z`` with ``z = cell(z, x)``, a deep equilibrium model.

    ``layer(x, *more)`` is ``fixed_point(cell, init(x), args=(x, *more), ...).value``: the
    derivative reaches the inputs, the parameters of ``cell``, and every other tensor that it
    reads. The module keeps nothing of a solve.

    Parameters
    ----------
    cell
        A module or function: ``cell(z, x, *more)`` returns the next iterate, with the structure,
        shapes and dtype of ``z``. A module becomes a submodule, whose parameters are those of the
        layer. Tensors that a function captures get gradients, and are no parameters of the layer.
    solver
        `Anderson`, by default; `FixedPointIteration`, or any solver for roots.
    adjoint
        How to differentiate: `ImplicitAdjoint`, by default; `OneStepAdjoint`, `UnrolledAdjoint`.
    init
        ``init(x)`` returns the start from the first input: a tensor or a pytree of tensors of one
        real floating dtype and device. ``torch.zeros_like`` by default, where ``z`` is like
        ``x``. It gets no gradient, unless the adjoint is `UnrolledAdjoint`.
    batch_dims
        How many leading dimensions of every leaf of ``z`` are a batch of independent problems: with
        1, inputs ``(batch, n)`` are ``batch`` problems of ``n`` unknowns, each stopped on its own.
        0, the default, makes one problem of the whole batch, with the same solution for a cell that
        acts on the rows one by one, and a Jacobian of ``batch * n`` unknowns.
    in_dims
        With ``batch_dims``: a tuple with 0 for each input that has the batch dimensions, and None
        for each shared one (or a pytree of these). By default, every input has them.
    on_failure
        ``"raise"``, ``"warn"`` or ``"mask"``, as in `fixed_point`.
    return_solution
        Whether a call returns the whole `Solution` instead of its value.
    sync_failures
        As in `root`.

    Raises
    ------
    ConvergenceError
        In a call, or out of ``backward()``, if a problem fails and ``on_failure="raise"``.
    TypeError, ValueError
        If an argument is invalid, at once or in the first call, where ``init(x)`` is called ``z0``;
        the message names it.

    See Also
    --------
    implicit_solvers.fixed_point, Root, Minimize

    Notes
    -----
    The equation must be the same in every evaluation. Use a cell with dropout or batch
    normalization only in evaluation mode (``layer.eval()`` reaches the cell): in training mode,
    dropout changes in each evaluation, and batch normalization makes problems depend on each other.
    The backward pass evaluates the cell, too: do not change its mode before. Forward hooks on the
    cell fire at every evaluation, of both passes; hooks on the layer once. Full backward hooks on
    either fire in ``backward()``; under ``vmap`` they do not, ``torch.func.grad`` refuses them, and
    on the cell ``jvp`` does, too. ``fully_shard`` (FSDP2) may be around the layer, around the cell,
    or both: a solve is one forward pass of a sharded cell.

    Source: Bai, Kolter and Koltun, "Deep Equilibrium Models" (2019), section 3.

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> class Cell(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.scale = torch.nn.Parameter(torch.tensor(0.5))
    ...
    ...     def forward(self, z, x):
    ...         return self.scale * torch.cos(z) + x
    >>> layer = ims.nn.FixedPoint(Cell(), solver=ims.Anderson(), batch_dims=1)
    >>> z = layer(torch.tensor([[0.0], [1.0]]))
    >>> z
    tensor([[0.4502],
            [1.1872]], grad_fn=<...>)
    >>> z.sum().backward()
    >>> layer.cell.scale.grad  # the sum of cos z / (1 + scale sin z)
    tensor(0.9952)
    """

    _solve = staticmethod(fixed_point)


class Root(_Layer):
    """The layer ``x -> z`` with ``cell(z, x) = 0``.

    ``layer(x, *more)`` is ``root(cell, init(x), args=(x, *more), ...).value``: the derivative
    reaches the inputs, the parameters of ``cell``, and every other tensor that it reads. The module
    keeps nothing of a solve.

    Parameters
    ----------
    cell
        A module or function: ``cell(z, x, *more)`` returns the residual, with the structure,
        shapes and dtype of ``z``. A module becomes a submodule, whose parameters are those of the
        layer.
    solver
        `NewtonDogleg`, by default.
    adjoint, init, batch_dims, in_dims, on_failure, return_solution, sync_failures
        As in `FixedPoint`, its note on cells with dropout or batch normalization included.

    Raises
    ------
    ConvergenceError
        In a call, or out of ``backward()``, if a problem fails and ``on_failure="raise"``.
    TypeError, ValueError
        If an argument is invalid, at once or in the first call, where ``init(x)`` is called ``z0``;
        the message names it.

    See Also
    --------
    implicit_solvers.root, FixedPoint, Minimize

    Notes
    -----
    ``x`` and ``z`` may have any structure and shapes; ``z``, which ``init`` makes, has one real
    floating dtype, and ``cell`` returns that dtype.

    Source: Krantz and Parks, "The Implicit Function Theorem" (2002), chapter 3; as a layer: El
    Ghaoui et al., "Implicit Deep Learning" (2021).

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> layer = ims.nn.Root(lambda z, x: z**3 + z - x)
    >>> x = torch.tensor([2.0, 10.0], requires_grad=True)
    >>> z = layer(x)
    >>> z
    tensor([1.0000, 2.0000], grad_fn=<...>)
    >>> z.sum().backward()
    >>> x.grad  # 1 / (3 z^2 + 1)
    tensor([0.2500, 0.0769])
    """

    _solve = staticmethod(root)


class Minimize(_Layer):
    """The layer ``x -> argmin_z cell(z, x)``.

    ``layer(x, *more)`` is ``minimize(cell, init(x), args=(x, *more), ...).value``, a local
    minimum: the derivative reaches the inputs, the parameters of ``cell``, and every other tensor
    that it reads. The module keeps nothing of a solve.

    Parameters
    ----------
    cell
        A module or function: ``cell(z, x, *more)`` returns the objective, a 0-d tensor, or with
        ``batch_dims`` one number for each problem, in the dtype of ``z``. A module becomes a
        submodule, whose parameters are those of the layer.
    solver
        `TrustRegion`, by default; `GradientDescent`, `Newton`.
    adjoint, init, batch_dims, in_dims, on_failure, return_solution, sync_failures
        As in `FixedPoint`, its note on cells with dropout or batch normalization included.

    Raises
    ------
    ConvergenceError
        In a call, or out of ``backward()``, if a problem fails and ``on_failure="raise"``.
    TypeError, ValueError
        If an argument is invalid, at once or in the first call, where ``init(x)`` is called ``z0``;
        the message names it.

    See Also
    --------
    implicit_solvers.minimize, FixedPoint, Root

    Notes
    -----
    ``x`` and ``z`` may have any structure and shapes; ``z``, which ``init`` makes, has one real
    floating dtype, and ``cell`` returns that dtype.

    Source: Gould, Hartley and Campbell, "Deep Declarative Networks" (2022).

    Examples
    --------
    >>> import torch, implicit_solvers as ims
    >>> def energy(z, x):  # one number for each row
    ...     return ((z - x) ** 2 + z**2).sum(-1)
    >>> layer = ims.nn.Minimize(energy, batch_dims=1, return_solution=True)
    >>> sol = layer(torch.tensor([[2.0, 4.0], [6.0, 8.0]]))
    >>> sol.value, sol.converged
    (tensor([[1., 2.],
            [3., 4.]]), tensor([True, True]))
    """

    _solve = staticmethod(minimize)
