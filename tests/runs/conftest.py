"""Fixtures for tests of runs over several machines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster


@pytest.fixture
def nodes(machines: Cluster) -> Iterator[Cluster]:
    """The machines of the test's module; all are up again after the test."""
    yield machines
    machines.mend()
