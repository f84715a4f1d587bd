"""A chaos session as one page of HTML that needs no other file: figures, time lines, the table of verdicts."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from supervisor.chaos.words import HEADS, cells, figures
from supervisor.core.chaos.judge import Span
from supervisor.core.chaos.summary import RoundResult
from supervisor.pages.document import document
from supervisor.pages.timeline import WIDE, Box, Drawing, Mark, Row, ticks


def page(results: Sequence[RoundResult], totals: dict[str, Any], seed: int, command: str) -> str:
    """The whole document."""
    ok = bool(results) and all(result.ok for result in results)
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    versions = (
        f"supervise {importlib.metadata.version('supervise')}, torch {importlib.metadata.version('torch')}, "
        f"Python {platform.python_version()}, {platform.system()} {platform.release()}; {made}"
    )
    word = "every fault passed" if ok else "something failed"
    return document(
        "chaos.html",
        live="",
        title=f"supervise chaos, seed {seed}: {word}",
        seed=seed,
        word=word,
        ok=ok,
        command=command,
        versions=versions,
        figures=figures(totals).splitlines(),
        heads=HEADS[1:],
        rounds=[_round(result) for result in results],
    )


def _round(result: RoundResult) -> dict[str, Any]:
    left = f"{len(result.leftovers)} leftovers; exit code {result.exit_code}"
    return {
        "number": result.round.number,
        "tier": result.round.tier.value,
        "ok": result.ok,
        "run": result.run,
        "said": f"{result.comparison.words}; {left}",
        "problems": result.problems(),
        "drawing": _drawing(result),
        "rows": [{"ok": row.ok, "cells": cells(result, row)[1:]} for row in result.rows],
    }


def _drawing(result: RoundResult) -> Drawing:
    """One row for each attempt over one axis of seconds. Each fault has a mark."""
    length = max([span.gone for span in result.spans] or [1.0]) or 1.0
    scale = WIDE / length
    rows = {span.attempt: Row(f"{span.attempt}  {span.cause}", _boxes(span, scale)) for span in result.spans}
    for row in result.rows:
        if row.at is not None and row.attempt in rows:
            rows[row.attempt].marks.append(Mark(round(row.at * scale, 2), "fault" if row.ok else "bad", row.spec))
    title = f"Time line of round {result.round.number}: {len(result.spans)} attempts in {length:.1f} s"
    return Drawing(title, list(rows.values()), ticks(length))


def _boxes(span: Span, scale: float) -> list[Box]:
    trained = span.over if span.trained is None else min(span.trained, span.over)
    stretches = [
        (span.begin, trained, "launch", "comes up"),
        (trained, span.over, "productive", "trains"),
        (span.over, span.gone, "stop", "being cleared away"),
    ]
    return [
        Box(
            round(begin * scale, 2),
            round(max((end - begin) * scale, 0.8), 2),
            kind,
            f"attempt {span.attempt} {what}, {end - begin:.2f} s",
        )
        for begin, end, kind, what in stretches
        if end > begin
    ]
