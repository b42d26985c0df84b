"""Sequences with their steps in another order."""

from __future__ import annotations

import torch
from torch import Generator

from implicit_solvers.problems.experiments.data.sequences import Sequences

__all__ = ["shuffled"]


def shuffled(sequences: Sequences, generator: Generator, keep_parity: bool) -> Sequences:
    r"""Return each sequence with the steps before its end in a random order of its own.

    A state that is an alternating sum, :math:`h_T = \sum_k (-1)^{T-k} s(x_k)`, does not change if
    even steps are exchanged among themselves, and odd ones: that is ``keep_parity``.
    """
    keys = torch.rand(sequences.x.shape[:2], generator=generator)
    keys[~sequences.mask()] = 2.0  # padding stays behind
    order = torch.empty_like(keys, dtype=torch.int64)
    stride = 2 if keep_parity else 1
    for first in range(stride):
        places = torch.arange(first, keys.shape[1], stride)
        order[:, places] = places[keys[:, places].argsort(dim=1)]
    x = sequences.x.gather(1, order[..., None].expand_as(sequences.x))
    return Sequences(x, sequences.lengths, sequences.y)
