"""LU factorization of banded operators, in time proportional to ``n``.

It knows bands, not whose they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from implicit_solvers.compiling import compiling
from implicit_solvers.linear.lane_map import LaneMap
from implicit_solvers.linear.sparsity import check_device, on_host
from implicit_solvers.solution import Status
from implicit_solvers.solver import DirectSolver, Factors

__all__ = ["Banded"]


@dataclass(frozen=True)
class Banded(DirectSolver):
    """LU factorization with partial pivoting of banded operators, rows scaled to equal size.

    With ``l`` diagonals below the main one and ``u`` above, it takes ``l + u + 1`` products, and
    time proportional to ``n l (l + u)``; on the CPU, by LAPACK, with the whole batch as one matrix
    of blocks. Source: Golub and Van Loan, "Matrix Computations", section 4.3; LAPACK's ``gbtrf``.

    For square operators ``(*batch, n, n)`` in float32, float64 and their complex counterparts.

    Raises
    ------
    ValueError
        When a solve begins with an operator that is not known to be banded, or on another device
        than the CPU.

    Examples
    --------
    >>> import implicit_solvers as ims
    >>> A = ims.TridiagonalOperator(torch.ones(2), torch.zeros(3) + 3, torch.ones(2))
    >>> ims.linear_solve(A, torch.tensor([4.0, 5.0, 4.0]), solver=Banded()).value
    tensor([1.0000, 1.0000, 1.0000])
    """

    def factor(self, A: LaneMap) -> Factors:
        """Return the scaling, the packed factors, the pivots, the bandwidths, and the status."""
        if A.template.bands is None:
            raise ValueError(
                "solver=Banded() solves with banded operators only, and this one is not known to "
                "be: use a TridiagonalOperator, a JacobianOperator with detect=True, or LU()"
            )
        return self.factor_bands(A.bands(*A.template.bands), *A.template.bands)

    def factor_bands(self, bands: Tensor, below: int, above: int) -> Factors:
        """Factor matrices given by their diagonals, ``(grid, below + above + 1, n)``.

        ``bands[:, above + i - j, j]`` is the entry in row ``i`` and column ``j``.
        """
        check_device("solver=Banded()", bands.device)
        if compiling():
            return tuple(_factor_in_graph(bands, below, above))
        return _factor(bands, below, above)

    def solve(self, factors: Factors, b: Tensor, transposed: bool) -> Tensor:
        """Return ``A^-1 b`` or ``A^-T b``."""
        scale, lu, pivots, widths, _ = factors
        if compiling():
            x: Tensor = _solve_in_graph(scale, lu, pivots, widths, b, transposed)
            return x
        return _solve(scale, lu, pivots, widths, b, transposed)

    def status(self, factors: Factors) -> Tensor:
        """Return SINGULAR where a pivot is zero, NONFINITE where the matrix is not finite."""
        return factors[4]


def _factor(bands: Tensor, below: int, above: int) -> Factors:
    grid, _, n = bands.shape
    finite = torch.isfinite(bands).flatten(1).all(-1)
    # one lane's NaN, or zero pivot, would reach the next through the zeros between them
    bands = _identity_where(~finite, bands, above)
    scale = 1 / _largest_of_rows(bands, below, above)
    scaled = bands * _by_rows(scale, below, above)
    packed = torch.nn.functional.pad(scaled, (0, 0, below, 0))
    factor = _lapack("gbtrf", bands)
    lu, pivots, _ = factor(_stacked(packed), below, above)
    lu = _unstacked(lu, grid, n)
    local = torch.from_numpy(pivots).reshape(grid, n)
    local = local - n * torch.arange(grid, dtype=local.dtype, device=local.device).unsqueeze(-1)
    regular = (lu[:, below + above] != 0).all(-1)
    lu = _identity_where(~regular, lu, below + above)
    unmoved = torch.arange(n, dtype=local.dtype, device=local.device)
    local = torch.where(regular.unsqueeze(-1), local, unmoved)
    widths = torch.tensor([below, above], device=bands.device).expand(grid, 2)
    status = torch.where(regular, 0, int(Status.SINGULAR))
    status = torch.where(finite, status, int(Status.NONFINITE))
    return scale, lu, local, widths, status


def _solve(
    scale: Tensor, lu: Tensor, pivots: Tensor, widths: Tensor, b: Tensor, transposed: bool
) -> Tensor:
    grid, n, k = b.shape
    below, above = (int(w) for w in widths[0])
    fit = torch.isfinite(b).flatten(1).all(-1).reshape(-1, 1, 1)
    rhs = torch.where(fit, b, 0.0)
    if not transposed:
        rhs = scale.unsqueeze(-1) * rhs
    offsets = n * torch.arange(grid, dtype=pivots.dtype, device=pivots.device)
    solve = _lapack("gbtrs", b)
    # trans=2 is the conjugate transpose
    out, _ = solve(
        _stacked(lu),
        below,
        above,
        on_host(rhs.reshape(grid * n, k)),
        on_host((pivots + offsets.unsqueeze(-1)).reshape(-1)),
        trans=2 if transposed else 0,
    )
    x = torch.from_numpy(np.ascontiguousarray(out)).reshape(grid, n, k)
    if grid > 1 and not bool(torch.isfinite(x).all()):
        # a lane that overflowed reaches the others through the zeros between them
        lanes = [
            _solve(scale[i], lu[i], pivots[i], widths[i], b[i], transposed)
            for i in (slice(k, k + 1) for k in range(grid))
        ]
        return torch.cat(lanes)
    if transposed:
        x = scale.unsqueeze(-1) * x
    return torch.where(fit, x, torch.nan)


@torch.library.custom_op("implicit_solvers::factor_bands", mutates_args=())
def _factor_in_graph(
    bands: Tensor, below: int, above: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    scale, lu, pivots, widths, status = _factor(bands, below, above)
    return scale, lu.contiguous(), pivots, widths.contiguous(), status


@_factor_in_graph.register_fake
def _(bands: Tensor, below: int, above: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grid, _, n = bands.shape
    kind = torch.int64
    return (
        bands.new_empty(grid, n, dtype=bands.dtype.to_real()),
        bands.new_empty(grid, 2 * below + above + 1, n),
        bands.new_empty(grid, n, dtype=torch.int32),
        bands.new_empty(grid, 2, dtype=kind),
        bands.new_empty(grid, dtype=kind),
    )


@torch.library.custom_op("implicit_solvers::solve_bands", mutates_args=())
def _solve_in_graph(
    scale: Tensor, lu: Tensor, pivots: Tensor, widths: Tensor, b: Tensor, transposed: bool
) -> Tensor:
    return _solve(scale, lu, pivots, widths, b, transposed).contiguous()


@_solve_in_graph.register_fake
def _(
    scale: Tensor, lu: Tensor, pivots: Tensor, widths: Tensor, b: Tensor, transposed: bool
) -> Tensor:
    return torch.empty_like(b, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *factors, _, ctx.transposed = inputs
    ctx.save_for_backward(*factors)


def _transpose(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    """Return the gradient of the right-hand side; factors are constants."""
    return *(None,) * 4, _solve_in_graph(*ctx.saved_tensors, g, not ctx.transposed), None


_solve_in_graph.register_autograd(_transpose, setup_context=_keep)


def _identity_where(bad: Tensor, bands: Tensor, main: int) -> Tensor:
    identity = torch.zeros_like(bands[:1])
    identity[:, main] = 1.0
    return torch.where(bad.reshape(-1, 1, 1), identity, bands)


def _by_rows(rows: Tensor, below: int, above: int) -> Tensor:
    """Return, in the layout of the bands, the number of each entry's row; 1 outside."""
    n = rows.shape[-1]
    padded = torch.nn.functional.pad(rows, (above, below), value=1.0)
    return torch.stack([padded[:, r : r + n] for r in range(below + above + 1)], dim=1)


def _largest_of_rows(bands: Tensor, below: int, above: int) -> Tensor:
    """Return the largest absolute value of each row, 1 for a row of zeros."""
    n = bands.shape[-1]
    largest = torch.zeros_like(bands[:, 0].abs())
    for r in range(below + above + 1):
        shift = r - above  # entry (j + shift, j) stands at column j
        first, last = max(shift, 0), min(n + shift, n)
        if first < last:
            entries = bands[:, r, first - shift : last - shift].abs()
            largest[:, first:last] = torch.maximum(largest[:, first:last], entries)
    return torch.where(largest > 0, largest, 1.0)


def _stacked(bands: Tensor) -> np.ndarray:
    """Return the bands of the block-diagonal matrix of all lanes, in LAPACK's order."""
    return on_host(bands.transpose(0, 1).reshape(bands.shape[1], -1))


def _unstacked(bands: np.ndarray, grid: int, n: int) -> Tensor:
    rows = torch.from_numpy(np.ascontiguousarray(bands))
    return rows.reshape(-1, grid, n).transpose(0, 1).contiguous()


def _lapack(name: str, t: Tensor) -> Any:
    """Return a routine of LAPACK for the dtype of ``t``."""
    from scipy.linalg import get_lapack_funcs

    return get_lapack_funcs((name,), dtype=on_host(t.new_zeros(0)).dtype)[0]
