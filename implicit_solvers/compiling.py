"""Whether what runs here becomes part of a graph."""

from __future__ import annotations

import torch
from torch._guards import detect_fake_mode

__all__ = ["compiling"]


def compiling() -> bool:
    """Tell whether ``torch.compile`` or ``torch.export`` traces what this thread runs.

    ``torch.compiler.is_compiling`` is true in every thread while one of them compiles: a solve in
    another would take itself to be in a graph. Dynamo evaluates the first two terms to constants.
    """
    return torch.compiler.is_compiling() and (  # noqa: TID251
        torch.compiler.is_dynamo_compiling() or detect_fake_mode() is not None
    )
