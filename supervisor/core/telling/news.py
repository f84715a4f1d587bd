"""The news of an attempt, as events: new ranks, their notes, their steps. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from supervisor.core.actions import Emit
from supervisor.core.own_saves.resume import resumed, started_over
from supervisor.core.own_saves.saves import Saves
from supervisor.core.telling.progress import Progress, Trained

Note = tuple[int, Mapping[str, Any]]
"""(rank, its note)."""


@dataclass(frozen=True, slots=True)
class News:
    """The result of one look at an attempt, except for what the verdict is based on."""

    pids: Mapping[int, int] = field(default_factory=dict)
    """The pids of all ranks that ever registered, by rank."""
    replaced: frozenset[int] = frozenset()
    """Ranks whose process has become another program."""
    joined: tuple[tuple[int, int], ...] = ()
    """(rank, pid) of ranks that the script has started since the last look."""
    notes: tuple[Note, ...] = ()
    """The notes since the last look."""
    trained: Trained | None = None
    """None before any rank has finished a step."""
    saves: Saves = field(default_factory=Saves)
    """The script's own saves."""
    own_step: int = -1
    """The step of the newest own save that a restart would go on from, or -1."""
    quiet: bool = False
    """A rank has been silent for a moment."""


def tell(progress: Progress, news: News, attempt: int, nproc: int) -> tuple[Progress, list[Emit]]:
    """The progress after the news, and the events that tell them."""
    events = []
    if len(news.pids) == nproc:
        pids = [pid for _, pid in sorted(news.pids.items())]
        events.append(Emit("group_ready", fields={"pids": pids}, once="group_ready"))
    for rank in news.replaced:
        text = f"rank {rank} has become another program (exec): its end is seen; its steps and hangs no longer are"
        events.append(Emit("warning", "warning", {"rank": rank, "text": text}, once=f"replaced {rank}"))
    events += [Emit("rank_joined", fields={"rank": rank, "pid": pid}) for rank, pid in news.joined]
    progress, noted = hear(progress, news.notes)
    events += noted
    if news.trained is not None:
        progress, trained = progress.trained(attempt, news.trained)
        events += trained
    return progress, events


def hear(progress: Progress, notes: Iterable[Note]) -> tuple[Progress, list[Emit]]:
    """Like tell(), for notes alone."""
    events: list[Emit] = []
    for rank, note in notes:
        progress, told = _noted(progress, rank, note)
        events += told
    return progress, events


def _noted(progress: Progress, rank: int, note: Mapping[str, Any]) -> tuple[Progress, list[Emit]]:
    about = {key: value for key, value in note.items() if key not in ("kind", "mono")}
    about["noted_mono"] = note.get("mono")
    match note["kind"]:
        case "resumed":
            said = {"text": text} if (text := resumed(note)) else {}
            return progress, [Emit("resumed", fields={"rank": rank, **about, **said}, once="resumed")]
        case "started_over":
            fields = {"rank": rank, **about, "text": started_over(note)}
            return progress, [Emit("started_over", "warning", fields, once="started_over")]
        case "data_skipped":
            return progress, [Emit("data_skipped", "warning", {"rank": rank, **about})]
        case "checkpoint_saved":
            return progress.made(int(about.pop("step", -1)), **about)
        case "checkpoint_failed":
            return progress, [Emit("checkpoint_failed", "error", {"rank": rank, **about})]
        case "checkpoint_bad":
            return progress, [Emit("checkpoint_quarantined", "error", {"rank": rank, **about})]
        case "warning":
            return progress, [Emit("warning", "warning", {"rank": rank, **about})]
        case _:
            return progress, []
