"""The sweep at a glance: what was trained on what, how long, how fast, what went wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ensemble_sae.run import Run
from ensemble_sae.signatures import BUILTIN

if TYPE_CHECKING:
    import pandas as pd

Fact = tuple[str, str]


def glance(run: Run, table: pd.DataFrame) -> list[Fact]:
    """(what, value) in the order in which they are read."""
    found = [*_what(run, table), *_rows(run), *_time(run, table), *_troubles(table)]
    return [(name, text) for name, text in found if text]


def _what(run: Run, table: pd.DataFrame) -> list[Fact]:
    kinds = ", ".join(
        name if name in BUILTIN else f"{name} (own)" for name in table["signature"].unique()
    )
    sizes = sorted(set(table["n_dict"]))
    size = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    widths = ", ".join(f"{width:,}" for width in sorted(set(table["d_activation"])))
    return [
        ("members", f"{len(table):,} of {kinds}"),
        ("features of each", f"{size}, on rows of {widths} values"),
        ("hook", ", ".join(sorted(set(map(str, table["hook"]))))),
    ]


def _rows(run: Run) -> list[Fact]:
    sweep = run.sweep["sweep"]
    activations, train = sweep["activations"], sweep["train"]
    source = activations.get("recipe") or activations.get("store") or ""
    metrics = run.metrics
    rows = ""
    if len(metrics):
        steps = int(metrics["step"].max())
        seen = steps * train["batch_size"]
        rows = f"{seen:,} rows, in {steps:,} steps of {train['batch_size']:,}"
    units = {"none": "in the model's units", "scale": "scaled", "standard": "centred and scaled"}
    return [
        ("rows from", f"{source}, {units[activations.get('normalise', 'none')]}"),
        ("each member saw", rows),
    ]


def _time(run: Run, table: pd.DataFrame) -> list[Fact]:
    status: dict[str, Any] = run.status
    seconds = status.get("seconds")
    speed = ""
    metrics = run.metrics
    if seconds and len(metrics):
        batch = run.sweep["sweep"]["train"]["batch_size"]
        done = int(metrics.groupby("member")["step"].max().sum()) * batch
        speed = f"{done / seconds:,.0f} SAE-rows per second"
    waited = ""
    if status.get("busy_s"):
        waited = f"{100 * status.get('stall_s', 0) / status['busy_s']:.2f}% of the time"
    state = status.get("status", "")
    return [
        ("status", "" if state == "finished" else state),
        ("took", span(seconds) if seconds else ""),
        ("speed", speed),
        ("waited for data", waited),
        ("on", _machine(status)),
        ("memory", _memory(status.get("peak_bytes"))),
        ("versions", ", ".join(f"{k} {v}" for k, v in status.get("versions", {}).items())),
    ]


def _troubles(table: pd.DataFrame) -> list[Fact]:
    frozen = table[table["status"].str.startswith("frozen")]
    flagged = table[table["flags"] != ""] if "flags" in table else table[:0]
    told = "none" if frozen.empty else f"{len(frozen)}: {_some(frozen['name'])}"
    return [
        ("frozen, not finite", told),
        ("flagged", _by_flag(flagged)),
    ]


def _by_flag(flagged: pd.DataFrame) -> str:
    """How many members have each flag."""
    if flagged.empty:
        return "none"
    counts = flagged["flags"].str.split(", ").explode().value_counts()
    return ", ".join(f"{count} {flag}" for flag, count in counts.items())


def _some(names: pd.Series, most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def span(seconds: float) -> str:
    """`4 min 12 s`, `3 h 20 min`, `42 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def _machine(status: dict[str, Any]) -> str:
    devices = ", ".join(status.get("devices", []))
    return " ".join(part for part in (status.get("hardware"), devices and f"({devices})") if part)


def _memory(peaks: Any) -> str:
    if not peaks:
        return ""
    return ", ".join(f"{name} {value / 2**30:.1f} GiB" for name, value in peaks.items())
