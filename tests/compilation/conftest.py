"""Compiled functions are forgotten between tests; old versions of torch compile none."""

import functools
import weakref

import pytest
import torch
from torch._dynamo.utils import counters

from implicit_solvers import compiled_step
from implicit_solvers.graph_break import COMPILES

COMPILE = torch.compile


@pytest.fixture(autouse=True)
def _forget():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    # Dynamo does not always allow saved-tensor hooks again where it traced a pullback
    torch._C._autograd._saved_tensors_hooks_enable()


@pytest.fixture
def steps_compiled_by(monkeypatch):
    """Return a function that chooses the backend of ``compile=True``; what was compiled is gone."""
    monkeypatch.setattr(compiled_step, "_STEPS", weakref.WeakKeyDictionary())
    counters.clear()

    def choose(backend):
        monkeypatch.setattr(torch, "compile", functools.partial(COMPILE, backend=backend))

    return choose


@pytest.fixture
def traced_only(steps_compiled_by):
    """Trace and count as torch.compile does, without waiting for a C++ compiler."""
    steps_compiled_by("eager")


def pytest_collection_modifyitems(items):
    if COMPILES:
        return
    skip = pytest.mark.skip(reason="needs torch 2.13 or later")
    for item in items:
        if item.path.parent.name == "compilation" and item.path.stem not in ANY_TORCH:
            item.add_marker(skip)


ANY_TORCH = ("test_check_every", "test_old_torch")
