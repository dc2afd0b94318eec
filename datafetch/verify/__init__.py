"""An output → what the trainer's loader would trip over. Reads, and changes nothing."""

from datafetch.verify.check import Check, run_check, verify_output
from datafetch.verify.findings import Standing
from datafetch.verify.verdict import Verdict

__all__ = ["Check", "Standing", "Verdict", "run_check", "verify_output"]
