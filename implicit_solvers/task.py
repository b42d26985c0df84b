"""What a public function was asked for, and whether that is sound. It knows no concrete solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import unwrap
from typing import Any

from torch import Tensor, nn

from implicit_solvers.adjoint import Adjoint, ImplicitAdjoint, OneStepAdjoint, UnrolledAdjoint
from implicit_solvers.evaluations import Counter
from implicit_solvers.guarded_call import ExplainedCall, GuardedCall
from implicit_solvers.linear.adjoint_start import AdjointStart
from implicit_solvers.problem import Equation
from implicit_solvers.ranks import Ranks
from implicit_solvers.solution import OnFailure
from implicit_solvers.solver import EquationMethod
from implicit_solvers.structure import Structure, shown, split_tensors
from implicit_solvers.torch_internals import active_dropout, tree_flatten

__all__ = ["Task", "arguments", "check_size", "check_task", "name_of"]


@dataclass(frozen=True)
class Task:
    """What a public function was asked for, its tensors aside.

    ``read`` ravels and checks what ``fn`` returns, given the structure of ``z`` and the shape of
    the lanes at hand. ``differentiated`` is the equation that derivatives come from, if it is not
    the one that is solved; ``check`` tells whether to look for what derivatives would silently
    miss; ``sparsity`` is the pattern of the Jacobian, if it is given. So many of the unknowns are
    ``multipliers``. The ``ranks`` share the work.
    """

    equation: type[Equation]
    fn: Callable[..., Any]
    read: Callable[[Any, Structure, Sequence[int]], Tensor]
    solver: Any
    adjoint: Adjoint
    batch_dims: int = 0
    in_dims: Any = None
    has_aux: bool = False
    on_failure: OnFailure = "raise"
    adjoint_start: AdjointStart | None = None
    check: bool = False
    ranks: Ranks | None = None
    differentiated: type[Equation] | None = None
    sparsity: Any = None
    multipliers: int = 0

    @property
    def label(self) -> str:
        """The kind of the equation and the name of its function."""
        return f"{self.equation.kind} of {name_of(self.fn)}"

    def stated(self, fn: Callable[..., Tensor]) -> Equation:
        """Return the equation of a raveled function."""
        return self.equation(fn, self.sparsity, self.multipliers)

    def attached(self, fn: Callable[..., Tensor]) -> Equation:
        """Return the equation that derivatives come from, of a raveled function."""
        return (self.differentiated or self.equation)(fn, self.sparsity, self.multipliers)

    def raveled(
        self,
        structure: Structure,
        join: Callable[[Sequence[Tensor]], Any],
        counter: Counter | None = None,
    ) -> Callable[..., Tensor]:
        """Return ``fn`` as a function of a raveled ``z`` and the tensors of its arguments.

        Outside of graphs, the ``counter`` counts its calls.
        """
        fn = self.flat(structure, join)
        fn.__wrapped__ = self.fn  # type: ignore[attr-defined]
        if counter is None:
            return fn
        return ExplainedCall(fn, structure, join, self.in_dims, counter)

    def flat(
        self, structure: Structure, join: Callable[[Sequence[Tensor]], Any]
    ) -> Callable[..., Tensor]:
        """Return what `raveled` does, as a plain function."""
        call = GuardedCall(self.fn, self.label)

        def fn(z: Tensor, *tensors: Tensor) -> Tensor:
            out = call(structure.unravel(z), join(tensors))
            if self.has_aux:
                if not isinstance(out, tuple) or len(out) != 2:
                    raise ValueError(
                        f"fn returned a {type(out).__name__} with has_aux=True: return a pair "
                        "(value, aux)"
                    )
                out = out[0]
            return self.read(out, structure, z.shape[:-1])

        return fn


def name_of(fn: Any) -> str:
    """Return the name of a function, or of the class of a callable object."""
    fn = unwrap(fn)
    while isinstance(fn, partial):
        fn = unwrap(fn.func)
    return getattr(fn, "__name__", type(fn).__name__)


def check_task(task: Task, args: Any) -> None:
    """Refuse what is unfit in a task, or in the arguments of its function."""
    if not callable(task.fn):
        raise TypeError(f"fn is a {type(task.fn).__name__}: pass a function fn(z, *args)")
    if isinstance(task.fn, type):
        raise TypeError(
            f"fn is the class {task.fn.__name__}: pass an instance of it, or a function"
        )
    if isinstance(task.fn, nn.Module) and (names := active_dropout(task.fn)):
        raise ValueError(
            f"the function of {task.label} holds dropout in training mode ({', '.join(names)}), "
            "and a random function has no solution: the equation changes at every evaluation. "
            "Dropout may stand outside, on what the function is given and on the solution; inside, "
            "draw a mask once and pass it in args, or call eval() on the cell"
        )
    if not isinstance(args, tuple):
        raise TypeError(
            f"args is a {type(args).__name__}: pass a tuple, as args=(theta,) for one argument"
        )
    if task.on_failure not in ("raise", "warn", "mask"):
        raise ValueError(f'on_failure is {task.on_failure!r}: use "raise", "warn" or "mask"')
    number = isinstance(task.batch_dims, int) and not isinstance(task.batch_dims, bool)
    if not number or task.batch_dims < 0:
        raise ValueError(f"batch_dims is {task.batch_dims!r}: pass the number of batch dimensions")
    check_adjoint(task.adjoint)
    solver, kind = task.solver, task.equation.kind
    if solver is None:
        return
    if not isinstance(solver, EquationMethod):
        name = solver.__name__ if isinstance(solver, type) else type(solver).__name__
        what = "class" if isinstance(solver, type) else "object"
        raise TypeError(
            f"solver is the {what} {name}: pass an instance of a solver for {kind}, with (), or "
            "leave it out (your own is of EquationMethod)"
        )
    if kind not in solver.solves:
        raise ValueError(
            f"solver={type(solver).__name__}() solves {', '.join(solver.solves)} and was given to "
            f"{kind}: choose a solver for {kind}, or leave it out"
        )


def check_adjoint(adjoint: Any) -> None:
    """Refuse what does not say how to differentiate."""
    if isinstance(adjoint, (ImplicitAdjoint, OneStepAdjoint, UnrolledAdjoint)):
        return
    given = f"the class {adjoint.__name__}" if isinstance(adjoint, type) else repr(adjoint)
    raise TypeError(
        f"adjoint is {given}: pass an instance, as ImplicitAdjoint(), OneStepAdjoint() or "
        "UnrolledAdjoint(), or leave it out"
    )


def check_size(task: Task, structure: Structure) -> None:
    """Refuse lanes of several unknowns for a solver that is for one, and what has no values."""
    if structure.device.type == "meta":
        raise ValueError("z0 is on the meta device, which holds no values: pass one that does")
    if getattr(task.solver, "brackets", False) and structure.size != 1:
        raise ValueError(
            f"z0 has {structure.size} unknowns, and solver={type(task.solver).__name__}() is for "
            "one: make a batch of them, with batch_dims or vmap, or use Newton()"
        )


def arguments(
    task: Task, args: tuple[Any, ...], own: Sequence[Tensor], structure: Structure
) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any], tuple[bool, ...] | None]:
    """Return the ``own`` tensors of the equation and those in ``args``, and how to join these.

    With them it is told which carry the native lanes, if that is known: own ones do.
    """
    tensors, join = split_tensors(args)
    carried, count = _read_in_dims(task, args, structure), len(own)
    if not own:
        return tensors, join, carried
    carried = None if carried is None else (True,) * count + carried
    return [*own, *tensors], lambda tensors: join(tensors[count:]), carried


def _read_in_dims(
    task: Task, args: tuple[Any, ...], structure: Structure
) -> tuple[bool, ...] | None:
    """Tell for each tensor in ``args`` whether it carries the native lanes; None if unknown."""
    in_dims = task.in_dims
    if task.batch_dims == 0:
        if in_dims is not None:
            raise ValueError(
                f"in_dims is {in_dims!r} and batch_dims is 0: pass batch_dims, the number of batch "
                "dimensions of z0, too"
            )
        return (False,) * len(split_tensors(args)[0])
    if in_dims is None:
        return None
    if isinstance(in_dims, int):
        in_dims = (in_dims,) * len(args)
    if not isinstance(in_dims, tuple) or len(in_dims) != len(args):
        raise ValueError(
            f"in_dims is {in_dims!r} for {len(args)} args: pass a tuple with 0 or None for each, "
            "or a pytree of them"
        )
    carried: list[bool] = []
    for i, (dims, arg) in enumerate(zip(in_dims, args, strict=True)):
        for dim, leaf in _broadcast(dims, arg, i):
            if not isinstance(leaf, Tensor):
                continue
            if dim not in (0, None):
                raise ValueError(
                    f"in_dims has {dim!r} for args[{i}]: the batch comes first, use 0 or None"
                )
            lanes = tuple(leaf.shape[: task.batch_dims])
            if dim == 0 and lanes != structure.native:
                raise ValueError(
                    f"in_dims says that args[{i}] has the batch, and its shape is "
                    f"{tuple(leaf.shape)} where z0 has the batch {structure.native}: put None for "
                    "it, or expand it"
                )
            carried.append(dim == 0)
    return tuple(carried)


def _broadcast(dims: Any, arg: Any, i: int) -> list[tuple[Any, Any]]:
    leaves, spec = tree_flatten(arg)
    if dims is None or isinstance(dims, int):
        return [(dims, leaf) for leaf in leaves]
    given, given_spec = tree_flatten(dims)
    if given_spec != spec:
        raise ValueError(
            f"in_dims has {dims!r} for args[{i}], which is {shown(spec)}: use 0 or "
            "None for all of it, or the same structure"
        )
    return list(zip(given, leaves, strict=True))
