"""One time step as a module."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import implicit_solvers as ims
from implicit_solvers.problems.ernn.definition import (
    Coefficients,
    equilibrium,
    memoryless,
    unrolled,
)
from implicit_solvers.problems.ernn.initialization import factors_of
from implicit_solvers.problems.ernn.leak import Leak
from implicit_solvers.problems.ernn.modes import Equilibrium, Unrolled
from implicit_solvers.problems.ernn.nonlinearity import Nonlinearity, nonlinearity_of
from implicit_solvers.problems.ernn.recurrent_matrix import (
    RecurrentMatrix,
    margin_of,
    spectral_norm,
)
from implicit_solvers.problems.ernn.validation import check_cell_input, check_size
from implicit_solvers.problems.ernn.well_posed import SpectralNorm, Unconstrained, WellPosed
from implicit_solvers.torch_internals import active_dropout

__all__ = ["ERNNCell"]

_SAMPLE, _CONTRACTION = 256, 0.95


class ERNNCell(nn.Module):
    r"""A recurrent cell on an equilibrium manifold, with the interface of ``torch.nn.RNNCell``.

    .. math:: \phi(U (h_k + a h_{k-1}) + W x_k + \beta) = \gamma (h_k + b h_{k-1})

    Parameters
    ----------
    input_size, hidden_size
        The numbers of inputs ``I`` and of hidden units ``H``.
    mode
        `Equilibrium`: ``h_k`` solves the equation; `Unrolled`: a few steps towards it.
    nonlinearity
        ``"tanh"``, ``"relu"``, ``"sigmoid"``, torch's functions so named, or a `Nonlinearity`.
    gamma
        The rate of decay, positive; where training begins, if it is learned.
    learn_gamma
        Whether ``gamma`` is a parameter (through its logarithm).
    leak
        ``a`` and ``b``, as a `Leak` or a pair of fixed numbers: (1, 1) as published first,
        (-1, -1) as published later, `LEAKY` for a cell with nonlinear memory.
    rank, input_rank
        The ranks of ``U`` and ``W``; full by default.
    well_posed
        What keeps the equilibrium unique: `SpectralNorm`, `Monotone`, or `Unconstrained`. Left
        out, ``SpectralNorm()`` in `Equilibrium` mode and ``Unconstrained()``, as published, in
        `Unrolled` mode.
    initial_norm
        The spectral norm of ``U`` at the start.
    bias
        Whether there is a ``beta``.
    device, dtype
        Of the parameters.

    Attributes
    ----------
    recurrent
        The module that makes ``U`` of its parameters; `coefficients` gives ``U`` itself.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, at once or in a call; the message names it.
    ConvergenceError
        In a call, or out of ``backward()``, if an equilibrium is not found and the mode's
        ``on_failure`` is ``"raise"``.

    Notes
    -----
    A call takes ``x (B, I)`` and ``h (B, H)``, or without ``B``, in the dtype of the parameters,
    real and floating, and returns the next state, like ``h``. `definition` derives
    ``dh_k / dh_(k-1)``.

    Source: Kag, Zhang and Saligrama, "RNNs Evolving on an Equilibrium Manifold: A Panacea for
    Vanishing and Exploding Gradients?" (2019), equations 4 and 5; "RNNs Incrementally Evolving on
    an Equilibrium Manifold" (2020).

    Examples
    --------
    >>> cell = ERNNCell(3, 4)
    >>> x = torch.randn(2, 3)
    >>> h = cell(x)
    >>> f = torch.tanh((h @ cell.coefficients().U.T) + cell.drive(x)) - cell.gamma * h
    >>> bool(f.abs().max() < 1e-4)
    True
    """

    log_gamma: Tensor
    a: Tensor
    b: Tensor
    step_sizes: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        mode: Equilibrium | Unrolled = Equilibrium(),  # noqa: B008
        nonlinearity: Any = "tanh",
        gamma: float = 1.0,
        learn_gamma: bool = True,
        leak: Leak | tuple[float, float] = Leak(),  # noqa: B008
        rank: int | None = None,
        input_rank: int | None = None,
        well_posed: WellPosed | None = None,
        initial_norm: float = 0.3,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("input_size", input_size)
        check_size("hidden_size", hidden_size)
        if not isinstance(mode, (Equilibrium, Unrolled)):
            raise TypeError(f"mode is {mode!r}: pass Equilibrium() or Unrolled(steps=3)")
        if not 0 < gamma < math.inf:
            raise ValueError(f"gamma={gamma} is not positive and finite: pass 1.0, say")
        if well_posed is None:
            well_posed = SpectralNorm() if isinstance(mode, Equilibrium) else Unconstrained()
        if not isinstance(well_posed, WellPosed):
            raise TypeError(
                f"well_posed is {well_posed!r}: pass SpectralNorm(), Monotone() or Unconstrained()"
            )
        self.input_size, self.hidden_size = input_size, hidden_size
        self.mode, self.well_posed = mode, well_posed
        self.leak = leak if isinstance(leak, Leak) else Leak(*leak)
        self.phi: Nonlinearity = nonlinearity_of(nonlinearity)
        if isinstance(mode, Equilibrium) and mode.parallel and not self.leak.parallel:
            raise ValueError(
                f"mode has parallel=True, and leak={self.leak} ties each state to the one before "
                "through the equation: leave parallel out, or fix a = b"
            )
        self.recurrent = RecurrentMatrix(
            hidden_size, well_posed, rank=rank, norm=initial_norm, bound=gamma / self.phi.slope
        )
        limit = 1 / math.sqrt(hidden_size)
        W = torch.empty(hidden_size, input_size).uniform_(-limit, limit)
        self.input_rank = input_rank
        if input_rank is None:
            self.weight_input = nn.Parameter(W)
        else:
            if not 1 <= input_rank <= min(W.shape):
                raise ValueError(
                    f"input_rank={input_rank} is not between 1 and {min(W.shape)}, the smaller of "
                    "input_size and hidden_size"
                )
            left, right = factors_of(W, input_rank)
            self.weight_input_left = nn.Parameter(left)
            self.weight_input_right = nn.Parameter(right)
        self.bias = nn.Parameter(torch.empty(hidden_size).uniform_(-limit, limit)) if bias else None
        self._number("log_gamma", math.log(gamma), learn_gamma)
        self._number("a", self.leak.a, self.leak.learned)
        self._number("b", self.leak.b, self.leak.learned)
        if isinstance(mode, Unrolled):
            self._number("step_sizes", [mode.step_size] * mode.steps, mode.learned)
        self.to(device=device, dtype=torch.get_default_dtype() if dtype is None else dtype)

    def _number(self, name: str, value: float | list[float], learned: bool) -> None:
        tensor = torch.tensor(value, dtype=torch.float64)
        if learned:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)

    @property
    def gamma(self) -> Tensor:
        """The rate of decay, 0-d."""
        return self.log_gamma.exp()

    @property
    def parallel(self) -> bool:
        """Whether all time steps are solved at once."""
        if not isinstance(self.mode, Equilibrium) or not self.leak.parallel:
            return False
        return self.mode.parallel is not False

    def coefficients(self) -> Coefficients:
        """Return ``U``, ``gamma``, ``a`` and ``b``, differentiable in the parameters."""
        gamma = self.gamma
        return Coefficients(self.recurrent(gamma / self.phi.slope), gamma, self.a, self.b)

    def drive(self, x: Tensor, left: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Return ``left (W x + beta) + shift``, ``(..., H)``, for inputs ``(..., I)``.

        Parameters
        ----------
        x
            The inputs.
        left, shift
            ``(H, H)`` and ``(H,)``: the identity and zero by default.
        """
        low_rank = self.input_rank is not None
        W: Tensor = self.weight_input_left if low_rank else self.weight_input
        bias: Tensor | None = self.bias
        if left is not None:
            W, bias = left @ W, bias if bias is None else left @ bias
        if shift is not None:
            bias = shift if bias is None else bias + shift
        return linear(linear(x, self.weight_input_right) if low_rank else x, W, bias)

    @torch.no_grad()
    def margin(self) -> float:
        """Return ``1 - L lambda_max((U + U^T) / 2) / gamma``.

        Where it is positive, the equilibrium is unique and its Jacobian regular, whatever the
        input. It is at least ``1 - L |U| / gamma``, and at least what ``well_posed`` asks for.
        """
        c = self.coefficients()
        return float(margin_of(c.U, c.gamma / self.phi.slope))

    @torch.no_grad()
    def project_(self, margin: float = 0.05) -> None:
        """Scale ``U`` in place so that ``L |U| <= (1 - margin) gamma``; call it after a step.

        Raises
        ------
        ValueError
            If the margin is not between 0 and 1.
        """
        if not 0 < margin < 1:
            raise ValueError(f"margin={margin} is not between 0 and 1: pass 0.05, say")
        c = self.coefficients()
        norm = spectral_norm(c.U)
        largest = (1 - margin) * c.gamma / self.phi.slope
        if isinstance(self.well_posed, Unconstrained) and norm > largest:
            self.recurrent.scale_(largest / norm)

    def check(self, c: Coefficients) -> None:
        """Raise if ``U`` may break regularity, or if the equation is random.

        Raises
        ------
        ValueError
            If the margin is to be checked and is not positive; or if there is dropout inside of
            the equation, in training mode.
        """
        if isinstance(self.mode, Equilibrium):
            self._refuse_dropout()
        if not (isinstance(self.well_posed, Unconstrained) and self.well_posed.check):
            return
        if isinstance(self.mode, Unrolled):
            return
        try:
            margin = float(margin_of(c.U.detach(), c.gamma.detach() / self.phi.slope))
        except RuntimeError:  # under vmap over U there is no single margin: each solve is judged
            return
        if not margin > 0:
            raise ValueError(
                f"U has the margin {margin:.3g}, and the equilibrium may be singular, or one of "
                "several: pass well_posed=SpectralNorm() or Monotone(), call project_() after each "
                "step of training, or pass Unconstrained(check=False) to go on regardless"
            )

    def _refuse_dropout(self) -> None:
        parts = [self, self.phi.function]
        names = [n for part in parts if isinstance(part, nn.Module) for n in active_dropout(part)]
        if names:
            raise ValueError(
                f"the cell holds dropout in training mode ({', '.join(names)}), and a random "
                "function has no equilibrium: the equation changes at every evaluation. Dropout "
                "may stand between layers, as ERNN(..., dropout=0.5), on the input and on the "
                "output; call eval() on it, or pass mode=Unrolled(), which solves no equation"
            )

    def advance(
        self, drive: Tensor, previous: Tensor, c: Coefficients, start: Tensor | None = None
    ) -> Tensor:
        """Return the next state from what `drive` and `coefficients` returned.

        Parameters
        ----------
        drive
            ``(..., H)``.
        previous
            The state before, ``(..., H)``.
        c
            The coefficients.
        start
            Where the solver begins, ``(..., H)``; it gets no gradient.
        """
        if isinstance(self.mode, Unrolled):
            return unrolled(drive, previous, c, self.phi, self.step_sizes)
        if start is None:
            start = self.phi(drive) / c.gamma - c.b * previous
        return equilibrium(drive, previous, c, self.phi, start, **self._options(self.mode))

    def settle(self, parts: Iterable[Tensor], c: Coefficients) -> Iterator[Tensor]:
        """Give ``h_k + a h_{k-1}`` of a cell with ``a = b``, for each of some inputs ``(N, I)``."""
        assert isinstance(self.mode, Equilibrium)
        options = self._options(self.mode)
        V, phi, parts = c.U / c.gamma, self.phi.function, list(parts)
        share = self._share(torch.cat([x[:_SAMPLE] for x in parts]), V)
        R = torch.linalg.inv(torch.eye(len(V), dtype=V.dtype, device=V.device) - share * V)
        G = R @ V
        shift, unit, rest = None, 1 / c.gamma, None
        if phi is torch.tanh:
            # in 2 z: tanh(z) = 2 sigmoid(2 z) - 1, and torch's sigmoid takes a tenth of its time
            R, shift, unit, rest = 2 * R, -2 * G.sum(-1), 2 * unit, unit
            G, share, phi = 4 * G, share / 4, torch.sigmoid
        for x in parts:
            y = phi(memoryless(self.drive(x, R, shift), G, phi, share, **options)) * unit
            yield y if rest is None else y - rest

    @torch.no_grad()
    def _share(self, x: Tensor, V: Tensor) -> Tensor:
        """Return ``mu`` of `definition.memoryless`: the mean slope of ``phi``, if that contracts.

        With ``q`` for the norm of ``V`` times the largest slope, of which ``mu`` is a share ``m``,
        it contracts by ``q m / (1 - q m)`` for ``m`` from one half on, by less than ``q`` below.
        """
        slope, drive = self.phi.slope, self.drive(x)
        s = drive + linear(self.phi(drive), V)
        mean = ((self.phi(s + 0.1) - self.phi(s - 0.1)) / 0.2).nanmean()
        most = _CONTRACTION / (1 + _CONTRACTION) / spectral_norm(V)
        return torch.clamp(mean.nan_to_num(slope / 2), 0.0, slope).minimum(most).detach()

    def _options(self, mode: Equilibrium) -> dict[str, Any]:
        contraction = isinstance(self.well_posed, SpectralNorm)
        solver, adjoint = mode.solver, mode.adjoint
        if solver is None:
            solver = ims.FixedPointIteration() if contraction else ims.Dogleg()
        if adjoint is None:
            adjoint = ims.ImplicitAdjoint(ims.Neumann() if contraction else None)
        return {"solver": solver, "adjoint": adjoint, "on_failure": mode.on_failure}

    @ims.in_full_precision("input")
    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Return the next state.

        Parameters
        ----------
        input
            ``(B, I)`` or ``(I,)``.
        hx
            The state before, ``(B, H)`` or ``(H,)``; zero by default.

        Returns
        -------
        Tensor
            Like ``hx``.

        Raises
        ------
        TypeError, ValueError
            If a tensor is unfit; the message names it.
        ConvergenceError
            If an equilibrium is not found.
        """
        check_cell_input(input, hx, self.input_size, self.hidden_size, self.weight_dtype)
        c = self.coefficients()
        self.check(c)
        if hx is None:
            hx = input.new_zeros((*input.shape[:-1], self.hidden_size))
        if not self.masks:
            return self.advance(self.drive(input), hx, c)
        sound = (torch.isfinite(input).all(-1) & torch.isfinite(hx).all(-1)).unsqueeze(-1)
        input, hx = torch.where(sound, input, 0.0), torch.where(sound, hx, 0.0)
        return torch.where(sound, self.advance(self.drive(input), hx, c), torch.nan)

    @property
    def masks(self) -> bool:
        """Whether sequences that fail are left out of gradients."""
        return isinstance(self.mode, Equilibrium) and self.mode.on_failure == "mask"

    @property
    def weight_dtype(self) -> torch.dtype:
        """The dtype of the parameters; float32 where those in half precision are read so."""
        return self.gamma.dtype

    def extra_repr(self) -> str:
        """Show sizes and options."""
        shown = f"{self.input_size}, {self.hidden_size}, mode={self.mode}, leak={self.leak}"
        return f"{shown}, well_posed={self.well_posed}"
