"""Codec processes, and the images in them."""
