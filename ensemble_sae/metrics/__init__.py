"""Pure functions from tensors to numbers."""
