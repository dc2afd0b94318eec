"""Reshard an output: write its rows again as shards that give every rank the same number of rows."""
