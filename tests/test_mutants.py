"""The faults of mutants.py match the current code."""

import mutants
import pytest


@pytest.mark.parametrize("fault", mutants.FAULTS, ids=lambda fault: fault.what)
def test_a_fault_can_be_planted(fault: mutants.Fault) -> None:
    """The code that it changes occurs exactly once, and the tests that should notice it exist."""
    code = (mutants.ROOT / "datafetch" / fault.path).read_text()
    assert code.count(fault.old) == 1
    assert all((mutants.ROOT / "tests" / f"test_{name}.py").exists() for name in fault.tests)
