"""An ensemble that was saved and loaded goes on bit for bit; damaged files are named."""

from __future__ import annotations

import pytest
import torch

from ensemble_sae.errors import CorruptFile
from ensemble_sae.files import write_tensors
from ensemble_sae.signatures import BUILTIN
from ensemble_sae.train import Adam, FunctionalEnsemble, Schedule


def ensemble(signature):
    draw = torch.Generator().manual_seed(0)
    members = [signature.init(6, 9, generator=draw, l1=l1) for l1 in (0.0, 1e-2, 1e-1)]
    return FunctionalEnsemble.from_members(
        signature,
        members,
        lr=[1e-3, 1e-2, 3e-2],
        grad_clip=torch.tensor([1.0, float("inf"), 0.1]),
        optimiser=Adam((0.8, 0.99), 1e-6),
        schedule=Schedule(lr_warmup=7, l1_warmup=5),
        batch_size=16,
    )


@pytest.mark.parametrize("name", BUILTIN)
def test_saved_and_loaded_goes_on_bit_for_bit(name, tmp_path):
    draw = torch.Generator().manual_seed(1)
    batches = [torch.randn(16, 6, generator=draw) for _ in range(10)]
    first = ensemble(BUILTIN[name])
    for batch in batches[:4]:
        first.step(batch)
    first.save(tmp_path / "e.safetensors")
    second = FunctionalEnsemble.load(tmp_path / "e.safetensors")
    for batch in batches[4:]:
        first.step(batch)
        second.step(batch)
    one, other = first.state_dict(), second.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert second.step_count == 10


def test_a_file_that_holds_no_ensemble_is_named(tmp_path):
    path = tmp_path / "other.safetensors"
    write_tensors(path, {"a": torch.zeros(2)})
    with pytest.raises(CorruptFile, match="no ensemble") as error:
        FunctionalEnsemble.load(path)
    assert str(path) in str(error.value)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CorruptFile, match="truncated"):
        FunctionalEnsemble.load(path)
