"""The adding task: add the two marked numbers of a long sequence."""

from __future__ import annotations

import torch
from torch import Generator

from implicit_solvers.problems.experiments.data.sequences import Sequences, SequenceTask

__all__ = ["generate_adding"]


def generate_adding(
    steps: int, train: int, validation: int, test: int, seed: int = 0
) -> SequenceTask:
    r"""Draw sequences whose two channels are numbers from 0 to 1, and marks of two of them.

    .. math:: y = \sum_k m_k u_k, \quad u_k \sim U(0, 1), \quad m_i = m_j = 1,

    with one mark :math:`i` in the first half and one :math:`j` in the second. A constant prediction
    has a mean squared error of at least 1/6. Source: Hochreiter and Schmidhuber, "Long short-term
    memory" (1997), section 5.4, in the variant of Le, Jaitly and Hinton, "A simple way to
    initialize recurrent networks of rectified linear units" (2015), section 4.1.
    """
    if steps < 2 or min(train, validation, test) < 1:
        raise ValueError(
            f"steps={steps}, train={train}, validation={validation}, test={test}: pass at least "
            "two steps and one sequence of each part"
        )
    generator = Generator().manual_seed(seed)
    count, half = train + validation + test, steps // 2
    x = torch.zeros(count, steps, 2)
    x[..., 0] = torch.rand(count, steps, generator=generator)
    rows = torch.arange(count)
    x[rows, torch.randint(half, (count,), generator=generator), 1] = 1
    x[rows, half + torch.randint(steps - half, (count,), generator=generator), 1] = 1
    y = (x[..., 0] * x[..., 1]).sum(1, keepdim=True)
    whole = Sequences(x, torch.full((count,), steps), y)
    learned, validated, tested = torch.arange(count).split([train, validation, test])
    return SequenceTask(
        whole.subset(learned), whole.subset(validated), whole.subset(tested), classes=()
    )
