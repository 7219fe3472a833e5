"""Members of a run in one pass over held-out text, batch after batch, to be gone on with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from ensemble_sae.errors import UserError
from ensemble_sae.evaluation.files import Results, recovered
from ensemble_sae.evaluation.request import Request
from ensemble_sae.evaluation.stage import Stage, Work, checked
from ensemble_sae.pages import live
from ensemble_sae.run import Run
from ensemble_sae.run.evaluation import Evaluation

SAVED_EVERY_S = 2.0  # at most: a file of a few MB
TRIED = 8  # members that are timed


class Progress(NamedTuple):
    """How far an evaluation is.

    Attributes:
        done, total: members times batches that are done, and that there are.
        seconds: since the beginning of this call.
        before: what of `done` an interrupted call had done.
    """

    done: int
    total: int
    seconds: float
    before: int = 0


Tell = Callable[[str], None]
OnProgress = Callable[[Progress], None]


def evaluate(
    run: Run,
    request: Request | None = None,
    *,
    tell: Tell = lambda text: None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Put members' reconstructions in the place of what they were trained on, and see what the
    language model makes of it.

    The model runs once per batch up to the hook, and from there on once per member: cross-entropy,
    CE recovered, KL, perplexity, FVU and L0, overall, by position and by frequency of the token.
    Only rows that members were trained on are replaced: if the harvest dropped BOS, BOS stays.
    What is there already is not done again; an interrupted evaluation goes on where it was.

    Args:
        tell: gets sentences for people. on_progress: called after every member of every batch;
            by default a bar in a notebook.

    Raises:
        UserError: the model cannot be loaded, a member does not fit its hook, there is no held-out
            text, there are results of other settings, or they cannot be written.
    """
    request = request or Request()
    members = checked(run, request.members)
    stage = Stage.prepare(run, request, members)
    folder = run.path / "evaluation"
    with _locked(folder), live.progress() as show:
        results = Results(folder, stage.settings(request), request.overwrite)
        missing = [member for member in members if member not in results.done()]
        if not missing:
            tell("All of these members are evaluated already: nothing to do.")
        elif request.members is None:
            begun = set(results.begun()).intersection(missing)
            missing = sorted(begun) or _affordable(stage, missing, request.minutes, tell)
        results.members = missing
        meter = _Meter(len(missing), on_progress or _bar(show))
        for shelf in stage.shelves(missing):
            _pass(stage.work(shelf), results, meter, len(shelf))
    return Evaluation(folder)


def _bar(show: live.Show) -> OnProgress:
    return lambda now: show(now.done, now.total, f"{now.done / now.total:.0%} evaluated")


class _Meter:
    """Says how far an evaluation of so many members is, whatever the number of its passes."""

    def __init__(self, members: int, on_progress: OnProgress) -> None:
        self._members, self._shelved, self._before = members, 0, 0
        self._began, self._on_progress = time.monotonic(), on_progress

    def one_more(self, work: Work, members: int, start: int) -> Callable[[], None]:
        """What is to be called after every source of a pass that begins at context `start`."""
        batches = work.running.batches
        finished, sources = self._shelved * batches, start // work.running.size * work.sources
        self._before += sources * members // work.sources
        self._shelved += members

        def call() -> None:
            nonlocal sources
            sources += 1
            done, total = finished + sources * members // work.sources, self._members * batches
            seconds = time.monotonic() - self._began
            self._on_progress(Progress(min(done, total), total, seconds, self._before))

        return call


def _pass(work: Work, results: Results, meter: _Meter, members: int) -> None:
    """All batches of one pass, from the one that an interrupted pass got to."""
    running, tally = work.running, work.running.tally
    first = results.load_partial(tally, work.labels)
    one_more, saved = meter.one_more(work, members, first), time.monotonic()
    for start in range(first, running.contexts, running.size):
        running.batch(start, one_more)
        if time.monotonic() - saved > SAVED_EVERY_S:
            end = min(start + running.size, running.contexts)
            results.save_partial(tally, work.labels, end)
            saved = time.monotonic()
    results.add(tally, work.labels, work.hooks, _references(work))


def _affordable(stage: Stage, members: list[int], minutes: float, tell: Tell) -> list[int]:
    """All members if that takes at most so long, else those on the frontier of FVU and L0."""
    tried = members[:: max(1, len(members) // TRIED)]
    work = stage.work(tried)
    work.running.batch(0)  # the first batch pays for what is made once
    began = time.monotonic()
    work.running.batch(0)
    each = (time.monotonic() - began) / work.sources
    estimate = each * len(members) * work.running.batches / 60
    if estimate <= minutes:
        return members
    say = f"All {len(members)} members would take about {math.ceil(estimate)} min"
    table = stage.run.members
    if "pareto" not in table:
        tell(f"{say}, and nobody knows yet which are Pareto-best: all are evaluated.")
        return members
    best = [member for member in members if table.loc[member, "pareto"]]
    them = f"only the {len(best)} that are Pareto-best" if best else "those that are Pareto-best"
    tell(f"{say}: {them} are evaluated{'' if best else ' already'} (--members all for all).")
    return best


def _references(work: Work) -> dict[str, dict[str, float]]:
    """Per hook, what members are measured against; in nats per token, and CE recovered."""
    tally = work.running.tally
    ce = (tally.sums["ce"].sum(1) / tally.counts["predictions"].sum()).tolist()
    found: dict[str, dict[str, float]] = {}
    for label, hook, value in zip(work.labels, work.hooks, ce, strict=True):
        if hook and not label.name.isdigit():
            found.setdefault(hook, {"ce_clean": ce[0]})[label.name] = value
    return {hook: _named(values) for hook, values in found.items()}


def _named(values: dict[str, float]) -> dict[str, float]:
    clean, zero = values["ce_clean"], values["zero"]
    known = {
        f"ce_recovered_{name}": recovered(values[name], zero, clean)
        for name in ("identity", "nothing")
        if name in values and clean != zero  # NaN is no JSON
    }
    return {"ce_clean": clean, "ce_zero": zero, "ce_mean": values["mean"], **known}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the results for writing; the operating system lets go when the process ends."""
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            "Another process is evaluating this run.", where=str(folder), next_step="wait for it"
        ) from None
    except OSError as error:
        raise UserError(
            "The results of an evaluation cannot be written here.",
            where=str(folder),
            found=str(error),
            next_step="copy the run to a folder that can be written to",
        ) from None
    try:
        yield
    finally:
        lock.release()
