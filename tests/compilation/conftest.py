"""Compiled functions are forgotten between tests; old versions of torch compile none."""

import pytest
import torch

from implicit_solvers.graph_break import COMPILES


@pytest.fixture(autouse=True)
def _forget():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    # Dynamo does not always allow saved-tensor hooks again where it traced a pullback
    torch._C._autograd._saved_tensors_hooks_enable()


def pytest_collection_modifyitems(items):
    if COMPILES:
        return
    skip = pytest.mark.skip(reason="needs torch 2.13 or later")
    for item in items:
        if item.path.parent.name == "compilation" and item.path.stem not in ANY_TORCH:
            item.add_marker(skip)


ANY_TORCH = ("test_check_every", "test_old_torch")
