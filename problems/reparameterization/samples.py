"""A sample with its implicit derivatives, where these are known in closed form or by quadrature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

import implicit_solvers as ims

__all__ = ["implicit_sample"]


def implicit_sample(
    z: Tensor, derivatives: Callable[..., Sequence[Any]], *parameters: Tensor
) -> Tensor:
    """Return the sample ``z`` as it is, with ``dz = sum_j (dz/dphi_j) dphi_j``.

    For ``F(z; phi) = u`` with the noise ``u`` held fixed, ``dz/dphi = -(dF/dphi) / q(z; phi)``.
    The derivative is evaluated at the sample that is returned, which depends on the parameters:
    second derivatives contain ``d(dz/dphi)/dz``. ``derivatives(z, *parameters)`` returns
    ``dz/dphi_j`` for each parameter (or a function without arguments that returns it), made of
    differentiable operations; parameters broadcast against ``z``, which gets no gradient.

    Source: Figurnov, Mohamed and Mnih, "Implicit Reparameterization Gradients" (2018), equation 5.

    Examples
    --------
    >>> import torch
    >>> rate = torch.tensor(2.0, requires_grad=True)
    >>> z = implicit_sample(torch.tensor(0.3), lambda z, rate: [-z / rate], rate)
    >>> z.backward()
    >>> rate.grad
    tensor(-0.1500)
    """
    sample = ims.elementwise_function(
        lambda z, *_: z.clone(),
        lambda y, _, *parameters: [None, *derivatives(y, *parameters)],
        name="implicit_sample",
    )
    return sample(z.detach(), *parameters)
