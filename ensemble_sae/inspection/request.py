"""Features of a run's members: looked up where they are known, found out where not."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ensemble_sae.config.recipe import Recipe
from ensemble_sae.inspection import files
from ensemble_sae.inspection.feature import Features
from ensemble_sae.inspection.looking import OnProgress, look, with_effects
from ensemble_sae.inspection.tuned_lens import TunedLens
from ensemble_sae.lm.load import checked_device, load_model
from ensemble_sae.lm.origin import origin
from ensemble_sae.lm.text import Text, fragments
from ensemble_sae.pages import live
from ensemble_sae.run import Run

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FRAGMENTS, WIDTH, PER_DOCUMENT = 50_000, 64, 8


def features(
    run: Run,
    member: int,
    *,
    effects: bool = False,
    count: int = FRAGMENTS,
    width: int = WIDTH,
    per_document: int = PER_DOCUMENT,
    tuned: TunedLens | None = None,
    model: str | None = None,
    dataset: str | None = None,
    device: str | None = None,
    on_progress: OnProgress | None = None,
) -> Features:
    """All features of a member: contexts, density, tokens they promote, what they do.

    One pass over fragments of the text that the rows came from, training documents too. What was
    found is kept in the run's folder and found again when the same is asked for.

    Args:
        effects: also ablate, steer and drop tokens, which takes several times as long.
        count, width, per_document: fragments, tokens of each, and how many a document may give:
            see `lm.text.fragments`.
        tuned: a tuned lens, beside the logit lens.
        model, dataset, device: in place of those that the rows came from.
        on_progress: called with (what, done, total); by default a bar in a notebook.

    Raises:
        UserError: no such member; no language model, or one that it does not fit.
    """
    desk = Desk(run, count, width, per_document, model, dataset, device)
    with live.progress() as show:
        tell = on_progress or (
            lambda what, done, total: show(done, total, f"{what}: {done:,} of {total:,}")
        )
        return desk.features(member, effects=effects, tuned=tuned, on_progress=tell)


class Desk:
    """A run's language model and fragments, loaded when they are first needed, for many members.

    Args: as of `features`.
    """

    def __init__(
        self,
        run: Run,
        count: int = FRAGMENTS,
        width: int = WIDTH,
        per_document: int = PER_DOCUMENT,
        model: str | None = None,
        dataset: str | None = None,
        device: str | None = None,
    ) -> None:
        self.run = run
        side = None if dataset is None else 0.0  # nothing of other text was trained on
        self.recipe: Recipe = origin(run, model=model, dataset=dataset, held_out=side)
        self.device = str(checked_device(device or "auto"))
        self._asked = {"count": count, "width": width, "per_document": per_document}
        self._bridge: TransformerBridge | None = None
        self._text: Text | None = None

    @property
    def bridge(self) -> TransformerBridge:
        """The language model."""
        if self._bridge is None:
            self._bridge = load_model(self.recipe.model, self.device, self.recipe.model_dtype)
        return self._bridge

    @property
    def text(self) -> Text:
        """The fragments."""
        if self._text is None:
            asked = self._asked
            self._text = fragments(
                self.recipe,
                self.bridge,
                asked["count"],
                width=asked["width"],
                per_document=asked["per_document"],
            )
        return self._text

    def features(
        self,
        member: int,
        *,
        effects: bool = False,
        tuned: TunedLens | None = None,
        on_progress: OnProgress = lambda what, done, total: None,
    ) -> Features:
        """Features of one member; see the function."""
        sae = self.run.sae(member, device=self.device)
        settings = self._settings(tuned)
        folder = files.folder_of(self.run.path, member, settings)
        found = files.load(sae, folder, settings)
        if found is not None and (found.dropped is not None or not effects):
            return found
        if found is None:
            found = look(
                self.bridge, sae, self.text, self.recipe, tuned=tuned, on_progress=on_progress
            )
            found = replace(found, settings=found.settings | settings)
        if effects:
            found = with_effects(self.bridge, found, on_progress=on_progress)
        files.save(found, folder)
        return found

    def _settings(self, tuned: TunedLens | None) -> dict[str, Any]:
        """What must be the same for something to be found again."""
        step = self.run.checkpoints[-1].step if self.run.checkpoints else 0
        about = {name: getattr(self.recipe, name) for name in ("model", "dataset", "seed")}
        lens = None if tuned is None else _digest(tuned)
        return {**about, "step": step, "asked": self._asked, "tuned": lens}


def _digest(tuned: TunedLens) -> str:
    """Short, and another for every lens."""
    digest = hashlib.blake2b(digest_size=8)
    for hook, pair in sorted(tuned.translators.items()):
        digest.update(hook.encode())
        for part in pair:
            digest.update(part.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
