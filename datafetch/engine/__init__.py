"""Runs: what a job is, which process owns an output, and the way of each sample from its manifest to its shard."""
