"""What is read off a run: histories of features, neighbours, how far the truth was found, which
feature of one member is which of another, and which fire together."""

from ensemble_sae.analysis.clusters import Clusters, clusters, coactive_clusters
from ensemble_sae.analysis.coactivity import Coactivity
from ensemble_sae.analysis.histories import Histories, History, histories
from ensemble_sae.analysis.matched import Tracks, match_table, matched, nearest, tracks
from ensemble_sae.analysis.neighbours import neighbours
from ensemble_sae.analysis.recovery import recovery

__all__ = [
    "Clusters",
    "Coactivity",
    "Histories",
    "History",
    "Tracks",
    "clusters",
    "coactive_clusters",
    "histories",
    "match_table",
    "matched",
    "nearest",
    "neighbours",
    "recovery",
    "tracks",
]
