"""Implicit MAML as a `Method`."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.imaml import definition
from implicit_solvers.problems.imaml.meta_gradient import (
    Evaluate,
    OverTasks,
    TaskGradients,
    gradient_of_each,
    of_tasks,
    task_count,
)
from implicit_solvers.problems.imaml.method import Criterion, Method, Model, Predictor, task_loss
from implicit_solvers.problems.imaml.proximal import Strength, check_damping, check_strength
from implicit_solvers.torch_internals import tree_leaves, tree_map

__all__ = ["Imaml", "imaml_hf"]

DAMPINGS = (0.5, 1.0, 2.0, 4.0, 8.0)
LOG_STRENGTH = "imaml.log_strength"
OnFailure = Literal["raise", "warn", "mask"]
ADJOINT = "adjoint of minimize of task_objective"


@dataclass(frozen=True)
class Imaml(Method):
    """Implicit MAML: ``theta`` descends ``1/M sum_i L(phi_i(theta), query_i)`` by lemma 1.

    ``phi_i`` minimizes ``L(phi, support_i) + strength/2 |phi - theta|²``, and the meta-gradient is
    ``1/M sum_i A_i^-1 dL(phi_i, query_i)/dphi`` with ``A_i = (1 + damping) I + 1/strength
    d²L(phi_i, support_i)/dphi²``.

    Parameters
    ----------
    strength
        The regularization towards ``theta``, the paper's ``lambda``: a positive number, a 0-d
        tensor, or tensors that broadcast to the leaves of ``theta``, in the same pytree. None: it
        is learned, as the exponential of what `extend` puts into ``theta``.
    solver
        How ``phi`` is found: a solver of `implicit_solvers.minimize` (gradient descent with a
        budget or a tolerance; `NewtonCG` is Hessian-free with a line search; `TorchOptimizer`), or
        a function ``solver(objective, theta) -> phi``.
    adjoint
        How the linear system is solved: ``CG`` with a budget of 5 steps, or to a tolerance;
        ``MINRES`` or ``GMRES`` where the strength is below the most negative curvature;
        `neumann_adjoint`.
    damping
        A share of the strength that is added to the linear system alone. ``"auto"``: none, but in
        a task where CG meets negative curvature, the least of 0.5, 1, 2, 4 and 8 at which it does
        not; the task is solved again for each that is tried.
    on_failure
        What becomes of a task in which the inner loop or the linear solve fails. By default it is
        left out of the mean, but where CG meets negative curvature the estimate that it had is
        kept, and the task counts. ``"mask"`` leaves out these too; ``"warn"`` keeps all estimates
        that are finite, and warns; ``"raise"`` is an error. `MetaGradient` has the statuses.

    Raises
    ------
    TypeError
        If ``adjoint`` is no ``ImplicitAdjoint``.
    ValueError
        If ``strength`` is not positive and finite, ``damping`` is negative, or ``on_failure`` is
        none of the above; of tensors, when they are used. When used, too, if ``strength=None`` and
        ``theta`` does not come from `extend`, or if tensors of ``strength`` require gradients.

    Notes
    -----
    ``theta`` is a tensor, or a pytree of tensors of any shapes and one floating dtype; supports and
    queries have the tasks in front (`Method.meta_gradient`).

    Source: Rajeswaran, Finn, Kakade and Levine, "Meta-Learning with Implicit Gradients" (2019),
    algorithms 1 and 2.

    Examples
    --------
    Two tasks, ``L = |phi - y|²/2``: ``phi = (y + 2 theta) / 3``, and the meta-gradient is the mean
    of ``2/3 (phi - y_query)``.

    >>> model, criterion = lambda theta, x: theta * x, lambda out, y: (out - y).square().sum() / 2
    >>> x, theta = torch.ones(2, 1), torch.tensor(0.0)
    >>> supports, queries = (x, torch.tensor([[3.0], [6.0]])), (x, torch.zeros(2, 1))
    >>> exact = Imaml(2.0, ims.NewtonCG(), ims.ImplicitAdjoint(ims.CG()))
    >>> exact.meta_gradient(model, criterion, theta, supports, queries).gradient
    tensor(1.)
    """

    strength: Strength | None = 2.0
    solver: Any = ims.GradientDescent(0.1, max_steps=16, rtol=None)
    adjoint: ims.ImplicitAdjoint = field(
        default=ims.ImplicitAdjoint(ims.CG(max_steps=5, rtol=None))
    )
    damping: float | Literal["auto"] = 0.0
    on_failure: OnFailure | None = None

    def __post_init__(self) -> None:
        if isinstance(self.strength, (int, float)):
            check_strength(self.strength, torch.zeros(()))
        check_damping(0.0 if self.damping == "auto" else self.damping)
        if self.on_failure not in (None, "raise", "warn", "mask"):
            raise ValueError(
                f'Imaml has on_failure={self.on_failure!r}: pass "raise", "warn" or "mask", or None'
            )
        if not isinstance(self.adjoint, ims.ImplicitAdjoint):
            raise TypeError(
                f"Imaml has the adjoint {type(self.adjoint).__name__}: pass an ImplicitAdjoint "
                "(Maml differentiates through the steps)"
            )

    def extend(
        self, theta: dict[str, Tensor], strength: float = 2.0, *, per_parameter: bool = False
    ) -> dict[str, Tensor]:
        """Return ``theta`` with the logarithm of a learned strength, for ``Imaml(strength=None)``.

        The model does not see it. Its gradient comes from the same rule as that of ``theta``.

        Parameters
        ----------
        theta
            The parameters of the model, by name.
        strength
            Where the learning begins.
        per_parameter
            Whether each tensor of ``theta`` has a strength of its own.

        Raises
        ------
        ValueError
            If ``strength`` is not positive and finite.

        Examples
        --------
        >>> Imaml(strength=None).extend({"w": torch.zeros(2)}, strength=1.0)
        {'w': tensor([0., 0.]), 'imaml.log_strength': tensor(0.)}
        """
        check_strength(strength, torch.zeros(()))
        keys = [f"{LOG_STRENGTH}.{name}" for name in theta] if per_parameter else [LOG_STRENGTH]
        like = next(iter(theta.values()))
        return {
            **theta,
            **{key: torch.full_like(like, 0).sum() + math.log(strength) for key in keys},
        }

    def adapt(self, model: Model, criterion: Criterion, theta: Any, support: Any) -> Predictor:
        """Return the predictor at ``phi``; as in `Method`."""
        with _silent(self.on_failure):
            phi = self._solve(model, criterion, theta, support).value
        return lambda x: model(phi, x)

    def _tasks(self, model: Model, criterion: Criterion, theta: Any) -> Evaluate:
        """Return the implicit meta-gradients."""
        if any(getattr(leaf, "requires_grad", False) for leaf in tree_leaves(self.strength)):
            raise ValueError(
                "strength requires a gradient, which meta_gradient does not return: pass "
                "strength=None and extend(theta) to learn it, or detach it"
            )

        def query_loss(theta: Any, support: Any, query: Any) -> tuple[Tensor, ...]:
            solution = self._solve(model, criterion, theta, support)
            x, y = query
            return criterion(model(solution.value, x), y), solution.status, solution.residual

        def evaluate(over_tasks: OverTasks, supports: Any, queries: Any) -> TaskGradients:
            with ims.monitor() as log, _silent(self.on_failure):
                gradient, loss, status, residual = gradient_of_each(
                    over_tasks, query_loss, theta, supports, queries
                )
            adjoint = next(record for record in log.records if record.equation == ADJOINT)
            ends = status, adjoint.status.reshape(-1)
            residuals = residual, adjoint.residual.reshape(-1)
            return TaskGradients(gradient, loss, self._failed(*ends), *residuals, *ends)

        def with_damping(over_tasks: OverTasks, supports: Any, queries: Any) -> TaskGradients:
            def solve(damping: float, policy: OnFailure | None, some: Any) -> TaskGradients:
                method = replace(self, damping=damping, on_failure=policy)
                data = of_tasks(some, (supports, queries))
                try:
                    return method._tasks(model, criterion, theta)(over_tasks, *data)
                except ims.ConvergenceError as error:
                    tasks = torch.arange(task_count(supports, queries))[some].tolist()
                    error.add_note(f"The problems that were solved again are the tasks {tasks}.")
                    raise

            def put(some: Tensor, new: TaskGradients) -> TaskGradients:
                return tree_map(lambda t, n: t.index_put((some,), n), found, new)

            found = solve(0.0, "mask", slice(None))
            other = found.failed & (found.adjoint_status != ims.Status.INDEFINITE)
            if self.on_failure in ("raise", "warn") and bool(other.any()):
                found = put(other, solve(0.0, self.on_failure, other))
            for damping in DAMPINGS:
                bad = found.adjoint_status == ims.Status.INDEFINITE
                if bool(bad.any()):
                    policy = self.on_failure if damping == DAMPINGS[-1] else "mask"
                    found = put(bad, solve(damping, policy, bad))
            return found

        return with_damping if self.damping == "auto" else evaluate

    def _failed(self, inner: Tensor, adjoint: Tensor) -> Tensor:
        """Tell for each task, from how its solves ended, whether it is left out."""
        bad, budget = adjoint > ims.Status.BUDGET, ims.Status.BUDGET
        if self.on_failure == "warn":
            return torch.zeros_like(bad)
        if self.on_failure is None:
            bad = bad & (adjoint != ims.Status.INDEFINITE)
        return bad | (inner > budget)

    def _solve(self, model: Model, criterion: Criterion, theta: Any, support: Any) -> ims.Solution:
        strength, parameters = self.strength, theta
        if strength is None:
            strength, parameters = _learned_strength(theta)

        return definition.adapt(
            task_loss(model, criterion),
            parameters,
            support,
            strength=strength,
            solver=self.solver,
            adjoint=self.adjoint,
            damping=0.0 if self.damping == "auto" else self.damping,
            on_failure=self.on_failure or "warn",
        )


def _learned_strength(theta: Any) -> tuple[Strength, dict[str, Tensor]]:
    """Split what `Imaml.extend` returns into a strength and the parameters of the model."""
    learned = (
        [key for key in theta if key.startswith(LOG_STRENGTH)] if isinstance(theta, dict) else []
    )
    if not learned:
        raise ValueError(
            f"strength=None learns it, and theta has no {LOG_STRENGTH!r}: pass extend(theta), or "
            "a strength"
        )
    parameters = {name: value for name, value in theta.items() if name not in learned}
    if LOG_STRENGTH in learned:
        return theta[LOG_STRENGTH].exp(), parameters
    return {name: theta[f"{LOG_STRENGTH}.{name}"].exp() for name in parameters}, parameters


def imaml_hf(
    strength: Strength | None = 2.0,
    steps: int = 5,
    cg_steps: int = 5,
    **options: Any,
) -> Imaml:
    """Return `Imaml` with the Hessian-free inner loop: Newton's steps by CG, with a line search.

    A step ``p`` of the inner loop solves ``(H + strength I) p = -g`` for the gradient ``g`` of
    ``L(phi, support) + strength/2 |phi - theta|²`` and the Hessian ``H`` of ``L``.

    Parameters
    ----------
    strength
        As in `Imaml`.
    steps
        Newton's steps in the inner loop.
    cg_steps
        Products with the Hessian in each, and steps of CG for the meta-gradient.
    **options
        Further fields of `Imaml`.

    Returns
    -------
    Imaml
        For ``theta`` of any shapes and floating dtype, as there.

    Raises
    ------
    TypeError, ValueError
        As `Imaml` and `NewtonCG`, if a number of steps or a field is invalid.

    Notes
    -----
    Source: Rajeswaran, Finn, Kakade and Levine, "Meta-Learning with Implicit Gradients" (2019),
    section 4; Martens, "Deep learning via Hessian-free optimization" (2010).

    Examples
    --------
    >>> imaml_hf(steps=3).solver
    NewtonCG(rtol=None, ...max_steps=3, ...max_products=5, ...)
    """
    solver = ims.NewtonCG(rtol=None, max_steps=steps, max_products=cg_steps)
    adjoint = ims.ImplicitAdjoint(ims.CG(max_steps=cg_steps, rtol=None))
    return Imaml(strength, **{"solver": solver, "adjoint": adjoint, **options})


@contextlib.contextmanager
def _silent(on_failure: OnFailure | None) -> Iterator[None]:
    """Silence warnings about tasks that fail, unless they are asked for: the result has them."""
    with warnings.catch_warnings():
        if on_failure in (None, "mask"):
            warnings.simplefilter("ignore", ims.ConvergenceWarning)
        yield
