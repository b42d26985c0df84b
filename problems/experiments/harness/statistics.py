"""What several values say of their mean."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.special import stdtrit

LEVEL = 0.95


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean and the standard deviation, None where there are too few values.

    Examples
    --------
    >>> spread([1.0, 3.0]), spread([2.0])
    ({'mean': 2.0, 'deviation': 1.4142135623730951}, {'mean': 2.0, 'deviation': None})
    """
    mean = statistics.mean(values) if values else None
    return {"mean": mean, "deviation": statistics.stdev(values) if len(values) > 1 else None}


def half_width(values: Sequence[float]) -> float | None:
    """Return half of the mean's 95% t-interval, None for less than two values."""
    count = len(values)
    if count < 2:
        return None
    return float(stdtrit(count - 1, (1 + LEVEL) / 2)) * statistics.stdev(values) / math.sqrt(count)
