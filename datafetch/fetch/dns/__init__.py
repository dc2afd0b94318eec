"""Names to addresses, and which of these may be connected to."""
