"""Runs on the disk."""

from ensemble_sae.run.checkpoint import Checkpoint, Checkpoints, Part, Position
from ensemble_sae.run.layout import Layout
from ensemble_sae.run.run import Run, load
from ensemble_sae.run.sae import Sae

__all__ = ["Checkpoint", "Checkpoints", "Layout", "Part", "Position", "Run", "Sae", "load"]
