"""A sweep from its file to its table."""
