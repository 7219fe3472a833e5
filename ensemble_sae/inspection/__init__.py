"""What single features of a member do: where they fire, what they write, what becomes of the text
without them.
"""

from ensemble_sae.inspection.editing import edited
from ensemble_sae.inspection.feature import Feature, Features
from ensemble_sae.inspection.lens import logit_lens
from ensemble_sae.inspection.request import features
from ensemble_sae.inspection.tuned_lens import TunedLens

__all__ = ["Feature", "Features", "TunedLens", "edited", "features", "logit_lens"]
