"""Student's t distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import implicit_solvers as ims
from implicit_solvers.problems.reparameterization.distributions.draws import drawing
from implicit_solvers.problems.reparameterization.distributions.gamma import log_gamma_draw
from implicit_solvers.problems.reparameterization.distributions.quantiles import (
    between_ends,
    elementwise_root,
    probability,
)
from implicit_solvers.problems.reparameterization.precision import halves_in_single
from implicit_solvers.problems.special_functions.derivatives import (
    differentiable_sample,
)
from implicit_solvers.problems.special_functions.log_gamma import (
    digamma_rise,
    log1p_minus,
    log_gamma_excess,
)
from implicit_solvers.problems.special_functions.normal import LOG_ROOT
from implicit_solvers.problems.special_functions.student_t import (
    relative_slope,
    student_t_cdf,
    student_t_log_sample_derivative,
    student_t_log_tail,
)

__all__ = ["StudentT", "student_t_quantile", "t_fall"]


def t_fall(square: Tensor, df: Tensor, dim: int) -> Tensor:
    """Return ``(n + d) ln(1 + y^2 / n) / 2``, by which a t density has fallen, for any large ``n``.

    ``square`` is ``y^2``. The result tends to ``y^2 / 2``, with derivatives by ``n`` that have
    their digits.

    Examples
    --------
    >>> t_fall(torch.tensor(2.0), torch.tensor([1.0, 1e30]), 1)
    tensor([1.0986, 1.0000])
    """
    near = square < 0.25 * df
    inner = torch.where(near, square, 0.0)
    ratio = inner / df
    of_near = inner + df * log1p_minus(ratio) + dim * ratio.log1p()
    of_far = (df + dim) * (torch.where(near, df, square) / df).log1p()
    return 0.5 * torch.where(near, of_near, of_far)


def student_t_quantile(p: Tensor, df: Tensor) -> Tensor:
    """Return the quantile of the standard t distribution, with implicit derivatives.

    Solved in ``ln |t|`` for the smaller tail. So near 1/2 that rounding would decide, it is
    ``(p - 1/2) / f(0)``. It is float64, and NaN for ``p`` outside of [0, 1].

    Examples
    --------
    >>> student_t_quantile(torch.tensor([0.25, 0.5, 1.0]), torch.tensor(1.0))
    tensor([-1.0000,  0.0000,     inf], dtype=torch.float64)
    """
    return between_ends(_quantile, p, df)


def _quantile(p: Tensor, df: Tensor) -> Tensor:
    offset = p - 0.5
    centre = offset.abs() <= 1e-8 * df.clamp(max=1.0)
    tail = torch.where(centre, 0.25, torch.where(p < 0.5, p, 1 - p))
    t = offset.sign() * _log_quantile(tail, df).exp()
    return torch.where(centre, offset * (-_log_peak(df)).exp(), t)


def _log_peak(df: Tensor) -> Tensor:
    """Return ``ln f(0)``."""
    return log_gamma_excess(0.5 * df, 0.5) - LOG_ROOT


def standard_log_density(t: Tensor, df: Tensor) -> Tensor:
    """Return the logarithm of the density for the location 0 and the scale 1.

    The arguments are float64. The square of ``t`` may overflow.

    Examples
    --------
    >>> standard_log_density(torch.tensor(0.0), torch.tensor(1.0))  # -ln pi
    tensor(-1.1447)
    """
    far = t.abs() > 1e100
    inside, outside = torch.where(far, 0.0, t), torch.where(far, t, 1.0)
    beyond = 0.5 * (df + 1) * (2 * outside.abs().log() - df.log())
    return _log_peak(df) - torch.where(far, beyond, t_fall(inside.square(), df, 1))


def _solve(tail: Tensor, df: Tensor) -> Tensor:
    """Return ``ln t`` with ``P(T > t)`` given, less than 1/2."""
    log_peak, log_tail = _log_peak(df), tail.log()
    # f <= f(0), and f <= f(0) (t^2 / n)^(-(n + 1) / 2)
    low = (0.5 - tail).log() - log_peak - 1
    high = (log_peak + 0.5 * (df + 1) * df.log() - df.log() - log_tail) / df
    return elementwise_root(
        lambda log_t, log_tail, df: student_t_log_tail(log_t, df) - log_tail,
        (low, torch.maximum(high, low) + 2),
        log_tail,
        df,
    )


def _log_quantile_partials(log_t: Tensor, tail: Tensor, df: Tensor) -> list[Any]:
    growth = torch.nn.functional.softplus(2 * log_t - df.log(), threshold=40)
    log_mass = log_t + _log_peak(df) - 0.5 * (df + 1) * growth  # ln(t f)
    return [-(-log_mass).exp(), lambda: student_t_log_sample_derivative(df, log_t)]


_log_quantile = ims.elementwise_function(_solve, _log_quantile_partials, name="student_t quantile")


MOST = torch.finfo(torch.float64).max


def _draw(df: Tensor) -> Tensor:
    """Draw standard t variables; what overflows is the largest number."""
    half = 0.5 * df
    stretch = half.log().sub_(log_gamma_draw(half)).mul_(0.5).exp_()
    return stretch.mul_(torch.randn_like(stretch)).clamp_(-MOST, MOST)


_drawn = drawing(_draw)


def _by_df(t: Tensor, df: Tensor) -> Tensor:
    return torch.where(t.abs() < MOST, t * relative_slope(t, df), 0.0)


_variable = differentiable_sample(lambda t, df: [lambda: _by_df(t, df)], name="student_t variable")


@halves_in_single("mean", "mode", "variance")
class StudentT(torch.distributions.StudentT):
    r"""Student's t distribution with ``n`` degrees of freedom, with implicit derivatives.

    .. math:: p(x) = \frac{\Gamma(\frac{n+1}{2})}{\sqrt{n \pi} \, \Gamma(\frac{n}{2}) \, s}
              \Bigl(1 + \frac{t^2}{n}\Bigr)^{-(n+1)/2}, \quad t = \frac{x - m}{s}, \qquad
              \frac{dx}{dn} = -s \frac{\partial F(t; n) / \partial n}{\partial F / \partial t}

    Samples are drawn, and everything is computed, in float64, ``|t|`` in logarithms; derivatives of
    samples and quantiles are right to second order in every mode of automatic differentiation.
    Source: Figurnov, Mohamed and Mnih, "Implicit Reparameterization Gradients" (2018).

    Parameters
    ----------
    df : Tensor or float
        ``n > 0``, ``(...)``, floating; samples have its dtype.
    loc, scale : Tensor or float
        ``m``, and ``s > 0``; all are broadcast.
    validate_args : bool, optional
        Whether to check parameters and values, as in ``torch.distributions``; False under ``vmap``.

    Raises
    ------
    ValueError
        If a parameter is outside of its range, and ``validate_args`` is not False.

    Examples
    --------
    The variance is ``n / (n - 2)``, whose derivative at ``n = 10`` is -1/32:

    >>> _ = torch.manual_seed(0)
    >>> n = torch.tensor(10.0, requires_grad=True)
    >>> x = StudentT(n).rsample((100000,))
    >>> by_n = torch.autograd.grad((x**2).mean(), n)[0]
    >>> round(by_n.item(), 2)
    -0.03
    """

    def double(self) -> torch.distributions.StudentT:
        """Return the distribution in float64, without checks.

        Examples
        --------
        >>> StudentT(3.0).double().scale
        tensor(1., dtype=torch.float64)
        """
        df, loc, scale = (t.to(torch.float64) for t in (self.df, self.loc, self.scale))
        return torch.distributions.StudentT(df, loc, scale, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The mean, NaN if there is none (``n <= 1``)."""
        return torch.where(self.df > 1, self.loc, torch.nan)

    @property
    def variance(self) -> Tensor:
        """The variance, infinite for ``1 < n <= 2``, NaN for ``n <= 1``."""
        df = torch.where(self.df > 2, self.df, 3.0)
        variance = self.scale.square() * df / (df - 2)
        without = torch.where(self.df > 1, torch.inf, torch.nan).to(self.df.dtype)
        return torch.where(self.df > 2, variance, without)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return a sample with its derivatives by all parameters.

        Where ``|t|`` overflows it is the largest number, without a derivative by ``n``.

        Parameters
        ----------
        sample_shape : torch.Size
            Leading dimensions.

        Examples
        --------
        >>> StudentT(torch.ones(3)).rsample((2,)).shape
        torch.Size([2, 3])
        """
        shape, dtype = self._extended_shape(torch.Size(sample_shape)), self.df.dtype
        df = self.df.to(torch.float64).expand(shape)
        t = _variable(_drawn(df), df)
        if dtype != t.dtype:
            most = torch.finfo(dtype).max
            t = t.clamp(-most, most).to(dtype)
        return self.loc + self.scale * t

    def _standardized(self, value: Tensor) -> Tensor:
        return (value.to(torch.float64) - self.loc.to(torch.float64)) / self.scale.to(torch.float64)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the logarithm of the density.

        Parameters
        ----------
        value : Tensor
            ``x``.

        Raises
        ------
        ValueError
            If arguments are validated and a value is NaN.

        Examples
        --------
        >>> StudentT(1.0).log_prob(torch.tensor([0.0, 1e30]))
        tensor([  -1.1447, -139.2998])
        """
        if self._validate_args:
            self._validate_sample(value)
        exact, t = self.double(), self._standardized(value)
        log_density = standard_log_density(t, exact.df) - exact.scale.log()
        return log_density.to(self.df.dtype)

    def entropy(self) -> Tensor:
        """Return the differential entropy.

        Examples
        --------
        >>> StudentT(1.0).entropy()  # ln(4 pi)
        tensor(2.5310)
        """
        exact = self.double()
        expected = 0.5 * (exact.df + 1) * digamma_rise(0.5 * exact.df, 0.5)
        return (exact.scale.log() - _log_peak(exact.df) + expected).to(self.df.dtype)

    def cdf(self, value: Tensor) -> Tensor:
        """Return the CDF, differentiable in the parameters too.

        Parameters
        ----------
        value : Tensor
            ``x``.

        Raises
        ------
        ValueError
            If arguments are validated and a value is NaN.

        Examples
        --------
        >>> StudentT(1.0).cdf(torch.tensor([0.0, 1.0]))
        tensor([0.5000, 0.7500])
        """
        if self._validate_args:
            self._validate_sample(value)
        return student_t_cdf(self._standardized(value), self.df).to(self.df.dtype)

    def icdf(self, value: Tensor) -> Tensor:
        """Return the quantile, with implicit derivatives by ``p`` and the parameters.

        Solved by `implicit_solvers.root` in ``ln |t|``. At 0 and 1 derivatives by ``p`` and ``n``
        are zero.

        Parameters
        ----------
        value : Tensor
            Probabilities ``p``.

        Raises
        ------
        ValueError
            If arguments are validated and a probability is outside of [0, 1].

        Examples
        --------
        >>> StudentT(1.0, loc=3.0).icdf(torch.tensor([0.25, 0.5, 1.0]))
        tensor([2., 3., inf])
        """
        t = student_t_quantile(probability(self, value, self.df), self.df)
        return (self.loc + self.scale * t).to(self.df.dtype)
