"""What an evaluation leaves on the disk, whole or not at all; `run.Evaluation` reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.evaluation.sources import Label
from ensemble_sae.evaluation.tally import BANDS, Tally, by
from ensemble_sae.files import open_tensors, write_atomically, write_json, write_tensors
from ensemble_sae.run.evaluation import Evaluation, read_settings

if TYPE_CHECKING:
    import pandas as pd

PARTIAL = "unfinished.safetensors"
QUANTITIES = ("fvu", "l0", "ce", "kl")


class Results:
    """The folder `evaluation/` of a run.

    Args:
        settings: what all results in it share; results of others are not mixed with them.

    Attributes:
        members: that are being evaluated, noted beside what is unfinished.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
        self.folder, self.settings = folder, settings
        self.members: list[int] = []
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            # What is unfinished and of the same settings is an overwriting that was interrupted.
            whole = (folder / "table.parquet").is_file()
            unfinished = () if not whole and self.begun() else (PARTIAL,)
            for name in ("table.parquet", "profiles.safetensors", "settings.json", *unfinished):
                (folder / name).unlink(missing_ok=True)
        self._check()

    def done(self) -> set[int]:
        """Members that are evaluated."""
        there = (self.folder / "table.parquet").is_file()
        return set(Evaluation(self.folder).table["member"]) if there else set()

    def save_partial(self, tally: Tally, labels: list[Label], contexts: int) -> None:
        """Note the sums after so many contexts."""
        about = {"contexts": str(contexts), "of": self._pass(labels)}
        about |= {"members": json.dumps(self.members), "settings": self._pass([])}
        write_tensors(self.folder / PARTIAL, tally.state(), about)

    def begun(self) -> list[int]:
        """The members of an interrupted evaluation with the same settings."""
        try:
            about = open_tensors(self.folder / PARTIAL).metadata()
            same = about["settings"] == self._pass([])
            return [int(member) for member in json.loads(about["members"])] if same else []
        except (UserError, KeyError, TypeError, ValueError):
            return []

    def load_partial(self, tally: Tally, labels: list[Label]) -> int:
        """Fill in the sums of an interrupted pass over the same sources with the same settings.

        Returns:
            The contexts that it got to; 0 if there is none, and the tally is as it was.
        """
        path = self.folder / PARTIAL
        if not path.is_file():
            return 0
        try:
            file = open_tensors(path)
            about = file.metadata()
            if about["of"] != self._pass(labels):
                return 0
            contexts = int(about["contexts"])
            tally.load({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (CorruptFile, KeyError, TypeError, ValueError):
            return 0  # begun anew: nothing but time is lost
        return contexts

    def add(
        self, tally: Tally, labels: list[Label], hooks: list[str], references: dict[str, Any]
    ) -> None:
        """Add the rows of a finished pass to the table and the profiles.

        Args:
            labels: of the tally's rows, that of the model undisturbed first, of members last.
            hooks: of the same rows.
        """
        import pandas as pd

        rows = [k for k, label in enumerate(labels) if label.name.isdigit()]
        profiles = _profiles(tally, rows)
        table = _table(tally, labels, hooks, rows)
        if (self.folder / "table.parquet").is_file():
            before = Evaluation(self.folder)
            file = open_tensors(self.folder / "profiles.safetensors")
            there = len(before.table)  # a profile beyond them is of a pass that was cut off here
            profiles = {k: torch.cat([file.get_tensor(k)[:there], v]) for k, v in profiles.items()}
            table = pd.concat([before.table, table], ignore_index=True)
            references = {**before.references, **references}
        # In this order, so that what a table promises is there whenever this is cut off.
        write_tensors(self.folder / "profiles.safetensors", profiles)
        shared = {**self.settings, "bands": list(BANDS), "references": references}
        write_json(self.folder / "settings.json", shared)
        path = self.folder / "table.parquet"
        write_atomically(path, lambda p: table.to_parquet(p, index=False))
        (self.folder / PARTIAL).unlink(missing_ok=True)

    def _pass(self, labels: list[Label]) -> str:
        """What two passes must share for one to go on with the sums of the other."""
        return json.dumps([self.settings, labels], sort_keys=True)

    def _check(self) -> None:
        path = self.folder / "settings.json"
        if not path.is_file():
            return
        found = read_settings(path)
        for name, value in self.settings.items():
            if found.get(name) != value:
                raise UserError(
                    "There are results here of another evaluation.",
                    where=f"{path}: {name}",
                    found=str(found.get(name)),
                    allowed=str(value),
                    next_step="--overwrite replaces them",
                )


def _table(tally: Tally, labels: list[Label], hooks: list[str], rows: list[int]) -> pd.DataFrame:
    import pandas as pd

    ce = tally.sums["ce"].sum(1) / tally.counts["predictions"].sum()
    kl = tally.sums["kl"].sum(1) / tally.counts["predictions"].sum()
    fvu = tally.sums["error"].sum(1) / tally.sums["variance"].sum(1)
    l0 = tally.sums["l0"].sum(1) / tally.counts["rows"].sum()
    zero = {h: float(ce[k]) for k, h in enumerate(hooks) if labels[k].name == "zero"}
    return pd.DataFrame(
        [
            {
                "member": int(labels[k].name),
                "features": labels[k].features,
                "kept": labels[k].kept,
                "hook": hooks[k],
                "ce": float(ce[k]),
                "ce_recovered": recovered(float(ce[k]), zero[hooks[k]], float(ce[0])),
                "kl": float(kl[k]),
                "perplexity": float(ce[k].exp()),
                "fvu": float(fvu[k]),
                "l0": float(l0[k]),
            }
            for k in rows
        ]
    )


def recovered(ce: float, zero: float, clean: float) -> float:
    """(CE_zero - CE) / (CE_zero - CE_clean); NaN where zeros cost nothing."""
    return (zero - ce) / (zero - clean) if zero != clean else float("nan")


def _profiles(tally: Tally, rows: list[int]) -> dict[str, Tensor]:
    """`QUANTITY/position` `[K, T]` and `QUANTITY/frequency` `[K, N]`, float32."""
    found: dict[str, Tensor] = {}
    for axis in ("position", "frequency"):
        key = by if axis == "frequency" else str
        predictions, seen = tally.counts[key("predictions")], tally.counts[key("rows")]
        values = {
            "ce": tally.sums[key("ce")] / predictions,
            "kl": tally.sums[key("kl")] / predictions,
            "fvu": tally.sums[key("error")] / tally.sums[key("variance")],
            "l0": tally.sums[key("l0")] / seen,
        }
        found |= {f"{name}/{axis}": values[name][rows].float() for name in QUANTITIES}
    return found
