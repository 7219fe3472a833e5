"""What a study is asked for, and the training that all studies share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ensemble_sae.config.recipe import AnyRecipe, Recipe, load_recipe
from ensemble_sae.config.synthetic import SyntheticRecipe
from ensemble_sae.data.location import data_dir as default_data_dir
from ensemble_sae.engine import stores
from ensemble_sae.engine.display import Display
from ensemble_sae.engine.run_sweep import run_sweep
from ensemble_sae.errors import UserError
from ensemble_sae.run import Layout, Run
from ensemble_sae.sweep import Sweep, expand, load_sweep

_NAMES = {"id", "name"}
# What a study may need its rows to be, and how a recipe says that they are.
_KINDS: dict[type[AnyRecipe], tuple[str, str]] = {
    SyntheticRecipe: ("rows whose features are known", 'a recipe of kind = "synthetic"'),
    Recipe: ("rows of a language model", 'a recipe with model = "..." and dataset = "..."'),
}


@dataclass(frozen=True)
class Request:
    """The options of `python -m ensemble_sae.study`; see there."""

    name: str
    out: Path
    quick: bool = False
    settings: tuple[str, ...] = ()
    gpus: int | None = None
    devices: str | None = None
    threads: int | None = None
    data_dir: Path | None = None

    def train(
        self,
        sweep: str,
        console: Console,
        *,
        axes: set[str],
        settings: tuple[str, ...] = (),
        folder: str = "run",
        held_out: bool = False,
        rows: type[AnyRecipe] = SyntheticRecipe,
    ) -> Run:
        """Train a sweep into a folder of the study, or go on with the one that is there.

        Args:
            axes: of the grid that the study can draw.
            settings: over the sweep's file and those of the request.
            held_out: whether the study needs held-out rows.
            rows: the kind of recipe that the study needs.

        Raises:
            UserError: the study could not read what this would train; the run in the folder was
                begun with other settings; as `run_sweep`.
            Interrupted: when everything is saved; the same command goes on.
        """
        loaded, where = load_sweep(sweep, (*self.settings, *settings), self.quick)
        data = default_data_dir(self.data_dir or self.out / "data")
        self._check(loaded, where, data, axes, held_out, rows)
        return run_sweep(
            loaded,
            run=self.out / folder,
            resume=Layout(self.out / folder).exists(),
            gpus=self.gpus,
            devices=self.devices,
            threads=self.threads,
            data_dir=data,
            observer=Display(console),
            where=where,
        )

    def _check(
        self,
        sweep: Sweep,
        where: str,
        data: Path,
        axes: set[str],
        held_out: bool,
        rows: type[AnyRecipe],
    ) -> None:
        """Before hours of training: can the study read what comes of it?"""
        recipe = load_recipe(sweep.activations.recipe) if sweep.activations.recipe else None
        if not isinstance(recipe, rows):
            needs, allowed = _KINDS[rows]
            raise UserError(
                f"This study needs {needs}.",
                where="activations",
                found=repr(sweep.activations.recipe or sweep.activations.store),
                allowed=allowed,
            )
        if held_out and recipe.held_out == 0:
            raise UserError(
                "This study needs held-out rows.",
                where=f"{sweep.activations.recipe}: held_out",
                found="0",
                allowed="a share > 0",
            )
        members = expand(sweep, stores.locate(sweep.activations, data).widths, where)
        varied = _varied([member.as_row() for member in members])
        if more := sorted(varied - axes - _NAMES):
            raise UserError(
                f"The study {self.name!r} cannot draw this axis.",
                where=f"{where}: grid.{more[0]}",
                found="several values",
                allowed=f"one value; several of {', '.join(sorted(axes))}",
                next_step="python -m ensemble_sae.big_sweep trains any grid",
            )


def _varied(rows: list[dict[str, Any]]) -> set[str]:
    """What has several values among members; of options, among those of one signature."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(row["signature"], []).append(row)
    found = {
        key for own in kinds.values() for key in own[0] if any(r[key] != own[0][key] for r in own)
    }
    return found | ({"signature"} if len(kinds) > 1 else set())
