"""The faults that `tests/fault_injection.py` injects: outdated ones are noticed here."""

from tests import fault_injection


def test_every_fault_that_is_injected_is_there_and_has_its_tests():
    faults = fault_injection.read(fault_injection.TABLE)
    for fault in faults:
        fault.broken(fault_injection.ROOT)
        for test in fault.tests:
            path, *name = test.split("::")
            text = (fault_injection.ROOT / path).read_text()
            assert "".join(f"def {one}(" for one in name) in text, test
    assert len(faults) >= 30
