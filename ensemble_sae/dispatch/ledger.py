"""What is known of the rounds so far: metrics in order, who froze, and the seconds spent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ensemble_sae.dispatch.messages import RoundDone
from ensemble_sae.dispatch.observer import Observer
from ensemble_sae.run.metrics import MetricsLog, Row
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

    def restore(self, next_round: int, notes: Mapping[str, Any]) -> None:
        """Go on where a checkpoint's notes were taken; later lines of the log are cut off."""
        self.next_round = next_round
        self._log.cut(next_round)
        self.frozen = {int(k): v for k, v in notes["frozen"].items()}
        for row in notes["rows"]:
            self._carried.setdefault(row["round"], []).append(row)

    def notes(self) -> dict[str, Any]:
        """What a checkpoint must carry: rows that are reported but not written yet."""
        waiting = [rows for reports in self._reports.values() for rows in reports.values()]
        rows = [row for some in [*waiting, *self._carried.values()] for row in some]
        rows.sort(key=lambda row: (row["round"], row["member"]))
        return {"rows": rows, "frozen": {str(k): v for k, v in self.frozen.items()}}

    def round_done(self, worker: int, report: RoundDone) -> None:
        """Take a worker's report; write every round that is now complete."""
        self.busy_s += report.busy_s
        self.stall_s += report.stall_s
        for member, step in report.frozen.items():
            if member not in self.frozen:
                self.frozen[member] = step
                self._observer.frozen(self._members[member], step)
        if report.round >= self.next_round:  # else: a replay after a worker's death
            self._reports.setdefault(report.round, {})[worker] = report.rows
        while len(self._reports.get(self.next_round, {})) == self._workers:
            self._write(self.next_round)
            self.next_round += 1

    def _write(self, number: int) -> None:
        rows = [row for some in self._reports.pop(number).values() for row in some]
        reported = {row["member"] for row in rows}
        carried = self._carried.pop(number, [])
        rows += [row for row in carried if row["member"] not in reported]
        rows.sort(key=lambda row: row["member"])
        self._log.append(rows)
        self._observer.round_done(number, rows)
