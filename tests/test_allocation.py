"""Freed memory is kept where the C library can be told to."""

import platform
import subprocess
import sys

import pytest

import implicit_solvers as ims

PAGE_FAULTS = """
import resource, sys, torch
import implicit_solvers as ims
torch.set_num_threads(1)
if sys.argv[1] == "retain":
    assert ims.retain_freed_memory()
a = torch.ones(1 << 18, dtype=torch.float64)
b = a + 1
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        held = [a + 1 for _ in range(4)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def page_faults(mode):
    run = subprocess.run(
        [sys.executable, "-c", PAGE_FAULTS, mode], capture_output=True, text=True, check=True
    )
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_temporaries_stop_faulting():
    # 50 rounds of 4 temporaries of 2 MiB are 102,400 pages of 4 KiB, or 200 of 2 MiB
    retained = page_faults("retain")
    assert retained < 50
    assert page_faults("default") > retained + 100


def test_other_c_libraries_are_left_alone(monkeypatch):
    class Foreign:
        def __init__(self, name):
            pass

    monkeypatch.setattr("ctypes.CDLL", Foreign)
    assert ims.retain_freed_memory() is False
