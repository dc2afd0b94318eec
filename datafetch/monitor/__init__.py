"""The status of runs, for observers."""
