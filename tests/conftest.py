"""Fixtures for tests that start real runs, and what the tests have tried, told at the end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.supervised import Run

_TRIED = pytest.StashKey[dict[str, str]]()

# A shell that starts us in the background ignores Ctrl-C for us, and so would everything that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run that is not started yet; nothing of it is alive after the test, however that ends."""
    made = Run(tmp_path)
    yield made
    made.kill()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TRIED] = {}


@pytest.fixture
def tried(pytestconfig: pytest.Config) -> dict[str, str]:
    """Takes what is to be told, by name."""
    return pytestconfig.stash[_TRIED]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if tried := config.stash[_TRIED]:
        terminalreporter.section("tried")
        width = max(map(len, tried))
        for name, count in tried.items():
            terminalreporter.line(f"{name:{width}}  {count}")
