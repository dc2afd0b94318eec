"""Worker processes, each with an event loop, a fetcher and codec processes of its own, that share one run."""
