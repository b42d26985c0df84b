"""Graphs are traced and counted without a C++ compiler; old versions of torch compile none."""

import pytest
import torch

from .comparison import COMPILES

COMPILE = torch.compile
ANY_TORCH = ("test_check_every.py", "test_old_torch.py")


def traced(*args, backend="eager", **options):
    return COMPILE(*args, backend=backend, **options)


@pytest.fixture(autouse=True)
def _traced_only(request, monkeypatch):
    """Let "eager" be the backend where none is named; forget what was compiled."""
    if "default_backend" not in request.keywords:
        monkeypatch.setattr(torch, "compile", traced)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    # Dynamo does not always allow saved-tensor hooks again where it traced a pullback
    torch._C._autograd._saved_tensors_hooks_enable()


@pytest.fixture
def graphs():
    """Return a function that counts the graphs compiled since the test began."""
    counters = torch._dynamo.utils.counters
    counters.clear()
    return lambda: counters["stats"]["unique_graphs"]


def pytest_collection_modifyitems(items):
    if COMPILES:
        return
    skip = pytest.mark.skip(reason="needs torch 2.13 or later")
    for item in items:
        if item.path.parent.name == "compilation" and item.path.name not in ANY_TORCH:
            item.add_marker(skip)
