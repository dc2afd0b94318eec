"""The demo: runs the real pipeline against an image server on this machine that simulates the faults of the web."""

from datafetch.demo.recipe import RecipeDemoResult, run_recipe_demo
from datafetch.demo.run import DEFAULT_FOLDER, DemoResult, run_demo

__all__ = ["DEFAULT_FOLDER", "DemoResult", "RecipeDemoResult", "run_demo", "run_recipe_demo"]
