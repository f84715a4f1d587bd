"""Who gets in, asked of the guard alone: what else a browser of this machine brings along changes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from supervisor.web.guard import Guard, Receive, Scope, Send

TOKEN = "t" * 32


def answer(port: int = 8470, query: str = "", host: str = "", cookie: str = "") -> tuple[int, dict[bytes, bytes]]:
    """The status and the headers of a visit."""
    told: list[Any] = []

    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        told.append(message)

    headers = [(b"host", (host or f"127.0.0.1:{port}").encode()), (b"cookie", cookie.encode("latin-1"))]
    about = {"method": "GET", "path": "/", "raw_path": b"/", "query_string": query.encode(), "headers": headers}
    asyncio.run(Guard(page, port, TOKEN)({"type": "http", **about}, receive, send))
    return told[0]["status"], dict(told[0]["headers"])


@pytest.mark.parametrize(
    "other", ['theme={"dark":true}', "flag", "a@b=1", '"', "=", "supervise-8470=", "supervise-84700=x", "é=ü", "a=b=c"]
)
def test_a_cookie_of_another_server_locks_nobody_out(other: str) -> None:
    """Cookies do not know ports: a browser brings those of every local server, in any order."""
    _, headers = answer(query=f"token={TOKEN}")
    ours = headers[b"set-cookie"].decode().partition(";")[0]
    assert [answer(cookie=brought)[0] for brought in (ours, f"{other}; {ours}", f"{ours};{other}")] == [200] * 3
    assert [answer(cookie=brought)[0] for brought in (other, f"{other}; {ours}x", f"x{ours}", "")] == [401] * 4


def test_at_the_usual_port_the_host_has_none() -> None:
    """A browser leaves `:80` out. At any other port a bare name is not the address that was printed."""
    hosts = ("127.0.0.1", "localhost", "127.0.0.1:80", "evil.example", "evil.example:80")
    assert [answer(80, f"token={TOKEN}", host)[0] for host in hosts] == [303, 303, 303, 421, 421]
    assert answer(8470, f"token={TOKEN}", "127.0.0.1")[0] == 421
