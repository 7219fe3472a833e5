"""Slow, obvious float64 NumPy versions of what the package computes, from the formulas alone.

x `[B, d]` rows, E and D `[n, d]`, D^ the rows of D with unit norm, b `[n]`.
Nothing here imports the package.
"""

from .cases import CASES, Case
from .dynamics import SetPoint, averages, factor, frozen_features, replanted, resampling_weights
from .frame import Arrays, Given, Result, numeric_gradient, unit_rows
from .metrics import dead, fvu, l0, pareto, strength
from .models import crosscoder_norms, momenta
from .optimisers import OPTIMISERS, Adam
from .sparse import jumprelu_threshold_gradient

__all__ = [
    "CASES",
    "OPTIMISERS",
    "Adam",
    "Arrays",
    "Case",
    "Given",
    "Result",
    "SetPoint",
    "averages",
    "crosscoder_norms",
    "dead",
    "factor",
    "frozen_features",
    "fvu",
    "jumprelu_threshold_gradient",
    "l0",
    "momenta",
    "numeric_gradient",
    "pareto",
    "replanted",
    "resampling_weights",
    "strength",
    "unit_rows",
]
