"""Synthetic rows: sparse sums of known directions, features rarer and rarer, alone or together.

Source: "Towards a Probabilistic Disentanglement of Neural Network Activations, Part 2" (the
96-autoencoder study), section on the data sets.

Ground truth: `n_features` rows drawn from N(0, I), scaled to unit norm. A row is `code @ truth`,
and a code is Bernoulli(p) * Uniform(0, 1) with

* uncorrelated: p_i proportional to decay**i, with sum p_i = mean_active;
* correlated: z ~ N(0, C) for each row, p_i proportional to Phi(z_i) * decay**i, with the same
  sum in every row. C is symmetric with uniform numbers in (0, 1), and positive definite by as
  much as is added to its diagonal.

Not stated in the study: how far C is shifted; here its smallest eigenvalue becomes 0.001 times
what it was below zero.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ensemble_sae.config.synthetic import SyntheticRecipe
from ensemble_sae.data.disk import check_disk
from ensemble_sae.data.location import store_path
from ensemble_sae.data.meta import DTYPES, META
from ensemble_sae.data.progress import Progress
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.data.writer import StoreWriter, check_same
from ensemble_sae.randomness import generator

MARGIN = 1.001  # of the shift, over what makes the covariance singular


def ground_truth(recipe: SyntheticRecipe) -> Tensor:
    """The true features, unit rows `[n_features, d_activation]` float32."""
    draw = generator(recipe.seed, "ground truth")
    rows = torch.randn(recipe.n_features, recipe.d_activation, generator=draw)
    return torch.nn.functional.normalize(rows, dim=1)


def frequencies(recipe: SyntheticRecipe) -> Tensor:
    """How often each feature is active, `[n_features]`, at most 1."""
    falling = recipe.decay ** torch.arange(recipe.n_features, dtype=torch.float64)
    return (falling * recipe.mean_active / falling.sum()).clamp(max=1).float()


def codes(recipe: SyntheticRecipe, hook: str, rows: int, chunk: int) -> Tensor:
    """The true code of a chunk `[rows, n_features]`: a pure function of its arguments."""
    draw = generator(recipe.seed, "codes", hook, chunk)
    chance = frequencies(recipe).expand(rows, -1)
    if hook == "correlated":
        z = torch.randn(rows, recipe.n_features, generator=draw) @ covariance_factor(recipe).T
        chance = torch.special.ndtr(z) * chance
        chance *= recipe.mean_active / chance.sum(1, keepdim=True)
    active = torch.rand(rows, recipe.n_features, generator=draw) < chance
    return torch.rand(rows, recipe.n_features, generator=draw) * active


def chunk_of_rows(recipe: SyntheticRecipe, hook: str, rows: int, chunk: int) -> Tensor:
    """The rows of a chunk, `[rows, d_activation]` float32."""
    made = codes(recipe, hook, rows, chunk) @ ground_truth(recipe)
    if recipe.noise:
        draw = generator(recipe.seed, "noise", hook, chunk)
        made += recipe.noise * torch.randn(made.shape, generator=draw)
    return made


def covariance_factor(recipe: SyntheticRecipe) -> Tensor:
    """L with L L^T = C, `[n_features, n_features]` float32."""
    n = recipe.n_features
    uniform = torch.rand(n, n, generator=generator(recipe.seed, "covariance")).double()
    symmetric = (uniform + uniform.T) / 2
    shift = -MARGIN * torch.linalg.eigvalsh(symmetric)[0].clamp(max=0)
    return torch.linalg.cholesky(symmetric + shift * torch.eye(n, dtype=torch.float64)).float()


def harvest(
    recipe: SyntheticRecipe,
    data_dir: str | Path,
    *,
    resume: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[ChunkStore]:
    """Write one store per distribution; goes on after the last complete chunk.

    Raises:
        UserError: the stores there are of another recipe; no room on the disk.
    """
    if resume and (done := finished(recipe, data_dir)):
        return done
    width = DTYPES[recipe.dtype].itemsize * recipe.d_activation
    check_disk(Path(data_dir), recipe.rows * len(recipe.hooks) * width)
    for number, (hook, path) in enumerate(_paths(recipe, data_dir).items()):
        _write(recipe, hook, path, resume, number, on_progress)
    return [ChunkStore.open(path) for path in _paths(recipe, data_dir).values()]


def finished(recipe: SyntheticRecipe, data_dir: str | Path) -> list[ChunkStore]:
    """The recipe's stores if all of them are there and complete, else nothing.

    Raises:
        UserError: a store that is there was made from another recipe.
    """
    stores = []
    for hook, path in _paths(recipe, data_dir).items():
        if (path / META).exists():
            store = ChunkStore.open(path)
            wanted, there = recipe.source(hook), store.meta.source.model_dump()
            check_same(path, wanted, {name: there.get(name) for name in wanted})
            stores.append(store)
    complete = len(stores) == len(recipe.hooks) and all(store.meta.complete for store in stores)
    return stores if complete else []


def widths(recipe: SyntheticRecipe) -> dict[str, int]:
    """Values per row of each store."""
    return dict.fromkeys(recipe.hooks, recipe.d_activation)


def _paths(recipe: SyntheticRecipe, data_dir: str | Path) -> dict[str, Path]:
    return {hook: store_path(data_dir, recipe.name, hook) for hook in recipe.hooks}


def _cut(recipe: SyntheticRecipe) -> Iterator[tuple[int, bool]]:
    """The rows of each chunk, and whether it is held out: the held-out ones come first."""
    held_out = round(recipe.rows * recipe.held_out)
    for total, aside in ((held_out, True), (recipe.rows - held_out, False)):
        for start in range(0, total, recipe.chunk_rows):
            yield min(recipe.chunk_rows, total - start), aside


def _write(
    recipe: SyntheticRecipe,
    hook: str,
    path: Path,
    resume: bool,
    number: int,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    began, made = time.monotonic(), 0
    before = number * recipe.rows
    with StoreWriter(
        path,
        d_activation=recipe.d_activation,
        dtype=recipe.dtype,
        source=recipe.source(hook),
        overwrite=not resume,
    ) as writer:
        there = len(writer.chunks)
        for chunk, (rows, aside) in enumerate(_cut(recipe)):
            before += rows if chunk < there else 0
            if chunk < there:
                continue
            columns = {"activations": chunk_of_rows(recipe, hook, rows, chunk)}
            columns["activations"] = columns["activations"].to(DTYPES[recipe.dtype])
            writer.append(columns, held_out=aside)
            made += rows
            if on_progress is not None:
                speed = made / max(time.monotonic() - began, 1e-9)
                on_progress(Progress(before + made, recipe.rows * len(recipe.hooks), speed))
