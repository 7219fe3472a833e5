"""What reading a dictionary of another package takes, whichever package it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ensemble_sae.errors import CorruptFile
from ensemble_sae.files import read_json
from ensemble_sae.interop.about import About
from ensemble_sae.run.sae import Sae
from ensemble_sae.sweep.member import Value


def config_of(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CorruptFile: something else. UserError: no such file.
    """
    found: Any = read_json(path)
    if not isinstance(found, dict):
        raise CorruptFile(
            "The description of a dictionary is damaged.",
            where=str(path),
            found=repr(found)[:80],
            allowed="a JSON object",
        )
    return found


def table_of(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A table inside it, empty where there is none."""
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def text_of(value: Any) -> str | None:
    """The value where it is a text that says something."""
    return value if isinstance(value, str) and value else None


def count_of(value: Any) -> int | None:
    """The value where it is a whole number."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def k_of(value: Any, where: Path) -> int:
    """The k of a top-k dictionary.

    Raises:
        CorruptFile: there is none.
    """
    if (k := count_of(value)) is None or k < 1:
        raise CorruptFile(
            "A top-k dictionary does not say its k.",
            where=f"{where}: k",
            found=repr(value),
            allowed="a whole number from 1 on",
        )
    return k


def tensor_of(file: Any, name: str, where: Path) -> Tensor:
    """A tensor of an open safetensors file, float32.

    Raises:
        CorruptFile: it is not there.
    """
    if name not in file.keys():  # noqa: SIM118
        raise CorruptFile(
            "A dictionary lacks a tensor.",
            where=str(where),
            found=", ".join(sorted(file.keys())),
            allowed=name,
        )
    tensor: Tensor = file.get_tensor(name)
    return tensor.float()


def loaded(read: Callable[[Path], tuple[Sae, About]], path: str | Path, form: str) -> Sae:
    """A dictionary in a folder, with what its files say of it in its configuration.

    Its name is the folder's, its hook the one that is said; `format`, `k`, `model`, `dataset` and
    `context` are among its hyper-parameters where they are known.

    Args:
        read: of a format's module.
        form: the format's name.

    Raises:
        UserError, CorruptFile: see `read`; or tensors of shapes that do not fit together.
    """
    folder = Path(path)
    try:
        sae, about = read(folder)
        n, d = sae.params["decoder"].shape
    except (RuntimeError, ValueError, IndexError) as error:
        raise _of_other_shapes(folder, str(error).splitlines()[0]) from None
    for name, tensor in sae.params.items():
        wanted = {"encoder": (n, d), "decoder": (n, d), "decoder_bias": (d,)}.get(name, (n,))
        if tensor.shape != wanted:
            raise _of_other_shapes(folder, f"{name} {list(tensor.shape)}, not {list(wanted)}")
    said = {
        "format": form,
        "k": int(sae.buffers["k"]) if "k" in sae.buffers else None,
        "model": about.model,
        "dataset": about.dataset,
        "context": about.context,
    }
    known: dict[str, Value] = {name: v for name, v in said.items() if v is not None}
    name = folder.resolve().name
    sae.config = replace(sae.config, name=name, hook=about.hook, hyperparameters=known)
    return sae


def _of_other_shapes(folder: Path, found: str) -> CorruptFile:
    return CorruptFile(
        "The tensors of a dictionary do not fit together.",
        where=str(folder),
        found=found,
        allowed="an encoder and a decoder of n features on rows of d values",
    )
