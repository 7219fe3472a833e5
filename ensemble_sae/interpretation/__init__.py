"""Do features mean something that can be said? Explanations, and how well they predict.

An explanation is as good as what can be foretold with it: it is made from some fragments of text,
somebody who knows nothing else simulates the feature on other fragments, and the score is the
correlation of what was simulated with what the feature did. `protocol` asks language models for
both, through an endpoint; `rules` needs none. Both are scored by `scores`.
"""

from ensemble_sae.interpretation.scores import Score, Summary, mean_and_interval

__all__ = ["Score", "Summary", "mean_and_interval"]
