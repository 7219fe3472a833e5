"""The embedded model's shape, optimisers and training step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ensemble_sae.lm.head_loss import HeadLoss
from ensemble_sae.lm.muon import Muon

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

VOCABULARY, CONTEXT = 4096, 256
WARM_UP = 0.01  # of the run; then a cosine down to 0
CLIP = 1.0  # largest norm of the whole gradient


def build_model(seed: int) -> GPT2LMHeadModel:
    """Make the untrained model: 4 layers, width 128, 4 heads, 1.35 million parameters."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=4,
        n_head=4,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own GELU, as one fused operation
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return GPT2LMHeadModel(config)


def build_optimizers(
    model: GPT2LMHeadModel, lr: float, lr_rest: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, norms and biases."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and ".h." in name]
    rest = [p for name, p in named if not (p.ndim == 2 and ".h." in name)]
    optimizers = [
        Muon(matrices, lr=lr, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=lr_rest, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def schedule(fraction: float) -> float:
    """Return the learning rate, as a share of its peak, when `fraction` of the run is done."""
    if fraction < WARM_UP:
        return (fraction + 1e-3) / (WARM_UP + 1e-3)
    return 0.5 + 0.5 * math.cos(math.pi * (fraction - WARM_UP) / (1 - WARM_UP))


def train_step(
    model: GPT2LMHeadModel, optimizers: Sequence[torch.optim.Optimizer], rows: Tensor, rate: float
) -> float:
    """Take one step on `[batch, CONTEXT + 1]` tokens; return the loss before it, nats per token."""
    hidden = model.transformer(rows[:, :-1], use_cache=False).last_hidden_state
    loss = HeadLoss.apply(hidden.flatten(0, 1), model.lm_head.weight, rows[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["peak"]
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


@torch.no_grad()
def cross_entropy(model: GPT2LMHeadModel, rows: Tensor) -> float:
    """Mean loss over rows `[N, CONTEXT + 1]`, nats per token."""
    total = 0.0
    for part in rows.split(16):
        logits = model(part[:, :-1], use_cache=False).logits.flatten(0, 1)
        targets = part[:, 1:].flatten()
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    return total / rows[:, 1:].numel()
