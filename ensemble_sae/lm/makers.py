"""Which module makes the rows of a recipe: a language model, or the synthetic generator.

Both have `finished(recipe, data_dir)`, `widths(recipe)` and `harvest(recipe, data_dir, resume=,
on_progress=)`.
"""

from __future__ import annotations

from typing import Any

from ensemble_sae.config.recipe import AnyRecipe
from ensemble_sae.config.synthetic import SyntheticRecipe


def maker(recipe: AnyRecipe) -> Any:
    """The module for a recipe, imported only now: a language model's takes seconds."""
    if isinstance(recipe, SyntheticRecipe):
        from ensemble_sae.data import synthetic

        return synthetic
    from ensemble_sae.lm import harvest

    return harvest
