"""Tokenizer and token streams of the embedded model: documents in, contexts out."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ensemble_sae.lm.corpus import documents, is_held_out
from ensemble_sae.lm.ngram import Bigram, tune_weight

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Train a byte-level BPE with `vocabulary` entries; id 0 is `<|endoftext|>`.

    Byte-level: every text has an encoding and decoding gives it back exactly.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_bytes(tokenizer: Tokenizer) -> Tensor:
    """Bytes of text that each token stands for, int64 `[vocabulary]`; 0 for the special token.

    A byte-level token is spelled with one character per byte.
    """
    lengths = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.int64)
    for token, index in tokenizer.get_vocab().items():
        lengths[index] = 0 if token == END_OF_TEXT else len(token)
    return lengths


def encode_stream(tokenizer: Tokenizer, texts: Sequence[str], seed: int | None = None) -> Tensor:
    """Join the documents, each after a `<|endoftext|>`, into one stream of tokens, int64 `[T]`.

    Args:
        seed: shuffles the order of the documents; the given order when None.
    """
    order = list(range(len(texts)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    bos = tokenizer.get_vocab()[END_OF_TEXT]
    ids: list[int] = []
    # `<|endoftext|>` spelled out inside a document is text, not the end of the document.
    tokenizer.encode_special_tokens = True
    for encoding in tokenizer.encode_batch([texts[i] for i in order]):
        ids.append(bos)
        ids.extend(encoding.ids)
    return torch.tensor(ids)


def windows(stream: Tensor, context: int) -> Tensor:
    """Cut a stream into rows of `context` inputs and the token after, `[N, context + 1]`.

    Neighbouring rows share one token: row[:-1] are inputs, row[1:] targets, and every token of
    the stream but the first is a target once. The rest that fills no row is dropped.
    """
    return stream.unfold(0, context + 1, context)


def batch_rows(stream: Tensor, context: int, batch: int, step: int, seed: int) -> Tensor:
    """Draw batch number `step` of the endless seeded order, `[batch, context + 1]`.

    A pure function of its arguments, so that an interrupted run goes on where it stopped. Each
    epoch visits every row once, in a new order and cut at a new offset.
    """
    per_epoch = (len(stream) - 1 - context) // context // batch
    epoch, index = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    offset = int(torch.randint(context, (), generator=generator))
    rows = windows(stream[offset:], context)
    chosen = torch.randperm(len(rows), generator=generator)[index * batch : (index + 1) * batch]
    return rows[chosen]


@dataclass
class Data:
    """The corpus, tokenised."""

    tokenizer: Tokenizer
    train: Tensor  # [T], the training documents one after another
    held_out: Tensor  # [N, context + 1], rows of the held-out documents
    facts: dict[str, int]  # counts of documents, bytes and tokens
    baselines: dict[str, float]  # held-out cross-entropies of counting alone, nats per token


def prepare(vocabulary: int, context: int, seed: int) -> Data:
    """Read the corpus (tests included, for more text), train the tokenizer, encode, count."""
    corpus = list(documents(tests=True))
    train = [text for name, text in corpus if not is_held_out(name)]
    held_out = [text for name, text in corpus if is_held_out(name)]
    tokenizer = train_tokenizer(train, vocabulary)
    stream = encode_stream(tokenizer, train, seed)
    rows = windows(encode_stream(tokenizer, held_out), context)
    inputs, targets = rows[:, :-1], rows[:, 1:]
    facts = {
        "documents": len(train),
        "bytes": sum(len(text.encode()) for text in train),
        "tokens": len(stream),
        "held_out_documents": len(held_out),
        "held_out_tokens": targets.numel(),
        "held_out_bytes": int(token_bytes(tokenizer)[targets].sum()),
    }
    counts, weight = Bigram(stream, vocabulary), tune_weight(stream, vocabulary)
    baselines = {
        "bigram": counts.nats(inputs, targets, weight),
        "unigram": counts.unigram_nats(targets),
    }
    return Data(tokenizer, stream, rows, facts, baselines)
