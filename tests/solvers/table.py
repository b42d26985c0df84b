"""SOLVERS: one row for each solver, and each of its variants, with what it is to be tried on."""

import re
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import implicit_solvers as ims
from tests.solvers.systems import (
    AFFINE,
    BARRIER,
    BEALE,
    BOWL,
    CIRCLE_FIT,
    CONTRACTION,
    COSINE,
    COUPLED,
    CUBIC,
    EXPANDING,
    EXPONENTIAL_FIT,
    FALLING,
    FITS,
    FIXED_POINTS,
    GROWTH_FIT,
    H_EQUATION,
    HELICAL_VALLEY,
    HILL,
    HIMMELBLAU,
    KEPLER,
    LOGISTIC,
    MINIMA,
    MORE_ROOTS,
    NETWORK,
    REGRESSIONS,
    ROOTS,
    SCALARS,
    TRIDIAGONAL,
)

PAGE = Path(__file__).parents[2] / "docs" / "own_solver.md"


def own_solver():
    """Return the solver that the page ``docs/own_solver.md`` writes, from the page's own code."""
    # a module, in which Dynamo finds what the solver uses
    module = sys.modules["own_solver"] = types.ModuleType("own_solver")
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), vars(module))
    return module.HeavyBall


HeavyBall = own_solver()


@dataclass(frozen=True)
class Row:
    """A solver and its systems: the first ``costly`` of them serve derivatives and lanes too.

    ``order`` is that of convergence: 1, 2, or 1.5 for anything between. A solver without memory
    makes each step from the iterate alone. ``without`` names checks that do not fit.
    """

    name: str
    solver: Any
    systems: list
    costly: int = 2
    order: float | None = None
    memory: bool = True
    without: tuple = ()

    def __str__(self):
        return self.name

    @property
    def main(self):
        """Whether it is the solver itself, and not a variant."""
        return "-" not in self.name

    @property
    def tried(self):
        return list(dict.fromkeys(self.systems))

    @property
    def kinds(self):
        return list(dict.fromkeys(system.kind for system in self.systems))


GMRES, LU, SGD = ims.GMRES(), ims.LU(), torch.optim.SGD
BY_PRODUCTS = {"linear_solver": ims.CG(rtol=1e-4)}
ARMIJO = ims.Backtracking()
# a search for a bracket, and a bracket that halves, are no steps from an iterate
BRACKETS = {"systems": [*SCALARS, COSINE, FALLING], "without": ("budget", "start", "tree")}
BOWLS = [BOWL, LOGISTIC]

SOLVERS = [
    Row("Newton", ims.Newton(),
        [COUPLED, CUBIC, *ROOTS[2:], *MORE_ROOTS, *FIXED_POINTS, *BOWLS, HIMMELBLAU, CIRCLE_FIT],
        order=2, memory=False),
    Row("Newton-GMRES", ims.Newton(linear_solver=GMRES),
        [TRIDIAGONAL, CUBIC, *ROOTS, *MORE_ROOTS, *FIXED_POINTS, BOWL], order=1.5),
    Row("Newton-GMRES-loose", ims.Newton(linear_solver=ims.GMRES(rtol=1e-2)),
        [COUPLED, *FIXED_POINTS], 1),
    Row("Newton-full-steps", ims.Newton(halvings=0), [COUPLED, CUBIC, COSINE, KEPLER], 1),
    Row("Newton-reuse", ims.Newton(reuse=0.5), [TRIDIAGONAL, CUBIC, *ROOTS, CONTRACTION, COSINE]),
    Row("Newton-reuse-little", ims.Newton(reuse=0.05), [CUBIC, COUPLED, CONTRACTION, COSINE], 1),
    Row("Newton-reuse-full-steps", ims.Newton(reuse=0.3, halvings=0), [COUPLED, H_EQUATION], 1),
    Row("Chord", ims.Chord(),
        [COUPLED, CUBIC, *ROOTS[2:], CONTRACTION, COSINE, BOWL, CIRCLE_FIT], order=1),
    Row("Broyden", ims.Broyden(),
        [CUBIC, COUPLED, *ROOTS[2:], CONTRACTION, KEPLER, COSINE], order=1.5),
    Row("Broyden-bad", ims.Broyden(good=False), [CUBIC, *ROOTS, CONTRACTION, KEPLER, COSINE], 1),
    Row("Broyden-LU", ims.Broyden(linear_solver=LU),
        [COUPLED, CONTRACTION, *ROOTS[1:], COSINE], order=1.5),
    Row("Broyden-bad-LU", ims.Broyden(good=False, linear_solver=LU),
        [CONTRACTION, *ROOTS, KEPLER, COSINE], 1),
    Row("Broyden-short", ims.Broyden(memory=4), [COUPLED, CUBIC, *ROOTS[2:], KEPLER, COSINE], 1),
    Row("Dogleg", ims.Dogleg(),
        [EXPONENTIAL_FIT, CUBIC, HELICAL_VALLEY, *FITS, *REGRESSIONS, *ROOTS, *FIXED_POINTS], 4),
    Row("LevenbergMarquardt", ims.LevenbergMarquardt(),
        [EXPONENTIAL_FIT, CUBIC, HELICAL_VALLEY, *FITS, *REGRESSIONS, *ROOTS, *FIXED_POINTS], 4),
    Row("Dogleg-CG", ims.Dogleg(**BY_PRODUCTS), [CIRCLE_FIT, *FITS[2:]], 1),
    Row("LevenbergMarquardt-CG", ims.LevenbergMarquardt(**BY_PRODUCTS), [CIRCLE_FIT, *FITS[2:]], 1),
    Row("GaussNewton", ims.GaussNewton(), [*FITS, *REGRESSIONS], order=1, memory=False),
    Row("GaussNewton-CG", ims.GaussNewton(**BY_PRODUCTS), [EXPONENTIAL_FIT, *REGRESSIONS], 1),
    Row("Steffensen", ims.Steffensen(), [CUBIC, COSINE, *SCALARS[1:], FALLING, EXPANDING],
        order=2, memory=False, without=("tree",)),  # one unknown
    Row("Bisection", ims.Bisection(), **BRACKETS),
    Row("Chandrupatla", ims.Chandrupatla(), **BRACKETS),
    Row("FixedPointIteration", ims.FixedPointIteration(), FIXED_POINTS, order=1, memory=False),
    Row("FixedPointIteration-damped", ims.FixedPointIteration(damping=0.8),
        [COSINE, NETWORK, KEPLER, CONTRACTION, AFFINE], memory=False),
    Row("Anderson", ims.Anderson(), [COSINE, NETWORK, KEPLER, CONTRACTION, AFFINE], 3),
    Row("Anderson-1", ims.Anderson(window=1), FIXED_POINTS, 1),
    Row("Anderson-2", ims.Anderson(window=2), FIXED_POINTS, 1),
    Row("Anderson-20", ims.Anderson(window=20), FIXED_POINTS, 1),
    Row("Anderson-regularized", ims.Anderson(regularization=1e-8), [NETWORK, COSINE, AFFINE], 1),
    Row("Anderson-damped", ims.Anderson(damping=0.6, window=3),
        [NETWORK, COSINE, KEPLER, AFFINE], 1),
    Row("Anderson-strict", ims.Anderson(growth=1.0), [NETWORK, COSINE, CONTRACTION, AFFINE], 1),
    Row("Aitken", ims.Aitken(), [COSINE, CONTRACTION, FALLING, EXPANDING, KEPLER]),
    Row("Aitken-damped", ims.Aitken(damping=0.6), [CONTRACTION, COSINE, FALLING, EXPANDING], 1),
    Row("GradientDescent", ims.GradientDescent(lr=0.15), [BOWL, GROWTH_FIT], memory=False),
    Row("GradientDescent-momentum", ims.GradientDescent(lr=0.1, momentum=0.5), [BOWL]),
    Row("GradientDescent-armijo", ims.GradientDescent(1.0, line_search=ARMIJO),
        [LOGISTIC, BARRIER, BOWL, HIMMELBLAU, GROWTH_FIT]),
    Row("GradientDescent-wolfe",
        ims.GradientDescent(1.0, line_search=ims.StrongWolfe(curvature=0.5)),
        [LOGISTIC, BARRIER, BOWL, HIMMELBLAU, GROWTH_FIT]),
    Row("LBFGS", ims.LBFGS(), [*MINIMA[:3], EXPONENTIAL_FIT, *MINIMA[3:]], 4),
    Row("LBFGS-short", ims.LBFGS(memory=3), [MINIMA[2], MINIMA[5]], 1),
    Row("NewtonCG", ims.NewtonCG(), [BEALE, *MINIMA, HILL, BOWL], 4, order=1.5, memory=False),
    Row("TorchOptimizer", ims.TorchOptimizer(SGD, lr=0.1, max_steps=4000), [BOWL, GROWTH_FIT],
        without=("bad",)),
    Row("TorchOptimizer-Adam", ims.TorchOptimizer(torch.optim.Adam, lr=0.1), [LOGISTIC], 0,
        without=("budget", "bad")),  # it does not stay at the solution, and is slow
    Row("own", HeavyBall(), FIXED_POINTS),
]  # fmt: skip
