"""Distributions whose samples have implicit derivatives in every parameter.

Subclasses of those of ``torch.distributions``, where torch has them: they can be used in their
place.
"""

from implicit_solvers.problems.reparameterization.distributions import kl as kl
from implicit_solvers.problems.reparameterization.distributions.beta import Beta
from implicit_solvers.problems.reparameterization.distributions.copula_distribution import (
    CopulaDistribution,
)
from implicit_solvers.problems.reparameterization.distributions.copulas import (
    ClaytonCopula,
    FrankCopula,
    GaussianCopula,
)
from implicit_solvers.problems.reparameterization.distributions.dirichlet import Dirichlet
from implicit_solvers.problems.reparameterization.distributions.gamma import Gamma
from implicit_solvers.problems.reparameterization.distributions.inverse_gaussian import (
    InverseGaussian,
)
from implicit_solvers.problems.reparameterization.distributions.lkj_cholesky import LKJCholesky
from implicit_solvers.problems.reparameterization.distributions.mixture import MixtureSameFamily
from implicit_solvers.problems.reparameterization.distributions.multivariate_student_t import (
    MultivariateStudentT,
)
from implicit_solvers.problems.reparameterization.distributions.student_t import StudentT
from implicit_solvers.problems.reparameterization.distributions.truncated import (
    Truncated,
    TruncatedNormal,
)
from implicit_solvers.problems.reparameterization.distributions.von_mises import VonMises
from implicit_solvers.problems.reparameterization.distributions.von_mises_fisher import (
    VonMisesFisher,
)

__all__ = [
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
