"""The recurrent networks that are compared, and the readout that makes a model of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from implicit_solvers.problems.ernn import (
    ERNN,
    LEAKY,
    Equilibrium,
    Leak,
    SpectralNorm,
    Unrolled,
)
from implicit_solvers.problems.ernn.baselines import FastRNN, ImplicitEulerRNN

__all__ = ["LABELS", "MODELS", "SequenceModel", "parameter_count"]

Build = Callable[[int, int], nn.Module]


def _exact(a: float) -> Build:
    return lambda channels, hidden: ERNN(
        channels, hidden, mode=Equilibrium(), leak=Leak(a, a), batch_first=True
    )


def _leaky(mode: Equilibrium | Unrolled) -> Build:
    # half of the largest norm: few iterations come close to the equilibrium
    return lambda channels, hidden: ERNN(
        channels,
        hidden,
        mode=mode,
        leak=LEAKY,
        well_posed=SpectralNorm(margin=0.5),
        batch_first=True,
    )


def _unrolled(steps: int) -> Build:
    return lambda channels, hidden: ERNN(
        channels, hidden, mode=Unrolled(steps=steps), batch_first=True
    )


def _batch_first(kind: type[nn.Module]) -> Build:
    return lambda channels, hidden: kind(channels, hidden, batch_first=True)


MODELS: Mapping[str, Build] = {
    "exact": _exact(1.0),
    "exact-plus": _exact(-1.0),
    "leaky": _leaky(Unrolled(steps=5, learned=False)),
    "leaky-implicit": _leaky(Equilibrium()),
    "k1": _unrolled(1),
    "k3": _unrolled(3),
    "k5": _unrolled(5),
    "rnn": _batch_first(nn.RNN),
    "gru": _batch_first(nn.GRU),
    "lstm": _batch_first(nn.LSTM),
    "fastrnn": _batch_first(FastRNN),
    "implicit-euler": _batch_first(ImplicitEulerRNN),
}
"""From a name to a function of the channels and the hidden size."""

LABELS: Mapping[str, str] = {
    "exact": "ERNN, exact",
    "exact-plus": "ERNN, exact, a = b = −1",
    "leaky": "ERNN, leaky",
    "leaky-implicit": "ERNN, leaky, implicit gradients",
    "k1": "ERNN, K = 1",
    "k3": "ERNN, K = 3",
    "k5": "ERNN, K = 5",
    "rnn": "RNN",
    "gru": "GRU",
    "lstm": "LSTM",
    "fastrnn": "FastRNN",
    "implicit-euler": "implicit Euler",
}


class SequenceModel(nn.Module):
    r"""A recurrent network, and an affine map of its states at the last steps.

    .. math:: y_j = A\, h_{T - m + j} + c, \qquad j = 1, \dots, m

    Parameters
    ----------
    rnn
        Like ``torch.nn.RNN`` with ``batch_first``, of one direction.
    hidden
        The size of its states.
    outputs
        The number ``m`` of steps that are read.
    size
        The numbers that are read of a step.

    Examples
    --------
    >>> model = SequenceModel(nn.GRU(3, 8, batch_first=True), hidden=8, outputs=1, size=5)
    >>> model(torch.randn(2, 7, 3), torch.tensor([7, 4])).shape
    torch.Size([2, 1, 5])
    """

    def __init__(self, rnn: nn.Module, hidden: int, outputs: int, size: int) -> None:
        super().__init__()
        self.rnn = rnn
        self.readout = nn.Linear(hidden, size)
        self.outputs = outputs

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return ``(batch, outputs, size)`` for ``x`` ``(batch, time, channels)``."""
        states, _ = self.rnn(x)
        steps = lengths[:, None] - self.outputs + torch.arange(self.outputs)
        read = states.gather(1, steps[..., None].expand(-1, -1, states.shape[-1]))
        return self.readout(read)


def parameter_count(model: nn.Module) -> int:
    """Return how many numbers are learned.

    Examples
    --------
    >>> parameter_count(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters())
