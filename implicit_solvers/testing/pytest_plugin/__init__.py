"""The pytest plugin: what it does, it does when asked.

``--implicit-ci`` registers and loads the hypothesis profile ``ci``: derandomized, without
deadlines, thirty examples. ``--implicit-seed N`` seeds ``random`` and ``torch`` before every test.
Where a test fails, the reports of the gradient checks that it made are shown below its traceback,
if the test's file imports ``implicit_solvers``. Without these options and checks nothing changes.

It is installed as a package of its own, ``pytest_implicit_solvers``, since pytest imports it in
every run: ``implicit_solvers`` would bring torch. It knows the reports, and nothing else of the
library.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from implicit_solvers.testing.report import Report

__all__ = [
    "pytest_addoption",
    "pytest_configure",
    "pytest_runtest_call",
    "pytest_runtest_makereport",
    "pytest_runtest_setup",
]

_REPORTS: pytest.StashKey[list[Report]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the two options."""
    group = parser.getgroup("implicit-solvers")
    group.addoption(
        "--implicit-ci",
        action="store_true",
        help="load the hypothesis profile 'ci': derandomized, no deadline, 30 examples",
    )
    group.addoption(
        "--implicit-seed",
        type=int,
        metavar="N",
        help="seed random and torch with N before every test",
    )


# last: hypothesis and conftest files have loaded their profiles by then
@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Load the profile, if it was asked for."""
    if not config.getoption("implicit_ci"):
        return
    try:
        import hypothesis
    except ImportError:
        raise pytest.UsageError("--implicit-ci needs hypothesis: pip install hypothesis") from None
    hypothesis.settings.register_profile(
        "ci", max_examples=30, deadline=None, derandomize=True, print_blob=True
    )
    hypothesis.settings.load_profile("ci")


@pytest.hookimpl(trylast=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seed, if a seed was given, after the fixtures of the test were made."""
    seed = item.config.getoption("implicit_seed")
    if seed is not None:
        import torch

        random.seed(seed)
        torch.manual_seed(seed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Collect the reports that a test makes."""
    if "implicit_solvers" not in sys.modules:
        return (yield)
    from implicit_solvers.testing.report import record_reports

    with record_reports() as reports:
        item.stash[_REPORTS] = reports
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the reports that did not pass below the traceback of a test that failed."""
    outcome = yield
    if outcome.when == "call" and outcome.failed:
        shown = str(outcome.longrepr)
        for report in item.stash.get(_REPORTS, []):
            text = str(report)
            if not report.passed and report.entries and text.splitlines()[-1] not in shown:
                outcome.sections.append((f"gradient check of {report.name}", text))
    return outcome
