"""The engine's tests use the tools of the dispatcher's."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TOOLS = Path(__file__).parent.parent / "dispatch"
sys.path.insert(0, str(TOOLS))
os.environ.setdefault("WANDB_MODE", "offline")
