"""Whether what runs here becomes part of a graph."""

from __future__ import annotations

from torch._guards import detect_fake_mode
from torch.compiler import is_compiling, is_dynamo_compiling  # noqa: TID251

__all__ = ["compiling"]


def compiling() -> bool:
    """Tell whether ``torch.compile`` or ``torch.export`` traces what this thread runs.

    ``torch.compiler.is_compiling`` is true in every thread while one of them compiles: a solve in
    another would take itself to be in a graph. Dynamo evaluates the first two terms to constants.
    It compiles no function by itself that names neither a tensor nor the module ``torch``: from
    what it left out, this one is called as it is.
    """
    return is_compiling() and (is_dynamo_compiling() or detect_fake_mode() is not None)
