"""An equation in many lanes, as a solver sees it.

It knows no solver, and nothing of how solutions are differentiated.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_solvers.agreement import pick
from implicit_solvers.autodiff import no_saved_tensor_hooks, pullback_on_graph, rows, unwatched, vjp
from implicit_solvers.bounds import held, projected
from implicit_solvers.compiled_step import apart
from implicit_solvers.compiling import compiling
from implicit_solvers.evaluations import Counter
from implicit_solvers.examination import Examination, by_newton
from implicit_solvers.explicit_function import reading_by_itself
from implicit_solvers.graph_height import point
from implicit_solvers.history import History
from implicit_solvers.lanes import Lanes
from implicit_solvers.linear.jacobian_template import MANY_ENTRIES, JacobianTemplate
from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.linear.solve_memory import SolveMemory
from implicit_solvers.linear.sparsity import SparsityPattern
from implicit_solvers.ranks import alone
from implicit_solvers.residual_map import ResidualMap
from implicit_solvers.solution import Status
from implicit_solvers.tolerance import Norm, equation_tolerance, rms
from implicit_solvers.torch_internals import let_lanes_vary
from implicit_solvers.traced_loop import alias

__all__ = ["Equation", "EquationProblem"]

_SMALL = 1e-15


@dataclass(frozen=True)
class Equation:
    """A raveled function ``fn(z, *operands)`` and the optimality condition that it stands for.

    ``z`` is ``(*native, n)``, and so is the condition. ``kind`` is the public function that states
    the equation, ``symmetric`` tells whether the condition's Jacobian always is, and ``biased``
    what makes derivatives of the condition estimates, of first order only. ``by_products`` tells
    whether points are examined without factors too, ``looked_at_last`` whether they are if they
    would fail else, and ``fits`` whether the squares of what ``fn`` returns are to be least.
    ``subtracts`` tells whether the condition is ``z`` less what is to equal it. The
    first operands are the equation's ``own``, if it has any, which
    ``fn`` is given and does not look at: those of one that is ``bounded`` are the bounds.
    ``sparsity`` are the entries of the Jacobian that may be other than zero, if they are known. The
    last unknowns may be ``multipliers``, which have units of their own: no error is measured by
    them.
    """

    fn: Callable[..., Tensor]
    sparsity: SparsityPattern | None = None
    multipliers: int = 0
    kind: ClassVar[str]
    symmetric: ClassVar[bool]
    biased: ClassVar[str | None] = None
    by_products: ClassVar[bool] = False
    looked_at_last: ClassVar[bool] = False
    fits: ClassVar[bool] = False
    subtracts: ClassVar[bool] = False
    bounded: ClassVar[bool] = False
    own: ClassVar[int] = 0

    @staticmethod
    def pattern_from(given: SparsityPattern) -> SparsityPattern:
        """Return the pattern of the condition's Jacobian from that which a user gave."""
        return given

    def condition(self, z: Tensor, *operands: Tensor) -> Tensor:
        """Return ``F(z)``, zero at a solution."""
        raise NotImplementedError

    def examine(self, problem: Any, z: Tensor, direct: Any) -> Examination:
        """Return Newton's step from ``z (N, n)``, and the error that rounding makes."""
        return by_newton(problem, z, direct)

    def condition_over(self, lanes: Lanes) -> Callable[..., Tensor]:
        """Return `condition` as a function of all lanes."""
        return replace(self, fn=lanes.over(self.fn)).condition

    def slope(self, z: Tensor, *operands: Tensor) -> Tensor:
        """Return the condition as it is where no bound stops an unknown."""
        return self.condition(z, *operands)

    def slope_over(self, lanes: Lanes) -> Callable[..., Tensor]:
        """Return `slope` as a function of all lanes."""
        return replace(self, fn=lanes.over(self.fn)).slope

    def held(self, z: Tensor, slope: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Tell which unknowns are held to their lower and to their upper bound, by their slope."""
        return held(z, slope, lo, hi)

    def measured(self, z: Tensor) -> Tensor:
        """Return the part of a vector like the unknown that its errors are measured by."""
        return z[..., : z.shape[-1] - self.multipliers] if self.multipliers else z

    def degenerate(self, problem: Any, z: Tensor, error: Tensor) -> Tensor | None:
        """Tell in which lanes an inequality is neither strict nor idle; None if there is none."""
        return None

    def jacobian(self) -> JacobianTemplate:
        """Return the Jacobian of the condition."""
        known = {"symmetric": self.symmetric, "pattern": self.sparsity}
        return JacobianTemplate(self.condition, **known, equation=self)  # type: ignore[arg-type]

    @property
    def source(self) -> Any:
        """The function that the user wrote."""
        return inspect.unwrap(self.fn)

    def reading_by_itself(self, operands: Sequence[Tensor]) -> tuple[Equation, int] | None:
        """Return the equation of a function that need not be given what it captured, if it may be.

        With it comes the number of operands that it takes. Only such an equation can be compiled.
        """
        found = reading_by_itself(self.fn, operands)
        return None if found is None else (replace(self, fn=found[0]), found[1])


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
        The largest entry of the start of each lane, ``(N,)``.
    basis
        The identity, of which Jacobians are made; left out, it is made when it is needed.
    traced
        Whether steps are compiled: then no branch may depend on values.
    counter
        Counts what is evaluated.
    memory
        What the solve keeps for its derivatives, where Jacobians are sparse.
    places
        The numbers of the lanes in it.

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
    ... class Damped(ims.EquationMethod):
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

    history: History | None = None

    def __init__(
        self,
        equation: Equation,
        lanes: Lanes,
        shape: Sequence[int],
        operands: Sequence[Tensor],
        start: Tensor | None = None,
        basis: Tensor | None = None,
        traced: bool = False,
        counter: Counter | None = None,
        memory: SolveMemory | None = None,
        places: Tensor | None = None,
    ) -> None:
        self.basis, self.counter = basis, counter
        self.memory, self.places = memory, places
        self.equation, self.lanes = equation, lanes
        self.shape, self.operands = tuple(shape), tuple(operands)
        self.start = start
        self._condition = equation.condition_over(lanes)
        self._fn = lanes.over(equation.fn)
        self._scale: tuple[Norm, Tensor, Any] | None = None
        self._goal: tuple[Any, Any, Any] | None = None
        self._little: dict[float, tuple[Any, Any]] = {}
        self._evaluated: _Evaluated | None = None
        self._own: tuple[Tensor, ...] | None = None
        self._free: tuple[Tensor, Tensor] | None = None
        self.traced = traced
        self.taken = False

    @property
    def source(self) -> Any:
        """The function that the user wrote."""
        return self.equation.source

    @property
    def kind(self) -> str:
        """What is solved: ``"root"``, ``"fixed_point"``, ``"minimize"``, ``"least_squares"``."""
        return self.equation.kind

    @property
    def fits(self) -> bool:
        """Whether ``|r|^2 / 2`` is to be least, and need not vanish."""
        return self.equation.fits

    @property
    def by_products(self) -> bool:
        """Whether points are examined without factors too."""
        return self.equation.by_products

    @property
    def separable(self) -> bool:
        """Whether lanes can be selected."""
        return self.lanes.separable

    @property
    def count(self) -> int:
        """The number of lanes."""
        return math.prod(self.shape)

    @property
    def branches(self) -> bool:
        """Whether a step may ask for values: not in what is compiled."""
        return not (self.traced or compiling())

    def count_jacobian(self) -> None:
        """Count a Jacobian that is formed."""
        if self.counter is not None:
            self.counter.jacobian += 1

    def size(self, norm: Norm, v: Tensor) -> Any:
        """Return the norm of each lane ``(N,)``; a float for one problem on a CPU."""
        return self.number(self.norms(norm, v))

    def sizes(self, norm: Norm, *vectors: Tensor) -> Any:
        """Return the norm of several vectors of each lane, as `size` does."""
        sizes = self.norms(norm, torch.cat(vectors))
        if self._on_host(sizes):
            return sizes.tolist()
        return sizes.reshape(len(vectors), -1).unbind()

    def norms(self, norm: Norm, v: Tensor) -> Tensor:
        """Return the norm of each lane ``(N,)``, of a float32 whose square vanishes too."""
        v = self.equation.measured(v)
        if v.dtype != torch.float32:
            return norm(v)
        here = self.branches and v.device.type == "cpu" and unwatched() and alone()
        if here and v.numel() > MANY_ENTRIES:
            sizes = norm(v)
            least, most = torch.aminmax(sizes)
            if float(least) > _SMALL and float(most) < 1 / _SMALL:
                return sizes
        # gradients of fits are squares already, whose squares would vanish
        return norm(v.double()).to(v.dtype)

    def sizes_and_scale(self, solver: Any, z: Tensor, *vectors: Tensor) -> Any:
        """Return the `sizes` of vectors; the same norm tells the `scale` of ``z``."""
        *sizes, size = self.sizes(solver.norm, *vectors, z)
        if self.branches:
            scale = self.scaled(size, 0.75)
            self._scale = solver.norm, z, scale
        return sizes

    def number(self, t: Tensor | bool) -> Any:
        """Return a number of each lane ``(N,)``; Python's for one problem on a CPU.

        The last of many lanes has tensors still: what a solver remembers of it are some.
        """
        return t.item() if isinstance(t, Tensor) and self._on_host(t) else t

    def _on_host(self, t: Tensor) -> bool:
        if not self.branches or self.taken or self.count != 1:
            return False
        return t.device.type == "cpu" and unwatched()

    def scale(self, solver: Any, z: Tensor) -> Any:
        """Return the size of ``z``; that of the start, where ``z`` is nothing beside it."""
        known = self._scale
        if known is None or known[0] is not solver.norm or known[1] is not z:
            size = self.size(solver.norm, z)
            known = solver.norm, z, self.scaled(size, 0.75)
            if self.branches:
                self._scale = known
        return known[2]

    def scaled(self, size: Any, power: float) -> Any:
        """Return a size; that of the start, of which it is at most ``eps**power``."""
        start = self.start
        if start is None:
            return size
        if power not in self._little or not self.branches:
            eps, start = torch.finfo(start.dtype).eps, self.number(start)
            self._little[power] = start, eps**power * start
        start, little = self._little[power]
        return pick(size > little, size, start)

    def tolerance(self, solver: Any, z: Tensor) -> Any:
        """Return ``atol + rtol s``, the error of ``z`` at or below which a lane has converged."""
        scale, known = self.scale(solver, z), self._goal
        if known is None or known[0] is not solver or known[1] is not scale:
            eps = torch.finfo(z.dtype).eps
            known = solver, scale, equation_tolerance(solver.rtol, solver.atol, eps, scale)
            if self.branches:
                self._goal = known
        return known[2]

    @property
    def bounds(self) -> tuple[Tensor, Tensor] | None:
        """The bounds of the unknowns ``(N, n)``, infinite where there is none, if there are any."""
        if not self.equation.bounded:
            return None
        lo, hi = self.own
        return lo, hi

    @property
    def own(self) -> tuple[Tensor, ...]:
        """The equation's own operands ``(N, k)``."""
        known = self._own
        if known is None:
            like, count = self.operands[0].new_empty((*self.shape, 0)), self.equation.own
            own = self.lanes.over(lambda z, *operands: operands[:count])(like, *self.operands)
            known = tuple(self._flat(t) for t in own)
            if self.branches:
                self._own = known
        return known

    def within(self, z: Tensor) -> Tensor:
        """Return the nearest point between the bounds."""
        return z if self.bounds is None else torch.clamp(z, *self.bounds)

    def flags(self) -> Any:
        """Return the statuses of lanes whose bounds leave nothing, or are NaN, and 0 elsewhere."""
        if self.bounds is None:
            return 0
        lo, hi = self.bounds
        crossed = torch.where((lo > hi).any(-1), int(Status.INFEASIBLE), 0)
        unknown = ((lo != lo) | (hi != hi)).any(-1)
        return self.number(torch.where(unknown, int(Status.NONFINITE), crossed))

    def step(self, z: Tensor, direction: Tensor) -> Tensor:
        """Return what bounds leave of a step ``-direction``, with that sign."""
        return direction if self.bounds is None else z - self.within(z - direction)

    def projected(self, z: Tensor, slope: Tensor) -> Tensor:
        """Return the condition at ``z`` of a known slope."""
        return slope if self.bounds is None else projected(z, slope, *self.bounds)

    def free(self, z: Tensor) -> Tensor | None:
        """Tell which unknowns ``(N, n)`` are not held to a bound at ``z``; None if none can be."""
        if self.bounds is None:
            return None
        known = self._free
        if known is None or known[0] is not z:
            known = z, self.apart(z, self.slope(z), 0.0)
            if self.branches:
                self._free = known
        return known[1]

    def apart(self, z: Tensor, slope: Tensor, reach: Any) -> Tensor:
        """Tell which unknowns ``(N, n)`` a step ``reach`` times their slope leaves off bounds."""
        assert self.bounds is not None
        low, high = self.equation.held(z - reach * slope, slope, *self.bounds)
        return ~(low | high)

    def movable(self, z: Tensor, direction: Tensor) -> Tensor:
        """Return the part of a step ``-direction`` that does not lead out of bounds at once."""
        if self.bounds is None:
            return direction
        lo, hi = self.bounds
        stuck = ((z <= lo) & (direction > 0)) | ((z >= hi) & (direction < 0))
        return torch.where(stuck, 0.0, direction)

    def reach(self, z: Tensor) -> Tensor:
        """Return the size of each entry of ``z``, and no less than that of the lane.

        Of one that is held to a bound it is zero; a multiplier has its own.
        """
        most, free = self.largest(z).unsqueeze(-1), self.free(z)
        if (m := self.equation.multipliers) > 0:
            most = torch.cat([most.expand(-1, z.shape[-1] - m), torch.zeros_like(z[:, -m:])], -1)
        reach = torch.maximum(z.abs(), most)
        return reach if free is None else reach * free

    def largest(self, z: Tensor) -> Tensor:
        """Return the size of ``z (N,)``, or that of the start, if it is larger."""
        size = rms(self.equation.measured(z))
        return size if self.start is None else torch.maximum(size, self.start)

    def _flat(self, t: Tensor) -> Tensor:
        return t if len(self.shape) == 1 else t.reshape(self.count, t.shape[-1])

    def _grid(self, z: Tensor) -> Tensor:
        return z if len(self.shape) == 1 else z.reshape((*self.shape, z.shape[-1]))

    def residual(self, z: Tensor) -> Tensor:
        """Return the optimality condition ``F(z)``, ``(N, n)``."""
        return self._flat(self._condition(self._grid(z), *self.operands))

    def slope(self, z: Tensor) -> Tensor:
        """Return the condition as it would be without bounds, ``(N, n)``."""
        slope = self.equation.slope_over(self.lanes)
        return self._flat(slope(self._grid(z), *self.operands))

    def linearize_slope(self, z: Tensor) -> LaneMap:
        """Return the Jacobian of `slope` at ``z``."""
        if type(self.equation).slope is Equation.slope:
            return self.linearize(z)
        template = JacobianTemplate(self.equation.slope, symmetric=True)
        return self._linearized(template, z, "slope")

    def slope_and_jacobian(self, z: Tensor) -> tuple[Tensor, LaneMap]:
        """Return `slope` and its Jacobian, of one evaluation if lanes and unknowns are few."""
        self._evaluated = None
        if not (self.branches and unwatched() and self._few(z)):
            return self.slope(z), self.linearize_slope(z)
        with torch.enable_grad(), no_saved_tensor_hooks():
            grid = point(self._grid(z))
            slope = self.equation.slope_over(self.lanes)(grid, *self.operands)
        self._evaluated = _Evaluated(z, grid, slope, None, "slope")
        return slope.detach().reshape(z.shape), self.linearize_slope(z)

    def _few(self, z: Tensor) -> bool:
        return bool(self.lanes.native) or z.numel() * z.shape[-1] <= MANY_ENTRIES

    def residual_to_factor(self, z: Tensor) -> Tensor:
        """Return `residual`, and keep what `linearize` at this very ``z`` needs to form ``F'``."""
        kept, self._evaluated = self._evaluated, None
        if not (self.branches and unwatched()):
            return self.residual(z)
        if kept is not None and kept.z is z and kept.of == "condition":
            self._evaluated, out = kept, kept.value.detach()
            return out if out.shape == z.shape else out.reshape(z.shape)
        grid, matrices = self._grid(z), None
        if self._few(z) or self.equation.sparsity is not None:
            with torch.enable_grad(), no_saved_tensor_hooks():
                grid = point(grid)
                out = self._condition(grid, *self.operands)
        elif not self.lanes.sizes:
            return self.residual(z)
        else:
            one_lane: Callable[..., Any] = self.equation.jacobian().value_and_dense
            evaluate: Callable[..., Any] = self.lanes.shared(1).over(one_lane)
            self.count_jacobian()
            out, matrices = evaluate(grid, self.identity(z), *self.operands)
            if len(self.shape) > 1:
                matrices = matrices.reshape(len(z), *matrices.shape[-2:])
        self._evaluated = _Evaluated(z, grid, out, matrices)
        out = out.detach() if out.requires_grad else out
        return out if out.shape == z.shape else out.reshape(z.shape)

    def evaluate(self, z: Tensor, *own: Tensor) -> Tensor:
        """Return the function itself: ``(N,)`` for an objective, ``(N, m)`` otherwise.

        Other ``own (N, k)`` operands may take the places of the equation's.
        """
        fn, operands = self._fn, self.operands
        if own:
            count, levels = len(own), (True,) * len(self.lanes.sizes)
            lanes = self.lanes.keep(range(count, len(operands))).insert(0, count, levels, True)
            fn = lanes.over(self.equation.fn)
            operands = (*(self._grid(t) for t in own), *operands[count:])
        out = fn(self._grid(z), *operands)
        return out.reshape(len(z), *out.shape[len(self.shape) :])

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return an objective, or ``|r|^2 / 2``, ``(N,)``, and its gradient ``(N, n)``."""
        value, pull = vjp(lambda u: self._fn(u, *self.operands), self._grid(z))
        if self.fits:
            gradient = pull(value)[0]
            value = 0.5 * (value**2).sum(-1)
        else:
            gradient = pull(torch.ones_like(value))[0]
        return value.reshape(-1), gradient.reshape(len(z), z.shape[-1])

    def value_and_gradient_to_linearize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return `value_and_gradient`, and keep its graph for `linearize` at this very ``z``."""
        self._evaluated = None
        if not (self.branches and unwatched()):
            return self.value_and_gradient(z)
        with torch.enable_grad(), no_saved_tensor_hooks():
            grid = point(self._grid(z))
            value = self._fn(grid, *self.operands)
            gradient = pullback_on_graph(grid, value, True)(torch.ones_like(value))
        of = "slope" if self.equation.bounded else "condition"
        self._evaluated = _Evaluated(z, grid, gradient, None, of)
        return value.detach().reshape(-1), gradient.detach().reshape(z.shape)

    def linearize(self, z: Tensor) -> LaneMap:
        """Return the Jacobian of the condition at ``z``."""
        return self._linearized(self.equation.jacobian(), z, "condition")

    def _linearized(self, template: JacobianTemplate, z: Tensor, of: str) -> LaneMap:
        kept, self._evaluated = self._evaluated, None
        if kept is None or kept.z is not z or kept.of != of:
            kept = None
        grid = self._grid(z) if kept is None else kept.point
        how = template, self.lanes.prepend(), grid.shape[:-1], (grid, *self.operands)
        jacobian = LaneMap(
            *how,
            like=grid,
            basis=self.basis,
            memory=self.memory,
            counter=self.counter,
            places=self.places,
        )
        if kept is not None:
            jacobian.graph = (kept.point, kept.value) if kept.matrices is None else None
            jacobian.matrices = jacobian.formed = kept.matrices
        return jacobian

    def identity(self, z: Tensor) -> Tensor:
        """Return the identity, which is made once for all Jacobians that are to be formed."""
        if self.basis is None:
            self.basis = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        return self.basis

    def residuals_and_condition(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ``r(z) (N, m)`` whose squares are reduced, and ``F(z)``, of one evaluation.

        The residuals are those of a fit, else ``F(z)`` too. What `linearize_residuals` needs at
        this very ``z`` is kept.
        """
        if not self.fits:
            residual = self.residual_to_factor(z)
            return residual, residual
        self._evaluated, grid = None, self._grid(z)
        if self.branches and unwatched():
            grid = point(grid)
            with torch.enable_grad(), no_saved_tensor_hooks():
                out = self._fn(grid, *self.operands)
            pull: Callable[..., Any] = pullback_on_graph(grid, out)
            self._evaluated = _Evaluated(z, grid, out, None, "residuals")
            out = out.detach()
            gradient = pull(out)
        else:
            out, pull = vjp(lambda u: self._fn(u, *self.operands), grid)
            gradient = pull(out)[0]
        gradient = gradient.reshape(z.shape)
        if self.bounds is not None and self.branches:
            self._free = z, self.apart(z, gradient, 0.0)
        return out.reshape(len(z), out.shape[-1]), gradient

    def linearize_residuals(self, z: Tensor) -> ResidualMap:
        """Return the Jacobian of the residuals at ``z``, ``m x n``; zero where bounds hold."""
        template = JacobianTemplate(self.equation.fn if self.fits else self.equation.condition)
        of = "residuals" if self.fits else "condition"
        return ResidualMap(self._linearized(template, z, of), self.free(z))

    def to_second_order(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the residuals of a fit, their Jacobian, its gradient, and the rest of its Hessian.

        That is ``sum_i r_i Hess(r_i)``: what the Hessian has beside ``J^T J``.
        """

        def gradient(u: Tensor, w: Tensor) -> Tensor:
            pulled: Tensor = vjp(lambda v: self._fn(v, *self.operands), u)[1](w)[0]
            return pulled

        self.count_jacobian()
        grid, n = self._grid(z), z.shape[-1]
        r = self._fn(grid, *self.operands)
        value, pull = vjp(gradient, grid, r)
        slopes = rows(lambda e: torch.cat(pull(e), -1), value, n + r.shape[-1])
        slopes = slopes.reshape(len(z), n, -1)
        r = r.reshape(len(z), -1)
        return r, slopes[..., n:].mT, value.reshape(z.shape), slopes[..., :n]

    def to_compile(self, z: Tensor) -> EquationProblem | None:
        """Return the problem as steps from ``z`` are compiled for it; None if they cannot be."""
        found = self.equation.reading_by_itself(self.operands)
        if found is None:
            return None
        equation, count = found
        # (views: what is said of them is said to nobody else)
        operands = [alias(t) for t in apart(self.operands[:count])]
        lanes = self.lanes.keep(range(count))
        let_lanes_vary(len(z), lanes.carriers(operands), self.start)
        basis = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        return EquationProblem(equation, lanes, self.shape, operands, self.start, basis, True)

    def aliased(self) -> EquationProblem:
        """Return the problem as the body of a loop in a graph has to see it."""
        operands = [alias(t) for t in self.operands]
        basis = None if self.basis is None else alias(self.basis)
        own = self.equation, self.lanes, self.shape, operands, self.start, basis, self.traced
        return EquationProblem(*own, self.counter)

    def repeated(self, count: int, start: Tensor) -> EquationProblem:
        """Return the problem with so many lanes in the place of each, all of one lane's tensors."""
        nobody = (None,) * len(self.operands)
        lanes, _ = self.lanes.lift(count, nobody, self.operands)
        shape = (count, *self.shape)
        own = self.equation, lanes, shape, self.operands, start, self.basis, self.traced
        return EquationProblem(*own, self.counter)

    def take(self, index: Tensor) -> EquationProblem:
        """Return the problem of some of the lanes."""
        lanes, shape, operands = self.lanes.take(index, self.shape, self.operands)
        start = None if self.start is None else self.start[index]
        places = None if self.places is None else self.places[index]
        own = self.equation, lanes, shape, operands, start, self.basis, self.traced
        taken = EquationProblem(*own, self.counter, self.memory, places)
        taken.taken = True
        taken.history = None if self.history is None else self.history.take(index)
        return taken


class _Evaluated(NamedTuple):
    """An evaluation at ``z``: the point and the value with its graph, or the Jacobians.

    The value is ``of`` the "condition", its "slope" between bounds, or the "residuals" of a fit.
    """

    z: Tensor
    point: Tensor
    value: Tensor
    matrices: Tensor | None
    of: str = "condition"
