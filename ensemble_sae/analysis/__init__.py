"""What is read off a run: histories of features, neighbours, how far the truth was found."""

from ensemble_sae.analysis.histories import Histories, History, histories
from ensemble_sae.analysis.neighbours import neighbours
from ensemble_sae.analysis.recovery import recovery

__all__ = ["Histories", "History", "histories", "neighbours", "recovery"]
