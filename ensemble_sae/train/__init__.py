"""Training many members at once."""

from ensemble_sae.train.ensemble import FunctionalEnsemble
from ensemble_sae.train.optimiser import Adam
from ensemble_sae.train.schedules import Schedule

__all__ = ["Adam", "FunctionalEnsemble", "Schedule"]
