"""Verification: examines an output for everything on which the trainer's loader would fail. It only reads."""

from datafetch.verify.check import Check, run_check, verify_output
from datafetch.verify.findings import VerifyProgress
from datafetch.verify.verdict import Verdict

__all__ = ["Check", "Verdict", "VerifyProgress", "run_check", "verify_output"]
