"""What is installed here, what it computes with, and what there is to train on."""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensemble_sae.config import builtin
from ensemble_sae.data.disk import human_bytes
from ensemble_sae.data.location import data_dir as default_data_dir
from ensemble_sae.data.store import ChunkStore
from ensemble_sae.dispatch.devices import choose, hardware
from ensemble_sae.engine.resume import versions
from ensemble_sae.errors import UserError
from ensemble_sae.terminal import spelled

MORE = ("transformers", "transformer-lens", "pandas", "wandb", "numba", "triton", "matplotlib")
HEADS: dict[builtin.Kind, str] = {"sweeps": "sweeps", "activations": "recipes of rows"}


def of_installation(data_dir: Path | None) -> dict[str, Any]:
    """Versions, devices that a sweep would take, kernels, stores, and what ships, as JSON has it.

    Args:
        data_dir: the data folder; default `$ENSEMBLE_SAE_DATA`, or `./data`.
    """
    folder = default_data_dir(data_dir)
    return {
        "versions": {**versions(), **{name: _version(name) for name in MORE}},
        "hardware": hardware(),
        "devices": [
            {"device": device.name, "memory": device.memory, "threads": device.threads}
            for device in choose(None, None)
        ],
        "kernels": _kernels(),
        "data": {"folder": folder, "stores": _stores(folder)},
        **{kind: {n: _about(kind, n) for n in builtin.names(kind)} for kind in HEADS},
    }


def show_installation(found: dict[str, Any], console: Console) -> None:
    """Print what `of_installation` found."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(", ".join(f"{name} {value or '-'}" for name, value in found["versions"].items()))
    say(f"\n{found['hardware']}; a sweep would train on:")
    for device in found["devices"]:
        threads = "1 thread" if device["threads"] == 1 else f"{device['threads']} threads"
        say(f"  {device['device']}: {human_bytes(device['memory'])} of memory, {threads}")
    say("\nSparse steps:")
    for kind, words in found["kernels"].items():
        say(f"  {kind}: {words}")
    stores = found["data"]["stores"]
    say(f"\nData folder {found['data']['folder']}: {len(stores) or 'no'} stores of rows")
    if stores:
        console.print(_table(stores))
    for kind, head in HEADS.items():
        console.print(f"\nBuilt-in {head}:", highlight=False)
        shown = Table.grid(padding=(0, 2, 0, 0))
        for name, about in found[kind].items():
            shown.add_row(f"  {name}", escape(about))
        console.print(shown)
    say(f"\nTo begin: {spelled('big_sweep')}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _kernels() -> dict[str, str]:
    """Who computes sparse steps on CPUs and on GPUs; as `kernels.choice` has it."""
    there = {name: importlib.util.find_spec(name) is not None for name in ("numba", "triton")}
    gpu = "loops of Triton" if there["triton"] else "none: dense ones (triton is not installed)"
    return {
        "cpu": "loops compiled by numba" if there["numba"] else "plain PyTorch (no numba: slower)",
        "cuda": gpu if torch.cuda.is_available() else "no CUDA device",
    }


def _stores(folder: Path) -> list[dict[str, Any]]:
    found = []
    for meta in sorted([*folder.glob("*/meta.json"), *folder.glob("*/*/meta.json")]):
        try:
            store = ChunkStore.open(meta.parent)
        except UserError:  # damaged, or of a newer version: it is told when it is used
            continue
        found.append(
            {
                "path": store.path,
                "hook": store.meta.source.hook,
                "rows": store.rows() + store.rows(held_out=True),
                "d_activation": store.d_activation,
                "dtype": store.meta.dtype,
                "bytes": sum(chunk.bytes for chunk in store.meta.chunks),
                "complete": store.meta.complete,
            }
        )
    return found


def _table(stores: list[dict[str, Any]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")
    for store in stores:
        rows = f"{store['rows']:,} rows{'' if store['complete'] else ' so far'}"
        size = f"{store['d_activation']} x {store['dtype']}, {human_bytes(store['bytes'])}"
        table.add_row(f"  {escape(str(store['path']))}", rows, size)
    return table


def _about(kind: builtin.Kind, name: str) -> str:
    """The first sentence of the comment that a file begins with."""
    words: list[str] = []
    for line in builtin.find(kind, name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words.append(line.lstrip("# "))
    return re.split(r"(?<=[.?])\s|:\s", " ".join(words), maxsplit=1)[0].rstrip(".:")
