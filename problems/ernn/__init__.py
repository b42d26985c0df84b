"""Recurrent networks on an equilibrium manifold, exact and as published.

``definition`` is the cell's equation; `ERNNCell` and `ERNN` are modules with the interfaces of
``torch.nn.RNNCell`` and ``torch.nn.RNN``.
"""

from implicit_solvers.problems.ernn.cell import ERNNCell
from implicit_solvers.problems.ernn.layer import ERNN
from implicit_solvers.problems.ernn.leak import LEAKY, Leak
from implicit_solvers.problems.ernn.modes import Equilibrium, Unrolled
from implicit_solvers.problems.ernn.nonlinearity import Nonlinearity
from implicit_solvers.problems.ernn.well_posed import Monotone, SpectralNorm, Unconstrained

__all__ = [
    "ERNN",
    "LEAKY",
    "ERNNCell",
    "Equilibrium",
    "Leak",
    "Monotone",
    "Nonlinearity",
    "SpectralNorm",
    "Unconstrained",
    "Unrolled",
]
