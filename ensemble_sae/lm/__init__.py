"""Language models: the embedded one, loading others, and harvesting their activations."""
