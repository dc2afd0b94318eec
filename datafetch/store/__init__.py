"""What is on disk next to an output: the layout, the lock, spools and ledgers."""
