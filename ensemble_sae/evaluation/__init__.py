"""What a language model says of members: its loss with their reconstructions in place."""

from ensemble_sae.evaluation.driver import Request, evaluate

__all__ = ["Request", "evaluate"]
