"""Published recurrent networks that are special cases of the equilibrium cell.

All have the interface of ``torch.nn.RNN``, and are what ERNN is compared with.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from implicit_solvers.problems.ernn.cell import ERNNCell
from implicit_solvers.problems.ernn.definition import Coefficients, unrolled
from implicit_solvers.problems.ernn.layer import ERNN
from implicit_solvers.problems.ernn.leak import Leak
from implicit_solvers.problems.ernn.modes import Equilibrium, Unrolled

__all__ = [
    "AntisymmetricRNN",
    "AntisymmetricRNNCell",
    "FastRNN",
    "FastRNNCell",
    "ImplicitEulerRNN",
]


class FastRNNCell(ERNNCell):
    r"""A cell with a residual connection of two learned weights.

    .. math:: h_k = \sigma(\alpha)\, \phi(U h_{k-1} + W x_k + c) + \sigma(\beta)\, h_{k-1}

    It is one Euler step of `ERNNCell` with the step size :math:`\sigma(\alpha)` and
    :math:`\gamma b = -\sigma(\beta) / \sigma(\alpha)`. Source: Kusupati et al., "FastGRNN: a fast,
    accurate, stable and tiny kilobyte sized gated recurrent neural network" (2018), section 3.1.

    Parameters
    ----------
    input_size, hidden_size
        The numbers of inputs ``I`` and of hidden units ``H``.
    nonlinearity
        As in `ERNNCell`.
    alpha, beta
        The weights' logits at the start; -3 and 3 as in the authors' code.
    initial_norm
        The spectral norm of ``U`` at the start.
    bias, device, dtype
        As in `ERNNCell`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> cell = FastRNNCell(3, 4)
    >>> x, h = torch.randn(2, 3), torch.randn(2, 4)
    >>> inner = torch.tanh(h @ cell.coefficients().U.T + cell.drive(x))
    >>> alpha, beta = cell.alpha.sigmoid(), cell.beta.sigmoid()
    >>> bool(torch.allclose(cell(x, h), alpha * inner + beta * h, atol=1e-6))
    True
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        nonlinearity: Any = "tanh",
        alpha: float = -3.0,
        beta: float = 3.0,
        initial_norm: float = 1.0,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in {"alpha": alpha, "beta": beta}.items():
            if not math.isfinite(value):
                raise ValueError(f"{name}={value} is not finite: pass a logit, such as -3.0")
        super().__init__(
            input_size,
            hidden_size,
            mode=Unrolled(steps=1, learned=False),
            nonlinearity=nonlinearity,
            learn_gamma=False,
            initial_norm=initial_norm,
            bias=bias,
        )
        del self.step_sizes  # the weight alpha takes its place
        self.alpha, self.beta = nn.Parameter(torch.tensor(alpha)), nn.Parameter(torch.tensor(beta))
        self.to(device=device, dtype=dtype)

    def coefficients(self) -> Coefficients:
        """Return ``U``, ``gamma``, ``a`` and ``b``, differentiable in the parameters."""
        U, gamma, a, _ = super().coefficients()
        return Coefficients(U, gamma, a, -self.beta.sigmoid() / (self.alpha.sigmoid() * gamma))

    def advance(
        self, drive: Tensor, previous: Tensor | None, c: Coefficients, start: Tensor | None = None
    ) -> Tensor:
        """Return the next state, as `ERNNCell.advance`."""
        before = torch.zeros_like(drive) if previous is None else previous
        return unrolled(drive, before, c, self.phi, self.alpha.sigmoid().unsqueeze(0))


class AntisymmetricRNNCell(ERNNCell):
    r"""A cell that is an Euler step of a differential equation which neither grows nor decays.

    .. math:: h_k = h_{k-1} + \epsilon\, \phi((M - M^T - \delta I) h_{k-1} + W x_k + c)

    The eigenvalues of :math:`M - M^T` are imaginary; :math:`\delta` damps what the Euler step adds
    to them. It is one Euler step of `ERNNCell` with :math:`a = \gamma = 1` and
    :math:`b = -1 / \epsilon`. Source: Chang, Chen, Haber and Chi, "AntisymmetricRNN: a dynamical
    system view on recurrent neural networks" (2019), equation 9, without gates.

    Parameters
    ----------
    input_size, hidden_size
        The numbers of inputs ``I`` and of hidden units ``H``.
    nonlinearity
        As in `ERNNCell`.
    step_size, diffusion
        The step :math:`\epsilon`, positive, and :math:`\delta`, not negative. Not learned.
    initial_norm
        The spectral norm of ``M`` at the start.
    bias, device, dtype
        As in `ERNNCell`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> cell = AntisymmetricRNNCell(3, 4, step_size=0.5, diffusion=0.1)
    >>> x, h = torch.randn(2, 3), torch.randn(2, 4)
    >>> M = cell.recurrent.weight
    >>> inner = h @ (M - M.T - 0.1 * torch.eye(4)).T + cell.drive(x)
    >>> bool(torch.allclose(cell(x, h), h + 0.5 * torch.tanh(inner), atol=1e-6))
    True
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        nonlinearity: Any = "tanh",
        step_size: float = 0.1,
        diffusion: float = 0.01,
        initial_norm: float = 1.0,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 0 <= diffusion < math.inf:
            raise ValueError(f"diffusion={diffusion} is negative or not finite: pass 0.01, say")
        mode = Unrolled(steps=1, step_size=step_size, learned=False)
        super().__init__(
            input_size,
            hidden_size,
            mode=mode,
            nonlinearity=nonlinearity,
            learn_gamma=False,
            leak=Leak(1.0, -1 / step_size),
            initial_norm=initial_norm,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.diffusion = diffusion

    def coefficients(self) -> Coefficients:
        """Return ``U``, ``gamma``, ``a`` and ``b``, differentiable in the parameters."""
        M, gamma, a, b = super().coefficients()
        return Coefficients(M - M.mT - self.diffusion * torch.eye(len(M)).to(M), gamma, a, b)


class FastRNN(ERNN):
    """A recurrent network of `FastRNNCell`, with the interface of ``torch.nn.RNN``.

    Parameters
    ----------
    input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional
        As in `ERNN`.
    **options
        The keywords of `FastRNNCell`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> output, h_n = FastRNN(3, 4, num_layers=2, bidirectional=True)(torch.randn(5, 7, 3))
    >>> output.shape, h_n.shape
    (torch.Size([5, 7, 8]), torch.Size([4, 7, 4]))
    """

    cell_type = FastRNNCell


class AntisymmetricRNN(ERNN):
    """A recurrent network of `AntisymmetricRNNCell`, with the interface of ``torch.nn.RNN``.

    Parameters
    ----------
    input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional
        As in `ERNN`.
    **options
        The keywords of `AntisymmetricRNNCell`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> output, h_n = AntisymmetricRNN(3, 4)(torch.randn(5, 7, 3))
    >>> output.shape, h_n.shape
    (torch.Size([5, 7, 4]), torch.Size([1, 7, 4]))
    """

    cell_type = AntisymmetricRNNCell


class ImplicitEulerRNN(ERNN):
    r"""A recurrent network whose states are implicit Euler steps of a leaky network.

    .. math:: h_k = h_{k-1} + \eta\,(\phi(U h_k + W x_k + c) - h_k)

    It is `ERNN` with :math:`a = 0`, :math:`\gamma = (1 + \eta) / \eta` and
    :math:`b = -1 / (1 + \eta)`, none of them learned. Differentiated through the equilibrium.

    Parameters
    ----------
    input_size, hidden_size, num_layers, batch_first, dropout, bidirectional
        As in `ERNN`.
    step_size
        The step :math:`\eta`, positive.
    mode
        An `Equilibrium`.
    **options
        Further keywords of `ERNNCell`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> output, h_n = ImplicitEulerRNN(3, 4, step_size=0.5)(torch.randn(5, 7, 3))
    >>> output.shape, h_n.shape
    (torch.Size([5, 7, 4]), torch.Size([1, 7, 4]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        step_size: float = 0.5,
        mode: Equilibrium = Equilibrium(),  # noqa: B008
        **options: Any,
    ) -> None:
        if not 0 < step_size < math.inf:
            raise ValueError(f"step_size={step_size} is not positive and finite: pass 0.5, say")
        if not isinstance(mode, Equilibrium):
            raise TypeError(f"mode is {mode!r}: pass an Equilibrium, which solves for the step")
        given = {"initial_norm": 1.0, **options}
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            mode=mode,
            gamma=(1 + step_size) / step_size,
            learn_gamma=False,
            leak=Leak(0.0, -1 / (1 + step_size)),
            **given,
        )
