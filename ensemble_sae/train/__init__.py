"""Training many members at once."""

from ensemble_sae.config.dynamics import Dynamics
from ensemble_sae.train.ensemble import FunctionalEnsemble
from ensemble_sae.train.optimiser import Optimiser

__all__ = ["Dynamics", "FunctionalEnsemble", "Optimiser"]
