"""The LKJ distribution of Cholesky factors of correlation matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from implicit_solvers.problems.reparameterization.distributions.beta import (
    beta_logit_quantile,
    beta_logit_variable,
)
from implicit_solvers.problems.reparameterization.distributions.quantiles import probability
from implicit_solvers.problems.reparameterization.precision import halves_in_single
from implicit_solvers.problems.special_functions.beta import betainc
from implicit_solvers.problems.special_functions.log_gamma import (
    digamma_rise,
    log_gamma_excess,
)

__all__ = ["LKJCholesky"]


@halves_in_single("mean", "variance")
class LKJCholesky(torch.distributions.LKJCholesky):
    r"""The Cholesky factor ``L`` of a random correlation matrix ``C``, with implicit derivatives.

    .. math:: p(C) \propto \det(C)^{\eta - 1}, \qquad C = L L^T, \qquad
              L_{i,:i} = \sqrt{y_i} \, \omega_i, \quad L_{ii} = \sqrt{1 - y_i}, \qquad
              y_i \sim \mathrm{Beta}\Bigl(\frac{i}{2}, \eta + \frac{d - 1 - i}{2}\Bigr)

    for the rows ``i = 0, ..., d - 1``, with uniform directions ``omega_i``: the onion method. The
    beta variables have implicit derivatives by ``eta``. The marginals are right, as
    ``E[C_ij^2] = 1 / (2 eta + d - 1)``; what ``torch.distributions.LKJCholesky`` draws has others
    for ``d >= 3``. Derivatives of samples are right to second order in every mode of automatic
    differentiation. Source: Lewandowski, Kurowicka and Joe, "Generating random correlation
    matrices based on vines and extended onion method" (2009), section 3.2.

    In place of the CDF, the Rosenblatt transform: the partial correlations
    ``c_ij = L_ij / sqrt(L_ij^2 + ... + L_ii^2)`` are independent, and ``(1 + c_ij) / 2`` are beta
    variables with the parameters ``b, b``, ``b = eta + (d - 2 - j) / 2`` (the same, section 2.4).

    Parameters
    ----------
    dim : int
        ``d >= 2``.
    concentration : Tensor or float
        ``eta > 0``, ``(...)``, floating; samples are ``(..., d, d)``, of its dtype.
    validate_args : bool, optional
        Whether to check parameters and values, as in ``torch.distributions``; False under ``vmap``.

    Raises
    ------
    ValueError
        If a parameter is outside of its range, and ``validate_args`` is not False.

    Examples
    --------
    The derivative of ``E[C_ij^2]`` is ``-2 / (2 eta + d - 1)^2``, -1/8 here:

    >>> _ = torch.manual_seed(0)
    >>> eta = torch.tensor(1.0, requires_grad=True)
    >>> L = LKJCholesky(3, eta).rsample((10000,))
    >>> moment = (L @ L.mT)[:, 2, 1].square().mean()
    >>> round(moment.item(), 2), round(torch.autograd.grad(moment, eta)[0].item(), 2)
    (0.25, -0.1...)
    """

    has_rsample = True
    sample = torch.distributions.Distribution.sample  # not that of the base

    def _row_parameters(self) -> tuple[Tensor, Tensor]:
        """Return the parameters of ``y_i`` for the rows ``i = 1, ..., d - 1``."""
        eta = self.concentration.to(torch.float64).unsqueeze(-1)
        row = torch.arange(1, self.dim, dtype=torch.float64, device=eta.device)
        return (0.5 * row).expand(*eta.shape[:-1], -1), eta + 0.5 * (self.dim - 1 - row)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return a sample with its derivative by the concentration.

        Parameters
        ----------
        sample_shape : torch.Size
            Leading dimensions.

        Examples
        --------
        >>> L = LKJCholesky(3, 2.0).rsample()
        >>> torch.allclose(L.square().sum(-1), torch.ones(3))
        True
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        a, b = (t.expand(*shape[:-2], -1) for t in self._row_parameters())
        logit = beta_logit_variable(a, b)
        normal = torch.randn(
            *shape[:-2], self.dim - 1, self.dim, dtype=torch.float64, device=a.device
        ).tril()
        direction = normal / torch.linalg.vector_norm(normal, dim=-1, keepdim=True)
        below = (0.5 * logsigmoid(logit)).exp().unsqueeze(-1) * direction
        diagonal = pad((0.5 * logsigmoid(-logit)).exp(), (1, 0), value=1.0)
        return self._factor(pad(below, (0, 0, 1, 0)), diagonal)

    def _factor(self, below: Tensor, diagonal: Tensor) -> Tensor:
        dtype = self.concentration.dtype
        positive = diagonal.to(dtype).clamp(min=torch.finfo(dtype).tiny)
        return below.to(dtype) + torch.diag_embed(positive)

    @property
    def mean(self) -> Tensor:
        """The mean of ``L``: diagonal, ``E[(1 - y_i)^(1/2)]``."""
        a, b = self._row_parameters()
        log_mean = (b + 0.5).lgamma() - b.lgamma() + (a + b).lgamma() - (a + b + 0.5).lgamma()
        return torch.diag_embed(pad(log_mean.exp(), (1, 0), value=1.0)).to(self.concentration.dtype)

    @property
    def variance(self) -> Tensor:
        """The variances of the entries of ``L``: ``1 / (2 eta + d - 1)`` below the diagonal."""
        a, b = self._row_parameters()
        mean = self.mean.to(torch.float64).diagonal(dim1=-2, dim2=-1)
        diagonal = pad(b / (a + b), (1, 0), value=1.0) - mean.square()
        eta = self.concentration.to(torch.float64)[..., None, None]
        below = (1 / (2 * eta + self.dim - 1)).expand(*self.batch_shape, self.dim, self.dim)
        return (below.tril(-1) + torch.diag_embed(diagonal)).to(self.concentration.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the logarithm of the density of the entries of ``L`` below the diagonal.

        Parameters
        ----------
        value : Tensor
            Cholesky factors of correlation matrices.

        Raises
        ------
        ValueError
            If arguments are validated and a value is no such factor.

        Examples
        --------
        >>> LKJCholesky(2, 1.0).log_prob(torch.eye(2))
        tensor(-0.6931)
        """
        if self._validate_args:
            self._validate_sample(value)
        b = self._row_parameters()[1]
        log_diagonal = value.to(torch.float64).diagonal(dim1=-2, dim2=-1)[..., 1:].log()
        log_density = (2 * (b - 1) * log_diagonal).sum(-1) + self._log_normalizer()
        return log_density.to(self.concentration.dtype)

    def entropy(self) -> Tensor:
        """Return ``-E[log_prob]``, with ``E[ln(1 - y)] = psi(b) - psi(a + b)``.

        Examples
        --------
        >>> LKJCholesky(2, 1.0).entropy()  # ln 2: uniform in [-1, 1]
        tensor(0.6931)
        """
        a, b = self._row_parameters()
        expected = ((b - 1) * digamma_rise(b, a)).sum(-1) - self._log_normalizer()
        return expected.to(self.concentration.dtype)

    def _log_normalizer(self) -> Tensor:
        """Return the log-density at the identity: of each row, that of ``y`` and a direction."""
        a, b = self._row_parameters()
        return (log_gamma_excess(b, a) + a * (b / math.pi).log()).sum(-1)

    def _partial_parameter(self) -> Tensor:
        """Return ``b`` for the partial correlations, row by row."""
        eta = self.concentration.to(torch.float64).unsqueeze(-1)
        column = torch.tril_indices(self.dim, self.dim, -1, device=eta.device)[1]
        return eta + 0.5 * (self.dim - 2 - column)

    def rosenblatt(self, value: Tensor) -> Tensor:
        """Return the Rosenblatt transform, independent uniform variables.

        ``u_ij = I((1 + c_ij) / 2; b, b)`` for ``j < i``, row by row, differentiable in all.

        Parameters
        ----------
        value : Tensor
            Cholesky factors of correlation matrices, ``(..., d, d)``.

        Returns
        -------
        Tensor
            ``(..., d (d - 1) / 2)``.

        Raises
        ------
        ValueError
            If arguments are validated and a value is no such factor.

        Examples
        --------
        >>> LKJCholesky(3, 1.0).rosenblatt(torch.eye(3))
        tensor([0.5000, 0.5000, 0.5000])
        """
        if self._validate_args:
            self._validate_sample(value)
        factor = value.to(torch.float64)
        right = factor.square().flip(-1).cumsum(-1).flip(-1)
        row, column = torch.tril_indices(self.dim, self.dim, -1, device=factor.device)
        logit = 2 * (factor[..., row, column] / right[..., row, column + 1].sqrt()).asinh()
        b = self._partial_parameter()
        return betainc(b, b, logit_x=logit).to(self.concentration.dtype)

    def inverse_rosenblatt(self, u: Tensor) -> Tensor:
        """Return the factor whose Rosenblatt transform is ``u``, with implicit derivatives.

        Parameters
        ----------
        u : Tensor
            Probabilities, ``(..., d (d - 1) / 2)``.

        Returns
        -------
        Tensor
            Cholesky factors, ``(..., d, d)``.

        Raises
        ------
        ValueError
            If arguments are validated and a probability is outside of [0, 1].

        Examples
        --------
        >>> LKJCholesky(2, 1.0).inverse_rosenblatt(torch.tensor([0.8]))  # L_10 = 2 u - 1
        tensor([[1.0000, 0.0000],
                [0.6000, 0.8000]])
        """
        p = probability(self, u, self.concentration)
        b = self._partial_parameter()
        logit = beta_logit_quantile(p, b, b)
        row = torch.arange(self.dim, device=logit.device)[:, None]
        column = row.T
        place = torch.where(column < row, row * (row - 1) // 2 + column, 0)
        logits = torch.where(column < row, logit[..., place], 0.0)
        # ln (1 - c^2)^(1/2)
        shrink = 0.5 * (logsigmoid(logits) + logsigmoid(-logits)) + math.log(2)
        left = pad(shrink.cumsum(-1)[..., :-1], (1, 0)).exp()
        below = (0.5 * logits).tanh() * left
        return self._factor(below, left.diagonal(dim1=-2, dim2=-1))
