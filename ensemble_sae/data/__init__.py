"""Activations on disk: stores of memory-mapped chunks, and how they are written."""
