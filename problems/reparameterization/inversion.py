"""Quantiles by a bracketed root: ``F(z) = u``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

import implicit_solvers as ims
from implicit_solvers.problems.reparameterization.tails import (
    bounds,
    like_parameters,
    log_odds,
    log_tails,
)

__all__ = [
    "as_good_as_numbers",
    "draw_from",
    "place",
    "quantile",
    "solve_tails",
    "uniform_noise",
    "with_derivatives",
]


def place(y: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Map the real line onto an interval, increasing, exact near both ends.

    The ends may be infinite, and broadcast; the result has the dtype of ``y``.

    Examples
    --------
    >>> place(torch.tensor([-1.0, 0.0]), 2.0, torch.inf)
    tensor([2.3679, 3.0000])
    """
    low, high = (torch.as_tensor(end, dtype=y.dtype, device=y.device) for end in (low, high))
    from_low, from_high = torch.isfinite(low), torch.isfinite(high)
    both = from_low & from_high
    width = torch.where(both, high - low, 1.0)
    up = torch.where(both, width * y.sigmoid(), y.exp())
    down = torch.where(both, width * (-y).sigmoid(), (-y).exp())
    near_low = from_low & ((y < 0) | ~from_high)
    return torch.where(near_low, low + up, torch.where(from_high, high - down, y))


def _strictly_inside(z: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Move what was rounded to an end to the next number; there the density may be unknown."""
    low, high = (torch.as_tensor(end).to(z).detach() for end in (low, high))
    after = torch.where(low.isfinite(), low.nextafter(z.new_tensor(torch.inf)), low)
    before = torch.where(high.isfinite(), high.nextafter(z.new_tensor(-torch.inf)), high)
    return torch.minimum(torch.maximum(z, after), before)


def uniform_noise(
    distribution: Distribution, sample_shape: Sequence[int], dtype: torch.dtype | None = None
) -> Tensor:
    """Draw uniform variables in (0, 1) for the samples of a distribution.

    Parameters
    ----------
    distribution
        Its parameters give dtype and device.
    sample_shape
        The shape in front of the batch shape.
    dtype
        Another dtype than theirs.

    Returns
    -------
    Tensor
        Of the shape ``sample_shape + batch_shape + event_shape``.

    Examples
    --------
    >>> from torch.distributions import Normal
    >>> uniform_noise(Normal(torch.zeros(3), 1.0), torch.Size([2])).shape
    torch.Size([2, 3])
    """
    like = like_parameters(distribution)
    shape = torch.Size(sample_shape) + distribution.batch_shape + distribution.event_shape
    u = torch.rand(shape, dtype=dtype or like.dtype, device=like.device)
    return u.clamp(min=torch.finfo(u.dtype).tiny)


def draw_from(distribution: Any, sample_shape: torch.Size) -> Tensor:
    """Draw by the distribution's sampler, or, if it has none, by what inverts its transform.

    That is `quantile`, or ``inverse_rosenblatt`` for vectors. The samples have no derivatives.

    Examples
    --------
    >>> from torch.distributions import Normal
    >>> draw_from(Normal(torch.zeros(3), 1.0), torch.Size([2])).shape
    torch.Size([2, 3])
    """
    kind = type(distribution)
    own = kind.sample is not Distribution.sample or kind.rsample is not Distribution.rsample
    with torch.no_grad():
        if own:
            return distribution.sample(sample_shape)
        u = uniform_noise(distribution, sample_shape)
        if not distribution.event_shape:
            return quantile(distribution, u).detach()
        if not hasattr(distribution, "inverse_rosenblatt"):
            raise NotImplementedError(
                f"distribution is a {kind.__name__} without the methods sample and "
                "inverse_rosenblatt: define one of them"
            )
        return distribution.inverse_rosenblatt(u).detach()


def quantile(distribution: Distribution, u: Tensor, rest: Tensor | None = None) -> Tensor:
    r"""Solve ``F(z; phi) = u``, differentiable in ``u`` and in the parameters.

    .. math:: dz = \frac{du - \nabla_\phi F(z; \phi) \, d\phi}{q(z; \phi)}

    The root is bracketed on the support, mapped to the real line, with ``ln F = ln u`` below the
    median and ``ln(1 - F) = ln(1 - u)`` above it; so tails are as exact as the distribution's
    ``log_cdf`` and ``log_survival``.

    Parameters
    ----------
    distribution
        A univariate distribution with a CDF.
    u
        Probabilities in [0, 1], of a shape that ends in the batch shape.
    rest
        ``1 - u``, where it is known with more digits than ``u`` tells.

    Returns
    -------
    Tensor
        The quantiles; the ends of the support at 0 and 1.

    Raises
    ------
    ConvergenceError
        Where ``F`` does not reach ``u``.

    Examples
    --------
    >>> from torch.distributions import Normal
    >>> [round(z, 4) for z in quantile(Normal(1.0, 2.0), torch.tensor([0.5, 0.0])).tolist()]
    [1.0, -inf]
    """
    low, high = bounds(distribution)
    rest = 1 - u if rest is None else rest
    inner = (u > 0) & (rest > 0)
    v, w = torch.where(inner, u, 0.5), torch.where(inner, rest, 0.5)
    z = solve_tails(lambda z: log_tails(distribution, z), v.detach(), low, high, w.detach())
    z = with_derivatives(
        lambda z, v, w: log_odds(distribution, z) - (v.log() - w.log()), z, (v, w), z.dim()
    )
    ends = torch.where(u == 0, low, torch.where(rest == 0, high, torch.nan)).to(z.dtype)
    return torch.where(inner, z, ends)


def with_derivatives(
    equation: Callable[..., Tensor], z: Tensor, args: tuple[Tensor, ...], lanes: int
) -> Tensor:
    """Return ``z`` with the derivatives that keep ``equation(z, *args)`` as it is.

    The equation has the shape of ``z``, which gets no gradient; its value is not looked at. The
    leading ``lanes`` dimensions of ``z`` and of ``args`` are lanes; what ``equation`` captures is
    shared by them.

    Examples
    --------
    >>> a = torch.tensor([9.0], requires_grad=True)
    >>> z = with_derivatives(lambda z, a: z**2 - a, torch.tensor([3.0]), (a,), 1)
    >>> torch.autograd.grad(z, a)[0]
    tensor([0.1667])
    """
    zero = torch.zeros(z.shape[:lanes], dtype=z.dtype, device=z.device)
    status = zero.long()
    # taken for what it is, as roundings of a cumulative distribution may be coarse
    found = ims.Solution(z, status == 0, status, zero, zero, status)
    in_dims = (0,) * len(args) if lanes else None
    return ims.attach(equation, found, args, batch_dims=lanes, in_dims=in_dims).value


def solve_tails(
    tails: Callable[[Tensor], tuple[Tensor, Tensor]],
    u: Tensor,
    low: Tensor | float,
    high: Tensor | float,
    rest: Tensor | None = None,
) -> Tensor:
    """Solve ``F(z) = u`` from the logarithms of both tails, without derivatives.

    ``u`` is in (0, 1), and ``rest`` is ``1 - u``, where it is known with more digits than ``u``
    tells. The roots are strictly between the ends, which may be infinite; NaN where ``F`` does not
    reach ``u``.

    Examples
    --------
    >>> u = torch.tensor([0.25, 0.5])
    >>> solve_tails(lambda z: (2 * z.log(), (1 - z**2).log()), u, 0.0, 1.0)
    tensor([0.5000, 0.7071])
    """
    log_u, log_v, lower = u.log(), (-u).log1p() if rest is None else rest.log(), u < 0.5

    def equation(y: Tensor) -> Tensor:
        log_cdf, log_survival = tails(place(y, low, high))
        return torch.where(lower, log_cdf - log_u, log_v - log_survival)

    with torch.no_grad():
        # all lanes stay: torch's distributions keep tensors that their first call has made
        sol = ims.root(
            equation,
            torch.zeros_like(u),
            solver=ims.Chandrupatla(compact=False, expansions=1100),  # quantiles up to 1e308
            batch_dims=u.dim(),
            on_failure="mask",
        )
    return _strictly_inside(place(as_good_as_numbers(sol), low, high), low, high).detach()


def as_good_as_numbers(solution: ims.Solution[Tensor]) -> Tensor:
    """Return roots that were bracketed, NaN where none was.

    A bracket without a number left between its ends is as good as floating point can be.

    Examples
    --------
    >>> ends = torch.tensor([0.0, 0.0]), torch.tensor([2.0, 9.0])
    >>> how = {"bracket": ends, "batch_dims": 1, "on_failure": "mask"}
    >>> as_good_as_numbers(ims.root(lambda z: z - 4, None, **how))
    tensor([nan, 4.])
    """
    found = solution.converged | (solution.status == int(ims.Status.STALLED))
    return torch.where(found, solution.value, torch.nan)
