"""Slow, obvious float64 NumPy versions of what the package computes, from the formulas alone.

x `[B, d]` rows, E and D `[n, d]`, D^ the rows of D with unit norm, b `[n]`.
Nothing here imports the package.
"""

from .cases import CASES, Case
from .frame import Arrays, Given, Result, numeric_gradient, unit_rows
from .metrics import Adam, dead, fvu, l0, pareto, strength
from .models import crosscoder_norms, momenta
from .sparse import jumprelu_threshold_gradient

__all__ = [
    "CASES",
    "Adam",
    "Arrays",
    "Case",
    "Given",
    "Result",
    "crosscoder_norms",
    "dead",
    "fvu",
    "jumprelu_threshold_gradient",
    "l0",
    "momenta",
    "numeric_gradient",
    "pareto",
    "strength",
    "unit_rows",
]
