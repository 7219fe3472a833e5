"""dictionary_learning: its `trainSAE` with a list of `StandardTrainer`s, everything at defaults.

The real loop, called once; logging and saving are off, as they are by default. For each trainer a
step is: zero the gradients, loss (mean squared error and l1) by autograd, project the decoder's
gradient, Adam, normalise the decoder, schedule.
"""

from __future__ import annotations

from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.training import trainSAE
from turns import ENDLESS, Turns


def main() -> None:
    """Train until the driver ends it."""
    turns = Turns("dictionary-learning")
    configs = [
        {
            "trainer": StandardTrainer,
            "steps": ENDLESS,
            "activation_dim": turns.rows.shape[1],
            "dict_size": turns.job["n_dict"],
            "layer": 0,
            "lm_name": "none",
            "seed": seed,
            "device": "cpu",
        }
        for seed in range(turns.job["members"])
    ]
    trainSAE(turns, configs, steps=ENDLESS, device="cpu")


if __name__ == "__main__":
    main()
