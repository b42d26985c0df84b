"""The von Mises-Fisher distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from implicit_solvers.problems.reparameterization.distributions.draws import drawing
from implicit_solvers.problems.reparameterization.distributions.gamma import log_gamma_draw
from implicit_solvers.problems.special_functions.polygamma import log1p_minus
from implicit_solvers.problems.special_functions.von_mises_fisher import angle

__all__ = ["VonMisesFisher"]


class _UnitVector(constraints.Constraint):
    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        rounding = max(1e-5, 2 * torch.finfo(value.dtype).eps)
        return (torch.linalg.vector_norm(value, dim=-1) - 1).abs() < rounding


def _angle_draw(k: Tensor, dim: int) -> Tensor:
    """Draw angles from the mean direction by rejection, from two gamma variables each.

    ``tan(t/2)^2 = b g_1 / g_2`` is accepted with the probability ``(1 + y)^(d-1) exp(-(d-1) y)``,
    ``y = k (w_0 - cos t) / (d - 1)``. Source: Wood, "Simulation of the von Mises Fisher
    distribution" (1994), with ``1 - cos t`` in place of ``cos t``.
    """
    shape, freedom = k.shape, dim - 1
    t, todo, k = (
        torch.empty_like(k).reshape(-1),
        torch.arange(k.numel(), device=k.device),
        k.reshape(-1),
    )
    while len(todo):
        b = freedom / (2 * k + torch.hypot(torch.full_like(k, freedom), 2 * k))
        half = torch.full_like(k, 0.5 * freedom)
        tangent = (0.5 * (log_gamma_draw(half) - log_gamma_draw(half) + b.log())).exp()
        drawn = 2 * tangent.atan()
        excess = 2 * b / (1 + b) - 2 * (0.5 * drawn).sin().square()  # cos t - w_0
        u = torch.empty_like(k).exponential_()
        rejected = freedom * log1p_minus(-k * excess / freedom) + u < 0  # not NaN
        t[todo[~rejected]] = drawn[~rejected]
        rest = rejected.nonzero().squeeze(-1)
        todo, k = todo[rest], k[rest]
    return t.reshape(shape)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _rotated(x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return ``x``, rotated as the unit vector ``start`` is on the shortest way to ``end``."""
    middle = start + end
    return x - middle * (_dot(middle, x) / (1 + _dot(start, end))) + 2 * end * _dot(start, x)


class VonMisesFisher(Distribution):
    r"""The von Mises-Fisher distribution of unit vectors, with implicit derivatives.

    .. math:: p(x) = \frac{k^{d/2-1} \, e^{k m \cdot x}}{(2 \pi)^{d/2} \, I_{d/2-1}(k)}, \qquad
              \frac{dt}{dk} = -\frac{\partial F(t; k) / \partial k}{\partial F / \partial t}, \qquad
              \frac{dx}{dm} = x \cdot m - m \, x^T

    The angle ``t`` between ``x`` and ``m`` has the implicit derivative by ``k``, and ``x`` is
    rotated with ``m`` (both for changes of ``m`` at right angles to it). Everything is computed in
    float64, the Bessel function and its quotients as integrals of positive terms, for any ``d`` and
    ``k`` up to 1e150; derivatives of samples are right to second order in every mode of automatic
    differentiation. Source: Figurnov, Mohamed and Mnih, "Implicit Reparameterization Gradients"
    (2018), section 3; Mardia and Jupp, "Directional Statistics" (2000), section 9.3.

    Parameters
    ----------
    loc : Tensor
        The mean direction ``m``, ``(..., d)`` with ``d >= 2``, floating; samples have its dtype. It
        is scaled to the norm 1, and has no derivative along itself.
    concentration : Tensor or float
        ``k > 0``, broadcast with the other dimensions of ``loc``.
    validate_args : bool, optional
        Whether to check parameters and values, as in ``torch.distributions``; False under ``vmap``.

    Raises
    ------
    ValueError
        If ``loc`` is not a vector of two numbers or more, or arguments are validated and it is zero
        or ``concentration`` not positive.

    Examples
    --------
    The mean in three dimensions is ``coth k - 1 / k``, with the derivative ``1/k^2 - 1/sinh(k)^2``:

    >>> _ = torch.manual_seed(0)
    >>> k = torch.tensor(2.0, requires_grad=True)
    >>> x = VonMisesFisher(torch.tensor([0.0, 0.0, 1.0]), k).rsample((50000,))
    >>> by_k = torch.autograd.grad(x[:, 2].mean(), k)[0]
    >>> round(x[:, 2].mean().item(), 2), round(by_k.item(), 2)
    (0.54, 0.17)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": _UnitVector(),
        "concentration": constraints.positive,
    }
    support = _UnitVector()
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        concentration: Tensor | float,
        validate_args: bool | None = None,
    ) -> None:
        if loc.dim() < 1 or loc.shape[-1] < 2:
            raise ValueError(
                f"loc has the shape {tuple(loc.shape)}: pass a vector of two numbers or more"
            )
        concentration = torch.as_tensor(concentration, dtype=loc.dtype, device=loc.device)
        shape = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        direction = loc / torch.linalg.vector_norm(loc, dim=-1, keepdim=True)
        self.loc = direction.expand(*shape, loc.shape[-1])
        self.concentration = concentration.expand(shape)
        super().__init__(shape, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> VonMisesFisher:
        """Return the distribution with a larger batch shape; see torch."""
        new = self._get_checked_instance(VonMisesFisher, _instance)
        shape = torch.Size(batch_shape)
        new.loc = self.loc.expand(shape + self.event_shape)
        new.concentration = self.concentration.expand(shape)
        super(VonMisesFisher, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _double(self) -> tuple[Tensor, Tensor]:
        return self._direction(), self.concentration.to(torch.float64)

    def _direction(self) -> Tensor:
        loc = self.loc.to(torch.float64)
        return loc / torch.linalg.vector_norm(loc, dim=-1, keepdim=True)

    @property
    def _dim(self) -> int:
        return self.event_shape[0]

    @property
    def mean(self) -> Tensor:
        """The mean, ``A(k) m`` with the quotient ``A`` of the Bessel functions."""
        loc, k = self._double()
        return (angle(self._dim).mean(k).unsqueeze(-1) * loc).to(self.loc.dtype)

    @property
    def mode(self) -> Tensor:
        """The mode, ``m``."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variances of the components, ``A'(k)`` along ``m`` and ``A(k) / k`` across."""
        loc, k = self._double()
        along, across = angle(self._dim).variance(k), angle(self._dim).mean(k) / k
        squares = loc.square()
        variance = squares * along.unsqueeze(-1) + (1 - squares) * across.unsqueeze(-1)
        return variance.to(self.loc.dtype)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return a sample with its derivatives by both parameters.

        Parameters
        ----------
        sample_shape : torch.Size
            Leading dimensions.

        Examples
        --------
        >>> VonMisesFisher(torch.ones(4, 3), 2.0).rsample((5,)).shape
        torch.Size([5, 4, 3])
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        loc, k = self._double()
        wide = k.expand(shape[:-1])
        drawn = drawing(lambda k: _angle_draw(k, self._dim))(wide)
        functions = angle(self._dim)
        t = functions.sample(drawn, wide, functions.deficit(k).expand(shape[:-1])).unsqueeze(-1)
        start = loc.detach()
        across = torch.randn(shape, dtype=torch.float64, device=loc.device)
        for _ in range(2):
            across = across - start * _dot(start, across)
            across = across / torch.linalg.vector_norm(across, dim=-1, keepdim=True)
        return _rotated(t.cos() * start + t.sin() * across, start, loc).to(self.loc.dtype)

    def _log_area(self) -> float:
        """Return the logarithm of the area of the sphere of one dimension less."""
        half = 0.5 * (self._dim - 1)
        return math.log(2) + half * math.log(math.pi) - math.lgamma(half)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the logarithm of the density on the sphere.

        Parameters
        ----------
        value : Tensor
            Unit vectors, ``(..., d)``.

        Raises
        ------
        ValueError
            If arguments are validated and a value is no unit vector.

        Examples
        --------
        >>> q = VonMisesFisher(torch.tensor([0.0, 1.0]), 1e-6)
        >>> q.log_prob(torch.tensor([1.0, 0.0])).exp()  # 1 / (2 pi)
        tensor(0.1592)
        """
        if self._validate_args:
            self._validate_sample(value)
        loc, k = self._double()
        fall = 0.5 * k * (value.to(torch.float64) - loc).square().sum(-1)
        log_density = -fall - angle(self._dim).log_normalizer(k) - self._log_area()
        return log_density.to(self.loc.dtype)

    def entropy(self) -> Tensor:
        """Return the differential entropy.

        Examples
        --------
        >>> VonMisesFisher(torch.ones(3), 1e-6).entropy().exp()  # 4 pi
        tensor(12.5664)
        """
        k, functions = self._double()[1], angle(self._dim)
        entropy = functions.log_normalizer(k) + k * functions.deficit(k) + self._log_area()
        return entropy.to(self.loc.dtype)
