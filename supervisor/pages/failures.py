"""The failures of a run with their evidence, for its page."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from supervisor.core.telling.ledger import lost_steps, recoveries
from supervisor.core.telling.story import Story
from supervisor.reading.local_time import local_epoch
from supervisor.reading.wording import signal_name
from trainer.rundir.files.codec import decode, read
from trainer.rundir.files.untrusted_files import read_file
from trainer.rundir.layout import AttemptDir, RunDir
from trainer.rundir.records.errors import ErrorRecord

SHOWN = 100
"""The failures on a page: the last ones. With all that is known, the last of these."""
_IN_FULL = 20
_LINES, _WIDTH = 60, 400
"""The lines of a text on the page, and the characters of a line."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One row, and the texts that explain it: (what it is, the text)."""

    attempt: int
    when: str
    cause: str
    rank: int | None
    step: int | None
    lost: int | None
    recovered: float | None
    reason: str
    texts: list[tuple[str, str]]


def failures(run: RunDir, story: Story) -> tuple[list[Failure], dict[tuple[int, int], float]]:
    """The failures, the newest first; and by (attempt, rank) the time on the run's time line when a rank ended."""
    found: list[Failure] = []
    ends: dict[tuple[int, int], float] = {}
    told = zip(story.attempts, recoveries(story), lost_steps(story), strict=True)
    failed = {id(attempt) for attempt in story.failures()[-SHOWN:]}
    full = {id(attempt) for attempt in story.failures()[-_IN_FULL:]}
    for attempt, recovered, lost in told:
        if id(attempt) not in failed:
            continue
        folder = run.attempt(attempt.number)
        evidence = _evidence(folder) if id(attempt) in full else {}
        for rank, mono in _exits(evidence):
            ends[attempt.number, rank] = mono + attempt.offset
        cause = str(attempt.cause) + (f" ({signal_name(attempt.signal)})" if attempt.signal else "")
        step = attempt.to_step if attempt.to_step >= 0 else None
        at = attempt.began + (attempt.failed or attempt.started) - attempt.started if attempt.began else None
        texts = _texts(folder, attempt.rank, evidence) if id(attempt) in full else []
        row = Failure(
            attempt.number, local_epoch(at), cause, attempt.rank, step, lost, recovered, attempt.reason, texts
        )
        found.append(row)
    return found[::-1], ends


def _evidence(folder: AttemptDir) -> Mapping[str, Any]:
    try:
        found = decode(read_file(folder.evidence), dict[str, Any])
    except (OSError, ValueError):
        return {}
    return found


def _exits(evidence: Mapping[str, Any]) -> list[tuple[int, float]]:
    exits = evidence.get("exits")
    found = [one for one in exits if isinstance(one, dict)] if isinstance(exits, list) else []
    return [
        (one["rank"], float(one["mono"]))
        for one in found
        if isinstance(one.get("rank"), int) and isinstance(one.get("mono"), float | int)
    ]


def _texts(folder: AttemptDir, rank: int | None, evidence: Mapping[str, Any]) -> list[tuple[str, str]]:
    texts = []
    with contextlib.suppress(OSError, ValueError):
        if rank is not None and (trace := read(folder.error(rank), ErrorRecord).traceback):
            texts.append((f"traceback of rank {rank}", trace))
    with contextlib.suppress(OSError):
        texts.append(("where each rank stood", read_file(folder.groups, 1 << 20).decode("utf-8", "backslashreplace")))
    last = evidence.get("last_lines")
    for name, lines in last.items() if isinstance(last, dict) else ():
        if isinstance(lines, list) and lines:
            texts.append((f"last lines of {name}", "\n".join(map(str, lines))))
    kernel = evidence.get("kernel_log")
    if isinstance(kernel, list) and kernel:
        texts.append(("the kernel's log", "\n".join(map(str, kernel))))
    if figures := _figures(evidence):
        texts.append(("the machine", "\n".join(figures)))
    return [(what, _cut(text)) for what, text in texts]


def _figures(evidence: Mapping[str, Any]) -> list[str]:
    """The numbers of the evidence, a line each."""
    lines = []
    for name in ("steps", "memory", "machine", "disks", "unreadable"):
        value = evidence.get(name)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict) and one:
                lines.append(f"{name}: " + ", ".join(f"{key} {_plainly(said)}" for key, said in one.items()))
    return lines


def _plainly(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {said}" for key, said in value.items()) + ")"
    return "unknown" if value is None else str(value)


def _cut(text: str) -> str:
    lines = text.rstrip().split("\n")
    left = len(lines) - _LINES
    kept = lines[-_LINES:] if left > 0 else lines
    head = [f"({left} lines before these are left out)"] if left > 0 else []
    return "\n".join([*head, *(line if len(line) <= _WIDTH else line[:_WIDTH] + "…" for line in kept)])
