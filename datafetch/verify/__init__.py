"""An output → what the trainer's loader would trip over. Reads, and changes nothing."""

from datafetch.verify.check import Check, run_check, verify_output
from datafetch.verify.findings import VerifyProgress
from datafetch.verify.verdict import Verdict

__all__ = ["Check", "Verdict", "VerifyProgress", "run_check", "verify_output"]
