"""Runs one job on the nodes of a Ray cluster: a process on each takes shards, and the driver completes the output."""
