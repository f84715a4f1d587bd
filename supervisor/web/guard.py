"""Who gets in: the person who started the server, with any browser of this machine, and a reader of the metrics.

The address that `supervise web` prints has a token. A visit with it gets a cookie, and is sent on to an address without
the token: so the token is in no history, referrer or picture of the screen. Another site cannot use the cookie
(SameSite=Strict), no script can read it (HttpOnly), and a name that somebody points to 127.0.0.1 is not served (Host).
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
METRICS = "/metrics"
_USUAL = 80
"""The port that browsers leave out of the Host."""


class Guard:
    """An ASGI app before another one."""

    def __init__(self, app: App, port: int, token: str) -> None:
        self._app, self._token = app, token
        names = ("127.0.0.1", "localhost")
        self._hosts = {f"{name}:{port}" for name in names}
        if port == _USUAL:
            self._hosts.update(names)
        # Cookies do not know ports: two servers of one machine must not overwrite each other's.
        self._cookie = f"supervise-{port}"
        # With a token that is kept, a browser stays in when the server begins anew. The token cannot be had from it.
        self._session = hmac.new(token.encode(), self._cookie.encode(), "sha256").hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._visit(scope, receive, send)

    async def _visit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if headers.get(b"host", "") not in self._hosts:
            return await _say(send, 421, "this server is for the address that supervise web printed")
        if scope["method"] not in ("GET", "HEAD"):
            return await _say(send, 405, "nothing can be changed here", allow="GET, HEAD")
        if scope["path"] == METRICS:
            if not self._knows(headers.get(b"authorization", "").removeprefix("Bearer "), self._token):
                return await _say(send, 401, "the metrics need the token", **{"www-authenticate": "Bearer"})
        elif any(self._knows(value, self._token) for name, value in query if name == "token"):
            rest = urlencode([pair for pair in query if pair[0] != "token"])
            # One slash: with two, a browser would take what follows for the name of a machine.
            place = "/" + scope["raw_path"].decode("latin-1").lstrip("/\\") + (f"?{rest}" if rest else "")
            cookie = f"{self._cookie}={self._session}; HttpOnly; SameSite=Strict; Path=/"
            return await _say(send, 303, "", location=place, **{"set-cookie": cookie})
        elif not any(self._knows(value, self._session) for value in self._brought(headers.get(b"cookie", ""))):
            return await _say(send, 401, "open the address that supervise web printed (if you came from it: reload)")
        await self._app(scope, receive, _guarded(send))
        return None

    def _brought(self, cookies: str) -> list[str]:
        # Other servers of this machine set cookies for the same address. Whatever is in theirs, ours is found.
        pairs = [part.strip().partition("=") for part in cookies.split(";")]
        return [value for name, _, value in pairs if name == self._cookie]

    @staticmethod
    def _knows(given: str, secret: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode())


def _guarded(send: Send) -> Send:
    async def guarded(message: Any) -> None:
        if message["type"] == "http.response.start":
            ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message["headers"] = [pair for pair in message["headers"] if pair[0].decode() not in HEADERS] + ours
        await send(message)

    return guarded


async def _say(send: Send, status: int, text: str, **headers: str) -> None:
    body = text.encode() + b"\n"
    named = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body)), **HEADERS, **headers}
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in named.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
