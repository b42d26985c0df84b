"""Implicit MAML and the methods that it is compared with.

`definition` states the problem in the library's terms; the methods (`Imaml`, `Maml`,
`FirstOrderMaml`, `Reptile`, `R2D2`) give meta-gradients of batches of tasks, and adapt.
"""

from implicit_solvers.problems.imaml.batching import Batching, BatchingChoice, faster_batching
from implicit_solvers.problems.imaml.definition import (
    adapt,
    meta_loss,
    meta_objective,
    proximal_loss,
)
from implicit_solvers.problems.imaml.distributed import distributed_meta_gradient
from implicit_solvers.problems.imaml.implicit_maml import Imaml, imaml_hf
from implicit_solvers.problems.imaml.maml import FirstOrderMaml, Maml, unrolled_meta_loss
from implicit_solvers.problems.imaml.meta_gradient import MetaGradient
from implicit_solvers.problems.imaml.method import Criterion, Method, Model, Predictor
from implicit_solvers.problems.imaml.networks import functional_model
from implicit_solvers.problems.imaml.proximal import neumann_adjoint
from implicit_solvers.problems.imaml.r2d2 import R2D2
from implicit_solvers.problems.imaml.reptile import Reptile

__all__ = [
    # the definition
    "adapt",
    "meta_loss",
    "meta_objective",
    "proximal_loss",
    # methods
    "Method",
    "MetaGradient",
    "Imaml",
    "imaml_hf",
    "neumann_adjoint",
    "Maml",
    "FirstOrderMaml",
    "unrolled_meta_loss",
    "Reptile",
    "R2D2",
    # networks
    "Model",
    "Criterion",
    "Predictor",
    "functional_model",
    # how tasks are evaluated together
    "Batching",
    "BatchingChoice",
    "faster_batching",
    "distributed_meta_gradient",
]
