"""Draws are pure functions of their names."""

from __future__ import annotations

import torch

from ensemble_sae.randomness import generator, key, permutation


def test_a_key_is_fixed_for_ever() -> None:
    assert key(0, "init", "tied", 64, 128, 0) == 750290874291646025
    assert key(2**70, "", -1) == key(2**70, "", -1)


def test_every_part_of_the_name_counts() -> None:
    names = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", 0, 1), (0, "a", 1, 0)]
    names += [(0, "a", "01"), (0, "a", 10), (0, "a", "1", "0", ""), (0, "", "a")]
    keys = {key(*name) for name in names}
    assert len(keys) == len(names)
    assert all(0 <= k < 2**63 for k in keys)


def test_streams_have_no_state() -> None:
    first = torch.randn(4, generator=generator(3, "rows", 1))
    torch.manual_seed(99)
    generator(3, "rows", 2)
    assert torch.equal(torch.randn(4, generator=generator(3, "rows", 1)), first)
    assert not torch.equal(torch.randn(4, generator=generator(3, "rows", 2)), first)


def test_permutations_are_permutations() -> None:
    order = permutation(1000, 0, "rows", 5)
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert torch.equal(order, permutation(1000, 0, "rows", 5))
    assert not torch.equal(order, permutation(1000, 0, "rows", 6))
    assert permutation(0, 0, "rows").tolist() == []
