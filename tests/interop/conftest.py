"""The small run of the embedded model."""

from small_lm_run import bridge, folder, trained

__all__ = ["bridge", "folder", "trained"]
