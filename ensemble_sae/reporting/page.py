"""The page: one HTML file with everything in it, which asks nothing of any network.

Data are compressed JSON in blocks that no browser runs, so that no text of a corpus is ever part of
the markup; scripts are allowed by their hashes alone. A member's features are a block of their own,
unpacked when they are asked for.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Mapping
from importlib import resources
from string import Template
from typing import Any

ASSETS = "ensemble_sae.reporting"
STYLES = ("style.css", "features.css")
SCRIPTS = (
    *("words.js", "state.js", "plots.js", "filters.js", "pareto.js", "heat.js", "curves.js"),
    *("sizes.js", "profiles.js", "chosen.js", "table.js", "features.js", "start.js"),
)
LEVEL = 6  # of compression: higher ones take several times as long and gain little
PLOTLY = "package_data/plotly.min.js"


def page(data: Mapping[str, Any], blocks: Mapping[int, Any]) -> str:
    """The page as text.

    Args:
        data: of the whole run. blocks: features by member.
    """
    plotly = _safe((resources.files("plotly") / PLOTLY).read_text(encoding="utf-8"))
    script = _safe(f'"use strict";\n(() => {{\n{_joined(SCRIPTS)}\n}})();')
    packed = [_block("data", data)]
    packed += [_block(f"features-{member}", block) for member, block in blocks.items()]
    return Template(_asset("page.html")).substitute(
        title=html.escape(f"{data['name']} · ensemble-sae"),
        policy=_policy(plotly, script),
        style=_joined(STYLES),
        plotly=plotly,
        script=script,
        blocks="\n".join(packed),
    )


def _policy(*scripts: str) -> str:
    """What the page may do: run these scripts, draw, and nothing else."""
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _block(name: str, value: Any) -> str:
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    packed = base64.b64encode(gzip.compress(text.encode(), LEVEL, mtime=0)).decode()
    return f'<script type="application/gzip" id="{name}">{packed}</script>'


def _asset(name: str) -> str:
    return (resources.files(ASSETS) / "assets" / name).read_text(encoding="utf-8")


def _joined(names: tuple[str, ...]) -> str:
    return "\n".join(_asset(name) for name in names)


def _safe(script: str) -> str:
    """A script that cannot end its own element."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
