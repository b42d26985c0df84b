"""What a function of two tails is called with: its shapes, and a place, which has two names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from implicit_solvers.problems.special_functions.derivatives import doubles

__all__ = ["read_place"]


def read_place(
    name: str, shapes: Mapping[str, Tensor | float], places: Mapping[str, Tensor | float | None]
) -> tuple[torch.dtype, bool, list[Tensor], Tensor]:
    """Return the dtype, whether the second name is used, the shapes and the place, in float64.

    Shapes become NaN where they are not positive and finite. ``places`` holds the place by its two
    names, one of them None.

    Examples
    --------
    >>> read_place("f", {"a": -2.0}, {"z": None, "log_z": torch.tensor(0.5)})[1:3]
    (True, [tensor(nan, dtype=torch.float64)])
    """
    given = {key: value for key, value in places.items() if value is not None}
    if len(given) != 1:
        raise TypeError(f"{name}: pass either {' or '.join(places)}")
    dtype, *read, place = doubles(name, **shapes, **given)
    fit = [torch.where((s > 0) & (s < torch.inf), s, torch.nan) for s in read]
    return dtype, next(iter(given)) == [*places][1], fit, place
