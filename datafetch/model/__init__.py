"""The types that all packages share: frozen values that depend on nothing else."""
