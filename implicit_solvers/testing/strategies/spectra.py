"""Spectra, and what a drawn matrix knows of its own. It knows no solver."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from implicit_solvers.linear.operators import MatrixOperator
from implicit_solvers.testing.strategies.tensors import check_sizes, normal, rotation

__all__ = [
    "DrawnOperator",
    "check_condition",
    "check_spectrum",
    "complex_spectra",
    "condition_of",
    "diagonal",
    "schur_form",
    "spectra",
    "symmetric_matrix",
]


@dataclass(frozen=True, eq=False)
class DrawnOperator:
    """A matrix and what is known of it.

    Attributes
    ----------
    matrix
        ``(m, n)``.
    spectrum
        The eigenvalues; for `well_conditioned`, `singular` (unless symmetric) and `rectangular`
        the singular values. Exact before the matrix was rounded to its dtype.
    condition
        The largest singular value over the least; infinite if the matrix is singular.
    symmetric, positive_definite
        What the matrix is, as `operator` says too.

    Examples
    --------
    >>> drawn = DrawnOperator(torch.eye(2), (1.0, 1.0), 1.0, symmetric=True)
    >>> drawn.operator.symmetric
    True
    """

    matrix: Tensor
    spectrum: tuple[complex, ...]
    condition: float
    symmetric: bool = False
    positive_definite: bool = False

    @property
    def operator(self) -> MatrixOperator:
        """The matrix as an operator, with its flags."""
        return MatrixOperator(
            self.matrix, symmetric=self.symmetric, positive_definite=self.positive_definite
        )


_GRID = 8  # values are drawn on a logarithmic grid of so many steps from the largest to the least


_UNITS: tuple[complex, ...] = (1.0, -1.0, 1j, (1 + 1j) / 2**0.5, (-1 + 1j) / 2**0.5)


def _fit(values: list[complex], size: int) -> list[complex]:
    """Drop what does not fit into so many unknowns; a pair that only half fits becomes real."""
    kept: list[complex] = []
    for value in values:
        width = 2 if value.imag else 1
        if width > size:
            value, width = abs(value), 1
        if size == 0:
            break
        kept.append(value)
        size -= width
    return kept


def schur_form(values: Sequence[complex], departure: float, seed: int) -> Tensor:
    """Return ``D + N``; for seed 0, ``N`` holds equal numbers."""
    blocks = []
    for value in map(complex, values):
        a, b = value.real, value.imag
        blocks.append(torch.tensor([[a, b], [-b, a]] if b else [[a]], dtype=torch.float64))
    D = torch.block_diag(*blocks)
    n = len(D)
    sizes = torch.linalg.vector_norm(D, dim=-1, keepdim=True)
    N = torch.ones(n, n, dtype=torch.float64) if seed == 0 else normal(seed, n, n)
    free = (D == 0) & (torch.ones(n, n).triu(1) > 0)
    return D + departure * sizes * torch.where(free, N, 0.0)


def spectra(
    min_size: int,
    max_size: int,
    condition: float,
    scale: float,
    spectrum: Sequence[float] | None,
    least: int = 1,
) -> SearchStrategy[tuple[float, ...]]:
    """Draw positive numbers in ``[scale / condition, scale]``, or return the chosen ones."""
    if spectrum is not None:
        check_spectrum(spectrum, least)
        return st.just(tuple(spectrum))
    check_sizes(min_size, max_size, least)
    check_condition(condition, scale)
    steps = st.lists(st.integers(0, _GRID), min_size=min_size, max_size=max_size)
    return steps.map(lambda ks: tuple(scale * condition ** (-k / _GRID) for k in ks))


def check_condition(condition: float, scale: float = 1.0) -> None:
    """Refuse a condition number below one, and a scale that is not positive."""
    if not 1 <= condition < math.inf:
        raise ValueError(f"condition is {condition}: pass a finite number of at least 1")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}: pass a finite number above 0")


def condition_of(spectrum: Sequence[complex]) -> float:
    """Return the largest absolute value over the least."""
    sizes = [abs(s) for s in spectrum]
    return max(sizes) / min(sizes)


def diagonal(spectrum: Sequence[float]) -> Tensor:
    """Return the spectrum as a tensor."""
    return torch.tensor(spectrum, dtype=torch.float64)


def symmetric_matrix(spectrum: Sequence[float], seed: int) -> Tensor:
    """Return ``Q diag(spectrum) Q^T``, symmetric to the last bit."""
    q = rotation(seed, len(spectrum))
    matrix = (q * diagonal(spectrum)) @ q.T
    return (matrix + matrix.T) / 2


def check_spectrum(spectrum: Sequence[complex], least: int = 1) -> None:
    """Refuse a spectrum that is too short, or has a zero, a NaN or an infinity."""
    if len(spectrum) < least or not all(0 < abs(s) < math.inf for s in spectrum):
        raise ValueError(
            f"spectrum is {spectrum!r}: pass at least {least} finite numbers, none of them zero"
        )


def complex_spectra(
    min_size: int,
    max_size: int,
    condition: float,
    scale: float,
    spectrum: Sequence[complex] | None,
) -> SearchStrategy[list[complex]]:
    """Draw numbers of size ``[scale / condition, scale]``, one of each complex pair."""
    if spectrum is not None:
        check_spectrum(spectrum)
        return st.just(list(spectrum))
    check_sizes(min_size, max_size, 2)
    check_condition(condition, scale)
    values = st.tuples(st.integers(0, _GRID), st.sampled_from(_UNITS)).map(
        lambda drawn: scale * condition ** (-drawn[0] / _GRID) * drawn[1]
    )
    numbers = st.lists(values, min_size=min_size, max_size=max_size)
    return numbers.map(lambda values: _fit(values, max_size))
