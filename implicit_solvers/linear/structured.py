"""A direct solver that finds out first whether the operators are diagonal or banded.

It knows matrices, not whose they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from implicit_solvers.hyperparameters import check_count
from implicit_solvers.linear.banded import Banded
from implicit_solvers.linear.diagonal import Diagonal
from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.linear.lu import LU
from implicit_solvers.solver import DirectSolver, Factors, check_linear_solver

__all__ = ["Structured"]


@dataclass(frozen=True)
class Structured(DirectSolver):
    """Find diagonal and banded structure by products, and solve accordingly.

    A product with a vector of ones has the entries of a diagonal operator, ``2 w + 1`` products
    those of one with ``w`` diagonals at each side. A product with a random vector refutes a wrong
    guess, row by row, to a thousand roundings, in every problem; then the next width is tried, and
    at last ``fallback``; bands are looked for on the CPU only. So a diagonal system, as the
    Jacobian of an elementwise equation, takes two products, evaluated as one batch, and no
    factorization. Every factorization looks again, because the structure may differ between Newton
    steps.

    For square operators ``(*batch, n, n)`` of the dtypes of what solves in the end: `Diagonal`,
    `Banded`, or ``fallback``.

    Source: Curtis, Powell and Reid, "On the estimation of sparse Jacobian matrices", J. Inst.
    Maths Applics 13 (1974).

    Parameters
    ----------
    widest
        How many diagonals at each side of the main one to look for, at most.
    fallback
        What solves if there is no such structure; left out, `LU`.

    Raises
    ------
    ValueError
        If ``widest`` is negative, or ``fallback`` solves singular systems (`SVD`).
    TypeError
        If ``widest`` is not a whole number, or ``fallback`` not a direct solver.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> a = torch.tensor([1.0, 8.0, 27.0], requires_grad=True)
    >>> solver = ims.Newton(linear_solver=Structured())
    >>> adjoint = ims.ImplicitAdjoint(Structured())
    >>> z = ims.root(lambda z, a: z**3 - a, torch.ones(3), (a,), solver=solver, adjoint=adjoint)
    >>> z.value.sum().backward()
    >>> a.grad  # 1 / (3 z^2)
    tensor([0.3333, 0.0833, 0.0370])
    """

    widest: int = 1
    # Dynamo cannot make an object whose default is one
    fallback: DirectSolver = field(default_factory=lambda: LU())
    keepable: ClassVar[bool] = False
    traceable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse a width that is none, and a fallback that factors nothing."""
        check_count(self, "widest")
        check_linear_solver(self, "fallback", kind=DirectSolver)
        if any(self.fallback.nullspaces(1, 1)):
            raise ValueError(
                f"Structured has fallback={self.fallback!r}, which solves singular systems, and "
                "diagonals and bands do not: pass LU() or QR(), or use the fallback alone"
            )

    def factor(self, A: LaneMap) -> Factors:
        """Return what was found, 0 for nothing and else 1 and the width, and the factors."""
        probe = torch.randn(
            A.n,
            dtype=A.like.dtype,
            device=A.like.device,
            generator=torch.Generator(device=A.like.device).manual_seed(0),
        )
        product: Tensor | None = None
        # (bands are factored on the CPU alone)
        widest = self.widest if A.like.device.type == "cpu" else 0
        for width in range(min(widest, max(A.n - 1, 0)) + 1):
            bands, product = _guess(A, width, probe, product)
            if _explains(bands, width, probe, product):
                factors = (
                    (bands[:, 0],) if width == 0 else Banded().factor_bands(bands, width, width)
                )
                return _marked(1 + width, A.grid, factors)
        return _marked(0, A.grid, self.fallback.factor(A))

    def _solver(self, factors: Factors) -> DirectSolver:
        found = int(factors[0][0])
        return self.fallback if found == 0 else Diagonal() if found == 1 else Banded()

    def solve_with(self, memory: Any, factors: Factors, b: Tensor, transposed: bool) -> Tensor:
        """Return ``A^-1 b`` or ``A^-T b``."""
        return self._solver(factors).solve_with(memory, factors[1:], b, transposed)

    def sizes(self, A: LaneMap, factors: Factors, x: Tensor) -> Tensor:
        """Return ``|A| |x|``."""
        return self._solver(factors).sizes(A, factors[1:], x)

    def status(self, factors: Factors) -> Tensor:
        """Return what the solver in charge says."""
        return self._solver(factors).status(factors[1:])


def _marked(found: int, grid: int, factors: Factors) -> Factors:
    mark = torch.full((grid,), found, dtype=torch.int64, device=factors[0].device)
    return mark, *factors


def _guess(A: LaneMap, width: int, probe: Tensor, product: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the bands, if there is nothing else, and the product with the probe."""
    if product is not None:
        return A.bands(width, width), product
    ones, product = A.probe(torch.stack([torch.ones_like(probe), probe]))
    return ones.unsqueeze(1), product


def _explains(bands: Tensor, width: int, probe: Tensor, product: Tensor) -> bool:
    """Tell whether the bands alone give the product, in all rows of all lanes that are finite."""
    n = bands.shape[-1]
    row = torch.arange(n, device=probe.device)
    row = row + torch.arange(-width, width + 1, device=probe.device).unsqueeze(-1)
    inside = (row >= 0) & (row < n)
    terms = torch.where(inside, bands * probe, 0.0).flatten(1)
    places = row.clamp(0, n - 1).flatten()
    expected = torch.zeros_like(product).index_add(1, places, terms)
    size = torch.zeros_like(product.abs()).index_add(1, places, terms.abs())
    eps = torch.finfo(probe.dtype).eps
    wrong = (product - expected).abs() > 1000 * eps * size
    finite = torch.isfinite(product).all(-1, keepdim=True)
    return not bool((wrong & finite).any())
