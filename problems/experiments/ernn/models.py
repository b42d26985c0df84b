"""The recurrent networks that are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from implicit_solvers.problems.ernn import ERNN, LEAKY, Equilibrium, Leak, SpectralNorm, Unrolled
from implicit_solvers.problems.ernn.baselines import AntisymmetricRNN, FastRNN, ImplicitEulerRNN

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
    "antisymmetric": _batch_first(AntisymmetricRNN),
    "implicit-euler": _batch_first(ImplicitEulerRNN),
}
"""From a name to a function of the channels and the hidden size."""

LABELS: Mapping[str, str] = {
    "exact": "ERNN, exact",
    "exact-plus": "ERNN, exact, a = b = −1",
    "leaky": "ERNN, leaky, five steps",
    "leaky-implicit": "ERNN, leaky, equilibrium",
    "k1": "ERNN, K = 1",
    "k3": "ERNN, K = 3",
    "k5": "ERNN, K = 5",
    "rnn": "RNN",
    "gru": "GRU",
    "lstm": "LSTM",
    "fastrnn": "FastRNN",
    "antisymmetric": "antisymmetric RNN",
    "implicit-euler": "implicit Euler",
}

SLOW: Mapping[str, str] = {"leaky-implicit": "leaky"}
"""From a network whose training takes long to the one whose rate it takes over, untried."""
