"""The verdict table of a chaos session, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from supervisor.core.chaos.judge import Row
from supervisor.core.chaos.summary import RoundResult, spread
from supervisor.reading.table import table

_MANY = 60
"""From this many rows on, all faults of a kind share one row."""
_TIMES = {
    "detect": "detect",
    "recover": "recover",
    "waited_detect": "detect, where --hang-timeout or --startup-timeout had to pass",
    "waited_recover": "recover, after these and after a dead supervisor",
}
HEADS = ("#", "fault", "step", "seen as", "detect", "recover", "lost", "left", "verdict")


def verdicts(results: Sequence[RoundResult]) -> str:
    """One row for each fault, or for each kind of fault if there are many. Then the problems of each round."""
    rows = [(result, row) for result in results for row in result.rows]
    whole = len(rows) < _MANY
    text = table(HEADS, [cells(result, row) for result, row in rows]) if whole else _by_kind([row for _, row in rows])
    for result in results:
        for problem in [] if result.ok else result.problems():
            text += f"FAIL  round {result.round.number} ({result.run}): {problem}\n"
    return text


def cells(result: RoundResult, row: Row) -> tuple[object, ...]:
    """The cells of a fault's row, in the order of HEADS."""
    return (
        result.round.number,
        f"{row.spec}{' (helper)' if row.helper else ''}",
        row.step,
        row.detected or "nothing",
        seconds(row.detect_s) if row.ended else None,
        seconds(row.recover_s),
        row.lost_steps,
        row.leftovers,
        "pass" if row.ok else f"FAIL  {row.problem}",
    )


def seconds(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.2f} s"


def _by_kind(rows: Sequence[Row]) -> str:
    """A row for each kind: medians and maxima of the times, the most lost steps, all leftovers."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(row.spec.partition("@")[0].partition(":")[0], []).append(row)
    heads = (
        "fault",
        "passed",
        "seen as",
        "detect",
        "max",
        "recover",
        "max",
        "lost",
        "left",
    )
    return table(heads, [_kind_cells(kind, of) for kind, of in sorted(kinds.items())])


def _kind_cells(kind: str, rows: Sequence[Row]) -> tuple[object, ...]:
    detect = spread([row.detect_s for row in rows if row.ended])
    recover = spread([row.recover_s for row in rows])
    return (
        kind,
        f"{sum(row.ok for row in rows)} of {len(rows)}",
        ", ".join(sorted({row.detected or "nothing" for row in rows})),
        seconds(detect["p50"]),
        seconds(detect["max"]),
        seconds(recover["p50"]),
        seconds(recover["max"]),
        max((row.lost_steps or 0 for row in rows), default=0),
        sum(row.leftovers for row in rows),
    )


def figures(totals: dict[str, Any]) -> str:
    """The sums, one on each line."""
    lines = [
        f"{totals['faults']} faults in {totals['rounds']} rounds, {totals['attempts_ended']} ended an attempt, "
        f"{totals['failed']} failed",
        f"the end: {totals['same']} of {totals['compared']} compared rounds with the same bits as undisturbed"
        if totals["compared"]
        else "the end: not compared, because there was nothing to compare",
        f"leftovers: {totals['leftovers']}",
        f"lost: {totals['lost_steps']} steps",
    ]
    for name, words in _TIMES.items():
        times = totals[f"{name}_s"]
        if times["p50"] is not None:
            lines.append(f"{words}: " + ", ".join(f"{key} {seconds(times[key])}" for key in ("p50", "p95", "max")))
    if totals["goodput"] is not None:
        lines.append(f"goodput: {100 * totals['goodput']:.1f} % of {totals['wall_s']:.0f} s")
    return "".join(f"{line}\n" for line in lines)
