"""The copying task: repeat some symbols after a delay."""

from __future__ import annotations

import torch
from torch import Generator

from implicit_solvers.problems.experiments.data.episodes import require_positive
from implicit_solvers.problems.experiments.data.sequences import Sequences, SequenceTask

__all__ = ["generate_copying"]


def generate_copying(
    delay: int,
    train: int,
    validation: int,
    test: int,
    symbols: int = 8,
    copied: int = 10,
    seed: int = 0,
) -> SequenceTask:
    """Draw symbols, then blanks, a signal, and blanks, in which the symbols are to be repeated.

    Source: Arjovsky, Shah and Bengio, "Unitary evolution recurrent neural networks" (2016), section
    4.1: ``copied`` symbols, ``delay - 1`` blanks, the signal, ``copied`` blanks. One step is a
    one-hot vector of the ``symbols`` different symbols, the blank and the signal.
    """
    require_positive(delay=delay, symbols=symbols, copied=copied)
    require_positive(train=train, validation=validation, test=test)
    generator = Generator().manual_seed(seed)
    count, steps = train + validation + test, delay + 2 * copied
    y = torch.randint(symbols, (count, copied), generator=generator)
    shown = torch.full((count, steps), symbols)
    shown[:, :copied] = y
    shown[:, copied + delay - 1] = symbols + 1
    x = torch.nn.functional.one_hot(shown, symbols + 2).float()
    whole = Sequences(x, torch.full((count,), steps), y)
    learned, validated, tested = torch.arange(count).split([train, validation, test])
    names = tuple(str(symbol) for symbol in range(symbols))
    return SequenceTask(
        whole.subset(learned), whole.subset(validated), whole.subset(tested), classes=names
    )
