"""The demo: an image server on this machine, with faults, and the real pipeline at work on it."""

from datafetch.demo.run import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
