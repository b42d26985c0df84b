"""Samples with derivatives by implicit reparameterization.

``definition`` is the paper's equation as a tool for any distribution; ``distributions`` are
``torch.distributions`` made differentiable in every parameter.
"""

from implicit_solvers.problems.reparameterization.definition import ImplicitReparameterization
from implicit_solvers.problems.reparameterization.distributions import (
    Beta,
    ClaytonCopula,
    CopulaDistribution,
    Dirichlet,
    FrankCopula,
    Gamma,
    GaussianCopula,
    InverseGaussian,
    LKJCholesky,
    MixtureSameFamily,
    MultivariateStudentT,
    StudentT,
    Truncated,
    TruncatedNormal,
    VonMises,
    VonMisesFisher,
)
from implicit_solvers.problems.reparameterization.interval_density import IntervalDensity

__all__ = [
    "ImplicitReparameterization",
    "IntervalDensity",
    "Beta",
    "ClaytonCopula",
    "CopulaDistribution",
    "Dirichlet",
    "FrankCopula",
    "Gamma",
    "GaussianCopula",
    "InverseGaussian",
    "LKJCholesky",
    "MixtureSameFamily",
    "MultivariateStudentT",
    "StudentT",
    "Truncated",
    "TruncatedNormal",
    "VonMises",
    "VonMisesFisher",
]
