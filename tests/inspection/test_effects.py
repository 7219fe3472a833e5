"""Effects of features against forwards that are written out by hand on transformers' own model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ensemble_sae
from ensemble_sae.inspection import effects
from ensemble_sae.inspection.collecting import Collector
from ensemble_sae.inspection.directions import directions
from ensemble_sae.inspection.examples import Examples
from ensemble_sae.lm.load import EMBEDDED_FOLDER, run_hooks

POINT = "blocks.2.hook_resid_pre"
WIDTH = 16


@pytest.fixture(scope="module")
def sae(trained: Path):
    return ensemble_sae.load(trained).sae(1)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 4096, (12, WIDTH), generator=draw)
    tokens[:, 0] = 0
    return tokens


@pytest.fixture(scope="module")
def examples(bridge, sae, tokens: torch.Tensor) -> Examples:
    code = sae.encode(run_hooks(bridge, tokens, [POINT])[POINT])
    collector = Collector(tokens, sae.config.n_dict, top=3, spread=2, random=3)
    read = torch.ones_like(tokens, dtype=torch.bool)
    read[:, 0] = False
    collector.add(0, code, read)
    return collector.examples()


class ByHand:
    """transformers' GPT-2; the second block's output is what the third one reads."""

    def __init__(self) -> None:
        from transformers import GPT2LMHeadModel

        self.model = GPT2LMHeadModel.from_pretrained(EMBEDDED_FOLDER).eval()

    @torch.no_grad()
    def log_probabilities(self, tokens: torch.Tensor, change=lambda x: x) -> torch.Tensor:
        """`[T, V]` of one context, with the stream before block 2 changed."""
        block = self.model.transformer.h[2]
        handle = block.register_forward_pre_hook(lambda m, args: (change(args[0]), *args[1:]))
        try:
            logits = self.model(tokens[None], use_cache=False).logits[0]
        finally:
            handle.remove()
        return torch.log_softmax(logits.double(), -1)


@pytest.fixture(scope="module")
def by_hand() -> ByHand:
    return ByHand()


def test_ablation(bridge, sae, tokens, examples: Examples, by_hand: ByHand) -> None:
    v = directions(sae)
    found = effects.ablation(bridge, POINT, v, examples, fragments=3, k=4)
    alive = (examples.top.fragments[:, 0] >= 0).nonzero()[:, 0]
    assert len(alive) > 10
    for feature in alive[:5].tolist():
        deltas, divergences, changes = [], [], []
        for fragment in examples.top.fragments[feature].tolist():
            if fragment < 0:
                continue
            own = tokens[fragment]
            clean = by_hand.log_probabilities(own)
            code = sae.encode(run_hooks(bridge, own[None], [POINT])[POINT])[0, :, feature]
            code[0] = 0
            part = code[None, :, None] * v[feature]
            without = by_hand.log_probabilities(own, lambda x, part=part: x - part)
            for t in (code[:-1] != 0).nonzero()[:, 0].tolist():
                deltas.append(float(without[t, own[t + 1]] - clean[t, own[t + 1]]))
                divergences.append(float((clean[t].exp() * (clean[t] - without[t])).sum()))
                changes.append(without[t] - clean[t])
        assert float(found.effect[feature]) == pytest.approx(sum(deltas) / len(deltas), abs=1e-4)
        mean_kl = sum(divergences) / len(divergences)
        assert float(found.kl[feature]) == pytest.approx(mean_kl, abs=1e-4)
        mean = torch.stack(changes).mean(0)
        assert found.lowered[feature].tolist() == mean.topk(4, largest=False).indices.tolist()
        expected = mean.topk(4).values.float()
        torch.testing.assert_close(found.raised_by[feature], expected, rtol=1e-3, atol=1e-4)


def test_a_feature_that_never_fires_has_no_effect(bridge, sae, examples: Examples) -> None:
    silent = examples.top._replace(
        activations=torch.zeros_like(examples.top.activations),
        fragments=torch.full_like(examples.top.fragments, -1),
    )
    some = torch.arange(3)
    found = effects.ablation(
        bridge, POINT, directions(sae)[some], examples._replace(top=silent).of(some)
    )
    assert found.effect.isnan().all()
    assert found.kl.isnan().all()
    assert found.raised_by.isnan().all()


def test_chunks_do_not_matter(bridge, sae, examples, monkeypatch) -> None:
    v = directions(sae)
    whole = effects.ablation(bridge, POINT, v, examples)
    monkeypatch.setattr(effects, "LOGITS", 2**16)
    cut = effects.ablation(bridge, POINT, v, examples)
    torch.testing.assert_close(whole.effect, cut.effect, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_steering(bridge, sae, tokens, by_hand: ByHand) -> None:
    v, some = directions(sae), torch.tensor([2, 7, 11])
    strengths = torch.tensor([3.0, -2.0, 0.0])
    found = effects.steering(bridge, POINT, v[some], strengths, tokens[:2], k=3)
    for place, feature in enumerate(some.tolist()):
        changes, divergences = [], []
        for own in tokens[:2]:
            clean = by_hand.log_probabilities(own)
            added = strengths[place] * v[feature]
            steered = by_hand.log_probabilities(own, lambda x, added=added: x + added)
            changes.append((steered - clean)[:-1])
            divergences.append((clean.exp() * (clean - steered)).sum(-1)[:-1])
        mean = torch.cat(changes).mean(0)
        kl = float(torch.cat(divergences).mean())
        assert float(found.kl[place]) == pytest.approx(kl, abs=1e-4)
        expected = mean.topk(3).values.float()
        torch.testing.assert_close(found.raised_by[place], expected, rtol=1e-3, atol=1e-4)
    assert float(found.kl[2]) == pytest.approx(0, abs=1e-5)


def test_dropping(bridge, sae, tokens, examples: Examples) -> None:
    found = effects.dropping(bridge, sae, POINT, examples, before=4)
    alive = (examples.top.fragments[:, 0] >= 0).nonzero()[:, 0].tolist()
    checked = 0
    for feature in alive[:8]:
        own = tokens[examples.top.fragments[feature, 0]]
        code = examples.top.activations[feature, 0]
        peak = int(code.argmax())
        for back in range(1, 5):
            if peak - back < 1:
                assert found[feature, 4 - back] == 0
                continue
            shorter = torch.cat([own[: peak - back], own[peak - back + 1 : peak + 1]])
            row = run_hooks(bridge, shorter[None], [POINT])[POINT][0, -1]
            expected = float(sae.encode(row[None])[0, feature] / code[peak] - 1)
            assert float(found[feature, 4 - back]) == pytest.approx(expected, abs=1e-4)
            checked += 1
    assert checked > 10
