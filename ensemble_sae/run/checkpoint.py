"""Checkpoints: complete or absent.

A checkpoint is written into a folder with a temporary name, one safetensors file per part (the
members of a group that one worker trains), then a manifest with every file's checksum; the folder
is renamed when all of it is on the disk. A reader never sees half of one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from torch import Tensor

from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.files import (
    TEMPORARY,
    open_tensors,
    sha256,
    sync_folder,
    write_json,
    write_tensors,
)
from ensemble_sae.run.layout import SCHEMA_VERSION, read_versioned
from ensemble_sae.signatures import Tensors

MANIFEST = "manifest.json"


@dataclass(frozen=True, order=True)
class Position:
    """The next batch to train on: `batch` of the chunk of `round`."""

    round: int = 0
    batch: int = 0


def _plain(file: str) -> str:
    if not file or file.startswith(".") or any(c in file for c in "/\\\0:"):
        raise ValueError("a plain file name inside the checkpoint's own folder")
    return file


@dataclass(frozen=True)
class Part:
    """One file of a checkpoint: some members of one group, in the order of axis 0."""

    file: Annotated[str, AfterValidator(_plain)]
    group: str
    members: Annotated[tuple[int, ...], Field(min_length=1)]
    step: int
    position: Position
    bytes: int
    sha256: str
    tensors: dict[str, str]  # name -> shape and dtype, as `_described` has them


def write_part(
    folder: Path, group: str, members: Iterable[int], state: Tensors, position: Position
) -> Part:
    """Write one part into a checkpoint that is being made."""
    members = tuple(members)
    file = f"{group}-m{members[0]}.safetensors"
    write_tensors(folder / file, state, {"format": "pt"})
    return Part(
        file=file,
        group=group,
        members=members,
        step=int(state["step"]),
        position=position,
        bytes=(folder / file).stat().st_size,
        sha256=sha256(folder / file),
        tensors=_described(open_tensors(folder / file)),
    )


def _described(file: Any) -> dict[str, str]:
    """Name -> `[3, 16, 8] F32` of every tensor in an open file; reads its header alone."""
    views = {name: file.get_slice(name) for name in sorted(file.keys())}
    return {name: f"{view.get_shape()} {view.get_dtype()}" for name, view in views.items()}


@dataclass(frozen=True)
class _Manifest:
    """What `manifest.json` must hold beside its schema version."""

    parts: Annotated[list[Part], Field(min_length=1)]
    notes: dict[str, Any]


class Checkpoint:
    """A complete checkpoint; tensors are mapped, one member at a time."""

    def __init__(self, folder: Path, parts: list[Part], notes: dict[str, Any]) -> None:
        self.folder, self.parts, self.notes = folder, parts, notes
        self._places = {m: (part, row) for part in parts for row, m in enumerate(part.members)}

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read a checkpoint's manifest.

        Raises:
            CorruptFile: the manifest is damaged or of a newer schema.
        """
        manifest: Any = read_versioned(folder / MANIFEST)
        try:
            found = TypeAdapter(_Manifest).validate_python(manifest)
        except ValidationError as error:
            problem = error.errors()[0]
            raise CorruptFile(
                "A checkpoint's manifest is damaged.",
                where=f"{folder / MANIFEST}: {'.'.join(map(str, problem['loc']))}",
                found=repr(problem["input"])[:80],
                allowed=problem["msg"].removeprefix("Value error, "),
            ) from None
        return cls(folder, found.parts, found.notes)

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.folder)!r}, {len(self._places)} members)"

    @property
    def step(self) -> int:
        """Updates made by the members that are furthest."""
        return max(part.step for part in self.parts)

    @property
    def position(self) -> Position:
        """Where the members that are furthest behind go on."""
        return min(part.position for part in self.parts)

    def part_of(self, member: int) -> Part:
        """The part that holds a member."""
        return self._places[member][0]

    def padded_to(self, member: int) -> int | None:
        """Features of a member's stack, where a mask says which of them are its own."""
        described = self.part_of(member).tensors.get("buffers/mask")  # `[members, n] F32`
        return int(described.split("]")[0].split(",")[1]) if described else None

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            CorruptFile: names the file, what was expected and what was found.
        """
        for part in self.parts:
            self._check_size(part)
            found = sha256(self.folder / part.file)
            if found != part.sha256:
                raise CorruptFile(
                    "A checkpoint file was altered.",
                    where=str(self.folder / part.file),
                    found=f"SHA-256 {found}",
                    allowed=f"SHA-256 {part.sha256}",
                )

    def member(self, member: int, prefix: str = "", device: str = "cpu") -> Tensors:
        """The tensors of one member whose names start with `prefix` (which is cut off).

        Only this member's rows are read from the mapped file.
        """
        if member not in self._places:
            raise CorruptFile(
                "A checkpoint lacks a member of its run.",
                where=str(self.folder / MANIFEST),
                found=f"no member {member}",
                allowed=f"{len(self._places)} members, {member} among them",
            )
        part, row = self._places[member]
        file = self._open(part, device)
        names = [name for name in part.tensors if name.startswith(prefix)]
        return {name.removeprefix(prefix): self._row(file, part, name, row) for name in names}

    def stacked(self, members: Iterable[int], missing: Tensors | None = None) -> Tensors:
        """The state of some members of one group, stacked in the order asked for.

        Args:
            missing: stacked in the same order: what a member has of tensors that its part lacks.
                Not every part of a group has the same ones: each keeps what its members need.
        """
        states = [self.member(member) for member in members]
        for name, values in (missing or {}).items():
            for state, value in zip(states, values, strict=True):
                state.setdefault(name, value.cpu())
        return {
            name: first if _shared(name) else torch.stack([state[name] for state in states])
            for name, first in states[0].items()
            if all(name in state for state in states)
        }

    def _row(self, file: Any, part: Part, name: str, row: int) -> Tensor:
        view = file.get_slice(name)
        shape = view.get_shape()
        if _shared(name):
            return file.get_tensor(name)
        if not shape or shape[0] != len(part.members):
            raise CorruptFile(
                "A checkpoint tensor has another number of members than its manifest.",
                where=f"{self.folder / part.file}: {name}",
                found=str(shape),
                allowed=f"{len(part.members)} on axis 0",
            )
        # A copy: a run that goes on may delete this checkpoint under the mapping.
        return view[row : row + 1][0].clone()

    def _open(self, part: Part, device: str = "cpu") -> Any:
        self._check_size(part)
        file = open_tensors(self.folder / part.file, device)
        there = _described(file)
        for name in sorted(there.keys() | part.tensors.keys()):
            if there.get(name) != part.tensors.get(name):
                raise CorruptFile(
                    "A checkpoint file does not hold what its manifest says.",
                    where=f"{self.folder / part.file}: {name}",
                    found=there.get(name, "no such tensor"),
                    allowed=part.tensors.get(name, "no such tensor"),
                )
        return file

    def _check_size(self, part: Part) -> None:
        path = self.folder / part.file
        found = f"{path.stat().st_size:,} bytes" if path.is_file() else "no such file"
        if found != f"{part.bytes:,} bytes":
            raise CorruptFile(
                "A checkpoint file is missing or of the wrong size.",
                where=str(path),
                found=found,
                allowed=f"{part.bytes:,} bytes",
            )


def _shared(name: str) -> bool:
    """Whether a tensor belongs to all members: the counts, which have no member axis."""
    return name in ("step", "optimiser/t") or name.startswith("optimiser/count/")


class Checkpoints:
    """The checkpoints of a run, oldest first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> list[Checkpoint]:
        """Every complete checkpoint."""
        folders = sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []
        return [Checkpoint.open(f) for f in folders if (f / MANIFEST).is_file()]

    def latest(self) -> Checkpoint | None:
        """The newest one that is whole; damaged ones are passed over (see `damaged`)."""
        self.damaged: list[UserError] = []
        folders = sorted(self.folder.glob("step-*"), reverse=True) if self.folder.is_dir() else []
        for folder in folders:
            try:
                checkpoint = Checkpoint.open(folder)
                checkpoint.verify()
                return checkpoint
            except UserError as error:
                self.damaged.append(error)
        return None

    def begin(self, number: int = 0) -> Path:
        """A new folder with a temporary name, to write parts into."""
        folder = self.folder / f"{TEMPORARY}{os.getpid()}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def commit(self, folder: Path, parts: list[Part], notes: dict[str, Any]) -> Checkpoint:
        """Write the manifest and give the folder its name."""
        parts = sorted(parts, key=lambda part: part.members[0])
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "parts": [asdict(part) for part in parts],
            "notes": notes,
        }
        write_json(folder / MANIFEST, manifest)
        keep = {MANIFEST, *(part.file for part in parts)}
        for leftover in folder.iterdir():  # of a worker that was killed while it wrote
            if leftover.name not in keep:
                leftover.unlink()
        final = self._free_name(max(part.step for part in parts))
        os.replace(folder, final)
        sync_folder(self.folder)
        return Checkpoint(final, parts, notes)

    def prune(self, keep: int) -> None:
        """Remove all but the `keep` newest."""
        for folder in sorted(self.folder.glob("step-*"))[:-keep]:
            hidden = folder.with_name(f"{TEMPORARY}{folder.name}")
            os.replace(folder, hidden)  # at once, so that nobody meets half of it
            shutil.rmtree(hidden)

    def clean(self, newest: Checkpoint | None) -> None:
        """Remove what an interrupted writer left behind, before going on from `newest`.

        Damaged checkpoints behind it are put aside: they must not count as the newest ones.
        """
        for folder in self.folder.glob(f"{TEMPORARY}*"):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in sorted(self.folder.glob("step-*")):
            if newest is None or folder.name > newest.folder.name:
                aside = folder.with_name(f"damaged-{folder.name}")
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(folder, aside)

    def _free_name(self, step: int) -> Path:
        """`step-0000001536`; an interruption may save the same step again: `...1536.001`."""
        name = f"step-{step:010d}"
        there = sorted(self.folder.glob(f"{name}*"))
        if not there:
            return self.folder / name
        again = int(there[-1].suffix.removeprefix(".") or 0) + 1
        return self.folder / f"{name}.{again:03d}"
