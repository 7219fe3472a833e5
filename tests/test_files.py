"""Files: complete or absent, and damage has a name."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
import torch

from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.files import (
    open_tensors,
    read_json,
    sha256,
    write_atomically,
    write_json,
    write_tensors,
)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})

    def fails(temporary: Path) -> None:
        temporary.write_text("half")
        assert path.is_file()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fails)
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_json_comes_back_and_never_holds_nan(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    value = {"x^": [1, 2.5, None, "é"], "nested": {"yes": True}}
    write_json(path, value)
    assert read_json(path) == value
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, math.nan)
    assert read_json(path) == value


def test_tensors_come_back(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {"view": whole.T, "half": whole.half(), "grad": whole.clone().requires_grad_()}
    write_tensors(path, tensors, {"made": "here"})
    file = open_tensors(path)
    assert file.metadata() == {"made": "here"}
    for name, tensor in tensors.items():
        assert torch.equal(file.get_tensor(name), tensor.detach())
        assert file.get_tensor(name).dtype == tensor.dtype


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\xff\xfe\x00", b"nonsense"])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match=r"not valid JSON.*\n.*file\.json"):
        read_json(path)


def test_every_truncation_of_a_tensor_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.ones(3), "b": torch.zeros(2, 2)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFile) as error:
            open_tensors(path)
        assert f"{length:,} bytes" in str(error.value)
        assert str(path) in str(error.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    for read in (read_json, open_tensors):
        with pytest.raises(UserError, match=r"missing.*\n.*nothing"):
            read(tmp_path / "nothing")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 1000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 1000).hexdigest()
