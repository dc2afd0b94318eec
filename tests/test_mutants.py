"""The faults that mutants.py plants are those of the code as it is."""

import mutants
import pytest


@pytest.mark.parametrize("fault", mutants.FAULTS, ids=lambda fault: fault.what)
def test_a_fault_can_be_planted(fault: mutants.Fault) -> None:
    """The code that it spoils stands there once, and the tests that are to notice are there."""
    code = (mutants.ROOT / "datafetch" / fault.path).read_text()
    assert code.count(fault.old) == 1
    assert all((mutants.ROOT / "tests" / f"test_{name}.py").exists() for name in fault.tests)
