"""Every kind of state: all ranks are killed and resumed, and each ends with the bits of a run that nobody killed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.jobs import ROOT, environment
from tests.support.state_cases import REFUSED
from tests.support.state_programs import PROGRAMS
from tests.support.state_rarities import CASES, LOADERS, RARITIES
from tests.support.states_killed import EVERY, KILL

SOME = (
    *("stages by their names", "a part of what DDP wraps", "HSDP, reduced among the shards only"),
    *("ranges of a quantized model", "a buffer of another length on each rank", "FSDP2, tied"),
)
"""The cases that no other test of a kill has, for a run that is short."""

USUAL = tuple(name for name in CASES if name not in RARITIES)


@pytest.mark.parametrize(
    ("tier", "ranks", "names"),
    [
        pytest.param("memory", 3, SOME, id="memory, some"),
        *(
            pytest.param(tier, ranks, names, marks=pytest.mark.long, id=f"{tier}, {ranks}, {kinds}")
            for tier in ("memory", "disk")
            for ranks in (2, 4)
            for kinds, names in (("usual", USUAL), ("rare", RARITIES))
        ),
        pytest.param("memory-one", 2, (*PROGRAMS, *RARITIES), marks=pytest.mark.long, id="memory, one rank is killed"),
    ],
)
def test_killed_and_resumed(tmp_path: Path, tier: str, ranks: int, names: tuple[str, ...]) -> None:
    """Or refused, with the text that tells what to write."""
    if importlib.util.find_spec("torchdata") is None:
        names = tuple(name for name in names if name not in LOADERS)
    place = tmp_path / tmp_path.parent.name  # its name is that of the snapshots, and nobody else's
    place.mkdir()
    command = [sys.executable, "-m", "tests.support.states_killed", str(place), tier, str(ranks), *names]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {line.pop("case"): line for line in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == set(names)
    for name, line in found.items():
        if name in REFUSED:
            assert line["outcome"].startswith("refused: ") and REFUSED[name] in line["outcome"], (name, line)
        else:
            assert line["outcome"] == "same", (name, line, done.stderr[-1000:])
            # From memory at most the step that was being copied is lost; from disk at most what came after the save.
            assert KILL - line["start"] <= (2 if tier.startswith("memory") else EVERY + 1), (name, line)
