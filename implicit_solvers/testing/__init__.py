"""How a layer can be trusted: its derivatives against differences, with the cause of what is wrong.

`check_implicit_gradients` returns a report that prints as a table; `assert_implicit_gradients` is
its form for tests. Neither needs pytest or hypothesis. Nothing here knows the rules by which the
library differentiates.
"""

from implicit_solvers.testing.check import (
    GradientCheckError,
    assert_implicit_gradients,
    check_implicit_gradients,
)
from implicit_solvers.testing.report import Entry, Report

__all__ = [
    "check_implicit_gradients",
    "assert_implicit_gradients",
    "Report",
    "Entry",
    "GradientCheckError",
]
