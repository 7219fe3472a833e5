"""Tokenizer, streams, batches, and the counting baselines."""

import math

import pytest
import torch

from ensemble_sae.lm.ngram import Bigram, tune_weight
from ensemble_sae.lm.training_data import (
    END_OF_TEXT,
    batch_rows,
    encode_stream,
    token_bytes,
    train_tokenizer,
    windows,
)

TEXTS = ["def f(x):\n    return x\n", "class A:\n    def f(self):\n        return 1\n"] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


def test_special_token_is_id_0_and_its_spelling_inside_a_text_is_text(tokenizer):
    stream = encode_stream(tokenizer, [f"a {END_OF_TEXT} b", "c"])
    assert (stream == 0).nonzero().flatten().tolist()[0] == 0
    assert (stream == 0).sum() == 2


def test_bytes_of_tokens_add_up(tokenizer):
    texts = ["naïve ☃ code\n", "x = '\U0001f600'\n"]
    stream = encode_stream(tokenizer, texts)
    assert token_bytes(tokenizer)[stream].sum() == sum(len(text.encode()) for text in texts)


def test_seed_shuffles_documents_only(tokenizer):
    plain, shuffled = encode_stream(tokenizer, TEXTS), encode_stream(tokenizer, TEXTS, seed=1)
    assert not torch.equal(plain, shuffled)
    assert torch.equal(plain.sort().values, shuffled.sort().values)
    assert torch.equal(shuffled, encode_stream(tokenizer, TEXTS, seed=1))


def test_windows_predict_each_token_once():
    rows = windows(torch.arange(20), 6)
    assert rows.shape == (3, 7)
    assert rows[:, 1:].flatten().tolist() == list(range(1, 19))
    assert torch.equal(rows[:, :-1] + 1, rows[:, 1:])


def test_an_epoch_visits_every_row_once_and_the_next_differs():
    stream, context, batch = torch.arange(1000), 10, 4
    per_epoch = (1000 - 1 - context) // context // batch
    epoch = torch.cat([batch_rows(stream, context, batch, i, 7) for i in range(per_epoch)])
    assert len(epoch[:, 0].unique()) == len(epoch) == per_epoch * batch
    assert torch.equal(batch_rows(stream, context, batch, 3, 7), epoch[12:16])
    assert not torch.equal(batch_rows(stream, context, batch, per_epoch, 7), epoch[:4])


def test_bigram_against_counts_by_hand():
    stream = torch.tensor([0, 1, 0, 1, 0, 2])
    counts = Bigram(stream, 3)
    unigram = [4 / 9, 3 / 9, 2 / 9]
    assert counts.unigram_nats(torch.tensor([1])) == pytest.approx(-math.log(unigram[1]))
    # after 0: 1 twice, 2 once; weight 3
    expected = (2 + 3 * unigram[1]) / (3 + 3)
    nats = counts.nats(torch.tensor([0]), torch.tensor([1]), 3.0)
    assert nats == pytest.approx(-math.log(expected))
    rows = torch.stack(
        [counts.nats(torch.tensor(0), torch.tensor(t), 3.0) * torch.ones(()) for t in range(3)]
    )
    assert (-rows).exp().sum().item() == pytest.approx(1.0)


def test_weight_is_small_where_pairs_repeat_and_large_where_they_do_not():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(50, (5000,), generator=generator)
    assert tune_weight(torch.arange(5000) % 50, 50) < 1 < 100 < tune_weight(noise, 50)
