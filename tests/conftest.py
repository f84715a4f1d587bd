"""Fixtures for tests that start real runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.supervised import Run


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run that is not started yet; nothing of it is alive after the test, however that ends."""
    made = Run(tmp_path)
    yield made
    made.kill()
