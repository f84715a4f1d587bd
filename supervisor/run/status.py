"""The status of a run: its story from the events, with the present beats and lock."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from supervisor.core.rules import spent
from supervisor.core.telling.attempt_story import AttemptStory
from supervisor.core.telling.ledger import ledger, lost_steps, missed, standbys
from supervisor.core.telling.story import Story, tell
from supervisor.core.telling.time_line import wall
from supervisor.core.words import RunState
from supervisor.live.mirror import all_beats
from supervisor.live.numbers import numbers
from supervisor.process.place import here
from supervisor.reading.events_file import read_events
from supervisor.run.folder.lock import holder, is_held
from supervisor.run.hang_limits import Paces
from supervisor.run.own_saves import Journals, newest_whole
from supervisor.run.runs import SCHEMA, Known
from supervisor.run.spec import Spec, restore, typed
from trainer.checkpoint.memory import snapshots
from trainer.rundir.layout import RunDir, newest_checkpoint, step_name
from trainer.rundir.machine.shm import segment_of


def story_of(run: RunDir, events: Iterable[Mapping[str, Any]] | None = None) -> Story:
    """The story of `run`, by its `events` if they were read already. Its state is `lost` if it is not over and no
    supervisor holds it."""
    story = tell(read_events(run.events)[0] if events is None else events)
    if not story.over and not is_held(run):
        story.state = RunState.LOST
    return story


def status(known: Known, story: Story | None = None) -> dict[str, Any]:
    """The content of `status --json`. `story`: the run's, if it was told already."""
    run, spec = known.run, restore(known.spec)
    story = story_of(run) if story is None else story
    alive = not story.over and story.state != RunState.LOST
    attempt, present = story.attempt, now_of(story)
    # One look for all values: the ranks step on meanwhile.
    looked = _workers(run, attempt.number, present - story.offset) if attempt and not story.over else []
    workers = looked if alive and attempt and attempt.gone is None else []
    snapshot, checkpoint = _snapshot(segment_of(spec.mark)), newest_saved(run)
    beats = all_beats(run.attempt(attempt.number)) if attempt else []
    now = numbers(story, beats, Paces(run).last(), present)
    return {
        "schema": SCHEMA,
        "run": known.id,
        "run_dir": str(run.path.resolve()),
        "state": story.state,
        "exit_code": story.exit_code,
        "reason": story.reason,
        "attempt": attempt.number if attempt else None,
        "restarts": story.restarts,
        "supervisor_pid": holder(run).get("pid") if alive else None,
        "launcher_pid": story.launcher_pid if alive else None,
        "workers": workers,
        "nodes": nodes_of(attempt, spec.nproc) if attempt else [],
        "stragglers": stragglers_of(attempt, spec.nproc) if alive and attempt else [],
        "pauses": _pauses(attempt, present) if alive and attempt else [],
        "standby": _standby(story) if alive else None,
        "standby_cost": standbys(story),
        "snapshot": {"step": snapshot},
        "checkpoint": checkpoint,
        "saves_nothing": _saves_nothing(story, snapshot, checkpoint),
        "step": _step(story, looked),
        "attempt_step": max((worker["step"] for worker in workers if worker["step"] is not None), default=None),
        "total": now.total,
        "step_ms": now.step_ms,
        "eta_s": now.eta_s,
        "loss": now.loss,
        "lr": now.lr,
        "doing": now.doing,
        "started_over": missed(attempt) if attempt else None,
        "last_failure": _last_failure(story),
        "budget": _budget(story, spec, present),
        **_past(run, story, present),
        **_origin(known, spec),
    }


def now_of(story: Story) -> float:
    """The present on the run's time line. Of a run that is over, or lost: its last known moment."""
    if story.ended is not None:
        return story.ended
    if story.state == RunState.LOST:
        return story.last
    if story.boot in (None, here()["boot"]):
        return time.monotonic() + story.offset
    # It runs on another machine, whose clock we cannot read: only the wall clock is one for both.
    present = time.time()
    said = wall({"ts": story.last_wall})
    return story.last + max(0.0, present - (present if said is None else said))


def _past(run: RunDir, story: Story, now: float) -> dict[str, Any]:
    """When it began and ended, for how long it ran and how long nobody ran it, when it is tried again, and its log."""
    book = ledger(story, now)
    waits = story.state == RunState.BACKOFF and story.next_at is not None
    return {
        "started": story.started_wall or None,
        "ended": story.ended_wall or None if story.over else None,
        "wall_s": round(book.wall, 3),
        "stopped_s": round(book.seconds["stopped"], 3),
        "next_try_s": round(max(0.0, (story.next_at or 0.0) - now), 1) if waits else None,
        "log": _log(run, story),
    }


def _origin(known: Known, spec: Spec) -> dict[str, Any]:
    about = {"nproc": spec.nproc, "command": typed(spec), "module": spec.module}
    return about | {key: known.spec.get(key) for key in ("git", "host", "versions")}


def _log(run: RunDir, story: Story) -> str | None:
    """The log to look at first: of the rank that failed, else of rank 0, in the newest attempt."""
    if story.attempt is None:
        return None
    log = run.attempt(story.attempt.number).rank_log(story.attempt.rank or 0)
    return str(log.resolve()) if log.exists() else None


def _snapshot(segment: Path) -> int | None:
    """The newest snapshot in the memory of this machine, or of which a part is there."""
    whole, part = snapshots.newest_snapshot(segment), snapshots.newest_part(segment)
    return part if whole is None and part >= 0 else whole


def _saves_nothing(story: Story, snapshot: int | None, checkpoint: Mapping[str, Any] | None) -> bool:
    """Whether it has trained, and a failure costs or has cost everything, because nothing was saved."""
    kept = checkpoint is not None or (snapshot is not None and snapshot >= 0) or story.checkpoint_step >= 0
    # It has gone on from something that nobody saw it save.
    kept = kept or any(attempt.unplaced or (attempt.from_step or 0) > 0 for attempt in story.attempts)
    trained = any(attempt.first_step is not None for attempt in story.attempts)
    return trained and not kept and not story.saved and (story.over or bool(story.failures()))


def _standby(story: Story) -> dict[str, Any] | None:
    """The waiting group. It has the memory of the group and of the fork server in bytes; shared pages count once (PSS).
    `why` says why there is no better one. It has the modules that are imported again at each restart, with their CPU
    seconds. None while nothing is known."""
    event = story.standby
    if event is None:
        return None
    lost = event.get("msg") == "standby_lost"
    # Runs of older versions call it `nursery_pid`.
    event = {"forkserver_pid": event.get("nursery_pid"), **event}
    known = {key: event.get(key) for key in ("launcher_pid", "forkserver_pid", "pids")}
    ranks = known["pids"] if isinstance(known["pids"], list) else []
    found = (*ranks, known["launcher_pid"], known["forkserver_pid"], event.get("serving_pid"))
    pids = {pid for pid in found if isinstance(pid, int)}
    left_out = event.get("left_out")
    return {
        "kind": "none" if lost else event.get("kind"),
        **known,
        "pss_bytes": sum(map(_pss, pids)),
        "why": str(event.get("reason" if lost else "why", "")),
        "at": None if lost else event.get("at"),
        "why_start": str(event.get("why_start", "")),
        "left_out": left_out if isinstance(left_out, dict) else {},
        "left_out_s": event.get("left_out_s", 0.0),
        "cold_s": _cold(story),
    }


def _cold(story: Story) -> float | None:
    """Seconds from the start of the first attempt to its first step. A restart with imports takes at most as long."""
    first = story.attempts[0] if story.attempts else None
    if first is None or first.first_step is None:
        return None
    return round(first.first_step - first.started, 1)


def stragglers_of(attempt: AttemptStory, nproc: int) -> list[dict[str, Any]]:
    """The slow ranks; on several nodes each with its node."""
    where = {
        rank: {"node": node["node"], "host": node["host"]}
        for node in nodes_of(attempt, nproc)
        for rank in node["ranks"]
    }
    return [{"rank": rank, **where.get(rank, {}), "text": text} for rank, text in sorted(attempt.stragglers.items())]


def _pauses(attempt: AttemptStory, now: float) -> list[dict[str, Any]]:
    """The ranks that are silent for longer than usual, with their activity, the beginning of the silence, and the
    limit."""
    found = []
    for rank, event in sorted(attempt.pauses.items()):
        if event.get("over"):
            continue
        since = event.get("since_mono")
        seconds = round(now - since, 1) if isinstance(since, int | float) else None
        known = {key: event.get(key) for key in ("kind", "limit_s", "text")}
        found.append({"rank": rank, "for_s": seconds, **known})
    return found


def _pss(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def nodes_of(attempt: AttemptStory, nproc: int) -> list[dict[str, Any]]:
    """The nodes of an attempt, with their hosts and ranks; none for a run on one node."""
    return [
        {"node": node, "host": host, "ranks": list(range(index * nproc, (index + 1) * nproc))}
        for index, (node, host) in enumerate(attempt.nodes.items())
    ]


def _workers(run: RunDir, attempt: int, now: float) -> list[dict[str, Any]]:
    return [
        {
            "rank": beat.rank,
            "pid": beat.pid,
            "step": beat.step if beat.placed else None,
            "phase": beat.phase.word,
            "beat_age_s": round(max(0.0, now - beat.at), 3),
        }
        for beat in all_beats(run.attempt(attempt))
    ]


def newest_saved(run: RunDir) -> dict[str, Any] | None:
    """The newest checkpoint that a restart could go on from: one of ours, or a save of the script's own."""
    step = newest_checkpoint(run.checkpoints)
    path = run.checkpoints / step_name(max(step, 0))
    own = newest_whole(Journals(run))
    if own is not None and (own.step > step or own.step < 0):
        return {"step": own.step if own.step >= 0 else None, "path": own.path, "age_s": _age(own.written)}
    try:
        return {"step": step, "path": str(path.resolve()), "age_s": _age(path.stat().st_mtime)} if step >= 0 else None
    except OSError:
        return None


def _age(written: float) -> float:
    return round(max(0.0, time.time() - written), 3)


def _step(story: Story, workers: list[dict[str, Any]]) -> int | None:
    if story.unplaced:
        return None
    steps = [story.high_step, story.attempt.to_step if story.attempt else -1]
    steps += [step for worker in workers if (step := worker["step"]) is not None]
    return max(steps) if max(steps) >= 0 else None


def _last_failure(story: Story) -> dict[str, Any] | None:
    failures = story.failures()
    if not failures:
        return None
    last = failures[-1]
    return {
        "attempt": last.number,
        "rank": last.rank,
        "cause": last.cause,
        "signal": last.signal,
        "step": last.to_step if last.to_step >= 0 else None,
        "lost_steps": lost_steps(story)[story.attempts.index(last)],
        "reason": last.reason,
    }


def _budget(story: Story, spec: Spec, now: float) -> dict[str, Any]:
    policy = spec.policy
    used = spent(story.history, policy, now)
    return {
        "max_restarts": policy.max_restarts,
        "used": used,
        "left": max(0, policy.max_restarts - used),
        "window_s": policy.window,
        "no_progress": story.barren,
        "no_progress_limit": policy.no_progress_limit,
    }
