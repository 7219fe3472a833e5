"""Train the embedded language model: `python -m ensemble_sae.lm.train_embedded --out DIR`.

A 4-layer GPT-2 of 1.35 million parameters on the Python standard library. Seeded: with `--tokens`
the same interpreter and versions see the same batches and the same schedule. With `--minutes` the
schedule follows the clock, so that it ends when the time is up however busy the machine is.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ensemble_sae.errors import UserError
from ensemble_sae.files import read_json, write_atomically, write_json
from ensemble_sae.lm.gpt2 import (
    CONTEXT,
    VOCABULARY,
    build_model,
    build_optimizers,
    cross_entropy,
    schedule,
    train_step,
)
from ensemble_sae.lm.training_data import END_OF_TEXT, Data, batch_rows, prepare

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


@dataclass(frozen=True)
class Options:
    """One training run, as the command line gives it."""

    out: Path
    state: Path  # where an interrupted run goes on from
    minutes: float | None  # the budget: of training time ...
    tokens: int | None  # ... or of tokens
    batch: int = 16  # contexts per step
    lr: float = 0.01  # of Muon, for the matrices of the blocks
    lr_rest: float = 0.008  # of AdamW, for embeddings, norms and biases
    seed: int = 0
    save_minutes: float = 4.0  # between checkpoints

    def command(self) -> str:
        """Return the command that trains such a model again."""
        budget = f"--tokens {self.tokens}" if self.tokens else f"--minutes {self.minutes:g}"
        return (
            f"python -m ensemble_sae.lm.train_embedded --out DIR {budget} --batch {self.batch}"
            f" --lr {self.lr:g} --lr-rest {self.lr_rest:g} --seed {self.seed}"
        )


@dataclass
class Progress:
    """How far a run is; `seconds` is the time in the loop, also from before an interruption."""

    step: int = 0
    seconds: float = 0.0

    def fraction(self, options: Options) -> float:
        """Return the share of the budget that is used, 0 to 1."""
        if options.tokens is not None:
            return min(1.0, self.step * options.batch * CONTEXT / options.tokens)
        assert options.minutes is not None
        return min(1.0, self.seconds / (60 * options.minutes))


def save_folder(model: GPT2LMHeadModel, data: Data, out: Path, training: dict[str, Any]) -> None:
    """Write the Hugging Face folder; each file appears complete, by renaming.

    The folder is usable from the first checkpoint on: later ones replace the weights.
    """
    from transformers import PreTrainedTokenizerFast

    out.mkdir(parents=True, exist_ok=True)
    temporary = out / f".tmp-{os.getpid()}"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=data.tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        _name_tokenizer_class(temporary / "tokenizer_config.json")
        for path in sorted(temporary.iterdir()):
            path.chmod(0o644)
            os.replace(path, out / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    write_json(out / "training.json", training)


def _name_tokenizer_class(path: Path) -> None:
    """Name the tokenizer's class as every version of transformers knows it."""
    write_json(path, {**read_json(path), "tokenizer_class": "PreTrainedTokenizerFast"})


def measure(model: GPT2LMHeadModel, data: Data) -> dict[str, dict[str, float]]:
    """Cross-entropies on the held-out tokens: the model's, and of counting alone."""
    nats = {"model": cross_entropy(model, data.held_out), **data.baselines}
    per_byte = data.facts["held_out_tokens"] / data.facts["held_out_bytes"] / math.log(2)
    return {
        name: {"nats_per_token": round(value, 4), "bits_per_byte": round(value * per_byte, 4)}
        for name, value in nats.items()
    }


def report(
    model: GPT2LMHeadModel, data: Data, options: Options, progress: Progress
) -> dict[str, Any]:
    """Gather what training.json says: the run, the data, and the measured cross-entropies."""
    import tokenizers
    import transformers

    seen = progress.step * options.batch * CONTEXT
    return {
        "complete": progress.fraction(options) >= 1,
        "command": options.command(),
        "tokens_seen": seen,
        "epochs": round(seen / len(data.train), 3),
        "seconds": round(progress.seconds),
        "threads": torch.get_num_threads(),
        "steps": progress.step,
        "batch_contexts": options.batch,
        "context": CONTEXT,
        "lr_muon": options.lr,
        "lr_adamw": options.lr_rest,
        "seed": options.seed,
        "parameters": model.num_parameters(),
        "corpus": data.facts,
        "held_out": measure(model, data),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }


@dataclass
class Run:
    """Everything that moves during training, and how it is kept over an interruption."""

    model: GPT2LMHeadModel
    optimizers: list[torch.optim.Optimizer]
    progress: Progress
    fingerprint: str  # of the tokens, the batch size and the seed: what the batches are

    def save(self, path: Path) -> None:
        """Write all that an interrupted run needs to go on."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": asdict(self.progress),
            "fingerprint": self.fingerprint,
        }

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                torch.save(state, file)

        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)

    def resume(self, path: Path) -> None:
        """Go on from a state file, if there is one.

        Raises:
            UserError: it belongs to a run on other data, or with another batch size or seed.
        """
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        if state["fingerprint"] != self.fingerprint:
            raise UserError(
                "The state file is of another run: other tokens, batch size or seed.",
                where=str(path),
                next_step="remove it to begin anew, or give another --state",
            )
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.progress = Progress(**state["progress"])


def start(data: Data, options: Options) -> Run:
    """Begin a run, or go on with an interrupted one."""
    key = hashlib.sha256(data.train.numpy().tobytes())
    key.update(f"{options.batch} {options.seed}".encode())
    model = build_model(options.seed)
    optimizers = build_optimizers(model, options.lr, options.lr_rest)
    run = Run(model, optimizers, Progress(), key.hexdigest())
    run.resume(options.state)
    return run


def train(options: Options) -> None:
    """Train, or go on training; print a line every 50 steps."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    data = prepare(VOCABULARY, CONTEXT, options.seed)
    print(f"corpus: {data.facts}", flush=True)
    run = start(data, options)
    progress, average = run.progress, 0.0
    begun, saved = time.monotonic() - progress.seconds, time.monotonic()
    noted = Progress(progress.step, progress.seconds)
    while (fraction := progress.fraction(options)) < 1:
        rows = batch_rows(data.train, CONTEXT, options.batch, progress.step, options.seed)
        average += train_step(run.model, run.optimizers, rows, schedule(fraction))
        progress.step, progress.seconds = progress.step + 1, time.monotonic() - begun
        if progress.step % 50 == 0:
            steps, seconds = progress.step - noted.step, progress.seconds - noted.seconds
            speed = steps * options.batch * CONTEXT / seconds
            left = progress.seconds * (1 / progress.fraction(options) - 1) / 60
            print(
                f"step {progress.step}  loss {average / steps:.4f}  {speed:,.0f} tokens/s"
                f"  {100 * progress.fraction(options):.1f}% done  {left:.1f} min left",
                flush=True,
            )
            noted, average = Progress(progress.step, progress.seconds), 0.0
        if time.monotonic() - saved > 60 * options.save_minutes:
            run.save(options.state)
            save_folder(run.model, data, options.out, report(run.model, data, options, progress))
            saved = time.monotonic()
    final = report(run.model, data, options, progress)
    save_folder(run.model, data, options.out, final)
    options.state.unlink(missing_ok=True)
    print(f"held out: {final['held_out']}", flush=True)


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the Hugging Face folder to write")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="budget of training time")
    budget.add_argument("--tokens", type=int, help="budget of tokens")
    parser.add_argument("--state", type=Path, help="resume file (default: OUT with .state)")
    parser.add_argument("--batch", type=int, default=Options.batch, help="contexts per step")
    parser.add_argument("--lr", type=float, default=Options.lr, help="Muon's peak")
    parser.add_argument("--lr-rest", type=float, default=Options.lr_rest, help="AdamW's peak")
    parser.add_argument("--seed", type=int, default=Options.seed)
    parser.add_argument("--save-minutes", type=float, default=Options.save_minutes)
    given = vars(parser.parse_args(arguments))
    given["state"] = given["state"] or given["out"].with_name(given["out"].name + ".state")
    if (given["minutes"] or given["tokens"] or 0) <= 0:
        raise UserError("the budget must be positive", allowed="--minutes M or --tokens N, above 0")
    return Options(**given)


if __name__ == "__main__":
    try:
        train(parse())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to go on.", file=sys.stderr)
        sys.exit(130)
