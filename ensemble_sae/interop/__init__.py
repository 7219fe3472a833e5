"""Members taken elsewhere, and dictionaries of others brought here: other packages' formats."""

from ensemble_sae.interop.dictionary_learning import from_dictionary_learning
from ensemble_sae.interop.exporting import export
from ensemble_sae.interop.folders import FORMATS, from_folder
from ensemble_sae.interop.saelens import from_saelens
from ensemble_sae.interop.sparsify import from_sparsify

__all__ = [
    "FORMATS",
    "export",
    "from_dictionary_learning",
    "from_folder",
    "from_saelens",
    "from_sparsify",
]
