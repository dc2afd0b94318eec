"""Whole commands, from URLs to published shards."""
