"""Language models to harvest from: load one by name, list its hooks, run it up to a hook.

Every model goes one way, through transformer-lens' bridge over transformers' own implementation:
the embedded model, a local folder, or any name that the Hugging Face hub knows. Activations equal
those of transformers (no weights are folded or centred).
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ensemble_sae.errors import UserError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "embedded"

# "owner/model" or "model", as the hub spells names; anything else can only be a path.
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def load_model(
    name: str, device: str | torch.device = "cpu", dtype: torch.dtype | str = torch.float32
) -> TransformerBridge:
    """Load a language model, ready to run (in evaluation mode), with its tokenizer.

    The bridge carries what callers need to know: `.tokenizer`, `.cfg.d_vocab`, `.cfg.n_ctx`,
    `.cfg.n_layers`, `.cfg.d_model`.

    Args:
        name: "embedded" (ships with the package), a folder in Hugging Face format, or a name on
            the Hugging Face hub such as "EleutherAI/pythia-70m-deduped".
        device: where the weights go, such as "cpu" or "cuda:1".
        dtype: of weights and activations; "float32" is understood as `torch.float32`.

    Raises:
        UserError: no such folder, not a model folder, a name that cannot be fetched, damaged
            files, or a device that is not there.
    """
    target = checked_device(device)
    source = str(EMBEDDED_FOLDER) if name == EMBEDDED else _checked_source(name)
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype)
    with _quiet():
        from safetensors import SafetensorError
        from transformer_lens.model_bridge import TransformerBridge

        try:
            bridge = TransformerBridge.boot_transformers(source, device=target, dtype=dtype)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise _not_loaded(name, error) from error
    return bridge.eval()


def checked_device(device: str | torch.device) -> torch.device:
    """Parse a device for a language model and see that it is there; "auto": a GPU if there is one.

    Raises:
        UserError: it is not; those that are there are listed.
    """
    count = torch.cuda.device_count()
    if device == "auto":
        device = "cuda" if count else "cpu"
    try:
        target = torch.device(device)
    except RuntimeError:
        target = None
    if target is None or (target.type == "cuda" and (target.index or 0) >= count):
        raise UserError(
            "The device for the language model is not there.",
            found=str(device),
            allowed=", ".join(["cpu", *(f"cuda:{i}" for i in range(count))]),
        )
    return target


def _checked_source(name: str) -> str:
    """Tell a folder from a name on the hub, and see that a folder holds a model."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(
                "The folder holds no language model: it has no config.json.",
                where=str(folder),
                found=", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "an empty folder",
                allowed="a Hugging Face folder: config.json, *.safetensors, tokenizer.json",
                next_step="write one with model.save_pretrained(folder) and "
                "tokenizer.save_pretrained(folder)",
            )
        return str(folder)
    if folder.is_file() or not _HUB_NAME.fullmatch(name):
        raise UserError(
            "The language model is neither an existing folder nor a name on the Hugging Face hub.",
            found=repr(name),
            allowed=f'"{EMBEDDED}", a folder, or a name such as "EleutherAI/pythia-70m-deduped"',
        )
    return name


def _not_loaded(name: str, error: Exception) -> UserError:
    """Say why a model did not load, and what to give instead."""
    local = name == EMBEDDED or Path(name).expanduser().is_dir()
    if local:
        what = "The language model's folder could not be loaded."
        step = "see that the folder's files are complete and of one model"
    else:
        what = (
            "The language model is not on this machine and could not be fetched "
            "from the Hugging Face hub."
        )
        step = (
            "check the name; without network, fetch it where there is some "
            f"(`hf download {name} --local-dir FOLDER`) and give that FOLDER as the model, "
            f'or use "{EMBEDDED}"'
        )
        if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}:
            what += " HF_HUB_OFFLINE forbids to try."
    found = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(what, where=f"model: {name}", found=found, next_step=step)


def hook_names(bridge: TransformerBridge) -> list[str]:
    """List the model's hooks, aliases such as `blocks.2.hook_resid_pre` included, in order."""
    return list(bridge.hook_dict)


def check_hooks(bridge: TransformerBridge, hooks: Sequence[str]) -> None:
    """See that the model has every one of the hooks.

    Raises:
        UserError: there is none of that name; the closest ones are listed.
    """
    known = hook_names(bridge)
    for hook in hooks:
        if hook in known:
            continue
        # Of a block that does not exist, show the hook in one that does.
        layers = bridge.cfg.n_layers
        inside = re.sub(r"^blocks\.\d+\.", f"blocks.{layers - 1}.", hook)
        close = [inside] if inside in known else difflib.get_close_matches(hook, known, n=4)
        close = close or [name for name in known if hook in name][:4]
        raise UserError(
            "The language model has no such hook.",
            where=f"hooks: {hook}",
            found=f"a model of {layers} blocks, blocks.0 to blocks.{layers - 1}",
            allowed="the closest are " + ", ".join(close) if close else _examples(known),
        )


def _examples(known: Sequence[str]) -> str:
    last = max((h for h in known if h.endswith("hook_resid_post")), default=known[-1])
    return f"names such as {last}; {len(known)} in all"


def check_length(bridge: TransformerBridge, tokens: Tensor) -> None:
    """See that the model can read contexts `[B, T]` of this length.

    Raises:
        UserError: they are longer than the model's.
    """
    if tokens.shape[1] > bridge.cfg.n_ctx:
        raise UserError(
            "The contexts are longer than the language model's.",
            found=f"{tokens.shape[1]} tokens",
            allowed=f"up to {bridge.cfg.n_ctx}",
        )


class _AllSeen(Exception):
    """Ends a forward pass: every wanted hook has fired."""


@torch.no_grad()
def run_hooks(bridge: TransformerBridge, tokens: Tensor, hooks: Sequence[str]) -> dict[str, Tensor]:
    """Run the model on tokens and return the named hooks' values, in the order of `hooks`.

    No gradients. The forward ends where the last of the hooks has fired: what lies behind it in
    the model is not computed. Only the named hooks are kept, no aliases beside them.

    Args:
        bridge: from `load_model`.
        tokens: `[batch, context]`, ids; moved to the model's device. Used as they are: nothing is
            put in front.
        hooks: names of hooks, each once.

    Returns:
        Per hook the value, `[batch, context, d]` for residual streams and layer outputs (a few
        hooks, such as attention patterns, have other shapes), on the model's device.

    Raises:
        UserError: an unknown hook, one that this model never reaches, or contexts longer than
            the model's.
    """
    check_hooks(bridge, hooks)
    check_length(bridge, tokens)
    seen: dict[str, Tensor] = {}
    fwd_hooks = [(hook, _keep(hook, seen, len(hooks))) for hook in hooks]
    with contextlib.suppress(_AllSeen):
        run_with(bridge, tokens, fwd_hooks)
    if missing := [hook for hook in hooks if hook not in seen]:
        raise UserError(
            "The language model's forward pass never reaches this hook.",
            where=f"hooks: {missing[0]}",
            next_step="choose another, such as blocks.0.hook_resid_post",
        )
    return {hook: seen[hook] for hook in hooks}


def run_with(
    bridge: TransformerBridge,
    tokens: Tensor,
    hooks: Sequence[tuple[str, Callable[..., Any]]],
    return_type: str | None = None,
) -> Any:
    """Run the model on tokens `[B, T]` with functions `(value, hook) -> value or None` at hooks.

    Args:
        return_type: "logits" for `[B, T, d_vocab]`; None for nothing.

    Raises:
        UserError: a hook that is switched off in this model.
    """
    given: list[Any] = list(hooks)
    try:
        with _no_padding():
            return bridge.run_with_hooks(
                tokens.to(bridge.cfg.device),
                return_type=return_type,
                fwd_hooks=given,
                use_cache=False,  # of keys and values: there is no next token
            )
    except ValueError as error:
        if not str(error).startswith("Cannot add hook"):
            raise
        raise UserError("The hook is switched off in this model.", found=str(error)) from error


def value_of(hooked: Any) -> Tensor:
    """A hook's value: the first, of those that give several."""
    value: Tensor = hooked[0] if isinstance(hooked, tuple) else hooked
    return value


def _keep(name: str, seen: dict[str, Tensor], wanted: int) -> Callable[..., None]:
    """Return the function that notes a hook's value, and ends the forward after the last one."""

    def keep(value: Any, hook: Any) -> None:
        seen.setdefault(name, value_of(value))
        if len(seen) == wanted:
            raise _AllSeen

    return keep


@contextlib.contextmanager
def _no_padding() -> Iterator[None]:
    """Hush the advice to mask padding: contexts begin with BOS, which many models pad with."""
    logger = logging.getLogger("transformers.modeling_utils")
    advice = _Advice()  # one for each forward: forwards of several threads do not meet
    logger.addFilter(advice)
    try:
        yield
    finally:
        logger.removeFilter(advice)


class _Advice(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line of the log is passed on."""
        return "passing in an `attention_mask`" not in str(record.msg)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hush what the libraries print while they import and load; errors still come through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.utils import logging

        level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()
