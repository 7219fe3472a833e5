"""What a run, one of its members and its evaluation look like in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ensemble_sae.errors import CorruptFile, UserError
from ensemble_sae.pages import notebook as html
from ensemble_sae.run.axes import axes
from ensemble_sae.signatures import hyperparameters
from ensemble_sae.sweep.names import ALWAYS
from ensemble_sae.sweep.schema import Train

if TYPE_CHECKING:
    import pandas as pd

    from ensemble_sae.run.evaluation import Evaluation
    from ensemble_sae.run.run import Run
    from ensemble_sae.run.sae import Sae

IN_MODEL = ("ce_recovered", "ce", "kl", "perplexity")
ROWS = 8  # of a table on a card
VALUES = 8  # of an axis, written out
_NUMBERS = {"l0": "{:.1f}", "fvu": "{:.3f}", "dead": "{:.1%}", "ce_recovered": "{:.3f}"}
_HEADS = {"l0": "L0", "fvu": "FVU", "ce_recovered": "CE recovered"}
_FORMATS = {_HEADS.get(name, name): form for name, form in _NUMBERS.items()}


def measured(run: Run, *needed: str | None) -> pd.DataFrame:
    """`run.members`, and what an evaluation found of them, if there is one.

    Args:
        needed: columns without which it is an error.

    Raises:
        UserError: the run is not finished, or not evaluated, and that is needed.
    """
    table = run.members
    if "fvu" not in table and {"fvu", "l0"} & set(needed):
        raise UserError(
            "The members of this run are not measured on held-out rows yet.",
            where=str(run.path),
            next_step=f"python -m ensemble_sae.big_sweep --run {run.path} --resume",
        )
    try:
        found = run.evaluation
    except CorruptFile:
        raise
    except UserError:
        if set(IN_MODEL) & set(needed):
            raise
        return table
    return table.join(found.members[list(IN_MODEL)])


def run_card(run: Run) -> str:
    """The sweep, its members, how it ended, a small frontier, lines to go on with."""
    table, status = measured(run), run.status
    many = f"{len(table):,} member" + ("s" if len(table) > 1 else "")
    about = f"{many} at {run.path}, {status.get('status', 'no status')}"
    sweep = run.sweep.get("sweep", {})
    told = {
        "signatures": _counted(table["signature"]),
        "hooks": _counted(table["hook"]) if table["hook"].nunique() > 1 else table["hook"].iloc[0],
        "differ in": "; ".join(
            _values(table, n) for n in axes(run.members) if n not in ("hook", "signature")
        ),
        "took": _took(status),
        "flagged": _flagged(table),
    }
    small, first = "", int(table.index[0])
    if "pareto" in table and table["pareto"].any():
        best = table[table["pareto"]].sort_values(["hook", "l0"])
        first = int(best.index[len(best) // 2])
        small = _members(best, f"{len(best)} on the frontier of FVU and L0")
    lines = ["run.members", "run.plot_pareto()"] if small else ["run.members", "run.metrics"]
    lines += [f"sae = run.sae({first})", f"ensemble_sae.features(run, {first})"]
    if small and "ce" not in table:
        lines.append(f"!python -m ensemble_sae.evaluate {run.path}")
    name = sweep.get("name") or run.path.name
    return html.card(f"Run {name}", about, html.facts(told), small, html.python(*lines))


def sae_card(sae: Sae) -> str:
    """What a member is, what is not as by default, its tensors, lines to go on with."""
    config = sae.config
    usual = {n: f.default for n, f in Train.model_fields.items()} | hyperparameters(sae.signature)
    given = config.hyperparameters | config.dynamics
    own = {n: v for n, v in given.items() if n in ALWAYS or v != usual.get(n)}
    own |= {"lr": config.lr, "seed": config.seed}
    told = {
        "hook": config.hook or "rows of its own",
        "features": f"{config.n_dict} of rows of {config.d_activation}, ratio "
        f"{config.dict_ratio:g}",
        "set": ", ".join(f"{name} {_value(value)}" for name, value in own.items()),
        "tensors": ", ".join(f"{name} {list(t.shape)}" for name, t in sae.params.items()),
        "on": f"{sae.device}, {str(sae._dtype).removeprefix('torch.')}",
    }
    lines = [
        f"sae.encode(rows)  # [..., {config.d_activation}] -> [..., {config.n_dict}]",
        "sae.decode(code)",
        f"sae.dictionary  # [{config.n_dict}, {config.d_activation}]",
    ]
    about = f"member {config.id}, {config.signature}"
    return html.card(f"Sae {config.name}", about, html.facts(told), html.python(*lines))


def evaluation_card(found: Evaluation) -> str:
    """The text, the model undisturbed, some members from the sparsest on."""
    import pandas as pd

    settings, members = found.settings, found.members.sort_values("l0")
    about = f"{len(members)} members in the place of what they reconstruct"
    text = f"{settings.get('rows', 0):,} tokens of held-out text of {settings.get('dataset')}"
    told = {"model": settings.get("model"), "text": text}
    named = {"ce_clean": "clean", "ce_mean": "mean row", "ce_zero": "zeros"}
    known = pd.DataFrame.from_dict(found.references, orient="index")
    known = known.reindex(columns=list(named)).rename(columns=named).rename_axis("hook")
    several = ["hook"] if members["hook"].nunique() > 1 else []
    shown = members[[*several, "l0", "fvu", "ce", "ce_recovered", "kl"]]
    shown = html.sampled(shown, ROWS).rename(columns={**_HEADS, "ce": "CE", "kl": "KL"})
    three = dict.fromkeys(("clean", "mean row", "zeros", "CE", "KL"), "{:.3f}")
    return html.card(
        "Evaluation",
        about,
        html.facts(told),
        html.table(known, three, "Cross-entropy of the next token, nats"),
        html.table(shown, {**_FORMATS, **three}, _of(shown, members)),
        html.python(
            "evaluation.members",
            'evaluation.by_position("fvu")',
            'run.plot_pareto(y="ce_recovered")',
        ),
    )


def _members(best: pd.DataFrame, caption: str) -> str:
    columns = ["name", *(n for n in _NUMBERS if n in best)]
    if best["hook"].nunique() > 1:
        columns.insert(1, "hook")
    shown = html.sampled(best[columns].rename_axis("id"), ROWS).rename(columns=_HEADS)
    return html.table(shown, _FORMATS, f"{caption}{'' if len(shown) == len(best) else ', some'}:")


def _of(shown: pd.DataFrame, members: pd.DataFrame) -> str:
    return "Members:" if len(shown) == len(members) else f"{len(shown)} of {len(members)} members:"


def _counted(values: pd.Series) -> str:
    return ", ".join(f"{value} ({count})" for value, count in values.value_counts().items())


def _values(table: pd.DataFrame, name: str) -> str:
    """An axis and its values; where there are many, how many and from where to where."""
    found = list(table[name].dropna().drop_duplicates())
    if all(isinstance(value, int | float) for value in found):
        found.sort()
        if len(found) > VALUES:
            return f"{name} ({len(found)} from {_value(found[0])} to {_value(found[-1])})"
    return f"{name} ({', '.join(_value(value) for value in found[:VALUES])})"


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool | str):
        return str(value).lower()
    return f"{value:.4g}"


def _took(status: dict[str, Any]) -> str:
    if "seconds" not in status:
        return ""
    seconds = status["seconds"]
    time = f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
    return f"{time} on {status.get('hardware', 'this machine')}"


def _flagged(table: pd.DataFrame) -> str:
    """Each flag and how many members have it; frozen members."""
    counts: dict[str, int] = {}
    for flags in table.get("flags", ()):
        for flag in filter(None, flags.split(", ")):
            counts[flag] = counts.get(flag, 0) + 1
    if frozen := int(table["status"].str.startswith("frozen").sum()):
        counts["frozen"] = frozen
    return ", ".join(f"{flag} ({count})" for flag, count in counts.items())
