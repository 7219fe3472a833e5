"""sparsify: its `Trainer` with one TopK SAE for each seed, the optimiser as the job says.

The real `fit`, called once; logging and saving are off. It wants a language model: a module stands
for it whose tokens are numbers of rows and whose only layer gives out these rows (a look-up for all
SAEs together, 2 MiB at the large size). For each SAE a step is: normalise the decoder, the fused
encoder, the decoder by `embedding_bag` (its way without a GPU), loss and autograd, project the
decoder's gradient, the optimiser, counts of features that fired.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from sparsify import SparseCoderConfig, TrainConfig, Trainer
from torch import Tensor, nn
from torch.utils.data import Dataset
from turns import ENDLESS, Turns


class Model(nn.Module):
    """What `Trainer` asks of a language model; `layer` gives out the rows `[1, B, d]`."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=1)
        self.device = rows.device
        self.dummy_inputs = {"tokens": torch.zeros(1, 1, dtype=torch.long)}
        self.layer = nn.Identity()
        self._rows = rows

    @property
    def base_model(self) -> Model:
        """The model without a head: itself."""
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        """The rows of these numbers."""
        return self.layer(self._rows[tokens])


class Sequences(Dataset[Any]):
    """One sequence a batch: the numbers of its rows."""

    def __init__(self, turns: Turns) -> None:
        self._places = turns.places()
        self._numbers = torch.arange(len(turns.rows)).split(turns.job["batch"])

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self._numbers[next(self._places)]}


def main() -> None:
    """Train until the driver ends it."""
    turns = Turns("eai-sparsify")
    config = TrainConfig(
        SparseCoderConfig(num_latents=turns.job["n_dict"], k=turns.job["k"]),
        batch_size=1,
        optimizer=turns.job["optimizer"],
        hookpoints=["layer"],
        init_seeds=list(range(turns.job["members"])),
        save_every=ENDLESS,
        log_to_wandb=False,
    )
    Trainer(config, Sequences(turns), Model(turns.rows)).fit()


if __name__ == "__main__":
    main()
