"""Equations with known solutions and derivatives, to try a solver on.

Each `Problem` states its start, its solution, whether the Jacobian is regular there, and the
derivative of the solution with respect to its parameters. They are grouped by the function that
solves them: ``ROOTS``, ``FIXED_POINTS``, ``MINIMA``, ``LEAST_SQUARES``; ``ALL`` has them all.
Two collections have no derivatives: ``NIST``, 27 certified fits, each from both of its starts, and
``CUTEST``, 25 square systems. ``HOCK_SCHITTKOWSKI`` are 58 minima with bounds and constraints, and
their multipliers. Nothing here knows a concrete solver.
"""

from implicit_solvers.testing.problems.cutest import CUTEST as CUTEST
from implicit_solvers.testing.problems.discretized import (
    BRATU,
    CHANDRASEKHAR,
    CHANDRASEKHAR_ITERATION,
    HEAT,
    ROBERTSON,
)
from implicit_solvers.testing.problems.hock_schittkowski import (
    HOCK_SCHITTKOWSKI as HOCK_SCHITTKOWSKI,
)
from implicit_solvers.testing.problems.minima import BEALE, HIMMELBLAU, ROSENBROCK_VALLEY
from implicit_solvers.testing.problems.more_garbow_hillstrom import (
    BROWN_ALMOST_LINEAR,
    BROYDEN_BANDED,
    BROYDEN_TRIDIAGONAL,
    CHEBYQUAD_7,
    CHEBYQUAD_8,
    CHEBYQUAD_9,
    DISCRETE_BOUNDARY_VALUE,
    DISCRETE_INTEGRAL_EQUATION,
    FREUDENSTEIN_ROTH,
    FREUDENSTEIN_ROTH_FAR,
    FREUDENSTEIN_ROTH_NEAR,
    HELICAL_VALLEY,
    POWELL_BADLY_SCALED,
    POWELL_SINGULAR,
    ROSENBROCK,
    TRIGONOMETRIC,
    VARIABLY_DIMENSIONED,
    WATSON,
    WOOD,
)
from implicit_solvers.testing.problems.nist import NIST as NIST
from implicit_solvers.testing.problems.problem import Problem as Problem
from implicit_solvers.testing.problems.regression import (
    LOGISTIC,
    MEYER,
    MICHAELIS_MENTEN,
    OSBORNE_1,
    OSBORNE_2,
    POISSON,
    RIDGE,
    RIDGE_RESIDUALS,
)
from implicit_solvers.testing.problems.scalar import (
    COLEBROOK,
    IMPLIED_VOLATILITY,
    KEPLER,
    QUANTILE,
)
from implicit_solvers.testing.problems.simple import (
    AFFINE,
    CIRCLE,
    COSINE,
    DOUBLE_ROOT,
    NO_ROOT,
)

ROOTS = (
    CIRCLE,
    DOUBLE_ROOT,
    NO_ROOT,
    KEPLER,
    QUANTILE,
    COLEBROOK,
    IMPLIED_VOLATILITY,
    ROSENBROCK,
    FREUDENSTEIN_ROTH,
    FREUDENSTEIN_ROTH_FAR,
    FREUDENSTEIN_ROTH_NEAR,
    POWELL_BADLY_SCALED,
    HELICAL_VALLEY,
    POWELL_SINGULAR,
    WOOD,
    WATSON,
    CHEBYQUAD_7,
    CHEBYQUAD_8,
    CHEBYQUAD_9,
    BROWN_ALMOST_LINEAR,
    DISCRETE_BOUNDARY_VALUE,
    DISCRETE_INTEGRAL_EQUATION,
    TRIGONOMETRIC,
    VARIABLY_DIMENSIONED,
    BROYDEN_TRIDIAGONAL,
    BROYDEN_BANDED,
    CHANDRASEKHAR,
    BRATU,
    ROBERTSON,
    HEAT,
)
FIXED_POINTS = (AFFINE, COSINE, CHANDRASEKHAR_ITERATION)
MINIMA = (ROSENBROCK_VALLEY, HIMMELBLAU, BEALE, RIDGE, LOGISTIC, POISSON)
LEAST_SQUARES = (RIDGE_RESIDUALS, MEYER, MICHAELIS_MENTEN, OSBORNE_1, OSBORNE_2)
ALL = (*ROOTS, *FIXED_POINTS, *MINIMA, *LEAST_SQUARES)
