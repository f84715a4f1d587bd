"""Fixtures for tests that start real runs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.supervised import Run

# A shell that starts us in the background ignores Ctrl-C for us, and so would everything that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run that is not started yet; nothing of it is alive after the test, however that ends."""
    made = Run(tmp_path)
    yield made
    made.kill()
