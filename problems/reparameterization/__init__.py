"""Samples with derivatives by implicit reparameterization.

``definition`` is the paper's equation as a tool for any distribution; ``distributions`` are
``torch.distributions`` made differentiable in every parameter.
"""

from implicit_solvers.problems.reparameterization import distributions
from implicit_solvers.problems.reparameterization.definition import ImplicitReparameterization
from implicit_solvers.problems.reparameterization.distributions import *  # noqa: F403
from implicit_solvers.problems.reparameterization.interval_density import IntervalDensity

__all__ = ["ImplicitReparameterization", "IntervalDensity"]
__all__ += distributions.__all__
