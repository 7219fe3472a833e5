"""Everything that an evaluation needs before its first batch: model, text, members, references."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ensemble_sae.baselines.axes import neuron_basis
from ensemble_sae.baselines.fixed import Projection, as_sae
from ensemble_sae.config.recipe import Recipe
from ensemble_sae.data.hooks import Hook
from ensemble_sae.errors import UserError
from ensemble_sae.evaluation.passing import Pass, Reference, mean_rows
from ensemble_sae.evaluation.request import Request
from ensemble_sae.evaluation.sources import ALL, ConstantSource, Label, MemberSource, Source
from ensemble_sae.evaluation.subsets import Subset, beside, masks
from ensemble_sae.evaluation.tally import Tally, bands_of
from ensemble_sae.lm.harvest_model import fingerprint
from ensemble_sae.lm.load import checked_device, load_model
from ensemble_sae.lm.members import check_fits, joined
from ensemble_sae.lm.origin import origin
from ensemble_sae.lm.text import Text, contexts, token_counts
from ensemble_sae.run import Run, Sae

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

COUNTED = 2**18  # tokens of training text that frequencies are counted on
SHELF = 2**32  # bytes of members that are in memory together
LEAST = 3  # tokens
CLEAN = Label("clean", ALL, 0)


@dataclass
class Stage:
    """A run's language model with text for it.

    Attributes:
        means: of each hook point that members replace, over the rows that they read: `[d]`.
        bands: of frequency, of each token id: int64 `[d_vocab]`.
    """

    run: Run
    recipe: Recipe
    bridge: TransformerBridge
    text: Text
    means: dict[str, Tensor]
    bands: Tensor
    subsets: list[Subset]
    device: str

    @classmethod
    def prepare(cls, run: Run, request: Request, members: Sequence[int]) -> Stage:
        """Load the model, cut the text, take the means.

        Text of a data set that is given is all of it: no member was trained on it.

        Raises:
            UserError: one of them is not to be had.
        """
        subsets = [Subset.parse(text) for text in request.keep]
        recipe, bridge, device = load_origin(run, request)
        text = contexts(recipe, bridge, request.rows, held_out=request.dataset is None)
        if int(text.is_read.sum()) < LEAST:
            raise UserError(
                "There is too little text to evaluate on.",
                where=f"dataset = {recipe.dataset!r}",
                found=f"{int(text.is_read.sum())} tokens",
                allowed=f"{LEAST} or more",
                next_step="--rows, or a longer --dataset",
            )
        one_of_each = {run.configurations[member].hook: member for member in members}
        hooks = [check_fits(bridge, run.sae(member)) for member in one_of_each.values()]
        points = sorted({point for hook in hooks for point in hook.measured})
        means = mean_rows(bridge, text, points)
        bands = bands_of(token_counts(recipe, bridge, COUNTED))
        return cls(run, recipe, bridge, text, means, bands, subsets, device)

    def settings(self, request: Request) -> dict[str, Any]:
        """What results must share to stand in one table."""
        about = ("model", "dataset", "context", "held_out", "seed", "drop_bos")
        return {name: getattr(self.recipe, name) for name in about} | {
            "rows": request.rows,
            "keep": [subset.name for subset in self.subsets],
            "weights": fingerprint(self.bridge),
            "step": self.run.checkpoints[-1].step if self.run.checkpoints else 0,
        }

    def shelves(self, members: Sequence[int]) -> Iterator[list[int]]:
        """Members that fit into memory together: nearly always all of them."""
        shelf: list[int] = []
        size = 0
        for member in members:
            config = self.run.configurations[member]
            weight = 2 * 4 * config.n_dict * sum(config.widths or (config.d_activation,))
            if shelf and size + weight > SHELF:
                yield shelf
                shelf, size = [], 0
            shelf.append(member)
            size += weight
        if shelf:
            yield shelf

    def work(self, members: Sequence[int]) -> Work:
        """A pass over the text for some members, and for what they are measured against."""
        saes = {member: self.run.sae(member, device=self.device) for member in members}
        one_of_each = {
            sae.config.hook: sae for sae in saes.values()
        }  # all are of one store's width
        hooks = {name: (check_fits(self.bridge, sae), sae) for name, sae in one_of_each.items()}
        sources: list[Source] = []
        references = {}
        for hook, sae in hooks.values():
            mean = joined(hook.measured, self.means)
            references[hook.name] = Reference(mean, sae.target_units)
            sources += _beside(hook, mean)
        neighbours = beside(self.run) if self.subsets else {}
        for member, sae in saes.items():
            hook, _ = hooks[sae.config.hook]
            chosen = masks(self.run, member, sae, self.subsets, neighbours)
            sources.append(MemberSource(str(member), sae, hook, chosen))
        labels = [CLEAN, *(label for source in sources for label in source.labels)]
        names = ["", *(source.hook.name for source in sources for _ in source.labels)]
        tally = Tally(len(labels), self.text.tokens.shape[1], self.bands)
        running = Pass(self.bridge, self.text, sources, references, tally)
        return Work(running, labels, names, len(sources))


@dataclass(frozen=True)
class Work:
    """A pass and what the rows of its tally are: labels, and hooks by name."""

    running: Pass
    labels: list[Label]
    hooks: list[str]
    sources: int


def load_origin(run: Run, request: Request) -> tuple[Recipe, TransformerBridge, str]:
    """The recipe that a run's rows came from, its model, and the device that it is on.

    Args:
        request: its `model`, `dataset`, `context` and `device` go before the recipe's.
    """
    given: dict[str, Any] = {
        "model": request.model,
        "dataset": request.dataset,
        "context": request.context,
        "held_out": None if request.dataset is None else 0.0,
    }
    recipe = origin(run, **given)
    device = str(checked_device(request.device or "auto"))
    return recipe, load_model(recipe.model, device, recipe.model_dtype), device


def checked(run: Run, members: Sequence[int] | None) -> list[int]:
    """The members that are asked for, each once; all of the run if None.

    Raises:
        UserError: there is no such member, or the list is empty.
    """
    known = run.configurations
    if members is None:
        return sorted(known)
    if not members:
        raise UserError("No member is named.", where=str(run.path), next_step="give their ids")
    for member in members:
        if member not in known:
            raise UserError(
                "There is no such member.",
                where=str(run.path),
                found=str(member),
                allowed=f"0 to {max(known)}",
            )
    return sorted(set(members))


def _beside(hook: Hook, mean: Tensor) -> list[Source]:
    """What brackets the members of a hook, and two dictionaries whose values are known."""
    found: list[Source] = [
        ConstantSource("zero", hook, torch.zeros_like(mean)),
        ConstantSource("mean", hook, mean),
    ]
    if hook.targets:
        return found
    for name, sae in (("identity", _identity(mean)), ("nothing", _nothing(mean))):
        found.append(MemberSource(name, sae, hook, {}))
    return found


def _identity(row: Tensor) -> Sae:
    """The dictionary of all axes: its reconstruction is the row."""
    return neuron_basis(row[None].float(), len(row), 0)


def _nothing(row: Tensor) -> Sae:
    """A dictionary of one atom of zeros: its reconstruction is zero."""
    zeros = torch.zeros(1, len(row), device=row.device)
    return as_sae(
        "nothing", Projection, {"decoder": zeros, "encoder": zeros}, {}, seed=0, options={}
    )
