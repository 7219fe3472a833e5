"""SAELens: its `MultiSAETrainer` with standard (relu, l1) SAEs, everything at defaults.

The real `fit`, called once; logging and checkpoints are off. For each SAE a step is: loss (mean
squared error and l1) by autograd, counts of features that fired, clipping of the gradient's norm,
Adam, schedules.
"""

from __future__ import annotations

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from turns import ENDLESS, Turns


def main() -> None:
    """Train until the driver ends it."""
    turns = Turns("sae-lens")
    torch.manual_seed(0)
    names = [f"sae {number}" for number in range(turns.job["members"])]
    config = SAETrainerConfig(
        total_training_samples=ENDLESS * turns.job["batch"],
        train_batch_size_samples=turns.job["batch"],
        lr_end=SAETrainerConfig.lr / 10,  # its default where a language model is trained on
    )
    MultiSAETrainer(
        cfg=config,
        saes={name: _sae(turns.rows.shape[1], turns.job["n_dict"]) for name in names},
        hook_names=dict.fromkeys(names, "rows"),
        data_provider=({"rows": batch} for batch in turns),
    ).fit()


def _sae(d: int, n_dict: int) -> StandardTrainingSAE:
    return StandardTrainingSAE(StandardTrainingSAEConfig(d_in=d, d_sae=n_dict))


if __name__ == "__main__":
    main()
