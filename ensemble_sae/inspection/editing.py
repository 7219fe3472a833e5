"""Edit a model through an SAE: ablate, set or add features while it runs and generates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from operator import index
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ensemble_sae.errors import UserError
from ensemble_sae.inspection.directions import directions, hook_points
from ensemble_sae.lm.load import run_hooks
from ensemble_sae.run.sae import Sae

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Positions = slice | Sequence[int] | None


@contextmanager
def edited(
    bridge: TransformerBridge,
    sae: Sae,
    *,
    ablate: Iterable[int] = (),
    clamp: Mapping[int, float] | None = None,
    add: Mapping[int, float] | None = None,
    project_out: Iterable[int] = (),
    positions: Positions = None,
) -> Iterator[TransformerBridge]:
    """Inside the block, every forward of the model has some features of its SAE changed.

        x' = x + decode(c') - decode(c) = x + sum_f (c'_f - c_f) v_f,  c = encode(x)

    v_f as `directions` gives it. Only the difference is added: what the SAE does not explain of x
    stays, and where c' = c the row keeps its bits. A feature that is projected out loses all of
    x along v_f, be it of this feature, of others or of the mean: x' - P x', P the projection on
    the span of those directions. That comes last.

    Works for `bridge(...)`, `run_with_hooks`, `run_with_cache` and `generate`, with a cache of
    keys and values or without. What is at the hook is changed before the caller's own hooks at
    that point see it. Edits at several hooks nest; at one hook the inner one reads what the outer
    one wrote. The model is as before at the end of the block, also after an exception. No
    gradient flows through the code.

    Args:
        bridge: from `load_model`.
        sae: of a hook of this model. With a target, A -> B, the code is read at A, B is changed.
        ablate: features with c'_f = 0.
        clamp: feature -> c'_f, in the units of the code.
        add: feature -> what c'_f is above c_f.
        project_out: features whose direction is taken out of x.
        positions: the tokens to change, counted from the start of the context, a cached part
            and padding included: a slice or numbers, none below 0. All if None.

    Yields:
        The bridge.

    Raises:
        UserError: an unknown hook, one of another width than the SAE, one where an edit would
            not reach the residual stream, an SAE of several points, a feature that is not there
            or is edited twice, a value that is not finite, a negative position, an argument of
            another kind than asked for (a mask of bools is no list of features).
    """
    source, target = hook_points(sae)
    _check_hooks(bridge, sae, source, target)
    sae = sae.to(bridge.cfg.device)
    change = _Change(sae, ablate, clamp or {}, add or {}, project_out)
    editor = _Editor(sae, change, positions, apart=source != target)
    with ExitStack() as undo:
        if positions is not None:
            model = bridge.original_model
            handle = model.register_forward_pre_hook(editor.begin, with_kwargs=True)
            undo.callback(handle.remove)
        if source != target:
            _hook(bridge, source, editor.read, undo)
        _hook(bridge, target, editor.write, undo)
        yield bridge


class _Change:
    """What happens to rows, once the arguments are checked.

    The m edited features go from c_f to `factor * c_f + offset`, so that the row moves by
    ((factor - 1) c_f + offset) v_f.
    """

    def __init__(
        self,
        sae: Sae,
        ablate: Iterable[int],
        clamp: Mapping[int, float],
        add: Mapping[int, float],
        project_out: Iterable[int],
    ) -> None:
        n = sae.config.n_dict
        plan = [(f, 0.0, 0.0) for f in _features(ablate, n, "ablate")]
        plan += [(f, 0.0, value) for f, value in _values(clamp, n, "clamp")]
        plan += [(f, 1.0, value) for f, value in _values(add, n, "add")]
        _check_plan(plan)
        self.features = [feature for feature, _, _ in plan]
        self.vectors = directions(sae, self.features)
        self.factor = self.vectors.new_tensor([factor for _, factor, _ in plan])
        self.offset = self.vectors.new_tensor([offset for _, _, offset in plan])
        self.basis = _basis(directions(sae, _features(project_out, n, "project_out")))
        self.reads = bool((self.factor != 1).any())  # whether the code is needed

    def __call__(self, sae: Sae, rows: Tensor, read: Tensor) -> Tensor:
        """Rows `[..., d]` that are changed as the codes of `read` `[..., d_activation]` say."""
        changed = rows
        if self.features:
            moves = self.offset.expand(*rows.shape[:-1], -1)
            if self.reads:
                code = sae.encode(read.to(sae.device))[..., self.features]
                moves = moves + (self.factor - 1) * code
            changed = rows + (moves @ self.vectors).to(rows)
        if len(self.basis):
            basis = self.basis.to(changed)
            changed = changed - (changed @ basis.mT) @ basis
        return changed


class _Editor:
    """The functions that are hooked into the model, and what one forward tells the next hook."""

    def __init__(self, sae: Sae, change: _Change, positions: Positions, apart: bool) -> None:
        self.sae, self.change = sae, change
        self.apart = apart  # whether another hook is read than is written
        self.chosen = None if positions is None else _chosen(positions)
        self.before = 0  # tokens that a cache holds already
        self.seen: Tensor | None = None  # the value of the hook that is read, if it is another

    def begin(self, _model: Any, _args: Any, given: dict[str, Any]) -> None:
        """Note how many tokens come before those of this forward."""
        cache: Any = given.get("past_key_values")
        if cache is None and given.get("cache_params") is None:
            self.before = 0
        elif hasattr(cache, "get_seq_length"):
            self.before = int(cache.get_seq_length())
        else:
            raise UserError(
                "This model's cache does not tell how many tokens it holds.",
                next_step="edit all positions, or generate with use_past_kv_cache=False",
            )

    def read(self, value: Any, hook: Any) -> None:
        """Keep the value of the hook that the code is made of."""
        self.seen = _tensor(value)

    def write(self, value: Any, hook: Any) -> Any:
        """Return the changed value."""
        rows = _tensor(value)
        read, self.seen = (self.seen, None) if self.apart else (rows, None)
        if read is None:
            raise UserError(
                "The SAE reads a hook that this model reaches only after the one it writes.",
                where=f"member {self.sae.config.id}",
                found=self.sae.config.hook,
            )
        if self.chosen is None:
            changed = self.change(self.sae, rows, read)
        else:
            here = [i for i in range(rows.shape[1]) if self.chosen(self.before + i)]
            if not here:
                return None
            changed = rows.clone()
            changed[:, here] = self.change(self.sae, rows[:, here], read[:, here])
        return (changed, *value[1:]) if isinstance(value, tuple) else changed


def _tensor(value: Any) -> Tensor:
    found: Tensor = value[0] if isinstance(value, tuple) else value
    return found


def _hook(
    bridge: TransformerBridge, name: str, function: Callable[..., Any], undo: ExitStack
) -> None:
    """Hook a function in so that calls that clear their own hooks leave it there."""
    point = bridge.hook_dict[name]
    handle = point.add_hook(function, is_permanent=True)

    def remove() -> None:
        handle.hook.remove()
        point.fwd_hooks = [other for other in point.fwd_hooks if other is not handle]

    undo.callback(remove)


def _check_hooks(bridge: TransformerBridge, sae: Sae, source: str, target: str) -> None:
    """See that the model has the hooks, in this order, with the SAE's widths."""
    if target.endswith("hook_resid_mid"):
        raise UserError(
            "An edit at this hook point would change what the MLP reads, and not the residual "
            "stream beside it.",
            where=target,
            next_step="use an SAE at hook_attn_out, hook_resid_pre or hook_resid_post",
        )
    tokens = torch.zeros(1, 1, dtype=torch.long)
    values = run_hooks(bridge, tokens, list(dict.fromkeys([source, target])))
    for hook, width in ((target, sae.config.d_target), (source, sae.config.d_activation)):
        shape, width = list(values[hook].shape), width or sae.config.d_activation
        if shape != [1, 1, width]:
            is_row = len(shape) == 3
            raise UserError(
                "The SAE is of another width than the hook.",
                where=f"member {sae.config.id}: {hook}",
                found=f"an SAE for rows of {width} values",
                allowed=f"rows of {shape[2]} values, as the hook has in this model"
                if is_row
                else f"a hook with one vector per token; this one has values of shape {shape}",
            )


def _features(features: Iterable[int], n: int, where: str) -> list[int]:
    """Numbers of features, each once."""
    found = _integers(features, where, "a list of features, such as [3, 17]")
    for feature in found:
        if not 0 <= feature < n:
            raise UserError(
                "The SAE has no such feature.",
                where=where,
                found=str(feature),
                allowed=f"0 to {n - 1}",
            )
    return list(dict.fromkeys(found))


def _values(given: Mapping[int, float], n: int, where: str) -> list[tuple[int, float]]:
    """Features and the finite numbers that they are given."""
    allowed = "a mapping of features to numbers, such as {3: 1.5}"
    if not isinstance(given, Mapping):
        raise _other_kind(where, given, allowed)
    values = []
    for feature, value in given.items():
        number = None if isinstance(value, str | bytes) else value
        try:
            values.append(float(number))
        except (TypeError, ValueError, RuntimeError):
            raise _other_kind(where, {feature: value}, allowed) from None
        if not math.isfinite(values[-1]):
            raise UserError(
                "The value for a feature is not finite.",
                where=where,
                found=f"feature {feature}: {value}",
                allowed="a finite number",
            )
    features = [f for key in given for f in _features([key], n, where)]
    return list(zip(features, values, strict=True))


def _integers(values: Iterable[int], where: str, allowed: str) -> list[int]:
    """Whole numbers as ints; a bool is none, though Python counts True as 1."""
    try:
        listed = list(values)
        masks = any(
            isinstance(v, bool) or str(getattr(v, "dtype", "")).endswith("bool") for v in listed
        )
        found = [] if masks else [index(v) for v in listed]
    except (TypeError, ValueError, RuntimeError):
        raise _other_kind(where, values, allowed) from None
    if masks:
        raise _other_kind(where, values, allowed, "give indices: mask.nonzero().flatten()")
    return found


def _other_kind(where: str, found: Any, allowed: str, next_step: str | None = None) -> UserError:
    return UserError(
        "This argument of an edit is not what it should be.",
        where=f"edited({where})",
        found=shorten(repr(found), 80),
        allowed=allowed,
        next_step=next_step,
    )


def _check_plan(plan: list[tuple[int, float, float]]) -> None:
    """See that no feature is edited in two ways."""
    seen = set()
    for feature, _, _ in plan:
        if feature in seen:
            raise UserError(
                "A feature is in more than one of ablate, clamp and add.", found=str(feature)
            )
        seen.add(feature)


def _basis(vectors: Tensor) -> Tensor:
    """Orthonormal rows that span the vectors `[k, d]`, which may depend on each other."""
    if not len(vectors):
        return vectors
    _, sizes, basis = torch.linalg.svd(vectors.double(), full_matrices=False)
    return basis[sizes > 1e-6 * sizes.max()].to(vectors)  # the vectors are known to float32


def _chosen(positions: slice | Sequence[int]) -> Callable[[int], bool]:
    """Whether a position is among those."""
    allowed = "numbers from 0 on, or a slice of such, as slice(5, None)"
    if isinstance(positions, slice):
        parts = (positions.start, positions.stop, positions.step)
        given = _integers([p for p in parts if p is not None], "positions", allowed)
        step = 1 if positions.step is None else positions.step
        start = positions.start or 0
        stop = math.inf if positions.stop is None else positions.stop
        wanted: set[int] = set()
    else:
        given = _integers(positions, "positions", allowed)
        wanted, step = set(given), 1
    if any(p < 0 for p in given) or step == 0:
        raise UserError(
            "Positions are counted from the start of the context.",
            where="positions",
            found=str(positions),
            allowed=allowed,
        )
    if isinstance(positions, slice):
        return lambda p: start <= p < stop and (p - start) % step == 0
    return wanted.__contains__
