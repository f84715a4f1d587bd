"""Events for the one who watches: a few words each, in local time. `supervise events` has all of them in full."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from supervisor.reading.events_file import Event
from supervisor.reading.local_time import clock
from supervisor.reading.plain import plain

Fields = Mapping[str, Any]


def brief(event: Event) -> str:
    """`12:03:05 checkpoint of step 40`. Empty if the event is nothing for people, or is told in another way."""
    words = _WORDS.get(event.name, _text)(event.fields)
    return plain(f"{clock(str(event.fields.get('ts')))} {words}") if words else ""


def _text(fields: Fields) -> str:
    said = fields.get("reason") or fields.get("text") or ""
    return str(said)


def _takeover(fields: Fields) -> str:
    return "the last supervisor died; what it left was ended"


def _adopted(fields: Fields) -> str:
    return "the last supervisor died; its attempt goes on under this one"


def _silent(fields: Fields) -> str:
    return ""


def _at(fields: Fields, key: str = "step") -> str:
    step = fields.get(key)
    return f"step {step}" if isinstance(step, int) and step >= 0 else "a step that is not known"


def _failed(fields: Fields) -> str:
    return f"a save failed, training goes on: {fields.get('error', '')}"


def _bad(fields: Fields) -> str:
    return f"a checkpoint is bad and was moved aside: {fields.get('reason', '')}"


def _resumed(fields: Fields) -> str:
    if fields.get("source") in ("start", None):
        return ""
    where = {"memory": "from memory", "disk": "from disk", "script": "by itself"}.get(str(fields["source"]), "")
    return f"goes on from {_at(fields)} {where}".rstrip()


def _relaunch(fields: Fields) -> str:
    delay = fields.get("delay_s")
    return f"restarts in {delay:.1f} s" if isinstance(delay, int | float) and delay > 0 else ""


def _stop(fields: Fields) -> str:
    return f"asked to stop{' now' if fields.get('now') else ''}"


def _pids(fields: Fields) -> str:
    pids = fields.get("pids")
    count = len(pids) if isinstance(pids, list) else 0
    return f"{count} rank{'' if count == 1 else 's'} at work" if count else ""


_WORDS: Mapping[str, Callable[[Fields], str]] = {
    "run_started": _silent,
    "takeover": _takeover,
    "adopted": _adopted,
    "attempt_started": _silent,
    "group_ready": _pids,
    "group_gone": _silent,
    "rank_joined": lambda fields: f"rank {fields.get('rank')} has joined",
    "resumed": _resumed,
    "first_step": lambda fields: f"first step done: {_at(fields)}",
    "caught_up": lambda fields: f"at {_at(fields)} again, as far as before",
    "checkpoint_committed": lambda fields: f"checkpoint of {_at(fields)}",
    "checkpoint_failed": _failed,
    "checkpoint_quarantined": _bad,
    "script_saved": lambda fields: f"the script saved {_at(fields)}: {fields.get('path', '')}",
    "standby_ready": _silent,
    "standby_cost": _silent,
    "fault_armed": lambda fields: f"fault armed: {fields.get('spec')}",
    "fault_injected": lambda fields: f"fault: {fields.get('spec')}",
    "stop_requested": _stop,
    "stacks_dumped": lambda fields: "the stacks of the ranks were kept",
    "signal_sent": _silent,
    "relaunch_scheduled": _relaunch,
    "node_refused": lambda fields: f"a node is refused: {fields.get('why', '')}",
    "run_ended": _silent,
    "supervisor_failed": lambda fields: f"the supervisor failed: {fields.get('error', '')}",
}
"""By name. Events without an entry have a sentence of their own."""
