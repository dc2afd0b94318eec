"""Resolves host names, and decides which addresses may be connected to."""
