"""What is known of the rounds so far: metrics in order, who froze, and the seconds spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ensemble_sae.dispatch.messages import RoundDone
from ensemble_sae.dispatch.observer import Observer
from ensemble_sae.run import Checkpoint, Part
from ensemble_sae.run.metrics import MetricsLog, Row, finite
from ensemble_sae.sweep import Member


class Ledger:
    """Writes a round's metrics when every worker has reported it, in the members' order.

    Workers report in order but at their own pace; rows of rounds that others have not finished
    wait here, and go along with a checkpoint that is written meanwhile.
    """

    def __init__(
        self, log: MetricsLog, workers: int, members: Mapping[int, Member], observer: Observer
    ) -> None:
        self._log, self._workers, self._members, self._observer = log, workers, members, observer
        self._reports: dict[int, dict[int, list[Row]]] = {}  # round -> worker -> rows
        self._carried: dict[int, list[Row]] = {}  # round -> rows from before an interruption
        self.next_round = 0  # the first that is not written yet
        self.frozen: dict[int, int] = {}
        self.busy_s = self.stall_s = 0.0

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint was taken; later lines of the log are cut off."""
        self.next_round = checkpoint.position.round
        self._log.cut(self.next_round)
        self.frozen = {int(k): v for k, v in checkpoint.notes["frozen"].items()}
        for row in checkpoint.notes["rows"]:
            self._carried.setdefault(row["round"], []).append(row)

    def notes(self, parts: Sequence[Part]) -> dict[str, Any]:
        """What a checkpoint of these parts must carry.

        The log will be cut where the members that are furthest behind go on. So the rows that
        others have reported from there on, written or not, come along: they will not be
        reported again. Rounds that lie behind all parts are complete and written first, also
        where a worker without work in them was stopped before it said so.
        """
        place = {member: part for part in parts for member in part.members}
        first = min(part.position.round for part in parts)
        while self.next_round < first:
            self._write_next()
        rows = self._log.rows_from(first) if first < self.next_round else []
        rows += [row for some in self._carried.values() for row in some]
        rows += [r for reports in self._reports.values() for rs in reports.values() for r in rs]
        wanted = {
            (row["round"], row["member"]): row
            for row in rows
            if first <= row["round"] < place[row["member"]].position.round
        }
        frozen = {str(k): at for k, at in self.frozen.items() if at < place[k].step}
        return {"rows": [wanted[k] for k in sorted(wanted)], "frozen": frozen}

    def round_done(self, worker: int, report: RoundDone) -> None:
        """Take a worker's report; write every round that is now complete."""
        self.busy_s += report.busy_s
        self.stall_s += report.stall_s
        for member, step in report.frozen.items():
            if member not in self.frozen:
                self.frozen[member] = step
                self._observer.frozen(self._members[member], step)
        if report.round >= self.next_round:  # else: a replay after a worker's death
            rows = [finite(row) for row in report.rows]
            self._reports.setdefault(report.round, {})[worker] = rows
        while len(self._reports.get(self.next_round, {})) == self._workers:
            self._write_next()

    def _write_next(self) -> None:
        number = self.next_round
        self.next_round += 1
        rows = [row for some in self._reports.pop(number, {}).values() for row in some]
        reported = {row["member"] for row in rows}
        carried = self._carried.pop(number, [])
        rows += [row for row in carried if row["member"] not in reported]
        rows.sort(key=lambda row: row["member"])
        self._log.append(rows)
        self._observer.round_done(number, rows)
