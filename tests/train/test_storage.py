"""An ensemble that was saved and loaded goes on bit for bit; damaged files are named."""

from __future__ import annotations

import json

import pytest
import torch

from ensemble_sae.errors import CorruptFile
from ensemble_sae.files import write_tensors
from ensemble_sae.signatures import BUILTIN, Tensors
from ensemble_sae.train import Dynamics, FunctionalEnsemble, Optimiser


def ensemble(signature, kind="adam", kernel="auto"):
    draw = torch.Generator().manual_seed(0)
    members = [signature.init(6, 9, generator=draw, l1=l1) for l1 in (0.0, 1e-2, 1e-1)]
    return FunctionalEnsemble.from_members(
        signature,
        members,
        lr=[1e-3, 1e-2, 3e-2],
        grad_clip=torch.tensor([1.0, float("inf"), 0.1]),
        optimiser=Optimiser(kind, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1, momentum=0.5),
        dynamics=[Dynamics(lr_warmup=7), Dynamics(l1_warmup=5), Dynamics(ema=0.9)],
        batch_size=16,
        kernel=kernel,
        seed=5,
        steps=40,
    )


@pytest.mark.parametrize("kernel", ["auto", "generic"])
@pytest.mark.parametrize("kind", ["adam", "adamw", "radam", "rmsprop", "sgd"])
def test_saved_and_loaded_goes_on_bit_for_bit(kind, kernel, tmp_path):
    draw = torch.Generator().manual_seed(1)
    batches = [torch.randn(16, 6, generator=draw) for _ in range(10)]
    first = ensemble(BUILTIN["affine"], kind, kernel)
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
    for name in ("optimiser", "dynamics", "batch_size", "kernel", "seed", "steps"):
        assert getattr(second, name) == getattr(first, name), name


class Own:
    """A signature that the package does not know by name."""

    @staticmethod
    def loss(params: Tensors, buffers: Tensors, batch: torch.Tensor):
        return (batch * params["w"] - batch).square().mean(), {}


def test_a_signature_of_ones_own_is_given_again(tmp_path):
    first = FunctionalEnsemble(Own, {"w": torch.zeros(2)}, {}, torch.tensor([0.1, 0.2]))
    first.step(torch.ones(3, 4))
    first.save(tmp_path / "e.safetensors")
    second = FunctionalEnsemble.load(tmp_path / "e.safetensors", signature=Own)
    assert torch.equal(second.params["w"], first.params["w"])


def test_a_file_that_holds_no_ensemble_is_named(tmp_path):
    path = tmp_path / "other.safetensors"
    write_tensors(path, {"a": torch.zeros(2)})
    with pytest.raises(CorruptFile, match="no ensemble") as error:
        FunctionalEnsemble.load(path)
    assert str(path) in str(error.value)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CorruptFile, match="truncated"):
        FunctionalEnsemble.load(path)


@pytest.mark.parametrize(("version", "word"), [(1, "older"), (99, "newer")])
def test_an_ensemble_of_another_schema_says_so(version, word, tmp_path):
    path = tmp_path / "e.safetensors"
    write_tensors(
        path, {"a": torch.zeros(2)}, {"ensemble": json.dumps({"schema_version": version})}
    )
    with pytest.raises(CorruptFile, match=f"{word} version"):
        FunctionalEnsemble.load(path)
