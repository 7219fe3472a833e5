"""Sweeps as text, and what they begin with."""

from __future__ import annotations

from collections.abc import Callable

from ensemble_sae.sweep import Member, Sweep

WIDTHS = {"resid": 32, "mlp": 64}
START = '[activations]\nstore = "s"\nhook = "resid"\n'
ONE = '[grid]\nsignature = "tied"\ndict_ratio = 2\n'

Read = Callable[..., tuple[Sweep, list[Member]]]
