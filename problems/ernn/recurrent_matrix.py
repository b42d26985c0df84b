"""The recurrent matrix ``U`` as a function of what is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import implicit_solvers as ims
from implicit_solvers.problems.ernn.initialization import factors_of, nearly_orthogonal
from implicit_solvers.problems.ernn.well_posed import Monotone, SpectralNorm, WellPosed

__all__ = ["RecurrentMatrix", "margin_of", "spectral_norm"]


@ims.in_full_precision("U")
def margin_of(U: Tensor, bound: Tensor) -> Tensor:
    """Return ``1 - lambda_max((U + U^T) / 2) / bound``, positive where all is well.

    ``bound`` is ``gamma / L``.

    Examples
    --------
    >>> margin_of(torch.diag(torch.tensor([0.5, -3.0])), torch.tensor(1.0))
    tensor(0.5000)
    """
    return 1 - torch.linalg.eigvalsh((U + U.mT) / 2)[..., -1] / bound


@ims.in_full_precision("matrix")
def spectral_norm(matrix: Tensor) -> Tensor:
    """Return the largest singular value, 0-d.

    Examples
    --------
    >>> spectral_norm(torch.diag(torch.tensor([0.5, -3.0])))
    tensor(3.)
    """
    return torch.linalg.matrix_norm(matrix, 2)


class RecurrentMatrix(nn.Module):
    """``U (H, H)``: a free matrix, a product of two thin ones, or one that is monotone.

    At the start its spectral norm is ``norm``, and ``gamma / L`` is ``bound``. It has full rank
    unless a ``rank`` is given, which `Monotone` does not allow.

    Examples
    --------
    >>> U = RecurrentMatrix(4, SpectralNorm(), rank=2, norm=0.3, bound=1.0)(torch.tensor(1.0))
    >>> U.shape, int(torch.linalg.matrix_rank(U))
    (torch.Size([4, 4]), 2)
    """

    def __init__(
        self,
        size: int,
        well_posed: WellPosed,
        *,
        rank: int | None = None,
        norm: float = 0.3,
        bound: float = 1.0,
    ) -> None:
        super().__init__()
        monotone = isinstance(well_posed, Monotone)
        if rank is not None and monotone:
            raise ValueError(
                f"rank={rank} with Monotone(), whose U has full rank: leave it out, or use "
                "SpectralNorm()"
            )
        if rank is not None and not 1 <= rank <= size:
            raise ValueError(f"rank={rank} is not between 1 and hidden_size={size}")
        if isinstance(well_posed, (SpectralNorm, Monotone)):
            largest = (1 - well_posed.margin) * bound
            if not 0 <= norm <= largest:
                raise ValueError(
                    f"initial_norm={norm} is not between 0 and {largest:.4g}, what "
                    f"{well_posed} allows: pass less, or a larger gamma"
                )
        self.well_posed, self.rank = well_posed, rank
        target = nearly_orthogonal(size, norm, rank)
        if isinstance(well_posed, Monotone):
            rest = largest * torch.eye(size) - (target + target.T) / 2
            self.weight_a = nn.Parameter(torch.linalg.cholesky(rest).T.contiguous())
            self.weight_b = nn.Parameter((target - target.T) / 4)
        elif rank is not None:
            left, right = factors_of(target, rank)
            self.weight_left, self.weight_right = nn.Parameter(left), nn.Parameter(right)
        else:
            self.weight = nn.Parameter(target)

    @ims.in_full_precision("bound")
    def forward(self, bound: Tensor) -> Tensor:
        """Return ``U``, given ``gamma / L`` (0-d)."""
        if isinstance(self.well_posed, Monotone):
            A, B = self.weight_a, self.weight_b
            eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
            return (1 - self.well_posed.margin) * bound * eye - A.mT @ A + B - B.mT
        V = self.weight if self.rank is None else self.weight_left @ self.weight_right
        if isinstance(self.well_posed, SpectralNorm):
            largest = (1 - self.well_posed.margin) * bound
            return V * (largest / torch.maximum(largest, self._norm(V)))
        return V

    def _norm(self, V: Tensor) -> Tensor:
        if self.rank is None:
            return spectral_norm(V)
        # of the small matrix: the many zero singular values of V have no second derivatives
        _, left = torch.linalg.qr(self.weight_left)
        _, right = torch.linalg.qr(self.weight_right.mT)
        return spectral_norm(left @ right.mT)

    @torch.no_grad()
    def scale_(self, factor: float | Tensor) -> None:
        """Multiply ``U`` by a positive number, in place; not for `Monotone`."""
        if self.rank is None:
            self.weight.mul_(factor)
        else:
            root = torch.as_tensor(factor).sqrt()
            self.weight_left.mul_(root)
            self.weight_right.mul_(root)
