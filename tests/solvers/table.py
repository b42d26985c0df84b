"""SOLVERS: one row for each solver, and each of its variants, with what it is to be tried on."""

import re
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import implicit_solvers as ims
from tests.solvers import systems as s
from tests.solvers.systems import BOWL, CONTRACTION, COSINE, CUBIC, FIXED_POINTS, KEPLER, ROOTS

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
ARMIJO, WOLFE = ims.Backtracking(), ims.StrongWolfe(curvature=0.5)
# a search for a bracket, and a bracket that halves, are no steps from an iterate
BRACKETS = {"systems": [*s.SCALARS, COSINE, s.FALLING], "without": ("budget", "start", "tree")}
SQUARES = [s.EXPONENTIAL_FIT, CUBIC, s.HELICAL_VALLEY, *s.FITS, *s.REGRESSIONS, *ROOTS]
SQUARES += FIXED_POINTS
CIRCLES = [s.CIRCLE_FIT, *s.FITS[2:]]
MAPS = [COSINE, s.NETWORK, KEPLER, CONTRACTION, s.AFFINE]
SLOPES = [s.LOGISTIC, s.BARRIER, BOWL, s.HIMMELBLAU, s.GROWTH_FIT]

SOLVERS = [
    Row("Newton", ims.Newton(),
        [s.COUPLED, CUBIC, *ROOTS[2:], *s.MORE_ROOTS, *FIXED_POINTS, BOWL, *SLOPES[::3],
         s.CIRCLE_FIT], order=2, memory=False),
    Row("Newton-GMRES", ims.Newton(linear_solver=GMRES),
        [s.TRIDIAGONAL, CUBIC, *ROOTS, *s.MORE_ROOTS, *FIXED_POINTS, BOWL], order=1.5),
    Row("Newton-GMRES-loose", ims.Newton(linear_solver=ims.GMRES(rtol=1e-2)),
        [s.COUPLED, *FIXED_POINTS], 1),
    Row("Newton-full-steps", ims.Newton(halvings=0), [s.COUPLED, CUBIC, COSINE, KEPLER], 1),
    Row("Newton-reuse", ims.Newton(reuse=0.5), [s.TRIDIAGONAL, CUBIC, *ROOTS, CONTRACTION, COSINE]),
    Row("Newton-reuse-little", ims.Newton(reuse=0.05), [CUBIC, s.COUPLED, CONTRACTION, COSINE], 1),
    Row("Newton-reuse-full-steps", ims.Newton(reuse=0.3, halvings=0), [s.COUPLED, s.H_EQUATION], 1),
    Row("Chord", ims.Chord(),
        [s.COUPLED, CUBIC, *ROOTS[2:], CONTRACTION, COSINE, BOWL, s.CIRCLE_FIT], order=1),
    Row("Broyden", ims.Broyden(),
        [CUBIC, s.COUPLED, *ROOTS[2:], CONTRACTION, KEPLER, COSINE], order=1.5),
    Row("Broyden-bad", ims.Broyden(good=False), [CUBIC, *ROOTS, CONTRACTION, KEPLER, COSINE], 1),
    Row("Broyden-LU", ims.Broyden(linear_solver=LU),
        [s.COUPLED, CONTRACTION, *ROOTS[1:], COSINE], order=1.5),
    Row("Broyden-bad-LU", ims.Broyden(good=False, linear_solver=LU),
        [CONTRACTION, *ROOTS, KEPLER, COSINE], 1),
    Row("Broyden-short", ims.Broyden(memory=4), [s.COUPLED, CUBIC, *ROOTS[2:], KEPLER, COSINE], 1),
    Row("NewtonDogleg", ims.NewtonDogleg(), [*ROOTS, *MAPS], 4),
    Row("Dogleg", ims.Dogleg(), SQUARES, 4),
    Row("LevenbergMarquardt", ims.LevenbergMarquardt(), SQUARES, 4),
    Row("Dogleg-CG", ims.Dogleg(**BY_PRODUCTS), CIRCLES, 1),
    Row("LevenbergMarquardt-CG", ims.LevenbergMarquardt(**BY_PRODUCTS), CIRCLES, 1),
    Row("LevenbergMarquardt-bounds", ims.LevenbergMarquardt(), s.FITTED_BOXES),
    Row("LevenbergMarquardt-CG-bounds", ims.LevenbergMarquardt(**BY_PRODUCTS), s.FITTED_BOXES, 1),
    Row("GaussNewton", ims.GaussNewton(), [*s.FITS, *s.REGRESSIONS], order=1, memory=False),
    Row("GaussNewton-CG", ims.GaussNewton(**BY_PRODUCTS), [s.EXPONENTIAL_FIT, *s.REGRESSIONS], 1),
    Row("Steffensen", ims.Steffensen(), [COSINE, CUBIC, *s.SCALARS[1:], s.FALLING, s.EXPANDING],
        order=2, without=("tree",)),  # one unknown
    Row("Bisection", ims.Bisection(), **BRACKETS),
    Row("Chandrupatla", ims.Chandrupatla(), **BRACKETS),
    Row("FixedPointIteration", ims.FixedPointIteration(), FIXED_POINTS, order=1, memory=False),
    Row("FixedPointIteration-damped", ims.FixedPointIteration(damping=0.8, max_steps=2000),
        MAPS, memory=False),
    Row("Anderson", ims.Anderson(), MAPS, 3),
    Row("Anderson-1", ims.Anderson(window=1), FIXED_POINTS, 1),
    Row("Anderson-2", ims.Anderson(window=2), FIXED_POINTS, 1),
    Row("Anderson-20", ims.Anderson(window=20), FIXED_POINTS, 1),
    Row("Anderson-regularized", ims.Anderson(regularization=1e-8),
        [s.NETWORK, COSINE, s.AFFINE], 1),
    Row("Anderson-damped", ims.Anderson(damping=0.6, window=3),
        [s.NETWORK, COSINE, KEPLER, s.AFFINE], 1),
    Row("Anderson-strict", ims.Anderson(growth=1.0), [s.NETWORK, COSINE, CONTRACTION, s.AFFINE], 1),
    Row("Aitken", ims.Aitken(), [COSINE, CONTRACTION, s.FALLING, s.EXPANDING, KEPLER]),
    Row("Aitken-damped", ims.Aitken(damping=0.6), [CONTRACTION, COSINE, s.FALLING, s.EXPANDING], 1),
    Row("GradientDescent", ims.GradientDescent(lr=0.15), [BOWL, s.GROWTH_FIT], memory=False),
    Row("GradientDescent-momentum", ims.GradientDescent(lr=0.1, momentum=0.5), [BOWL]),
    Row("GradientDescent-armijo", ims.GradientDescent(1.0, line_search=ARMIJO), SLOPES),
    Row("GradientDescent-wolfe", ims.GradientDescent(1.0, line_search=WOLFE), SLOPES),
    Row("LBFGS", ims.LBFGS(), [*s.MINIMA[:3], s.EXPONENTIAL_FIT, *s.MINIMA[3:]], 4),
    Row("BFGS", ims.BFGS(), [*s.MINIMA[:3], s.EXPONENTIAL_FIT, *s.MINIMA[3:]], 4),
    Row("NonlinearCG", ims.NonlinearCG(),
        [*s.MINIMA[2:4], s.BARRIER, s.EXPONENTIAL_FIT, *s.MINIMA], 4),
    Row("LBFGS-short", ims.LBFGS(memory=3), [s.MINIMA[2], s.MINIMA[5]], 1),
    Row("FISTA", ims.FISTA(), s.SPARSE, 3),
    Row("ProximalGradient", ims.ProximalGradient(), s.SPARSE),
    Row("NewtonCG", ims.NewtonCG(), [s.BEALE, *s.MINIMA, s.HILL, BOWL], 4, order=1.5, memory=False),
    Row("TrustRegion", ims.TrustRegion(),
        [s.HIMMELBLAU, *s.MINIMA[:4], s.ILL_CONDITIONED, s.HILL, BOWL], 4, order=2),
    Row("LBFGSB", ims.LBFGSB(), [*s.BOXES, *s.FITTED_BOXES], 4),
    Row("LBFGSB-short", ims.LBFGSB(memory=3), s.BOXES, 1),
    Row("ProjectedNewton", ims.ProjectedNewton(), s.BOXES, 4, order=1.5, memory=False),
    Row("GradientDescent-bounds", ims.GradientDescent(lr=0.15),
        [s.BOX_BOWL, s.BOX_GROWTH, s.BOX_LOGISTIC], memory=False),
    Row("GradientDescent-bounds-armijo", ims.GradientDescent(1.0, line_search=ARMIJO),
        [s.BOX_BOWL, s.BOX_GROWTH], 1),
    # (a start says nothing of multipliers)
    Row("FilterInteriorPoint", ims.FilterInteriorPoint(), s.HELD, 3, without=("start",)),
    Row("TorchOptimizer", ims.TorchOptimizer(SGD, lr=0.1, max_steps=4000), [BOWL, s.GROWTH_FIT],
        without=("bad",)),
    Row("TorchOptimizer-Adam", ims.TorchOptimizer(torch.optim.Adam, lr=0.1), [s.LOGISTIC], 0,
        without=("budget", "bad", "start")),  # it does not stay at the solution, and is slow
    Row("Continuation", ims.Continuation(), [s.FOLD, s.STEEP], without=("budget", "start")),
    Row("Continuation-natural", ims.Continuation(arclength=False), [s.STEEP], 1,
        without=("budget", "start")),  # a budget ends on the path
    Row("own", HeavyBall(), FIXED_POINTS),
]  # fmt: skip
