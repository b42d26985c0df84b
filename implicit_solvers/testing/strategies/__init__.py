"""Hypothesis strategies: operators, maps, equations and tensors of known properties.

Every draw is small, bounded, and made from drawn integers and a seed of its own, so that it can be
replayed, shrinks to a small case, and leaves torch's global generator alone. What is known of a
draw (its spectrum, its condition, its root) comes with it. Nothing here knows a concrete solver.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401
except ModuleNotFoundError as error:  # pragma: no cover
    raise ModuleNotFoundError(
        "implicit_solvers.testing.strategies needs hypothesis: pip install hypothesis"
    ) from error

from implicit_solvers.testing.strategies.equations import (
    DrawnEquation,
    RootlessEquation,
    rooted_equations,
    rootless_equations,
)
from implicit_solvers.testing.strategies.maps import (
    DrawnMap,
    DrawnNetwork,
    contractions,
    monotone_maps,
    networks,
)
from implicit_solvers.testing.strategies.operators import (
    banded,
    nonsymmetric,
    positive_definite,
    rectangular,
    singular,
    symmetric_indefinite,
    well_conditioned,
)
from implicit_solvers.testing.strategies.spectra import DrawnOperator
from implicit_solvers.testing.strategies.tensors import batch_shapes, devices, dtypes, parameters

__all__ = [
    # operators
    "well_conditioned",
    "positive_definite",
    "symmetric_indefinite",
    "nonsymmetric",
    "singular",
    "rectangular",
    "banded",
    "DrawnOperator",
    # maps
    "contractions",
    "monotone_maps",
    "networks",
    "DrawnMap",
    "DrawnNetwork",
    # equations
    "rooted_equations",
    "rootless_equations",
    "DrawnEquation",
    "RootlessEquation",
    # tensors
    "parameters",
    "batch_shapes",
    "dtypes",
    "devices",
]
