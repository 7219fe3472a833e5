"""How well dictionaries can be told in words: members beside baselines, one row for each."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ensemble_sae.files import write_atomically, write_json
from ensemble_sae.inspection.feature import Features
from ensemble_sae.interpretation.protocol import Interpretation
from ensemble_sae.interpretation.rules import Rules, RuleSettings, explain_by_rules
from ensemble_sae.interpretation.scores import Score, comparison

if TYPE_CHECKING:
    import pandas as pd

LEAST = 40  # fragments: 20 with the largest activations, 20 at random
Texts = Callable[[int], str]


@dataclass
class Comparison:
    """What was scored so far.

    Attributes:
        by_rules, by_models: scores of the features of each dictionary.
        about: dictionary -> features it has, and those that were active at all.
        frames: dictionary -> a row for each scored feature.
    """

    by_rules: dict[str, Score] = field(default_factory=dict)
    by_models: dict[str, Score] = field(default_factory=dict)
    about: dict[str, dict[str, int]] = field(default_factory=dict)
    frames: dict[str, pd.DataFrame] = field(default_factory=dict)

    def add(self, name: str, features: Features, chosen: torch.Tensor, rules: Rules) -> None:
        """The rules of some features of a dictionary."""
        self.by_rules[name] = rules.score
        self.about[name] = {"features": len(features), "active": len(features.alive)}
        self.frames[name] = frame(chosen, rules)

    def add_models(self, name: str, found: Interpretation) -> None:
        """What language models made of the same features."""
        self.by_models[name] = found.score
        asked = found.frame().add_prefix("model_")
        self.frames[name] = self.frames[name].join(asked)

    def table(self, which: str = "by_rules") -> pd.DataFrame:
        """A row for each dictionary: features, active ones, and mean and 95% interval of the three
        correlations over features; `undefined` counts features without a score.
        """
        import pandas as pd

        scores: dict[str, Score] = getattr(self, which)
        about = pd.DataFrame.from_dict({n: self.about[n] for n in scores}, orient="index")
        about.columns = pd.MultiIndex.from_tuples([("dictionary", c) for c in about.columns])
        return about.join(comparison(scores))

    def write(self, folder: Path, settings: dict[str, Any]) -> None:
        """`settings.json`, `by_rules.json`, `by_models.json` and, per dictionary, `NAME.parquet`:
        each whole or not at all. What is there of an earlier comparison goes; answers stay.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written = {"settings.json"}
        write_json(folder / "settings.json", settings)
        for name, frame in self.frames.items():
            file = folder / f"{_file_name(name)}.parquet"
            write_atomically(file, frame.to_parquet)
            written.add(file.name)
        for which in ("by_rules", "by_models"):
            if getattr(self, which):
                written.add(f"{which}.json")
                table = self.table(which)
                table.columns = [" ".join(column) for column in table.columns]
                path = folder / f"{which}.json"
                text = table.to_json(orient="index", indent=1, double_precision=6)
                write_atomically(path, partial(_write_text, text))
        for old in (*folder.glob("*.parquet"), *folder.glob("*.json")):
            if old.name not in written:
                old.unlink()


def _file_name(name: str) -> str:
    """A member's id, or a baseline's name, as a file may be called."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", name.partition(":")[0]).strip("-")


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def by_rules(
    features: Features, chosen: torch.Tensor, settings: RuleSettings | None = None
) -> Rules:
    """Rules of some features, fitted on all fragments that are not scored."""
    words = features.vocabulary
    examples = features.examples.of(chosen)
    return explain_by_rules(examples, lambda token: words.get(token, ""), settings)


def frame(chosen: torch.Tensor, rules: Rules) -> pd.DataFrame:
    """A row for each chosen feature: `rule`, `kind`, and the scores."""
    import pandas as pd

    scores = {name: values.numpy() for name, values in rules.score._asdict().items()}
    columns = {"rule": rules.texts, "kind": rules.kinds, **scores}
    return pd.DataFrame(columns, index=pd.Index(chosen.numpy(), name="feature"))
