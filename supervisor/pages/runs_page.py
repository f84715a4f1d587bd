"""The runs of a folder, as one page."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from supervisor.core.size import human_seconds
from supervisor.pages.document import document
from supervisor.reading.local_time import local


def runs_page(
    folder: str, runs: Sequence[tuple[str, Mapping[str, Any]]], command: Callable[[Mapping[str, Any]], str], live: str
) -> str:
    """The page of `runs`: (name, status), in their order. `live`: the time from which it asks for news."""
    rows = [
        {
            "name": name,
            "link": f"/run/{quote(os.fsencode(name), safe='')}",
            "state": now["state"],
            "step": now["step"],
            "total": now["total"],
            "restarts": now["restarts"],
            "left": human_seconds(now["eta_s"]) if now["eta_s"] is not None else "",
            "started": local(now["started"]) if now["started"] else "",
            "reason": now["reason"] or now["doing"] or "",
            "command": command(now),
        }
        for name, now in runs
    ]
    return document("runs.html", title=f"runs in {folder}", folder=folder, runs=rows, live=live, run=None)
