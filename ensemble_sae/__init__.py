"""ensemble-sae: a whole sweep of sparse autoencoders in one pass over the activations.

import ensemble_sae
run = ensemble_sae.load("runs/default")
run.members                 # a DataFrame
run.sae(17).encode(rows)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ensemble_sae.analysis import histories
    from ensemble_sae.data.store import ChunkStore
    from ensemble_sae.data.synthetic import SyntheticStore
    from ensemble_sae.engine.adopting import adopted
    from ensemble_sae.engine.run_sweep import run_sweep
    from ensemble_sae.inspection import edited, features
    from ensemble_sae.interop import from_dictionary_learning, from_saelens, from_sparsify
    from ensemble_sae.run import load
    from ensemble_sae.train import FunctionalEnsemble

__all__ = [
    "ChunkStore",
    "FunctionalEnsemble",
    "SyntheticStore",
    "adopted",
    "edited",
    "features",
    "from_dictionary_learning",
    "from_saelens",
    "from_sparsify",
    "histories",
    "load",
    "run_sweep",
]

_HOMES = {
    "ChunkStore": "ensemble_sae.data.store",
    "SyntheticStore": "ensemble_sae.data.synthetic",
    "FunctionalEnsemble": "ensemble_sae.train",
    "adopted": "ensemble_sae.engine.adopting",
    "edited": "ensemble_sae.inspection",
    "features": "ensemble_sae.inspection",
    "from_dictionary_learning": "ensemble_sae.interop",
    "from_saelens": "ensemble_sae.interop",
    "from_sparsify": "ensemble_sae.interop",
    "histories": "ensemble_sae.analysis",
    "load": "ensemble_sae.run",
    "run_sweep": "ensemble_sae.engine.run_sweep",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: importing the package itself stays fast."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
