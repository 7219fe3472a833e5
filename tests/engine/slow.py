"""A harvest that is slower than the training, so that it is still going on when that stops."""

from __future__ import annotations

import os
import time
from typing import Any

from ensemble_sae.dispatch import child
from ensemble_sae.lm.makers import maker


def harvest(pipe: Any, recipe: Any, data_dir: Any) -> None:
    """Stands in for the entry of the harvesting process."""
    child.settle()
    pause_s = float(os.environ.get("HARVEST_PAUSE_S", "0.4"))
    maker(recipe).harvest(recipe, data_dir, on_progress=lambda _: time.sleep(pause_s))
    pipe.send(None)
