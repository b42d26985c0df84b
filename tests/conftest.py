"""Threads, hypothesis profiles, and what every test may ask for."""

import os
from pathlib import Path

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


ROOT = Path(__file__).parent.parent
# What a change of the solvers' loop must run first (`make test-core`): files or folders, and
# fragments of the names of their tests; none is all of them. Nothing else is marked `core`.
CORE = {
    # every word of derivatives up to the second order, of three problems
    "tests/test_compositions.py": "-root-vector] -minimize-dict] -linear_solve-scalar]",
    "tests/test_adjoints.py": "raise_when lanes_stop used_and_transposed",
    "tests/test_captured_tensors.py": "test_modes leave_the_generator error replaced module",
    "tests/test_lanes.py": "a_batch_is test_masked every_lane_bad raise test_backward three_levels",
    "tests/test_operations.py": "",
    "tests/test_precision.py": "backward_pass_under captured_weights [lanes- [matrix- [attach-",
    "tests/test_properties.py": "large_residual",
    "tests/test_sparse_jacobians.py": "colors_show misses_an_entry live_as_long share_a_pattern",
    "tests/test_wrong_answers.py": "",
    "tests/trust/test_hidden_tensors.py": "",
    "tests/trust/test_changed_tensors.py": "",
    "tests/trust/test_faults.py": "",
    "tests/trust/test_threads.py": "default-closure",
    "tests/solvers/test_fixed_points.py": "foreseen",
    "tests/solvers/test_descent.py": "begins_there[2-",
    "tests/solvers/test_table.py": "test_derivative test_budget test_too_few_steps",
    "tests/linear/test_failures.py": "test_failure_is_reported test_backward_solve",
    "tests/linear/test_iterative.py": "test_lanes_end test_converged_iterate test_start",
}


def pytest_ignore_collect(collection_path, config):
    # importing the other files takes longer than these tests
    if config.option.markexpr.startswith("core") and collection_path.name.startswith("test_"):
        return None if any(collection_path.is_relative_to(ROOT / path) for path in CORE) else True
    return None


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    gone = [path for path in CORE if not (ROOT / path).exists()]
    if gone:
        raise pytest.UsageError(
            f"CORE in tests/conftest.py names {', '.join(gone)}: put there what took its place"
        )
    for item in items:
        for path, names in CORE.items():
            chosen = not names or any(name in item.name for name in names.split())
            if chosen and item.path.is_relative_to(ROOT / path):
                item.add_marker("core")
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
