"""Equal shards for a number of ranks."""
