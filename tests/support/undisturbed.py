"""The end of a run that nobody disturbed, made once for all processes of a test session."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from filelock import FileLock

from tests.support.jobs import final_state
from tests.support.supervised import Run


def undisturbed(
    factory: pytest.TempPathFactory, name: str, steps: int, job: Sequence[str], prepare: Callable[[Run], object]
) -> Any:
    """The final state of `job` on two ranks after `steps` steps. `name` is its own in all tests; `prepare` writes what
    the job needs."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"undisturbed-{name}"
    with FileLock(f"{folder}.lock"):
        run = Run(folder)
        if not folder.exists():
            folder.mkdir()
            prepare(run)
            assert run.launch("--nproc", "2", *job) == 0
    return final_state(run.dir.path, steps)
