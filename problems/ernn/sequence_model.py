"""A recurrent network with a readout of its last states."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["SequenceModel", "parameter_count"]


class SequenceModel(nn.Module):
    r"""A recurrent network, and an affine map of its states at the last steps.

    .. math:: y_j = A\, h_{T - m + j} + c, \qquad j = 1, \dots, m

    ``rnn`` is like ``torch.nn.RNN`` with ``batch_first``, of one direction; ``hidden`` is the size
    of its states. ``outputs`` is :math:`m`, and ``size`` that of :math:`y_j`.

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
    """Return how many numbers are learned."""
    return sum(parameter.numel() for parameter in model.parameters())
