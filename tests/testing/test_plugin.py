"""The pytest plugin: what it does when asked, and that it does nothing otherwise."""

import subprocess
import sys

import hypothesis
import pytest

# pytester forgets what a run in this process imports, and torch can be loaded only once
import torch._dynamo  # noqa: F401

import implicit_solvers.testing  # noqa: F401

pytest_plugins = ["pytester"]

CHECKS = """
    import torch
    from implicit_solvers.testing import assert_implicit_gradients, check_implicit_gradients

    a = torch.tensor(2.0, dtype=torch.float64)
    options = dict(order=1, vmap=False, starts=0)

    def cut(z, a):
        return z**3 - a.detach()

    def test_asked_for_passed():
        assert check_implicit_gradients(cut, a, (a,), **options).passed

    def test_asserted():
        assert_implicit_gradients(cut, a, (a,), **options)

    def test_right():
        assert_implicit_gradients(lambda z, a: z**3 - a, a, (a,), **options)

    def test_of_something_else():
        check_implicit_gradients(lambda z, a: z**3 - a, a, (a,), **options)
        assert False
"""


@pytest.fixture(autouse=True)
def _profile():
    yield
    hypothesis.settings.load_profile("ci")


def test_the_report_is_shown_where_a_test_fails(pytester):
    pytester.makepyfile(CHECKS)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=3)
    text = result.stdout.str()
    # once below the test that asked for `passed`, once in the message of the assertion
    assert text.count("gradient check of cut") == 1
    assert text.count("the residual depends on args[0] (a) but the derivative") >= 2
    assert "gradient check of <lambda>" not in text


SEEDED = """
    import random
    import torch

    def test_one(): print("drew", random.random(), torch.rand(()).item())
    def test_two(): print("drew", random.random(), torch.rand(()).item())
"""


def drawn(result):
    return [line for line in result.outlines if "drew" in line]


def test_the_seed_is_set_before_every_test_if_asked(pytester):
    pytester.makepyfile(SEEDED)
    seven = drawn(pytester.runpytest_inprocess("-s", "-q", "--implicit-seed", "7"))
    eight = drawn(pytester.runpytest_inprocess("-s", "-q", "--implicit-seed", "8"))
    quiet = drawn(pytester.runpytest_inprocess("-s", "-q"))

    def number(line):
        return line.split("drew ")[1].rstrip(".")

    assert number(seven[0]) == number(seven[1]) != number(eight[0])
    assert number(quiet[0]) != number(quiet[1])


def test_a_seed_that_is_no_number_is_refused(pytester):
    result = pytester.runpytest_inprocess("--implicit-seed", "x")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--implicit-seed: invalid int value: 'x'*"])


PROFILE = """
    from hypothesis import settings

    def test_profile():
        print("profile", settings.get_current_profile_name(), settings().max_examples,
              settings().derandomize)
"""


def test_the_profile_is_loaded_by_the_option_alone(pytester):
    pytester.makeconftest(
        """
        from hypothesis import settings
        settings.register_profile("mine", max_examples=7)
        settings.load_profile("mine")
        """
    )
    pytester.makepyfile(PROFILE)
    quiet = pytester.runpytest_inprocess("-s", "-q")
    quiet.stdout.fnmatch_lines(["*profile mine 7 *"])
    # a conftest that loads a profile of its own does not come after the option
    asked = pytester.runpytest_inprocess("-s", "-q", "--implicit-ci")
    asked.stdout.fnmatch_lines(["*profile ci 30 True*"])


WITHOUT = """
import sys
sys.modules["pytest"] = sys.modules["hypothesis"] = None
import implicit_solvers
assert "implicit_solvers.testing" not in sys.modules
import implicit_solvers.testing
import torch
assert implicit_solvers.testing.check_implicit_gradients(
    lambda z, a: z - a, torch.tensor(1.0), (torch.tensor(2.0),), order=1, vmap=False
).passed
try:
    import implicit_solvers.testing.strategies
except ImportError as error:
    print(error)
"""


def test_the_check_needs_neither_pytest_nor_hypothesis():
    run = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "needs hypothesis: pip install hypothesis" in run.stdout


def test_torch_is_imported_by_nobody_who_does_not_ask(pytester):
    pytester.makepyfile(
        """
        import sys

        def test_one(pytestconfig):
            assert pytestconfig.pluginmanager.hasplugin("implicit_solvers")
            assert "torch" not in sys.modules and "implicit_solvers" not in sys.modules
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
