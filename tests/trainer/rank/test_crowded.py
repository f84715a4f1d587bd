"""A fork server that may not fork now says so, and serves on."""

from __future__ import annotations

import errno
import os

import pytest

from trainer.rank.engine import fork_server


def test_no_room_for_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def crowded() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    server = fork_server._Server.__new__(fork_server._Server)
    monkeypatch.setattr(os, "fork", crowded)
    monkeypatch.setattr(fork_server, "threads", lambda: 1)
    monkeypatch.setattr(fork_server.mark, "room", lambda: 1)

    assert server._answer({"group": "/g", "flags": []}) == {"group": "/g", "pid": 0}
    order = {"run": "rundir.codes", "arguments": [], "out": "/o", "mark": "m"}
    assert server._answer(order) == {"ran": "/o", "pid": 0}
