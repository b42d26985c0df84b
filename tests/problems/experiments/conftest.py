"""A run of each command, made when it is first asked for."""

import contextlib
import functools
import io
from pathlib import Path
from typing import NamedTuple

import pytest

from implicit_solvers.problems.__main__ import main
from implicit_solvers.problems.experiments.data import task_sources
from implicit_solvers.problems.experiments.ernn import gradients
from tests.problems.experiments.runs import COMMANDS


class Run(NamedTuple):
    out: Path
    printed: str


@pytest.fixture(scope="session", autouse=True)
def _runs_are_short():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "STEPS", (1, 3))
        patch.setattr(task_sources, "load_glyphs", functools.cache(task_sources.load_glyphs))
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Return a function: the run of a command, which nothing interrupted."""

    @functools.cache
    def run(name):
        out, printed = tmp_path_factory.mktemp("finished"), io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert main([*COMMANDS[name].arguments, "--out", str(out)]) == 0
        return Run(out, printed.getvalue())

    return run
