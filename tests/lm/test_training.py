"""The parts of the training step against their plain counterparts, and resuming."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from ensemble_sae.errors import UserError
from ensemble_sae.lm import train_embedded
from ensemble_sae.lm.gpt2 import VOCABULARY, schedule, train_step
from ensemble_sae.lm.head_loss import HeadLoss
from ensemble_sae.lm.muon import Muon, orthogonalise
from ensemble_sae.lm.training_data import Data, batch_rows

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_head_loss_is_cross_entropy_with_its_gradients():
    torch.manual_seed(0)
    x = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(30, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(30, (50,))
    plain = cross_entropy(x @ weight.T, targets)
    expected = torch.autograd.grad(3 * plain, (x, weight))
    loss = HeadLoss.apply(x, weight, targets, 16)  # 50 rows: the last block is short
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, (x, weight)), expected)


@pytest.mark.parametrize("shape", [(16, 64), (64, 16)])
def test_orthogonalise_keeps_directions_and_levels_singular_values(shape):
    torch.manual_seed(0)
    stack = torch.randn(3, *shape)
    result = orthogonalise(stack)
    u, _, vh = torch.linalg.svd(stack, full_matrices=False)
    assert torch.linalg.svdvals(result).aminmax().min > 0.6
    assert torch.linalg.svdvals(result).aminmax().max < 1.3
    core = u.mT @ result @ vh.mT  # diagonal where the singular vectors are kept
    assert (core - torch.diag_embed(core.diagonal(dim1=1, dim2=2))).abs().max() < 1e-3


def test_muon_steps_as_torchs_up_to_bfloat16():
    torch.manual_seed(0)
    starts = [torch.randn(16, 48), torch.randn(16, 48), torch.randn(32, 16)]
    ours = [w.clone().requires_grad_() for w in starts]
    theirs = [w.clone().requires_grad_() for w in starts]
    pair = (
        Muon(ours, lr=0.1, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in pair:
            optimizer.step()
    for a, b, start in zip(ours, theirs, starts, strict=True):
        moved, reference = (a - start).flatten(), (b - start).flatten()
        assert torch.cosine_similarity(moved, reference, dim=0) > 0.999
        assert (moved.norm() / reference.norm()).item() == pytest.approx(1, abs=0.02)


def test_schedule_warms_up_and_ends_at_zero():
    assert 0 < schedule(0.0) < 0.2
    assert schedule(0.01) == pytest.approx(1.0)
    assert schedule(0.505) == pytest.approx(0.5, abs=0.01)
    assert schedule(1.0) == pytest.approx(0.0, abs=1e-9)


def _steps(run, data, count):
    for _ in range(count):
        rows = batch_rows(data.train, 32, 2, run.progress.step, 0)
        train_step(run.model, run.optimizers, rows, 1.0)
        run.progress.step += 1


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path):
    generator = torch.Generator().manual_seed(0)
    stream = torch.randint(VOCABULARY, (5000,), generator=generator)
    data = Data(None, stream, stream[:0], {}, {})
    options = train_embedded.Options(Path("out"), tmp_path / "state", None, 10**6, batch=2)
    whole = train_embedded.start(data, options)
    _steps(whole, data, 4)
    first = train_embedded.start(data, options)
    _steps(first, data, 2)
    first.save(options.state)
    second = train_embedded.start(data, options)
    assert second.progress.step == 2
    _steps(second, data, 2)
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)

    data.train = stream.flip(0)
    with pytest.raises(UserError, match="of another run"):
        train_embedded.start(data, options)
