"""Threads, hypothesis profiles, and what every test may ask for."""

import os

# Before torch is imported: two torch processes with default threads are 20 to 80 times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

# a plugin of pytest may have imported torch already
torch.set_num_threads(1)

hypothesis.settings.register_profile(
    "ci", max_examples=30, deadline=None, derandomize=True, print_blob=True
)
hypothesis.settings.register_profile("nightly", max_examples=2000, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config):
    # A solve that fails where no test expects it is an error, in whatever frame it warns.
    config.addinivalue_line("filterwarnings", "error::implicit_solvers.ConvergenceWarning")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    # Dynamo switches the checks of distributions off, for the whole process, at its first use
    torch.distributions.Distribution.set_default_validate_args(True)
