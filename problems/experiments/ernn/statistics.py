"""What scores of several seeds say: paired tests of many networks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from scipy.special import stdtr


def paired_p(first: Mapping[int, float], second: Mapping[int, float]) -> float | None:
    """Return the two-sided p-value of Student's paired test, over the seeds that both have.

    None for less than two such seeds. Where all differences are equal it is 1 if they are zero,
    and 0 if not.
    """
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if len(differences) < 2:
        return None
    mean, deviation = statistics.mean(differences), statistics.stdev(differences)
    if deviation == 0:
        return float(mean == 0)
    t = mean / deviation * math.sqrt(len(differences))
    return 2 * float(stdtr(len(differences) - 1, -abs(t)))


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values of which those below a level may be believed together.

    The smallest of m is multiplied by m, the next by m - 1, ...; none gets smaller than one before
    it. Source: Holm, "A simple sequentially rejective multiple test procedure" (1979).
    """
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted
