"""The demo: runs the real pipeline against an image server on this machine that simulates the faults of the web."""
