"""What the harvest asks of a language model before it runs it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from ensemble_sae.errors import UserError

_BEGINNING = 1 << 20  # bytes of a weight file


def tokeniser(bridge: Any) -> tuple[Callable[[list[str]], list[list[int]]], int]:
    """A function texts -> tokens without special ones, and the token to begin a document with."""
    tokenizer = bridge.tokenizer
    bos = tokenizer.bos_token_id
    if bos is None:
        bos = tokenizer.eos_token_id
    if bos is None:
        raise UserError("The model's tokenizer has neither a BOS nor an EOS token.")

    def tokenise(texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        # A special token that is spelled out in a document is text, not a document's boundary.
        ids: list[list[int]] = tokenizer(
            texts, add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        return ids

    return tokenise, int(bos)


def hook_widths(bridge: Any, hooks: Sequence[str], context: int = 2) -> dict[str, int]:
    """Values per row of each hook, seen in the forward of a single context.

    Raises:
        UserError: an unknown hook; the context is too long for the model; or a hook's value is not
            one vector per token (an attention pattern, say).
    """
    from ensemble_sae.lm.load import run_hooks

    with torch.inference_mode():
        tokens = torch.zeros(1, context, dtype=torch.long)
        run = run_hooks(bridge, tokens, hooks)
    for hook, value in run.items():
        if value.ndim != 3 or value.shape[:2] != tokens.shape:
            raise UserError(
                "This hook does not give one vector per token.",
                where=f"hooks: {hook}",
                found=f"shape {list(value.shape)} for 1 context of {context} tokens",
                allowed=f"[1, {context}, d]",
            )
    return {hook: run[hook].shape[2] for hook in hooks}


def folder_fingerprint(model: str) -> str | None:
    """A short hash of a local model's weight files; None for a name on the hub.

    Read without loading the model, so that a complete store of older weights is noticed at once.
    The beginning of every file is enough: training changes all of a model.
    """
    from ensemble_sae.lm.load import EMBEDDED, EMBEDDED_FOLDER

    folder = EMBEDDED_FOLDER if model == EMBEDDED else Path(model).expanduser()
    files = sorted(path for path in folder.glob("*") if path.suffix in (".safetensors", ".bin"))
    if not files:
        return None
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        with open(path, "rb") as file:
            digest.update(f"{path.name}{path.stat().st_size}".encode() + file.read(_BEGINNING))
    return digest.hexdigest()


def fingerprint(bridge: Any) -> str:
    """A short hash of the weights: notices another model of the same name, not a few flipped bits.

    The first values of every tensor are enough for that, and cost nothing for a large model.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in sorted(bridge.named_parameters(), key=itemgetter(0)):
        first = weight.detach().flatten()[:64].float().cpu()
        digest.update(f"{name}{list(weight.shape)}".encode() + first.numpy().tobytes())
    return digest.hexdigest()
