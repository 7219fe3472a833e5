"""What is known to be true of synthetic rows: a file beside the description of their store."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ensemble_sae.errors import CorruptFile
from ensemble_sae.files import open_tensors

TRUTH = "truth.safetensors"


class Truth(NamedTuple):
    """The features that rows were made of.

    Attributes:
        atoms: unit rows `[G, d]` float32.
        frequency: share of the rows in which each is active, `[G]`; about that where features are
            active together.
    """

    atoms: Tensor
    frequency: Tensor


def read_truth(path: Path) -> Truth:
    """Read the file.

    Raises:
        CorruptFile: it is missing, cut off, or holds something else.
    """
    file = open_tensors(path)
    found = {name: list(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    atoms, often = found.get("atoms", []), found.get("frequency", [])
    dtypes = {file.get_slice(name).get_dtype() for name in found}
    if len(atoms) != 2 or often != atoms[:1] or dtypes != {"F32"}:
        raise CorruptFile(
            "A file of true features holds something else.",
            where=str(path),
            found=str(found),
            allowed="atoms [G, d] and frequency [G], float32",
        )
    return Truth(file.get_tensor("atoms").clone(), file.get_tensor("frequency").clone())
