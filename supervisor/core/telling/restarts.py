"""The history of a run after a restart, as the event of that restart tells it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from supervisor.core.model import History, Rollback
from supervisor.core.telling.fields import Event, optional, whole


def history_after(event: Event, before: History, mono: float) -> History:
    """The history with the restart that was scheduled at `mono`."""
    best = max(before.best_step, whole(event, "best_step"))
    restarts = () if best > before.best_step else before.restarts
    signature = event.get("signature")
    return History(
        restarts=(*restarts, mono) if event.get("counted") else restarts,
        barren=whole(event, "barren", 0),
        startup_failures=whole(event, "startup_failures", 0),
        best_step=best,
        signature=tuple(str(part) for part in signature) if isinstance(signature, list) else None,
        rollback=_rollback(event.get("rollback")) or before.rollback,
        rollbacks=whole(event, "rollbacks", 0),
        bad_step=whole(event, "bad_step"),
    )


def _rollback(told: object) -> Rollback | None:
    if not isinstance(told, Mapping):
        return None
    attempt, before, skip_to = (optional(told, key) for key in ("attempt", "before", "skip_to"))
    return None if attempt is None or before is None or skip_to is None else Rollback(attempt, before, skip_to)
