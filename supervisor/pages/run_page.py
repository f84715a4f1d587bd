"""`report --html`: all that is known of a run, as one page."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from supervisor.core.size import counted, human_bytes, human_seconds
from supervisor.core.telling import advice, figures, lanes
from supervisor.core.telling.ledger import BUCKETS, MEANING, report
from supervisor.core.telling.story import Story
from supervisor.core.telling.time_line import one_line
from supervisor.live.curve import samples
from supervisor.live.lanes import parts
from supervisor.pages.document import document
from supervisor.pages.failures import SHOWN, failures
from supervisor.pages.ranks import of_ranks, silences
from supervisor.pages.series import Series, curves, restarts
from supervisor.pages.timeline import MARKED, Drawing, drawing
from supervisor.reading.events_file import read_events
from supervisor.reading.local_time import local
from supervisor.run import origin
from supervisor.run.runs import Known
from supervisor.run.status import now_of, status, story_of
from trainer.rundir.layout import committed_steps

_SHOWN = {*MARKED, "checkpoint_committed", "script_saved", "run_started", "attempt_started"}
"""The events that the page shows, and those that tell of a new clock."""
_CHECKPOINTS = 100
"""The checkpoints on a page: the last ones."""


def run_page(known: Known, command: Callable[[Mapping[str, Any]], str], live: str = "") -> str:
    """The page. `command` gives the command of a status as people write it. `live`: the time from which a page that is
    served asks for news."""
    told = read_events(known.run.events)[0]
    story = story_of(known.run, told)
    now, at = status(known, story), now_of(story)
    events = [event for event, _ in one_line(event for event in told if event["msg"] in _SHOWN)]
    book = report(story, at)
    found, ends = failures(known.run, story)
    shown = curves(known.run, story, samples(known.run))
    ranks = of_ranks(story, parts(known.run), silences(story, events), ends, now["nproc"], at)
    return document(
        "run.html",
        title=f"{known.id}: {now['state']}",
        run=known.id,
        state=now["state"],
        reason=now["reason"],
        facts=_facts(now, command(now)),
        figures=_figures(book, story, now),
        advice=advice.NOTHING_SAVED if now["saves_nothing"] else (),
        curves=[{**series.shown(), "said": _said(series), "id": f"curve{n}"} for n, series in enumerate(shown)],
        marks=restarts(story),
        drawings=[one for one in (drawing(story, events, at), ranks) if one],
        buckets=_key(book, ranks),
        ledger=_ledger(book),
        standbys=figures.standbys(book["standby"]),
        wall=human_seconds(book["wall_s"]),
        failures=found,
        more_failures=max(0, len(story.failures()) - SHOWN),
        checkpoints=_checkpoints(events, set(committed_steps(known.run.checkpoints))),
        made=_made(),
        live=live,
        folder=known.run.path.name,
    )


def _key(book: Mapping[str, Any], ranks: Drawing | None) -> list[tuple[str, str]]:
    """What the colours of the drawings mean."""
    ledger = [(name, MEANING[name]) for name in BUCKETS if book["ledger"][f"{name}_s"] > 0]
    drawn = {shape.kind for row in ranks.rows for shape in row.shapes} if ranks else set()
    return ledger + [(name, said) for name, said in lanes.MEANING.items() if name in drawn]


def _made() -> str:
    return f"supervise {importlib.metadata.version('supervise')}, {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"


def _facts(now: Mapping[str, Any], command: str) -> list[tuple[str, str]]:
    versions = now["versions"] if isinstance(now["versions"], dict) else {}
    checkpoint = now["checkpoint"]
    facts = [
        ("command", command),
        ("code", f"git {code}" if (code := origin.told(now)) else ""),
        ("started", local(now["started"]) if now["started"] else ""),
        ("ended", local(now["ended"]) if now["ended"] else ""),
        ("checkpoint", str(checkpoint["path"]) if checkpoint else ""),
        ("budget", advice.budget(now["budget"])),
        ("machine", str(now["host"] or "")),
        ("versions", ", ".join(f"{name} {said}" for name, said in versions.items() if name != "executable")),
        ("folder", now["run_dir"]),
    ]
    return [(name, said) for name, said in facts if said]


def _figures(book: Mapping[str, Any], story: Story, now: Mapping[str, Any]) -> list[tuple[str, str]]:
    ran = book["wall_s"] - book["ledger"]["stopped_s"]
    share = book["ledger"]["productive_s"] / ran if ran > 0 else 0.0
    recover = book["recover_s"]["p50"]
    figures = [
        ("steps", f"{now['step']:,}" if now["step"] is not None else "not known"),
        ("ran for", human_seconds(ran)),
        ("goodput", f"{100 * share:.1f} %"),
        ("restarts", str(story.restarts)),
        ("lost", counted(book["lost_steps"], "step")),
    ]
    return figures + ([("back in (median)", f"{recover:.2f} s")] if recover is not None else [])


def _said(series: Series) -> str:
    """The curve in a sentence, for those who cannot see it."""
    points = series.points
    values = [value for _, value in points]
    unit = f" {series.unit}" if series.unit else ""
    return (
        f"{series.name}, steps {points[0][0]} to {points[-1][0]}: first {values[0]:.4g}{unit}, last {values[-1]:.4g}"
        f"{unit}, lowest {min(values):.4g}{unit}, highest {max(values):.4g}{unit}"
    )


def _ledger(book: Mapping[str, Any]) -> list[dict[str, Any]]:
    wall = book["wall_s"] or 1.0
    seconds = {name: book["ledger"][f"{name}_s"] for name in BUCKETS}
    return [
        {"name": name, "time": f"{value:.2f} s", "share": round(100 * value / wall, 1), "meaning": MEANING[name]}
        for name, value in seconds.items()
        if value > 0
    ]


def _checkpoints(events: Iterable[Mapping[str, Any]], there: set[int]) -> list[dict[str, Any]]:
    """The newest first. A step that was committed twice has its last commit."""
    found: dict[tuple[str, Any], Mapping[str, Any]] = {}
    for event in events:
        step, own = event.get("step"), event.get("msg") == "script_saved"
        if (own or event.get("msg") == "checkpoint_committed") and isinstance(step, int):
            key = (str(event.get("path")), None) if own else ("", step)
            found.pop(key, None)
            found[key] = event
    # A long run has ten thousand of them: only what is shown is put into words.
    return [_checkpoint(event, there) for event in [*found.values()][: -_CHECKPOINTS - 1 : -1]]


def _checkpoint(event: Mapping[str, Any], there: set[int]) -> dict[str, Any]:
    step, size, own = int(event["step"]), event.get("bytes"), event.get("msg") == "script_saved"
    return {
        "step": step if step >= 0 else None,
        "when": local(str(event.get("ts", ""))),
        "attempt": event.get("attempt"),
        "size": human_bytes(size) if isinstance(size, int | float) else "",
        "by": f"the script: {event.get('path')}" if own else str(event.get("by") or "the ranks"),
        "kept": "" if own else ("yes" if step in there else "no"),
    }
