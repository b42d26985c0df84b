"""Elementwise optimizers of ``torch.optim``, each lane on its own. It knows gradients alone."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from implicit_solvers.problem import EquationProblem
from implicit_solvers.solver import EquationMethod

__all__ = ["TorchOptimizer"]


class TorchOptimizerState(NamedTuple):
    """The state of `TorchOptimizer`.

    ``moments`` are the optimizer's tensors ``(N, n)``, by ``names``; ``shared`` is the rest, the
    same in all lanes (a counter of steps). Before the first step both only have their form.
    """

    z: Tensor
    gradient: Tensor
    names: tuple[str, ...]
    moments: tuple[Tensor, ...]
    shared: dict[str, Any]
    steps: int
    error: Tensor
    flag: Tensor


@dataclass(frozen=True, init=False)
class TorchOptimizer(EquationMethod):
    """An optimizer of ``torch.optim`` as a solver: ``TorchOptimizer(torch.optim.Adam, lr=0.1)``.

    The optimizer must be *elementwise*: the step of an entry depends on the past gradients of that
    entry alone, as in SGD, Adam, Adamax, NAdam, RAdam, RMSprop, Adagrad, Adadelta and Rprop.
    Problems are independent then. Its steps must go against the gradient, and rest where the
    gradient vanishes. Any class, also one of your own, is tested for that on a few numbers.

    Parameters
    ----------
    optimizer
        A subclass of ``torch.optim.Optimizer``.
    rtol, atol, f_atol, max_steps, max_trials, norm, compact, check_every
        As in `EquationMethod`; steps of a fixed size may not come near enough to propose an end.
    **options
        The options of the optimizer: numbers, flags, tuples.

    Raises
    ------
    TypeError
        If ``optimizer`` is no such class, or an option is a tensor or otherwise not hashable.
    ValueError
        If ``rtol``, ``atol`` or ``max_steps`` is negative; if the optimizer is not elementwise
        (LBFGS, Muon, Adafactor), needs more than dense gradients (SparseAdam), goes up
        (``maximize=True``), or moves where the gradient vanishes: ``weight_decay`` (0.01 unless you
        pass 0 to AdamW) and ASGD's ``lambd`` add a term to what is minimized, so that the
        derivatives of the solution would be those of another function.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> adam = TorchOptimizer(torch.optim.Adam, lr=0.1, rtol=None, max_steps=300)
    >>> a = torch.tensor(3.0, requires_grad=True)
    >>> sol = ims.minimize(lambda z, a: (z - 2 * a) ** 2, torch.tensor(0.0), (a,), solver=adam)
    >>> sol.value
    tensor(6.0000, grad_fn=<...>)
    >>> torch.autograd.grad(sol.value, a)[0]
    tensor(2.)
    """

    optimizer: type[Optimizer]
    options: tuple[tuple[str, Any], ...]
    max_steps: int = field(default=10_000, kw_only=True)
    solves: ClassVar[tuple[str, ...]] = ("minimize", "least_squares")
    traceable: ClassVar[bool] = False

    def __init__(
        self,
        optimizer: type[Optimizer],
        options: tuple[tuple[str, Any], ...] = (),
        **more: Any,
    ) -> None:
        for own in fields(EquationMethod):
            default = type(self).max_steps if own.name == "max_steps" else own.default
            object.__setattr__(self, own.name, more.pop(own.name, default))
        chosen = tuple(
            (name, tuple(value) if isinstance(value, list) else value)
            for name, value in sorted({**dict(options), **more}.items())
        )
        _check(optimizer, chosen)
        object.__setattr__(self, "optimizer", optimizer)
        object.__setattr__(self, "options", chosen)
        self.__post_init__()

    def init(self, problem: EquationProblem, z: Tensor) -> TorchOptimizerState:
        """Evaluate the gradient at the start, and see what the optimizer remembers."""
        gradient = problem.residual(z)
        flag = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        _, memory = _steps(self.optimizer, self.options, z, [torch.zeros_like(z)])
        names = tuple(name for name, t in memory.items() if _per_lane(t, z))
        moments = tuple(memory.pop(name) for name in names)
        return TorchOptimizerState(
            z, gradient, names, moments, memory, 0, self.norm(gradient), flag
        )

    def step(self, problem: EquationProblem, state: TorchOptimizerState) -> TorchOptimizerState:
        """Let the optimizer make a step with all lanes in one tensor."""
        memory = {**dict(zip(state.names, state.moments, strict=True)), **state.shared}
        known = memory if state.steps else None
        z, memory = _steps(self.optimizer, self.options, state.z, [state.gradient], known)
        gradient = problem.residual(z)
        moments = tuple(memory.pop(name) for name in state.names)
        return TorchOptimizerState(
            z,
            gradient,
            state.names,
            moments,
            memory,
            state.steps + 1,
            self.norm(gradient),
            state.flag,
        )


def _steps(
    optimizer: type[Optimizer],
    options: tuple[tuple[str, Any], ...],
    z: Tensor,
    gradients: list[Tensor],
    memory: dict[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Make a step with each of the gradients; return where it leads and what is remembered."""
    parameter = z.detach().clone()
    made = optimizer([parameter], **dict(options))
    if memory is not None:
        made.state[parameter] = {name: _copy(value) for name, value in memory.items()}
    for gradient in gradients:
        parameter.grad = gradient.detach().clone()
        made.step()
    return parameter.detach(), dict(made.state[parameter])


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _per_lane(value: Any, z: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == z.shape


def _check(optimizer: type[Optimizer], options: tuple[tuple[str, Any], ...]) -> None:
    """Refuse an optimizer that is no solver of independent lanes."""
    if not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
        raise TypeError(
            f"TorchOptimizer has optimizer={optimizer!r}: pass a subclass of "
            "torch.optim.Optimizer and its options, as TorchOptimizer(torch.optim.Adam, lr=0.1)"
        )
    for name, value in options:
        if isinstance(value, Tensor):
            raise TypeError(
                f"TorchOptimizer has the tensor {name}: pass a number, as {name}={value.tolist()}"
            )
        try:
            hash(value)
        except TypeError:
            raise TypeError(
                f"TorchOptimizer has {name} of the type {type(value).__name__}: pass numbers, "
                "flags or tuples"
            ) from None
        if name in ("capturable", "differentiable", "foreach", "fused") and value:
            raise ValueError(
                f"TorchOptimizer has {name}={value!r}, which changes how the optimizer computes "
                "and not what: leave it out"
            )
    key: Any = optimizer  # a class is hashable, and mypy does not see it
    reason = _unfit(key, options)
    if reason is not None:
        raise ValueError(f"TorchOptimizer cannot use {optimizer.__name__}: {reason}")


_Z = torch.tensor([[0.3, -2.0, 0.7], [50.0, 0.04, -1.0]], dtype=torch.float64)
_GRADIENTS = [_Z.flip(-1) * 0.3 + 0.1, _Z * 0.5 - 0.2, -0.1 * _Z.flip(0)]


@lru_cache(maxsize=128)
def _unfit(optimizer: type[Optimizer], options: tuple[tuple[str, Any], ...]) -> str | None:
    """Return why an optimizer cannot be used, or None, from its steps on a few numbers."""
    optimizer([_Z.clone()], **dict(options))  # options that torch refuses are torch's to explain
    try:
        whole, memory = _steps(optimizer, options, _Z, _GRADIENTS)
        resting, _ = _steps(optimizer, options, _Z, [torch.zeros_like(_Z)])
        first, _ = _steps(optimizer, options, _Z, _GRADIENTS[:1])
        parts = [
            _steps(optimizer, options, z, list(gradients))[0]
            for z, *gradients in zip(*(t.reshape(-1, 1, 1) for t in (_Z, *_GRADIENTS)), strict=True)
        ]
    except Exception as error:
        return (
            f"it does not make steps from dense gradients alone ({type(error).__name__}: {error}); "
            "a method that needs the function itself is a solver of its own, as LBFGS()"
        )
    tensors = [value for value in memory.values() if isinstance(value, Tensor)]
    shapes = all(t.dim() == 0 or t.shape == _Z.shape for t in tensors)
    if not shapes or not torch.allclose(whole.reshape(-1, 1, 1), torch.stack(parts), rtol=1e-9):
        return (
            "it is not elementwise: the step of one entry depends on other entries, so that "
            "problems would not be independent; use Adam, RMSprop, SGD or LBFGS()"
        )
    if not torch.equal(resting, _Z):
        decays = [n for n in ("weight_decay", "lambd") if _default(optimizer, options, n)]
        hint = f"pass {decays[0]}=0, and add such a term to fn" if decays else "leave decay out"
        return (
            "it moves where the gradient vanishes, so that it minimizes another function, and the "
            f"derivatives of its solution would be wrong: {hint}"
        )
    if bool(((first - _Z) * _GRADIENTS[0] >= 0).any()):
        return (
            "its first step does not go against the gradient: it would not minimize (leave out "
            "maximize=True, pass a positive lr)"
        )
    return None


def _default(optimizer: type[Optimizer], options: tuple[tuple[str, Any], ...], name: str) -> object:
    return optimizer([_Z.clone()], **dict(options)).defaults.get(name)
