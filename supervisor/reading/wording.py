"""Events as sentences: one line for each event, and a line between two attempts."""

from __future__ import annotations

import signal
from typing import Any

from supervisor.reading.events_file import Event
from supervisor.reading.plain import plain
from trainer.rundir.files.codec import encode

_LONGEST = 200
_SHOWN_ELSEWHERE = frozenset({"ts", "mono", "seq", "level", "run", "attempt", "msg", "reason", "text", "signature"})
_COUNTED = frozenset({"best_step", "barren", "startup_failures", "rollbacks"})
"""The counters that the next supervisor continues. People see them in `status`."""

_NOTHING: tuple[Any, ...] = (None, "", [], -1)
"""Values that mean "none" (-1 for a step). They are not shown."""


def event_text(event: Event) -> str:
    """The time (UTC), the name, the event's own fields, and last the sentence with the reason. Safe for a terminal."""
    fields = event.fields
    clock = str(fields.get("ts", "")).partition("T")[2] or "--:--:--"
    pairs = [
        f"{key}={_value(key, value)}"
        for key, value in fields.items()
        if key not in _SHOWN_ELSEWHERE | _COUNTED and not key.endswith("_mono") and value not in _NOTHING
    ]
    sentence = fields.get("reason") or fields.get("text")
    return plain(" ".join([clock, event.name, *pairs, *(["·", str(sentence)] if sentence else [])]))


def _value(key: str, value: Any) -> str:
    if key == "signal":
        return signal_name(value)
    text = value if isinstance(value, str) and value and " " not in value else encode(value).decode()
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def signal_name(value: Any) -> str:
    """SIGKILL for 9. A value that is not a signal stays as it is."""
    try:
        return signal.Signals(value).name
    except ValueError:
        return str(value)


class Restarts:
    """Remembers from the events why each attempt began, and at which step it resumed."""

    def __init__(self) -> None:
        self._ended = ""
        self._offer: int | None = None
        self._why: dict[int, str] = {}
        self._resumed: dict[int, str] = {}

    def see(self, event: Event) -> None:
        """Takes an event. separator() knows it from now on."""
        fields = event.fields
        match event.name:
            case "verdict":
                self._ended, self._offer = f"restart after {_cause(fields)}", None
            case "relaunch_scheduled":
                self._offer = fields.get("checkpoint_step")
            case "run_ended":
                self._ended, self._offer = f"taken up again after {fields.get('state', 'its end')}", None
            case "attempt_started":
                self._why[event.attempt] = self._ended
                if isinstance(self._offer, int) and self._offer >= 0:
                    self._resumed[event.attempt] = f"resumes from step {self._offer}"
            case "resumed":
                self._resumed[event.attempt] = f"resumed at step {fields.get('step')}"

    def separator(self, attempt: int) -> str:
        """`── attempt 1 · restart after killed (rank 1, SIGKILL) · resumed at step 40 ──`, as far as this is known."""
        parts = [f"attempt {attempt}", self._why.get(attempt, ""), self._resumed.get(attempt, "")]
        return plain(f"── {' · '.join(filter(None, parts))} ──")


def _cause(fields: dict[str, Any]) -> str:
    details = []
    if fields.get("rank") is not None:
        details.append(f"rank {fields['rank']}")
    if fields.get("signal") is not None:
        details.append(signal_name(fields["signal"]))
    elif fields.get("exit_code"):
        details.append(f"exit code {fields['exit_code']}")
    cause = str(fields.get("cause", "an unknown cause"))
    return f"{cause} ({', '.join(details)})" if details else cause
