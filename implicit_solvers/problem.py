"""An equation in many lanes, as a solver sees it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from implicit_solvers.autodiff import vjp
from implicit_solvers.lanes import Lanes
from implicit_solvers.linear.lane_map import JacobianTemplate, LaneMap, Products
from implicit_solvers.tolerance import equation_tolerance
from implicit_solvers.traced_loop import alias

__all__ = ["Equation", "EquationProblem", "ResidualMap"]


@dataclass(frozen=True)
class Equation:
    """A raveled function ``fn(z, *operands)`` and the optimality condition that it stands for.

    ``z`` is ``(*native, n)``, and so is the condition. ``kind`` is the public function that states
    the equation, ``symmetric`` tells whether the condition's Jacobian always is, and ``biased``
    what makes derivatives of the condition estimates, of first order only.
    """

    fn: Callable[..., Tensor]
    kind: ClassVar[str]
    symmetric: ClassVar[bool]
    biased: ClassVar[str | None] = None

    def condition(self, z: Tensor, *operands: Tensor) -> Tensor:
        """Return ``F(z)``, zero at a solution."""
        raise NotImplementedError

    def condition_over(self, lanes: Lanes) -> Callable[..., Tensor]:
        """Return `condition` as a function of all lanes."""
        return lanes.over(self.condition)

    def jacobian(self) -> JacobianTemplate:
        """Return the Jacobian of the condition."""
        return JacobianTemplate(self.condition, symmetric=self.symmetric)


class EquationProblem:
    """``F(z) = 0`` in each of N lanes: everything is a tensor formula on ``z (N, n)``.

    A solver of your own gets one in ``init(problem, z)`` and ``step(problem, state)``. What it
    needs of it are the methods: `residual` is ``F(z)``, `linearize` its Jacobian, `evaluate` the
    function itself, `value_and_gradient` an objective and its gradient, `tolerance` what
    ``norm(F(z))`` may be, `take` the problem of some of the lanes. The library makes it.

    Parameters
    ----------
    equation
        The function of one lane (with its native lanes) and its optimality condition.
    lanes
        The lanes that the operands carry.
    shape
        The grid of lanes, of N places.
    operands
        The tensors that the function takes after ``z``, of any shapes and dtypes; ``z`` itself has
        one real floating dtype, and so has everything that the methods return.
    start
        The size (root mean square) of the start of each lane, ``(N,)``.
    basis
        The identity, of which Jacobians are made; left out, it is made when it is needed.

    Examples
    --------
    A solver that makes damped steps ``z <- z - 0.1 F(z)``:

    >>> from dataclasses import dataclass
    >>> from typing import ClassVar, NamedTuple
    >>> import implicit_solvers as ims
    >>> class State(NamedTuple):
    ...     z: torch.Tensor
    ...     error: torch.Tensor
    ...     flag: torch.Tensor
    >>> @dataclass(frozen=True)
    ... class Damped:
    ...     rtol: float = 1e-5
    ...     atol: float = 1e-5
    ...     max_steps: int = 200
    ...     norm: object = ims.rms
    ...     compact: bool = True
    ...     monotone: ClassVar[bool] = False
    ...     solves: ClassVar[tuple[str, ...]] = ("root",)
    ...
    ...     def init(self, problem: EquationProblem, z):
    ...         error = self.norm(problem.residual(z))
    ...         return State(z, error, torch.zeros(len(z), dtype=torch.int64))
    ...
    ...     def step(self, problem: EquationProblem, state):
    ...         return self.init(problem, state.z - 0.1 * problem.residual(state.z))
    >>> ims.root(lambda z: z**2 - 4, torch.tensor([1.0, 3.0]), solver=Damped(), batch_dims=1).value
    tensor([2.0000, 2.0000])
    """

    def __init__(
        self,
        equation: Equation,
        lanes: Lanes,
        shape: Sequence[int],
        operands: Sequence[Tensor],
        start: Tensor | None = None,
        basis: Tensor | None = None,
    ) -> None:
        self.basis = basis
        self.equation, self.lanes = equation, lanes
        self.shape, self.operands = tuple(shape), tuple(operands)
        self.start = start
        self._condition = equation.condition_over(lanes)
        self._fn = lanes.over(equation.fn)

    @property
    def source(self) -> Any:
        """The function that the user wrote."""
        return inspect.unwrap(self.equation.fn)

    @property
    def substitutes(self) -> bool:
        """Whether the function reads other tensors in the places of those that it captured."""
        return getattr(self.equation.fn, "substitutes", False)

    @property
    def kind(self) -> str:
        """What is solved: ``"root"``, ``"fixed_point"``, ``"minimize"``, ``"least_squares"``."""
        return self.equation.kind

    @property
    def fits(self) -> bool:
        """Whether ``|r|^2 / 2`` is to be least, and need not vanish."""
        return self.kind == "least_squares"

    @property
    def separable(self) -> bool:
        """Whether lanes can be selected."""
        return self.lanes.separable

    @property
    def count(self) -> int:
        """The number of lanes."""
        return math.prod(self.shape)

    def tolerance(self, solver: Any, z: Tensor) -> Tensor:
        """Return ``atol + rtol norm(z)``, where an iterate that ran away counts as less."""
        return equation_tolerance(solver.rtol, solver.atol, z, solver.norm, self.start)

    def _grid(self, z: Tensor) -> Tensor:
        return z if len(self.shape) == 1 else z.reshape((*self.shape, z.shape[-1]))

    def residual(self, z: Tensor) -> Tensor:
        """Return the optimality condition ``F(z)``, ``(N, n)``."""
        out = self._condition(self._grid(z), *self.operands)
        return out if len(self.shape) == 1 else out.reshape(self.count, out.shape[-1])

    def evaluate(self, z: Tensor) -> Tensor:
        """Return the function itself: ``(N,)`` for an objective, ``(N, m)`` otherwise."""
        out = self._fn(self._grid(z), *self.operands)
        return out.reshape(self.count, *out.shape[len(self.shape) :])

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return an objective ``(N,)`` and its gradient ``(N, n)``."""
        value, pull = vjp(lambda u: self._fn(u, *self.operands), self._grid(z))
        gradient = pull(torch.ones_like(value))[0]
        return value.reshape(-1), gradient.reshape(self.count, z.shape[-1])

    def linearize(self, z: Tensor) -> LaneMap:
        """Return the Jacobian of the condition at ``z``."""
        return self._jacobian(self.equation.jacobian(), z)

    def residuals(self, z: Tensor) -> Tensor:
        """Return the ``r(z) (N, m)`` whose squares are reduced: those of a fit, else ``F(z)``."""
        return self.evaluate(z) if self.fits else self.residual(z)

    def linearize_residuals(self, z: Tensor) -> ResidualMap:
        """Return the Jacobian of `residuals` at ``z``, ``m x n``."""
        fn = self.equation.fn if self.fits else self.equation.condition
        return ResidualMap(self._jacobian(JacobianTemplate(fn), z))

    def _jacobian(self, template: JacobianTemplate, z: Tensor) -> LaneMap:
        grid = self._grid(z)
        return LaneMap(
            template,
            self.lanes.prepend(),
            self.shape,
            (grid, *self.operands),
            like=grid,
            basis=self.basis,
        )

    def with_basis(self, z: Tensor) -> EquationProblem:
        """Return the problem with the basis that suits ``z`` at hand."""
        basis = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        return EquationProblem(
            self.equation, self.lanes, self.shape, self.operands, self.start, basis
        )

    def aliased(self) -> EquationProblem:
        """Return the problem as the body of a loop in a graph has to see it."""
        operands = [alias(t) for t in self.operands]
        basis = None if self.basis is None else alias(self.basis)
        return EquationProblem(self.equation, self.lanes, self.shape, operands, self.start, basis)

    def take(self, index: Tensor) -> EquationProblem:
        """Return the problem of some of the lanes."""
        lanes, shape, operands = self.lanes.take(index, self.shape, self.operands)
        start = None if self.start is None else self.start[index]
        return EquationProblem(self.equation, lanes, shape, operands, start, self.basis)


class ResidualMap:
    """The Jacobian ``J``, ``m x n``, of the residuals of each of N lanes."""

    def __init__(self, jacobian: LaneMap) -> None:
        self.jacobian = jacobian
        self._products: Products | None = None

    @property
    def separable(self) -> bool:
        """Whether lanes can be selected."""
        return self.jacobian.separable

    def _apply(self, which: int, v: Tensor) -> Tensor:
        J = self.jacobian
        if self._products is None:
            like = J.like.new_zeros(*J.shape, J.n)
            self._products = J.template.products(J.lanes, like, J.tensors)
        out = self._products[which](v.reshape((*J.shape, v.shape[-1])))
        return out.reshape(len(v), out.shape[-1])

    def mv(self, v: Tensor) -> Tensor:
        """Return ``J v`` for ``v (N, n)``, ``(N, m)``."""
        return self._apply(0, v)

    def rmv(self, w: Tensor) -> Tensor:
        """Return ``J^T w`` for ``w (N, m)``, ``(N, n)``."""
        return self._apply(1, w)

    def dense(self) -> Tensor:
        """Return the matrices ``(N, m, n)``."""
        return self.jacobian.dense()

    def take(self, index: Tensor) -> ResidualMap:
        """Return the map of some of the lanes."""
        return ResidualMap(self.jacobian.take(index))
