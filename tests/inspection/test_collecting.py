"""What the collector keeps, against sorting everything by hand."""

from __future__ import annotations

import pytest
import torch

from ensemble_sae.inspection.collecting import Collector

F, W, N = 150, 8, 6


@pytest.fixture
def seen() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, codes (feature 3 is rare, 4 silent, 5 dense and signed), what is read."""
    draw = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 50, (F, W), generator=draw)
    code = torch.relu(torch.randn(F, W, N, generator=draw) - 1.2)
    code[..., 3] *= torch.rand(F, W, generator=draw) < 0.02
    code[..., 4] = 0
    code[..., 5] = torch.randn(F, W, generator=draw)
    read = torch.ones(F, W, dtype=torch.bool)
    read[:, 0] = False
    return tokens, code, read


def collected(seen, size: int, **counts: int) -> Collector:
    tokens, code, read = seen
    collector = Collector(tokens, N, **counts)
    for start in range(0, F, size):
        part = slice(start, start + size)
        collector.add(start, code[part], read[part])
    return collector


@pytest.mark.parametrize("size", [7, 32, F])
def test_top_fragments_are_those_with_the_largest_activations(seen, size: int) -> None:
    tokens, code, read = seen
    top = collected(seen, size, top=5).examples().top
    code = code * read[..., None]
    for feature in range(N):
        largest = code[..., feature].amax(1)
        order = sorted(range(F), key=lambda i: (-float(largest[i]), i))
        expected = [i for i in order if largest[i] > 0][:5]
        found = top.fragments[feature].tolist()
        assert found == expected + [-1] * (5 - len(expected))
        for place, fragment in enumerate(expected):
            torch.testing.assert_close(top.tokens[feature, place].long(), tokens[fragment])
            own = code[fragment, :, feature]
            torch.testing.assert_close(top.activations[feature, place], own, rtol=0, atol=0)
    assert (top.activations[4] == 0).all()
    assert (top.tokens[4] == 0).all()


def test_other_examples_are_fragments_as_they_are(seen) -> None:
    tokens, code, read = seen
    examples = collected(seen, 32, top=5, spread=6, random=4).examples()
    code = code * read[..., None]
    for kind in (examples.spread, examples.random):
        for feature in range(N):
            for place, fragment in enumerate(kind.fragments[feature].tolist()):
                if fragment >= 0:
                    own = code[fragment, :, feature]
                    assert torch.equal(kind.activations[feature, place], own)
                    assert torch.equal(kind.tokens[feature, place].long(), tokens[fragment])
    assert (examples.random.fragments >= 0).all()
    for feature in range(N):
        drawn = examples.random.fragments[feature].tolist()
        assert len(set(drawn)) == 4


def test_spread_goes_from_weak_to_strong_and_shows_only_where_it_fires(seen) -> None:
    examples = collected(seen, 32, spread=6).examples()
    spread, drawn = examples.spread, examples.drawn
    for feature in (0, 1, 2):
        strength = spread.activations[feature].gather(1, drawn[feature, :, None])[:, 0]
        assert (spread.fragments[feature] >= 0).all()
        assert (strength > 0).all()
        assert (strength.diff() >= 0).all()
    assert (spread.fragments[4] == -1).all()


def test_spread_shows_weak_activations_beside_strong_ones() -> None:
    """Nearly all activations are weak, but every fragment has a strong one, too."""
    code = torch.full((400, 16, 1), 0.1)
    code[:, 5, 0] = 10.0
    collector = Collector(torch.ones(400, 16), 1, spread=10)
    collector.add(0, code, torch.ones(400, 16, dtype=torch.bool))
    examples = collector.examples()
    drawn = examples.spread.activations[0].gather(1, examples.drawn[0, :, None])[:, 0]
    assert (drawn == 0.1).sum() >= 7


def test_spread_is_a_fair_sample_of_all_occurrences() -> None:
    """Of two kinds of fragments that are equally many, both are drawn, not the strong ones."""
    fragments = 4_000
    code = torch.zeros(fragments, W, 1)
    code[::2, 3, 0] = 1.0
    code[1::2, 3, 0] = 10.0
    collector = Collector(torch.ones(fragments, W), 1, spread=10)
    for start in range(0, fragments, 500):
        part = code[start : start + 500]
        collector.add(start, part, torch.ones(part.shape[:2], dtype=torch.bool))
    drawn = collector._drawn.fragments[0]
    strong = int((drawn % 2 == 1).sum())
    assert len(drawn.unique()) == 40
    assert 8 <= strong <= 32  # 40 draws of a fair coin are outside once in 100,000
    assert drawn.min() < fragments / 4 < 3 * fragments / 4 < drawn.max()


def test_moments(seen) -> None:
    _, code, read = seen
    collector = collected(seen, 32)
    rows = code[read].double()
    fired = (rows != 0).sum(0)
    assert collector.rows == len(rows)
    torch.testing.assert_close(
        collector.density.double(), fired.double() / len(rows), rtol=1e-6, atol=0
    )
    mean = rows.sum(0) / fired.clamp_min(1)
    torch.testing.assert_close(collector.strength.double(), mean, rtol=1e-5, atol=1e-7)
    expected = rows.amax(0).clamp_min(0).float()
    torch.testing.assert_close(collector.largest, expected, rtol=0, atol=0)


def test_cutting_into_batches_changes_no_moment_and_no_top(seen) -> None:
    one, other = (collected(seen, size).examples() for size in (11, F))
    assert torch.equal(one.top.fragments, other.top.fragments)
    assert torch.equal(one.random.activations, other.random.activations)
