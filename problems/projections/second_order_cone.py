"""The second-order (Lorentz) cone."""

from __future__ import annotations

import torch
from torch import Tensor

from implicit_solvers.problems.projections.row_norms import norm_beyond
from implicit_solvers.problems.projections.validation import check_array

__all__ = ["project_second_order_cone"]


def project_second_order_cone(v: Tensor) -> Tensor:
    r"""Project onto ``{(t, x) : |x|_2 <= t}``, ``t`` being the first entry.

    Inside the cone it is ``v``; inside the polar cone, ``|x| <= -t``, it is zero; elsewhere

    .. math:: \tfrac12 (t + |x|) \, (1, x / |x|) .

    Parameters
    ----------
    v
        ``(..., 1 + n)``, floating; each row is projected.

    Returns
    -------
    Tensor
        Like ``v``, differentiable off the boundaries of the two cones; on them the derivative is
        the one from inside.

    Raises
    ------
    TypeError, ValueError
        If ``v`` is not a floating tensor, or has no entries.

    Notes
    -----
    Source: Parikh and Boyd, "Proximal Algorithms" (2014), section 6.3.2.

    Examples
    --------
    >>> project_second_order_cone(torch.tensor([1.0, 3.0, 4.0]))
    tensor([3.0000, 1.8000, 2.4000])
    """
    v = check_array("v", v)
    t, x = v[..., :1], v[..., 1:]
    within, norm = norm_beyond(x, t.abs())
    length = (t + norm) / 2
    boundary = torch.cat([length, length * (x / norm)], -1)
    rest = torch.where(t < 0, 0.0, v)
    return torch.where(within, torch.where(v.isfinite().all(-1, True), rest, torch.nan), boundary)
