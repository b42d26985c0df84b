"""Copulas: dependent uniform variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn.functional import pad, softplus

import implicit_solvers as ims
from implicit_solvers.problems.reparameterization.distributions.frank_powers import (
    inverse_log_power_sum,
    log_power_sum,
)
from implicit_solvers.problems.reparameterization.distributions.quantiles import probability
from implicit_solvers.problems.special_functions.normal import LOG_ROOT, log_normal_tails
from implicit_solvers.problems.special_functions.relative import exprel, log1prel

__all__ = [
    "ClaytonCopula",
    "Copula",
    "FrankCopula",
    "GaussianCopula",
    "admissible",
    "inside",
]

Pair = tuple[Tensor, Tensor]

# variables that are nearly independent are computed by functions that are smooth there
_NEAR = 0.5


def _log1mexp(x: Tensor) -> Tensor:
    """Return ``ln(1 - exp(-x))`` for ``x >= 0``."""
    small = x < math.log(2)
    inner, outer = torch.where(small, x, 1.0), torch.where(small, 1.0, x)
    return torch.where(small, (-(-inner).expm1()).log(), (-(-outer).exp()).log1p())


def _log_expm1(x: Tensor) -> Tensor:
    return x + _log1mexp(x)


def _softplus(x: Tensor) -> Tensor:
    return softplus(x, threshold=40)


class Copula(Distribution):
    """The distribution of ``d`` dependent uniform variables, with implicit derivatives.

    A subclass has `_log_density` and `_transform`, functions of ``ln u`` and ``ln(1 - u)``, and
    `_invert`, which returns these; all are ``(..., d)`` and float64. Its parameters are the names
    of ``arg_constraints``.
    """

    has_rsample = True
    support = constraints.independent(constraints.unit_interval, 1)

    def __init__(self, dim: int, batch_shape: torch.Size, validate_args: bool | None) -> None:
        if not isinstance(dim, int) or dim < 2:
            raise ValueError(f"dim is {dim!r}: pass the number of variables, 2 or more")
        super().__init__(batch_shape, torch.Size([dim]), validate_args=validate_args)

    @property
    def dim(self) -> int:
        """The number of variables."""
        return self.event_shape[0]

    @property
    def _like(self) -> Tensor:
        """Return a parameter, whose dtype samples have."""
        parameter: Tensor = getattr(self, next(iter(self.arg_constraints)))
        return parameter

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the distribution with a larger batch shape; see torch."""
        new = self._get_checked_instance(type(self), _instance)
        shape = torch.Size(batch_shape)
        for name in self.arg_constraints:
            parameter = getattr(self, name)
            own = parameter.shape[len(self.batch_shape) :]
            setattr(new, name, parameter.expand(shape + own))
        Distribution.__init__(new, shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """One half."""
        return torch.full(
            self._extended_shape(), 0.5, dtype=self._like.dtype, device=self._like.device
        )

    @property
    def variance(self) -> Tensor:
        """One twelfth."""
        return self.mean / 6

    def _log_density(self, log_u: Tensor, log_v: Tensor) -> Tensor:
        raise NotImplementedError

    def _transform(self, log_u: Tensor, log_v: Tensor) -> Tensor:
        raise NotImplementedError

    def _invert(self, p: Tensor) -> Pair:
        raise NotImplementedError

    def _noise(self, sample_shape: Sequence[int]) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return inside(torch.rand(shape, dtype=torch.float64, device=self._like.device))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return a sample with its derivatives, by the inverse of the Rosenblatt transform.

        Parameters
        ----------
        sample_shape : torch.Size
            Leading dimensions.
        """
        log_u, _ = self._invert(self._noise(sample_shape))
        return inside(log_u.exp().to(self._like.dtype))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the logarithm of the density.

        Parameters
        ----------
        value : Tensor
            ``u``, ``(..., d)``.

        Raises
        ------
        ValueError
            If arguments are validated and a value is outside of [0, 1].
        """
        if self._validate_args:
            self._validate_sample(value)
        return self._log_density(*_logs(value)).to(self._like.dtype)

    def rosenblatt(self, value: Tensor) -> Tensor:
        """Return the Rosenblatt transform, independent uniform variables.

        Parameters
        ----------
        value : Tensor
            ``u``, ``(..., d)``.

        Raises
        ------
        ValueError
            If arguments are validated and a value is outside of [0, 1].
        """
        if self._validate_args:
            self._validate_sample(value)
        return self._transform(*_logs(value)).to(self._like.dtype)

    def inverse_rosenblatt(self, u: Tensor) -> Tensor:
        """Return the vector whose Rosenblatt transform is ``u``, with implicit derivatives.

        Parameters
        ----------
        u : Tensor
            Probabilities, ``(..., d)``.

        Raises
        ------
        ValueError
            If arguments are validated and a probability is outside of [0, 1].
        """
        p = admissible(probability(self, u, self._like))
        return self._invert(p)[0].exp().to(self._like.dtype)


def inside(u: Tensor) -> Tensor:
    """Return probabilities, moved from 0 and 1 to the next numbers."""
    info = torch.finfo(u.dtype)
    return u.clamp(info.tiny, 1 - info.eps / 2)


def admissible(p: Tensor) -> Tensor:
    """Return probabilities as float64, `inside`; NaN outside of [0, 1]."""
    return torch.where((p >= 0) & (p <= 1), inside(p.to(torch.float64)), torch.nan)


def _logs(u: Tensor) -> Pair:
    u = inside(u.to(torch.float64))
    return u.log(), (-u).log1p()


def _normal_quantile_value(log_p: Tensor) -> Tensor:
    inner = log_p > -700
    far = torch.where(inner, -701.0, log_p)
    z = -(-2 * far).sqrt()
    for _ in range(4):  # Newton's method, where the probability underflows
        log_cdf = torch.special.log_ndtr(z)
        z = z + (far - log_cdf) * (log_cdf + 0.5 * z * z + LOG_ROOT).exp()
    return torch.where(inner, torch.special.ndtri(log_p.exp()), z)


_normal_quantile = ims.elementwise_function(
    _normal_quantile_value,
    lambda z, log_p: [lambda: (log_p + 0.5 * z * z + LOG_ROOT).exp()],
    name="normal quantile of a logarithm",
)


class GaussianCopula(Copula):
    r"""The copula of correlated normal variables.

    .. math:: u_i = \Phi(z_i), \quad z \sim N(0, L L^T), \qquad
              c(u) = \frac{1}{\det L} \exp\Bigl(\frac{|z|^2 - |L^{-1} z|^2}{2}\Bigr)

    Source: Nelsen, "An Introduction to Copulas" (2006), section 2.3.

    Parameters
    ----------
    scale_tril : Tensor
        ``L``, lower triangular with a positive diagonal, ``(..., d, d)``. Its rows are scaled to
        the norm 1: only the correlations of ``L L^T`` matter.
    validate_args : bool, optional
        Whether to check parameters and values, as in ``torch.distributions``; False under ``vmap``.

    Raises
    ------
    ValueError
        If ``scale_tril`` is not a square matrix, or arguments are validated and it is no such
        factor.

    Examples
    --------
    Spearman's correlation is ``6 / pi asin(r / 2)``:

    >>> _ = torch.manual_seed(0)
    >>> q = GaussianCopula(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
    >>> u = q.rsample((50000,))
    >>> round(12 * (u.prod(-1).mean() - 0.25).item(), 1)
    0.6
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"scale_tril": constraints.lower_cholesky}

    def __init__(self, scale_tril: Tensor, validate_args: bool | None = None) -> None:
        if scale_tril.dim() < 2 or scale_tril.shape[-1] != scale_tril.shape[-2]:
            raise ValueError(
                f"scale_tril has the shape {tuple(scale_tril.shape)}: pass a square matrix"
            )
        self.scale_tril = scale_tril
        super().__init__(scale_tril.shape[-1], scale_tril.shape[:-2], validate_args)

    def _factor(self) -> Tensor:
        factor = self.scale_tril.to(torch.float64).tril()
        return factor / torch.linalg.vector_norm(factor, dim=-1, keepdim=True)

    def _log_determinant(self) -> Tensor:
        return self._factor().diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def entropy(self) -> Tensor:
        """Return the entropy ``ln det L``, less than zero.

        Examples
        --------
        >>> GaussianCopula(torch.tensor([[1.0, 0.0], [0.6, 0.8]])).entropy()  # ln 0.8
        tensor(-0.2231)
        """
        return self._log_determinant().to(self._like.dtype)

    def _normal(self, log_u: Tensor, log_v: Tensor) -> Pair:
        """Return ``z`` and ``L^-1 z``."""
        lower = log_u < log_v
        z = _normal_quantile(torch.where(lower, log_u, log_v))
        z = torch.where(lower, z, -z)
        y = torch.linalg.solve_triangular(self._factor(), z.unsqueeze(-1), upper=False)
        return z, y.squeeze(-1)

    def _log_density(self, log_u: Tensor, log_v: Tensor) -> Tensor:
        z, y = self._normal(log_u, log_v)
        return 0.5 * (z.square() - y.square()).sum(-1) - self._log_determinant()

    def _transform(self, log_u: Tensor, log_v: Tensor) -> Tensor:
        return torch.special.ndtr(self._normal(log_u, log_v)[1])

    def _invert(self, p: Tensor) -> Pair:
        z = (self._factor() @ torch.special.ndtri(p).unsqueeze(-1)).squeeze(-1)
        return log_normal_tails(z)


class ClaytonCopula(Copula):
    r"""Clayton's copula, of variables that are close to each other where they are small.

    .. math:: C(u) = \Bigl(1 + \sum_i (u_i^{-\theta} - 1)\Bigr)^{-1/\theta}

    Each conditional CDF has its inverse in closed form; the variables are computed in logarithms.
    Kendall's tau is ``theta / (theta + 2)``. Source: Nelsen, "An Introduction to Copulas" (2006),
    sections 4.2 and 4.6; Cook and Johnson, "A family of distributions for modelling
    non-elliptically symmetric multivariate data" (1981).

    Parameters
    ----------
    theta : Tensor or float
        Positive, ``(...)``; towards 0 the variables are independent.
    dim : int
        ``d >= 2``, the number of variables.
    validate_args : bool, optional
        Whether to check parameters and values, as in ``torch.distributions``; False under ``vmap``.

    Raises
    ------
    ValueError
        If ``dim`` is less than 2, or arguments are validated and ``theta`` is not positive.

    Examples
    --------
    >>> theta = torch.tensor(2.0, requires_grad=True)
    >>> _ = torch.manual_seed(0)
    >>> u = ClaytonCopula(theta, 3).rsample((50000,))
    >>> by_theta = torch.autograd.grad(u[:, 0].mul(u[:, 2]).mean(), theta)[0]
    >>> bool(by_theta > 0)
    True
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"theta": constraints.positive}

    def __init__(
        self, theta: Tensor | float, dim: int = 2, validate_args: bool | None = None
    ) -> None:
        self.theta = torch.as_tensor(theta)
        super().__init__(dim, self.theta.shape, validate_args)

    def _double(self) -> Tensor:
        return self.theta.to(torch.float64).unsqueeze(-1)

    def _order(self) -> Tensor:
        return torch.arange(self.dim, dtype=torch.float64, device=self.theta.device)

    def _steps(self, log_u: Tensor) -> Tensor:
        """Return ``ln(S_k / S_(k-1)) / theta`` with ``S_k = 1 + sum_(i<=k) (u_i^-theta - 1)``."""
        theta = self._double()
        near = theta * log_u.amin(-1, keepdim=True) > -_NEAR
        t, fall = torch.where(near, theta, 1.0), torch.where(near, -log_u, 1.0)
        rise = (fall * exprel(t * fall)).cumsum(-1)
        close = (rise * log1prel(t * rise)).diff(prepend=torch.zeros_like(rise[..., :1]))
        t, fall = torch.where(near, 1.0, theta), torch.where(near, 1.0, -log_u)
        before, logs = torch.zeros_like(log_u[..., 0]), []
        for term in _log_expm1(t * fall).unbind(-1):
            logs.append(_softplus(term - before))
            before = before + logs[-1]
        return torch.where(near, close, torch.stack(logs, -1) / t)

    def _log_density(self, log_u: Tensor, log_v: Tensor) -> Tensor:
        theta = self._double()
        normal = (self._order() * theta).log1p().sum(-1)
        rest = (self.dim * theta + 1) * self._steps(log_u)
        return normal - ((theta + 1) * log_u + rest).sum(-1)

    def _transform(self, log_u: Tensor, log_v: Tensor) -> Tensor:
        return (-(self._order() * self._double() + 1) * self._steps(log_u)).exp()

    def _invert(self, p: Tensor) -> Pair:
        theta = self._double()
        rise = -p.log() / (1 + self._order() * theta)
        before = pad(rise[..., :-1].cumsum(-1), (1, 0))
        near = theta * rise.sum(-1, keepdim=True) < _NEAR
        t = torch.where(near, theta, 1.0)
        close, above = (torch.where(near, r, 1.0) for r in (rise, before))
        close = (t * above).exp() * close * exprel(t * close)
        close = close * log1prel(t * close)
        t = torch.where(near, 1.0, theta)
        far, above = (torch.where(near, 1.0, r) for r in (rise, before))
        far = _softplus(t * above + _log_expm1(t * far)) / t
        log_u = -torch.where(near, close, far)
        return log_u, _log1mexp(-log_u)


LARGEST = 700.0  # exp(-theta) is a normal number


class FrankCopula(Copula):
    r"""Frank's copula, symmetric in both tails.

    .. math:: C(u) = -\frac{1}{\theta} \ln\Bigl(1 - (1 - e^{-\theta})
              \prod_i \frac{1 - e^{-\theta u_i}}{1 - e^{-\theta}}\Bigr)

    Conditional CDFs are quotients of polylogarithms of negative order, polynomials of positive
    coefficients; those from the third variable on are inverted by `implicit_solvers.root`. Source:
    Nelsen, "An Introduction to Copulas" (2006), sections 4.2 and 4.6; Hofert, Maechler and McNeil,
    "Likelihood inference for Archimedean copulas in high dimensions" (2012), section 3.

    Parameters
    ----------
    theta : Tensor or float
        ``(...)``, from 0, where variables are independent, to 700: beyond, ``exp(-theta)``
        underflows, and variables differ by a thousandth only. With two, from -700. Second
        derivatives by ``theta`` have an error of about ``1e-16 / theta^2``: none are left at 1e-8.
    dim : int
        ``d >= 2``, the number of variables.
    validate_args : bool, optional
        Whether to check parameters and values, as in ``torch.distributions``; False under ``vmap``.

    Raises
    ------
    ValueError
        If ``dim`` is less than 2, or arguments are validated and ``theta`` is not admissible.

    Examples
    --------
    >>> FrankCopula(torch.tensor(5.0)).log_prob(torch.tensor([0.5, 0.5])).exp()
    tensor(1.4736)
    """

    def __init__(
        self, theta: Tensor | float, dim: int = 2, validate_args: bool | None = None
    ) -> None:
        self.theta = torch.as_tensor(theta)
        self._any_sign = dim == 2
        super().__init__(dim, self.theta.shape, validate_args)

    @property
    def arg_constraints(self) -> dict[str, Any]:
        """At most 700, with two variables of any sign."""
        least = -LARGEST if self._any_sign else 0.0
        return {"theta": constraints.interval(least, LARGEST)}

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the distribution with a larger batch shape; see torch."""
        new = self._get_checked_instance(FrankCopula, _instance)
        new._any_sign = self._any_sign
        return super().expand(batch_shape, new)

    def _double(self) -> Pair:
        """Return ``|theta|``, at least 1e-9, and whether the second variable is mirrored."""
        theta = self.theta.to(torch.float64)
        theta = torch.where(theta.abs() < 1e-9, theta + 2e-9, theta)
        return theta.abs(), theta < 0

    def _mirrored(self, log_u: Tensor, log_v: Tensor) -> Pair:
        """Exchange ``u_2`` and ``1 - u_2`` where ``theta`` is negative."""
        second = torch.arange(self.dim, device=log_u.device) == 1
        swap = self._double()[1].unsqueeze(-1) & second
        return torch.where(swap, log_v, log_u), torch.where(swap, log_u, log_v)

    def _log_odds(self, log_u: Tensor, log_v: Tensor) -> Tensor:
        """Return ``ln(z_k / (1 - z_k))``: ``z_k = 1 - exp(-theta C(u_1, ..., u_k))``."""
        theta = self._double()[0].unsqueeze(-1)
        u, v = log_u.exp(), log_v.exp()
        low = _log1mexp(theta * u) - _log1mexp(theta)
        lost = -theta * u + _log1mexp(theta * v) - _log1mexp(theta)
        upper = u > 0.5
        high = (-torch.where(upper, lost, -1.0).exp()).log1p()
        log_z = _log1mexp(theta) + torch.where(upper, high, low).cumsum(-1)
        return log_z - _log1mexp(-log_z)

    def _log_density(self, log_u: Tensor, log_v: Tensor) -> Tensor:
        log_u, log_v = self._mirrored(log_u, log_v)
        theta, last = self._double()[0], self._log_odds(log_u, log_v)[..., -1]
        powers = log_power_sum(last, self.dim - 1) + (self.dim - 1) * theta.log()
        return powers - _log_expm1(theta.unsqueeze(-1) * log_u.exp()).sum(-1)

    def _transform(self, log_u: Tensor, log_v: Tensor) -> Tensor:
        first, mirrored = log_u[..., 0].exp(), self._double()[1]
        log_odds = self._log_odds(*self._mirrored(log_u, log_v)).unbind(-1)
        p = [first]
        for k in range(1, self.dim):
            before, after = (log_power_sum(log_odds[i], k - 1) for i in (k - 1, k))
            p.append((after - before).exp())
        p[1] = torch.where(mirrored, 1 - p[1], p[1])
        return torch.stack(p, -1)

    def _invert(self, p: Tensor) -> Pair:
        theta, mirrored = self._double()
        first, *rest = p.unbind(-1)
        rest[0] = torch.where(mirrored, 1 - rest[0], rest[0])
        pairs = [(first.log(), (-first).log1p())]
        log_odds = _log_expm1(theta * first)
        for order, q in enumerate(rest):
            after = inverse_log_power_sum(log_power_sum(log_odds, order) + q.log(), order)
            # 1 - z_k / z_(k-1)
            fall = _softplus(_log_expm1(log_odds - after) - _softplus(log_odds))
            pairs.append(_from_fall(fall, theta))
            log_odds = after
        log_u, log_v = (torch.stack(logs, -1) for logs in zip(*pairs, strict=True))
        return self._mirrored(log_u, log_v)


def _from_fall(fall: Tensor, theta: Tensor) -> Pair:
    """Solve ``1 - exp(-theta u) = (1 - exp(-theta)) exp(-fall)`` for ``ln u`` and ``ln(1 - u)``."""
    log_rest = _log1mexp(theta) + _log1mexp(fall)
    v = _softplus(theta + log_rest) / theta
    log_share = _log1mexp(theta) - fall
    small, upper = log_share < -math.log(2), v < 0.5
    near = -(-torch.where(small, log_share, -1.0).exp()).log1p() / theta
    u = torch.where(small, near, -torch.logaddexp(-theta, log_rest) / theta)
    log_u = torch.where(upper, (-torch.where(upper, v, 0.5)).log1p(), u.log())
    return log_u, torch.where(upper, v.log(), (-torch.where(upper, 0.5, u)).log1p())
