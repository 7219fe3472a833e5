"""The gradient of a stack of members, and the faster ways to it."""
