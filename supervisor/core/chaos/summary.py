"""The result of a chaos session: the rounds with their verdicts, and the figures over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from supervisor.core.chaos.judge import Row, Span
from supervisor.core.chaos.plan import Round
from supervisor.core.telling.ledger import percentile
from trainer.rundir.records.fault_kinds import WAITED_FOR


@dataclass(frozen=True, slots=True)
class Comparison:
    """The end of a run compared with the end of the undisturbed run. `same` None: there was nothing to compare."""

    same: bool | None
    what: tuple[str, ...] = ()
    difference: str = ""

    @property
    def words(self) -> str:
        if self.same is None:
            return f"not compared: {self.difference}"
        return f"the same bits: {', '.join(self.what)}" if self.same else f"NOT the same: {self.difference}"


@dataclass(frozen=True, slots=True)
class RoundResult:
    """One round and its result."""

    round: Round
    run: str
    exit_code: int
    rows: tuple[Row, ...]
    spans: tuple[Span, ...]
    comparison: Comparison
    leftovers: tuple[str, ...]
    report: Mapping[str, Any]
    """The same content as `report --json`."""
    problem: str = ""
    """The fault of the run as a whole; empty if there is none."""

    @property
    def ok(self) -> bool:
        fine = self.exit_code == 0 and not self.problem and not self.leftovers
        return fine and self.comparison.same is not False and all(row.ok for row in self.rows)

    def problems(self) -> list[str]:
        """One sentence for each thing that is wrong."""
        found = [f"{row.spec}: {row.problem}" for row in self.rows if not row.ok]
        if self.problem:
            found.append(self.problem)
        elif self.exit_code != 0:
            found.append(f"the run ended with {self.exit_code}: {self.report.get('reason', '')}")
        found += [f"left behind: {what}" for what in self.leftovers]
        return found + ([f"its end is {self.comparison.words}"] if self.comparison.same is False else [])


def summary(results: Sequence[RoundResult]) -> dict[str, Any]:
    """The figures over all rounds."""
    rows = [row for result in results for row in result.rows]
    ended = [row for row in rows if row.ended]
    prompt = [row for row in ended if row.detected not in WAITED_FOR]
    waited = [row for row in ended if row.detected in WAITED_FOR]
    wall = sum(float(result.report["wall_s"]) for result in results)
    productive = sum(float(result.report["ledger"]["productive_s"]) for result in results)
    return {
        "rounds": len(results),
        "faults": sum(row.at is not None for row in rows),
        "attempts_ended": len(ended),
        "failed": sum(not row.ok for row in rows),
        "lost_steps": sum(row.lost_steps or 0 for row in rows),
        "leftovers": sum(row.leftovers for row in rows) + sum(len(result.leftovers) for result in results),
        "compared": sum(result.comparison.same is not None for result in results),
        "same": sum(result.comparison.same is True for result in results),
        "wall_s": round(wall, 3),
        "goodput": round(productive / wall, 6) if wall > 0 else None,
        "detect_s": spread([row.detect_s for row in prompt]),
        "recover_s": spread([row.recover_s for row in prompt]),
        "waited_detect_s": spread([row.detect_s for row in waited]),
        "waited_recover_s": spread([row.recover_s for row in waited]),
    }


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """The p50, p95 and max of the known values."""
    known = [value for value in values if value is not None]
    return {"p50": percentile(known, 0.5), "p95": percentile(known, 0.95), "max": max(known, default=None)}


def as_json(result: RoundResult) -> dict[str, Any]:
    """One round as JSON values."""
    return {
        "number": result.round.number,
        "run": result.run,
        "tier": result.round.tier.value,
        "ok": result.ok,
        "exit_code": result.exit_code,
        "problems": result.problems(),
        "inject": [blow.spec for blow in result.round.blows],
        "rows": [{**asdict(row), "ok": row.ok} for row in result.rows],
        "attempts": [asdict(span) for span in result.spans],
        "comparison": asdict(result.comparison),
        "leftovers": list(result.leftovers),
        "report": dict(result.report),
    }
