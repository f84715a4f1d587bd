"""A crash at any moment, of the process or of the machine: readers find the old or the new, and the next run goes on.

What each protocol asks the kernel is recorded as it runs, and every state that a disk may then be in is laid out and
read by the product's own readers. `pytest -s` prints how many; a summary ends the test run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kernel import Recorder, recorded
from tests.support.powercut import Count, Sweep, laid_out, mutants
from tests.support.protocols_of_checkpoints import CHECKPOINTS
from tests.support.protocols_of_files import FILES
from trainer.checkpoint.errors import CheckpointError

PROTOCOLS = {**CHECKPOINTS, **FILES}


@pytest.fixture(scope="module")
def shm() -> Iterator[Path]:
    """Thousands of small folders are made and removed."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        yield Path(place)


@functools.cache
def _done(name: str, place: Path) -> tuple[Recorder, Sweep]:
    protocol, root = PROTOCOLS[name], place / name.replace(" ", "-")
    root.mkdir()
    protocol.before(root)
    with recorded(root) as recorder:
        protocol.act(root, recorder)
    states = place / f"{root.name}-states"
    return recorder, Sweep(recorder.before, protocol.look, protocol.allowed, states, protocol.power)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_moment(name: str, shm: Path, tried: dict[str, str]) -> None:
    """Whatever of what was not synced is lost, kept or torn, at every moment: the promise holds, and holds again once
    the next run has gone on from there."""
    recorder, sweep = _done(name, shm)
    count = sweep(recorder.ops)
    assert count.moments > 1
    tried[name] = str(count)


@pytest.mark.parametrize("name", [name for name, protocol in PROTOCOLS.items() if protocol.recover])
def test_a_second_crash(name: str, shm: Path, tried: dict[str, str]) -> None:
    """What the next run does with what a crash left is cut short as well, anywhere: the promise holds still."""
    recorder, sweep = _done(name, shm)
    protocol, total = PROTOCOLS[name], Count()
    assert protocol.recover
    passed: dict[frozenset[tuple[str, bytes | None]], frozenset[str]] = {}
    for marks, trees in sweep.crashes(recorder.ops):
        for tree in trees:
            key = frozenset(tree.items())
            passed[key] = marks | passed.get(key, frozenset())
    for number, (key, marks) in enumerate(passed.items()):
        place = laid_out(dict(key), shm / f"{recorder.root.name}-second-{number}")
        with recorded(place) as second, contextlib.suppress(CheckpointError):
            protocol.recover(place)
        again = dataclasses.replace(
            sweep, before=second.before, allowed=lambda _, seen, marks=marks: protocol.allowed(marks, seen)
        )
        total += again(second.ops)
        shutil.rmtree(place)
    tried[f"{name}, and a second crash"] = str(total)


@pytest.mark.parametrize("name", [name for name, protocol in PROTOCOLS.items() if protocol.power and protocol.mutated])
def test_careless_programs_are_convicted(name: str, shm: Path, tried: dict[str, str]) -> None:
    """Without any one of its syncs, or with a rename before one, each protocol breaks its promise; those that do not
    are known, and why."""
    recorder, sweep = _done(name, shm)
    innocent, convicted = set(), 0
    for mutant in mutants(recorder.ops):
        try:
            sweep(mutant.ops, mutant.since)
            innocent.add(mutant.name)
        except AssertionError:
            convicted += 1
    assert innocent == set(PROTOCOLS[name].redundant)
    tried[f"{name}, careless"] = f"{convicted:4} convicted, {len(innocent)} known to be harmless"
