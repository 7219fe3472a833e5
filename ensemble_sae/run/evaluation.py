"""What `python -m ensemble_sae.evaluate` found of a run's members: its files and their reader.

evaluation/settings.json          which model, which text, and what the model does undisturbed
evaluation/table.parquet          one row per member and subset of its features
evaluation/profiles.safetensors   the same by position and by frequency of the token
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ensemble_sae.errors import CorruptFile, UserError, nearest
from ensemble_sae.files import open_tensors, read_json

if TYPE_CHECKING:
    import pandas as pd

Quantity = Literal["fvu", "l0", "ce", "kl"]


class Evaluation:
    """Members of a run in the place of what they reconstruct.

    Attributes:
        settings: model, text, bands, losses of the model undisturbed: see `references`.
        table: one row per member and subset of its features. `ce`: mean cross-entropy of the next
            token with x^ in place of x, nats; `ce_recovered`: (ce_zero - ce) / (ce_zero -
            ce_clean); `kl`: mean divergence from the model undisturbed, nats; `perplexity`:
            exp(ce); `fvu`, `l0`: on the same text; `features`, `kept`: which features were left,
            and how many.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "table.parquet").is_file():
            raise UserError(
                "The members of this run are not evaluated in their language model yet.",
                where=str(folder.parent),
                next_step=f"python -m ensemble_sae.evaluate {folder.parent}",
            )
        self._folder = folder
        self.settings = read_settings(folder / "settings.json")
        self.table = _read_table(folder / "table.parquet")

    @property
    def members(self) -> pd.DataFrame:
        """The rows for all features, indexed by the member's id."""
        return self.table[self.table["features"] == "all"].set_index("member")

    @property
    def references(self) -> dict[str, dict[str, float]]:
        """Hook -> `ce_clean`, `ce_zero`, `ce_mean`; CE recovered of the identity and of zeros."""
        found: dict[str, dict[str, float]] = self.settings["references"]
        return found

    def by_position(self, quantity: Quantity) -> pd.DataFrame:
        """A quantity at each position of a context: rows as in `table`, one column each.

        "fvu" and "l0" are NaN where no row is replaced, "ce" and "kl" at the last position.
        """
        return self._profile(quantity, "position")

    def by_frequency(self, quantity: Quantity) -> pd.DataFrame:
        """A quantity by how frequent the token is in the training text, from the rarest on."""
        return self._profile(quantity, "frequency")

    def _profile(self, quantity: str, axis: str) -> pd.DataFrame:
        import pandas as pd

        if quantity not in get_args(Quantity):
            raise UserError(
                "Evaluations have no such quantity by position or frequency.",
                found=repr(quantity),
                allowed=nearest(quantity, get_args(Quantity)),
            )
        file = open_tensors(self._folder / "profiles.safetensors")
        values = file.get_tensor(f"{quantity}/{axis}").numpy()[: len(self.table)]
        columns = self.settings["bands"] if axis == "frequency" else list(range(values.shape[1]))
        index = pd.MultiIndex.from_frame(self.table[["member", "features"]])
        return pd.DataFrame(values, index=index, columns=columns)

    def __repr__(self) -> str:
        return f"Evaluation({str(self._folder)!r}, {len(self.members)} members)"

    def _repr_html_(self) -> str:
        from ensemble_sae.run.cards import evaluation_card

        return evaluation_card(self)


def read_settings(path: Path) -> dict[str, Any]:
    """What an evaluation's results share.

    Raises:
        CorruptFile: damaged. UserError: missing.
    """
    found: Any = read_json(path)
    if not isinstance(found, dict) or not {"references", "bands"} <= found.keys():
        raise CorruptFile(
            "The settings of an evaluation are damaged.",
            where=str(path),
            found=repr(found)[:80],
            next_step="evaluate again with --overwrite",
        )
    return found


def _read_table(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except Exception as error:  # pyarrow has many ways to say that bytes make no sense
        raise CorruptFile(
            "The table of evaluated members is damaged.",
            where=str(path),
            found=str(error)[:200],
            next_step="evaluate again with --overwrite",
        ) from None
