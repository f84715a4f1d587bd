"""A leader's hub, and the line of a follower to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.nodes.hub import Hub
from supervisor.nodes.line import Line
from tests.support.links import HOST, LEASE, TOKEN


@pytest.fixture
def leader() -> Iterator[Hub]:
    with contextlib.closing(Hub((HOST, 0), TOKEN, LEASE)) as made:
        yield made


@pytest.fixture
def follower(leader: Hub, tmp_path: Path) -> Iterator[Line]:
    with contextlib.closing(Line((HOST, leader.port), HOST, TOKEN, tmp_path)) as made:
        yield made
