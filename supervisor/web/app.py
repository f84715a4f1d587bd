"""The routes. Each only reads."""

from __future__ import annotations

import asyncio
import gzip
import os
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime, timezone
from typing import Any
from urllib.parse import unquote_to_bytes

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from supervisor.core.telling.ledger import report
from supervisor.errors import Refusal
from supervisor.pages.exposition import exposition
from supervisor.pages.run_page import run_page
from supervisor.pages.runs_page import runs_page
from supervisor.run.status import now_of
from supervisor.web.runs import News, Runs
from trainer.rundir.files.codec import encode

EVERY = 0.5
"""Seconds between two looks for new events."""
_QUIET = 15.0
"""Seconds of silence before a sign of life, so that a reader that is gone is noticed."""
_STREAMS = 16
"""Streams at a time. A browser needs one, whatever number of pages it shows."""
_TEXT = "text/plain; version=0.0.4; charset=utf-8"
Command = Callable[[Mapping[str, Any]], str]


def app(runs: Runs, command: Command, ending: Callable[[], bool]) -> Starlette:
    """The pages of `runs`. `command` gives the command of a status as people write it. `ending`: whether the server
    waits for its streams to end."""
    streams: set[object] = set()

    def index(request: Request) -> Response:
        looks = [(look.name, look.status) for look in runs.look()]
        return _html(request, runs_page(str(runs.root.resolve()), looks, command, _now()))

    def page(request: Request) -> Response:
        known = runs.find(_name(request))
        if known is None:
            return PlainTextResponse("there is no such run here\n", 404)
        try:
            return _html(request, run_page(known, command, live=_now()))
        except Refusal as refusal:
            return PlainTextResponse(f"{refusal}\n", 500)

    def metrics(request: Request) -> Response:
        told = [(look.name, look.status, report(look.story, now_of(look.story))) for look in runs.look()]
        return Response(exposition(told), media_type=_TEXT)

    async def stream(request: Request) -> Response:
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        if len(streams) >= _STREAMS:
            return PlainTextResponse("too many streams\n", 503)
        since = request.headers.get("last-event-id") or request.query_params.get("since") or _now()
        return StreamingResponse(_told(News(runs, since), streams, ending), media_type="text/event-stream")

    routes = [Route("/", index), Route("/run/{name}", page), Route("/stream", stream), Route("/metrics", metrics)]
    return Starlette(routes=routes)


async def _told(news: News, streams: set[object], ending: Callable[[], bool]) -> AsyncIterator[bytes]:
    """The new events, with their time as id: whoever comes back with the last one misses nothing. Events of that time
    come again; `seq` tells them."""
    me = object()
    streams.add(me)
    try:
        quiet = 0.0
        yield b"retry: 2000\n\n"
        while not ending():
            found = await run_in_threadpool(news.read)
            for event in found:
                named = {key: event.get(key) for key in ("folder", "seq", "ts", "msg", "level", "attempt", "rank")}
                yield b"id: %s\nevent: told\ndata: %s\n\n" % (_one_line(event.get("ts")), encode(named))
            quiet = 0.0 if found else quiet + EVERY
            if quiet >= _QUIET:
                quiet = 0.0
                yield b":\n\n"
            await asyncio.sleep(EVERY)
    finally:
        streams.discard(me)


def _name(request: Request) -> str:
    """The folder that is asked for. Its name need not be UTF-8, which path_params would make of it."""
    path: bytes = request.scope["raw_path"]
    return os.fsdecode(unquote_to_bytes(path.rpartition(b"/")[2]))


def _one_line(text: object) -> bytes:
    return "".join(char for char in str(text) if char.isprintable()).encode("utf-8", "replace")


def _html(request: Request, page: str) -> Response:
    """The page, in a fifth of its size where the browser takes that. No secret is in it, whose length could show."""
    body, headers = page.encode("utf-8", "backslashreplace"), {"Vary": "Accept-Encoding"}
    taken = [one.partition(";")[0].strip() for one in request.headers.get("accept-encoding", "").split(",")]
    if "gzip" in taken:
        body, headers["Content-Encoding"] = gzip.compress(body, 5), "gzip"
    return HTMLResponse(body, headers=headers)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
