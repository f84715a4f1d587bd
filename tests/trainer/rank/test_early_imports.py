"""What the import of a module finds in the fork server, which is no rank of an attempt, and what a rank finds
afterwards."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.frameworks import needs
from tests.support.supervised import ROOT, environment
from trainer.rank.preload import own_modules, rank_zero, script_variables
from trainer.rank.preload.import_watch import ImportWatch
from trainer.rundir.records.learned import Settings

Watched = Callable[..., ImportWatch]


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Imports modules of the given texts, in this order and under watch. They are installed."""
    (site := tmp_path / "site-packages").mkdir()
    monkeypatch.syspath_prepend(site)

    def imported(late: dict[str, list[str]] | None = None, **texts: str) -> ImportWatch:
        for name, text in texts.items():
            (site / f"{name}.py").write_text(text)
        before = set(sys.modules)
        try:
            with ImportWatch((), lambda stack: None, late=late or {}) as watch:
                for name in texts:
                    importlib.import_module(name)
            return watch
        finally:
            for name in set(sys.modules) - before:
                del sys.modules[name]

    return imported


def test_who_reads_a_variable_of_a_rank(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that asks at its import, in any way, is left to the ranks. A copy of all variables asks for none."""
    monkeypatch.setenv("MASTER_PORT", "1")
    watch = watched(
        gets="import os; os.environ.get('RANK')",
        calls="import os; os.getenv('LOCAL_RANK', 0)",
        looks="import os; 'WORLD_SIZE' in os.environ, os.environ.setdefault('MASTER_PORT', '2')",
        helped="import reader; reader.read()",
        reader="import os\ndef read(): return os.environ.get('TORCHELASTIC_RESTART_COUNT')",
        copies="import os; dict(os.environ), {**os.environ}, os.environ.copy(), list(os.environ.items())",
        searches="import os; [os.environ[name] for name in os.environ if name.startswith('HOME')]",
        others="import os; os.environ.get('SLURM_PROCID'), os.environ.get('HOME')",
    )

    assert watch.causes == {
        "gets": "its import reads RANK",
        "calls": "its import reads LOCAL_RANK",
        "looks": "its import reads MASTER_PORT and WORLD_SIZE",
        "helped": "its import reads TORCHELASTIC_RESTART_COUNT",
    }
    assert type(os.environ).__module__ == "os"


def test_lightning_is_imported_early_and_knows_its_rank() -> None:
    """lightning and torchmetrics keep the rank at their import, which takes seconds: they are imported all the same,
    and told."""
    needs("lightning", "pytorch_lightning", "torchmetrics")
    code = """
import os
from trainer.rank.preload import rank_zero
from trainer.rank.preload.import_watch import ImportWatch
import torch
with ImportWatch((), lambda stack: None) as watch:
    import lightning.pytorch, pytorch_lightning, torchmetrics
assert "lightning.fabric.utilities.rank_zero" in watch._seconds
from lightning.pytorch.utilities import rank_zero_only
from torchmetrics.utilities.prints import rank_zero_only as of_metrics
before = rank_zero_only.rank, of_metrics.rank
os.environ.update(RANK="5", LOCAL_RANK="1")
rank_zero.settle()
reads = [why for why in watch.causes.values() if " reads " in why]
print(reads, before, rank_zero_only.rank, of_metrics.rank)
"""
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )

    assert told.stdout.splitlines()[-1] == "[] (0, 0) 5 1"


def test_another_version_of_lightning_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that keeps its rank elsewhere cannot be told it, and a rank without it imports nothing."""
    name = "lightning.fabric.utilities.rank_zero"
    monkeypatch.delitem(sys.modules, name, raising=False)
    assert not rank_zero.can_be_told(name)
    monkeypatch.setitem(sys.modules, name, type(sys)(name))
    assert not rank_zero.can_be_told(name)
    rank_zero.settle()


def test_who_sets_up_the_root_logger(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handlers or its level: the script's own basicConfig() comes later in a fork. Other loggers may be set up."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    watch = watched(
        own="import logging; logging.getLogger('own_of_it').addHandler(logging.NullHandler())",
        level="import logging; logging.getLogger().setLevel(logging.INFO)",
        warns="import logging; logging.warning('no fast kernel')",
    )

    assert watch.causes == dict.fromkeys(("level", "warns"), "its import changes the root logger")


def test_who_seeds_torch(watched: Watched) -> None:
    """A rank draws its own seed, and that of the import would be lost. To draw numbers is no harm."""
    before = torch.get_rng_state()
    try:
        watch = watched(
            draws="import torch; torch.rand(3)",
            seeds=f"import torch; torch.manual_seed({torch.initial_seed() ^ 1})",
        )
    finally:
        torch.set_rng_state(before)

    assert watch.causes == {"seeds": "its import changes torch's seed"}


def test_what_the_script_sets_first(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that reads a variable is left to a script that sets it before; not one that is imported before, nor
    one that finds what another import has set."""
    for name in ("HOME_OF_HUB", "SEARCHES_OFF", "SET_BY_IMPORT"):
        monkeypatch.delenv(name, raising=False)
    names = ["reads", "sets", "finds", "searches", "copies"]
    watch = watched(
        late=dict.fromkeys(("HOME_OF_HUB", "SEARCHES_OFF", "SET_BY_IMPORT"), names),
        early="import os; os.environ.get('HOME_OF_HUB')",
        reads="import os; os.environ.get('HOME_OF_HUB')",
        sets="import os; os.environ['SET_BY_IMPORT'] = '1'",
        finds="import os; os.environ['SET_BY_IMPORT']",
        searches="import os; [name for name in os.environ if name.startswith('SEARCHES_')]",
        copies="import os; dict(os.environ)",
    )

    assert watch.causes == {
        "reads": "its import reads HOME_OF_HUB, which the script sets before",
        "searches": "its import reads SEARCHES_OFF, which the script sets before",
    }


def test_a_rank_tells_what_its_script_has_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the modules that it imported afterwards, also for a variable that it has changed or removed; nothing of
    what was set before it began."""
    site, path = tmp_path / "site-packages", tmp_path / "variables.json"
    site.mkdir()
    for name in ("first_of_it", "second_of_it", "third_of_it"):
        (site / f"{name}.py").touch()
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.setattr(script_variables, "_follower", None)
    monkeypatch.setenv("KEPT", "1")
    monkeypatch.setenv("REMOVED", "1")
    monkeypatch.delenv("HOME_OF_HUB", raising=False)
    script_variables.remember(path)
    assert not path.exists()

    try:
        script_variables.follow()
        importlib.import_module("first_of_it")
        monkeypatch.setenv("HOME_OF_HUB", "here")
        importlib.import_module("second_of_it")
        monkeypatch.delenv("REMOVED")
        importlib.import_module("third_of_it")
        script_variables.remember(path)
    finally:
        for name in ("first_of_it", "second_of_it", "third_of_it"):
            sys.modules.pop(name, None)

    told = Settings.known(path)
    assert told.own[-3:] == ["first_of_it", "second_of_it", "third_of_it"]
    assert told.late == {"HOME_OF_HUB": ["second_of_it", "third_of_it"], "REMOVED": ["third_of_it"]}


def test_what_a_warm_rank_cannot_tell() -> None:
    """Of a module that was imported before the script, it is known from an earlier attempt whether the script imports
    it first. If the variable is new, it may be."""
    names = ["one", "two", "three"]
    told = Settings(own=["three"], late={"KNOWN": ["three"], "NEW": []})

    assert told.of(names, {"KNOWN": ["two"], "GONE": names}) == {"KNOWN": ["two", "three"], "NEW": ["one", "two"]}
    assert Settings().of(names, {"GONE": names}) == {}


def test_the_script_has_its_own_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank tells where it is, if it hides an installed one, whichever was imported; a fork server sees that it would
    find, or has imported, the installed one. A folder without a file of its own hides nothing."""
    site, script = tmp_path / "site-packages", tmp_path / "script"
    for name in ("forked_of_it", "data_of_it", "plain_of_it"):
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").touch()
    own = script / "forked_of_it" / "__init__.py"
    own.parent.mkdir(parents=True)
    own.touch()
    (script / "data_of_it").mkdir()
    (script / "alone_of_it.py").touch()
    names = ("forked_of_it", "data_of_it", "plain_of_it", "alone_of_it")
    try:
        monkeypatch.setattr(sys, "path", [str(script), str(site), *sys.path])
        for name in names:
            importlib.import_module(name)
        mine = {name: origin for name, origin in own_modules.found().items() if name in names}
        assert mine == {"forked_of_it": str(own)}
        assert not own_modules.other(mine) and not own_modules.loaded(mine)

        monkeypatch.setattr(sys, "path", sys.path[1:])
        del sys.modules["forked_of_it"]
        assert own_modules.other(mine) == {"forked_of_it"}
        importlib.import_module("forked_of_it")
        assert own_modules.loaded(mine) == ["forked_of_it"]
    finally:
        for name in names:
            sys.modules.pop(name, None)
