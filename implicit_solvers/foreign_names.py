"""Names of other libraries: refused with the name that they have here. It knows names only."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, TypeVar

__all__ = ["explains_names", "explains_names_of", "missing_name"]

F = TypeVar("F", bound=Callable[..., Any])

_TOLERANCES = "tol tolerance eps epsilon ftol xtol gtol f_tol abs_tol"
_STEPS = (
    "maxiter max_iter max_iters maxiters max_iterations maxsteps n_iter steps num_steps max_nfev "
    "f_max_iter maxfev"
)
_FIELD = "it is a field of some solvers, as in solver=ims."
_LENGTH = f"{_FIELD}GradientDescent(lr=0.1)"


def _each(table: dict[str, str]) -> dict[str, str]:
    return {name: here for names, here in table.items() for name in names.split()}


# options of SciPy, jaxopt, Optimistix, TorchOpt, torchdeq and Theseus; {} is a solver that fits
_OF_FUNCTIONS = _each(
    {
        f"{_TOLERANCES} {_STEPS} rtol atol max_steps": "the solver has the tolerances and the "
        "number of steps, as in solver=ims.{}(rtol=1e-6, max_steps=50)",
        "method f_solver optimizer algorithm": "pass an instance as solver, as in solver=ims.{}()",
        "options": "the solver has them as fields, as in solver=ims.{}(max_steps=50)",
        "compile jit": "the solver has it, as in solver=ims.{}(compile=True)",
        "lr learning_rate stepsize step_size": _LENGTH,
        "momentum": f"{_FIELD}GradientDescent(momentum=0.9)",
        "damping": f"{_FIELD}FixedPointIteration(damping=0.5)",
        "line_search linesearch": f"{_FIELD}GradientDescent(line_search=ims.Backtracking())",
        "linear_solver": f"{_FIELD}Newton(linear_solver=ims.GMRES()); the backward pass has "
        "adjoint=ims.ImplicitAdjoint(ims.GMRES())",
        "b_solver": "pass adjoint=ims.ImplicitAdjoint(ims.GMRES())",
        "jac jacobian fprime fprime2 hess hessp grad": "leave it out, torch differentiates fn",
        "argnums": "leave it out, every argument is differentiable",
        "implicit_diff ift": "leave it out, derivatives are implicit by default",
        "unroll": "pass adjoint=ims.UnrolledAdjoint()",
        "fun f func function objective cell": "fn is the function, and the first argument",
        "x0 y0 z z_init init init_params start": "z0 is the start, and the second argument",
        "params kwargs theta": "args is the tuple of what fn takes after the unknown, as in "
        "args=(theta,)",
        "bounds": "minimize and least_squares take bounds; bracket=(lo, hi) of root is for one "
        "unknown, and clamp in fn for others",
        "constraints": "pass equalities=h and inequalities=g, functions of (z, *args)",
        "callback verbose disp display": "ims.monitor() logs the steps and errors of solves",
        "full_output": "the Solution has all of it, as solution.iterations",
        "throw raise_on_failure": 'pass on_failure="raise", "warn" or "mask"',
        "device dtype": "a solve has those of z0, as in z0.to(torch.float64)",
        "batch batched batch_size batch_dim": "pass batch_dims, the number of leading dimensions "
        "of z0 that are problems, as in batch_dims=1, in_dims=(0,)",
        "sigma weights weight": "multiply the residuals in fn by what they are to count",
        "symmetric positive_definite": "the operator has it, as in "
        "ims.MatrixOperator(A, positive_definite=True)",
    }
)
_OF_SOLVERS = _each(
    {
        f"{_TOLERANCES} {_STEPS}": "the tolerances are rtol and atol, as in "
        "{}(rtol=1e-6, max_steps=50)"
    }
)
_NAMES = _each(
    {
        "FixedPoint Root Minimize": "write ims.nn.{}",
        "DEQ get_deq": "write ims.nn.FixedPoint(cell)",
        "solve": "choose by what is solved: root, fixed_point, minimize, least_squares, "
        "linear_solve",
        "find_root root_find root_scalar fsolve": "write ims.root",
        "minimise optimize": "write ims.minimize",
        "lstsq curve_fit": "write ims.least_squares",
        "lm LM": "write ims.LevenbergMarquardt()",
        "Adam AdamW SGD RMSprop": "write ims.TorchOptimizer(torch.optim.{}, lr=0.1)",
        "Brent Brentq brentq": "write ims.Chandrupatla(), or ims.root(..., bracket=(lo, hi))",
        "Picard FixedPointIter": "write ims.FixedPointIteration()",
        "Secant": "write ims.Steffensen() for one unknown, ims.Broyden() for several",
        "NewtonRaphson": "write ims.Newton()",
        "implicit_diff ImplicitFunction": "write ims.attach(fn, z, args), or ims.custom_root(fn)",
        "problems testing": "write import implicit_solvers.{} first",
        "check_implicit_gradients assert_implicit_gradients": "write from implicit_solvers.testing "
        "import {}",
        "ConvexLayer": "write from implicit_solvers.problems.convex import {}",
        "quadratic_program": "write from implicit_solvers.problems.qp import {}",
        "sinkhorn entropic_transport project_simplex sparsemax entmax": "write from "
        "implicit_solvers.problems.projections import {}",
    }
)


def explains_names(solver: str) -> Callable[[F], F]:
    """Decorate a function that takes a solver, for which ``solver`` is an example of one."""

    def decorate(fn: F) -> F:
        return _refusing(fn, _OF_FUNCTIONS, solver)

    return decorate


def explains_names_of(value: Any) -> None:
    """Let a class of hyperparameters explain its names; other values are left alone."""
    if not (isinstance(value, type) and is_dataclass(value)):
        return
    named = inspect.signature(value).parameters
    if named and all(option.default is not option.empty for option in named.values()):
        explained = _OF_SOLVERS if "rtol" in named else {}
        explaining = _refusing(value.__init__, explained, value.__name__)
        value.__init__ = explaining  # type: ignore[method-assign]


def missing_name(module: str, name: str) -> AttributeError:
    """Return the error of a public name that a module has not."""
    here = _NAMES.get(name)
    text = f"module {module!r} has no attribute {name!r}"
    return AttributeError(text if here is None else f"{text}: {here.format(name)}")


def _refusing(fn: F, foreign: dict[str, str], example: str) -> F:
    parameters = inspect.signature(fn).parameters
    own = [name for name in parameters if name != "self"]
    accepted, refused = set(parameters), foreign.keys() - parameters.keys()
    free = any(option.kind is option.VAR_KEYWORD for option in parameters.values())

    @functools.wraps(fn)
    def call(*args: Any, **options: Any) -> Any:
        for option in options:
            if option in refused or not (free or option in accepted):
                name = type(args[0]).__name__ if fn.__name__ == "__init__" else fn.__name__
                here = foreign.get(option, f"it has {', '.join(own)}").format(example)
                raise TypeError(f"{name}() has no {option}: {here}")
        return fn(*args, **options)

    return call  # type: ignore[return-value]
