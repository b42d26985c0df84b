"""Linear operators with chosen spectra. It knows no solver."""

from __future__ import annotations

import math
from collections.abc import Sequence

import scipy.linalg
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from implicit_solvers.testing.strategies.spectra import (
    DrawnOperator,
    check_condition,
    complex_spectra,
    condition_of,
    diagonal,
    schur_form,
    spectra,
    symmetric_matrix,
)
from implicit_solvers.testing.strategies.tensors import Device, check_sizes, rotation, seeds

__all__ = [
    "banded",
    "nonsymmetric",
    "positive_definite",
    "rectangular",
    "singular",
    "symmetric_indefinite",
    "well_conditioned",
]


def well_conditioned(
    *,
    min_size: int = 1,
    max_size: int = 6,
    condition: float = 100.0,
    scale: float = 1.0,
    spectrum: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float64,
    device: Device = "cpu",
) -> SearchStrategy[DrawnOperator]:
    """Draw a regular matrix ``A = U diag(s) V^T`` of bounded condition.

    Parameters
    ----------
    min_size, max_size
        The bounds of the number of unknowns.
    condition
        The singular values lie between ``scale / condition`` and ``scale``.
    scale
        The largest singular value that is drawn.
    spectrum
        The singular values, if they shall not be drawn.
    dtype, device
        Of the matrix.

    Returns
    -------
    SearchStrategy
        Of `DrawnOperator`, ``(n, n)``; it shrinks to few unknowns and a diagonal matrix.

    Raises
    ------
    ValueError
        If no size satisfies the bounds, ``condition`` is below 1, ``scale`` is not positive, or
        ``spectrum`` holds zeros.

    Examples
    --------
    >>> import hypothesis
    >>> hypothesis.find(well_conditioned(spectrum=(2.0, 1.0)), lambda A: True).matrix
    tensor([[2., 0.],
            [0., 1.]], dtype=torch.float64)
    """

    def build(s: tuple[float, ...], left: int, right: int) -> DrawnOperator:
        n = len(s)
        matrix = (rotation(left, n) * diagonal(s)) @ rotation(right, n).T
        return DrawnOperator(matrix.to(device=device, dtype=dtype), s, condition_of(s))

    return st.builds(
        build, spectra(min_size, max_size, condition, scale, spectrum), seeds(), seeds()
    )


def positive_definite(
    *,
    min_size: int = 1,
    max_size: int = 6,
    condition: float = 100.0,
    scale: float = 1.0,
    spectrum: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float64,
    device: Device = "cpu",
) -> SearchStrategy[DrawnOperator]:
    """Draw a symmetric positive definite matrix ``A = Q diag(lambda) Q^T``.

    Parameters
    ----------
    min_size, max_size, condition, scale, spectrum, dtype, device
        As for `well_conditioned`, of the eigenvalues.

    Returns
    -------
    SearchStrategy
        Of `DrawnOperator`, ``(n, n)``; it shrinks to few unknowns and a diagonal matrix.

    Raises
    ------
    ValueError
        As for `well_conditioned`, or if ``spectrum`` has a number that is not positive.

    Examples
    --------
    >>> import hypothesis
    >>> hypothesis.find(positive_definite(), lambda A: A.condition == 100).matrix
    tensor([[1.0000, 0.0000],
            [0.0000, 0.0100]], dtype=torch.float64)
    """
    _check_positive(spectrum)

    def build(eigenvalues: tuple[float, ...], seed: int) -> DrawnOperator:
        matrix = symmetric_matrix(eigenvalues, seed).to(device=device, dtype=dtype)
        return DrawnOperator(matrix, eigenvalues, condition_of(eigenvalues), True, True)

    return st.builds(build, spectra(min_size, max_size, condition, scale, spectrum), seeds())


def symmetric_indefinite(
    *,
    min_size: int = 2,
    max_size: int = 6,
    condition: float = 100.0,
    scale: float = 1.0,
    spectrum: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float64,
    device: Device = "cpu",
) -> SearchStrategy[DrawnOperator]:
    """Draw a regular symmetric matrix ``A = Q diag(lambda) Q^T`` with eigenvalues of both signs.

    Parameters
    ----------
    min_size, max_size, condition, scale, spectrum, dtype, device
        As for `well_conditioned`, of the eigenvalues' absolute values; two unknowns at least.

    Returns
    -------
    SearchStrategy
        Of `DrawnOperator`, ``(n, n)``; it shrinks to two unknowns and a diagonal matrix.

    Raises
    ------
    ValueError
        As for `well_conditioned`, or if ``spectrum`` has not numbers of both signs.

    Examples
    --------
    >>> import hypothesis
    >>> hypothesis.find(symmetric_indefinite(), lambda A: True).spectrum
    (1.0, -1.0)
    """
    if spectrum and not min(spectrum) < 0 < max(spectrum):
        raise ValueError(f"spectrum is {spectrum!r}: pass numbers of both signs")

    def build(sizes: tuple[float, ...], negative: int, seed: int) -> DrawnOperator:
        if spectrum is None:
            first = len(sizes) - 1 - negative % (len(sizes) - 1)
            sizes = (*sizes[:first], *(-s for s in sizes[first:]))
        matrix = symmetric_matrix(sizes, seed).to(device=device, dtype=dtype)
        return DrawnOperator(matrix, sizes, condition_of(sizes), True)

    sizes = spectra(min_size, max_size, condition, scale, spectrum, least=2)
    return st.builds(build, sizes, st.integers(0, 3), seeds())


def nonsymmetric(
    *,
    min_size: int = 2,
    max_size: int = 6,
    condition: float = 10.0,
    scale: float = 1.0,
    departure: float = 0.5,
    spectrum: Sequence[complex] | None = None,
    dtype: torch.dtype = torch.float64,
    device: Device = "cpu",
) -> SearchStrategy[DrawnOperator]:
    """Draw a regular matrix ``A = Q (D + N) Q^T`` that is not symmetric nor normal.

    ``D`` is block diagonal: real eigenvalues of both signs and, as blocks of two, pairs of complex
    ones. ``N`` is strictly upper triangular, the departure from normality.

    Parameters
    ----------
    min_size, max_size, condition, scale, dtype, device
        As for `symmetric_indefinite`; the condition number itself may be greater, and comes with
        the draw.
    departure
        The size of the entries of ``N``, relative to the absolute values of the eigenvalues in
        their rows; above zero.
    spectrum
        The eigenvalues, if they shall not be drawn: real ones, and of each complex pair the one
        with positive imaginary part.

    Returns
    -------
    SearchStrategy
        Of `DrawnOperator`, ``(n, n)``; it shrinks to two unknowns and a triangular matrix.

    Raises
    ------
    ValueError
        As for `well_conditioned`, or if ``departure`` is not positive.

    Examples
    --------
    >>> import hypothesis
    >>> hypothesis.find(nonsymmetric(), lambda A: True).matrix
    tensor([[1.0000, 0.5000],
            [0.0000, 1.0000]], dtype=torch.float64)
    """
    if not 0 < departure < math.inf:
        raise ValueError(f"departure is {departure}: pass a finite number above 0")

    def build(values: list[complex], upper: int, seed: int) -> DrawnOperator:
        matrix = schur_form(values, departure, upper)
        q = rotation(seed, len(matrix))
        matrix = q @ matrix @ q.T
        pairs = [(v, v.conjugate()) if v.imag else (v.real,) for v in map(complex, values)]
        eigenvalues = tuple(v for pair in pairs for v in pair)
        condition = float(torch.linalg.cond(matrix))
        return DrawnOperator(matrix.to(device=device, dtype=dtype), eigenvalues, condition)

    eigenvalues = complex_spectra(min_size, max_size, condition, scale, spectrum)
    return st.builds(build, eigenvalues, seeds(), seeds())


def singular(
    *,
    min_size: int = 1,
    max_size: int = 6,
    condition: float = 100.0,
    scale: float = 1.0,
    symmetric: bool = False,
    dtype: torch.dtype = torch.float64,
    device: Device = "cpu",
) -> SearchStrategy[DrawnOperator]:
    """Draw a square matrix that is singular to the last bit.

    ``A = S B``, where ``B`` has full row rank and chosen singular values, and ``S`` replaces its
    last row by several equal ones of the same total size, so that the singular values of ``A`` are
    those of ``B`` and zeros. With ``symmetric=True``, ``A = S B S^T`` is positive semidefinite.

    Parameters
    ----------
    min_size, max_size, condition, scale, dtype, device
        As for `well_conditioned`, of the singular values that are not zero; the only singular
        matrix of one unknown is zero.
    symmetric
        Whether to draw symmetric matrices, whose spectrum is the eigenvalues.

    Returns
    -------
    SearchStrategy
        Of `DrawnOperator`, ``(n, n)``, with zeros at the end of ``spectrum`` and an infinite
        ``condition``.

    Raises
    ------
    ValueError
        As for `well_conditioned`.

    Examples
    --------
    >>> import hypothesis
    >>> A = hypothesis.find(singular(min_size=2), lambda A: True)
    >>> A.matrix
    tensor([[0.7071, 0.0000],
            [0.7071, 0.0000]], dtype=torch.float64)
    >>> A.spectrum
    (1.0, 0.0)
    """
    check_sizes(min_size, max_size)
    check_condition(condition, scale)

    def build(s: tuple[float, ...], nullity: int, left: int, right: int) -> DrawnOperator:
        n = len(s)
        rank = n - 1 - nullity % n
        values = (*s[:rank], *(0.0,) * (n - rank))
        if rank == 0:
            matrix = torch.zeros(n, n, dtype=torch.float64)
        else:
            row = torch.arange(n).clamp(max=rank - 1)
            weight = torch.ones(n, dtype=torch.float64)
            weight[rank - 1 :] = (n - rank + 1) ** -0.5
            if symmetric:
                B = symmetric_matrix(s[:rank], left)
                matrix = (weight.unsqueeze(-1) * weight) * B[row][:, row]
            else:
                B = (rotation(left, rank) * diagonal(s[:rank])) @ rotation(right, n)[:, :rank].T
                matrix = weight.unsqueeze(-1) * B[row]
        return DrawnOperator(matrix.to(device=device, dtype=dtype), values, math.inf, symmetric)

    values = spectra(min_size, max_size, condition, scale, None)
    return st.builds(build, values, st.integers(0, 2), seeds(), seeds())


def rectangular(
    *,
    min_size: int = 1,
    max_size: int = 6,
    max_extra: int = 3,
    tall: bool | None = None,
    condition: float = 100.0,
    scale: float = 1.0,
    spectrum: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float64,
    device: Device = "cpu",
) -> SearchStrategy[DrawnOperator]:
    """Draw a matrix ``A = U diag(s) V^T`` of full rank with more rows than columns, or fewer.

    Parameters
    ----------
    min_size, max_size
        The bounds of the lesser dimension.
    max_extra
        The greater dimension has 1 to so many more.
    tall
        True: more rows than columns; False: fewer; None: either.
    condition, scale, spectrum, dtype, device
        As for `well_conditioned`.

    Returns
    -------
    SearchStrategy
        Of `DrawnOperator`, ``(m, n)``; it shrinks to two rows and one column.

    Raises
    ------
    ValueError
        As for `well_conditioned`, or if ``max_extra`` is below 1.

    Examples
    --------
    >>> import hypothesis
    >>> hypothesis.find(rectangular(), lambda A: True).matrix.shape
    torch.Size([2, 1])
    """
    if max_extra < 1:
        raise ValueError(f"max_extra is {max_extra}: pass a number of at least 1")

    def build(s: tuple[float, ...], extra: int, wide: bool, left: int, right: int) -> DrawnOperator:
        n = len(s)
        matrix = (rotation(left, n + extra)[:, :n] * diagonal(s)) @ rotation(right, n).T
        matrix = matrix.T.contiguous() if wide else matrix
        return DrawnOperator(matrix.to(device=device, dtype=dtype), s, condition_of(s))

    values = spectra(min_size, max_size, condition, scale, spectrum)
    wide = st.booleans() if tall is None else st.just(not tall)
    return st.builds(build, values, st.integers(1, max_extra), wide, seeds(), seeds())


def banded(
    *,
    min_size: int = 1,
    max_size: int = 6,
    bandwidth: int = 2,
    condition: float = 100.0,
    scale: float = 1.0,
    spectrum: Sequence[float] | None = None,
    symmetric: bool = True,
    dtype: torch.dtype = torch.float64,
    device: Device = "cpu",
) -> SearchStrategy[DrawnOperator]:
    """Draw a band matrix with positive eigenvalues: ``a_ij = 0`` where ``|i - j| > bandwidth``.

    ``A = T^k`` with a tridiagonal ``T`` that has the ``k``-th roots of the eigenvalues.
    With ``symmetric=True`` it is positive definite; else it is ``D T^k D^-1`` with a diagonal
    ``D`` of powers of two, which has the same eigenvalues.

    Parameters
    ----------
    min_size, max_size, condition, scale, spectrum, dtype, device
        As for `positive_definite`.
    bandwidth
        The most diagonals on either side of the main one, at least 1; draws have 1 to so many.
    symmetric
        Whether the matrix is symmetric; if not, its condition number may exceed ``condition``.

    Returns
    -------
    SearchStrategy
        Of `DrawnOperator`, ``(n, n)``; it shrinks to few unknowns and a diagonal matrix.

    Raises
    ------
    ValueError
        As for `well_conditioned`, or if ``bandwidth`` is below 1 or ``spectrum`` has a number that
        is not positive.

    Examples
    --------
    >>> import hypothesis
    >>> A = hypothesis.find(banded(bandwidth=1, spectrum=(1, 2, 4)), lambda A: A.matrix[0, 1] != 0)
    >>> A.matrix[0, 2], A.condition
    (tensor(0., dtype=torch.float64), 4.0)
    """
    if bandwidth < 1:
        raise ValueError(f"bandwidth is {bandwidth}: pass a number of at least 1")
    _check_positive(spectrum)

    def build(
        eigenvalues: tuple[float, ...], width: int, seed: int, powers: list[int]
    ) -> DrawnOperator:
        roots = [value ** (1 / width) for value in eigenvalues]
        T = torch.from_numpy(scipy.linalg.hessenberg(symmetric_matrix(roots, seed).numpy()))
        T = T.tril(1).triu(-1)
        matrix = torch.linalg.matrix_power((T + T.T) / 2, width)
        n, ratio = len(matrix), condition_of(eigenvalues)
        matrix = ((matrix + matrix.T) / 2).tril(width).triu(-width)
        if not symmetric:
            d = 2.0 ** torch.tensor(powers[:n], dtype=torch.float64)
            matrix = d.unsqueeze(-1) * matrix / d
            ratio = float(torch.linalg.cond(matrix))
        matrix = matrix.to(device=device, dtype=dtype)
        return DrawnOperator(matrix, eigenvalues, ratio, symmetric, symmetric)

    values = spectra(min_size, max_size, condition, scale, spectrum)
    size = max_size if spectrum is None else len(spectrum)
    powers = st.lists(st.integers(-1, 1), min_size=size, max_size=size)
    powers = st.just([0] * size) if symmetric else powers
    return st.builds(build, values, st.integers(1, bandwidth), seeds(), powers)


def _check_positive(spectrum: Sequence[float] | None) -> None:
    if spectrum is not None and not all(s > 0 for s in spectrum):
        raise ValueError(f"spectrum is {spectrum!r}: pass positive numbers")
