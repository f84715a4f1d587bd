"""Fixtures for tests that start real runs, and what the tests have tried, told at the end."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Until all is collected: nothing of what is imported is garbage, and to look for some took a third of the time.
gc.disable()

import hypothesis
import pytest
import torch

from supervisor.process.proctree import is_subreaper
from trainer.checkpoint.memory import memory
from trainer.rank import progress

# What an assertion there has compared is told, as in a test. It is done when a module is imported.
pytest.register_assert_rewrite("tests.support")

from tests.support.supervised import Run
from tests.support.training import Here, Notes

_TRIED = pytest.StashKey[dict[str, str]]()

# A shell that starts us in the background ignores Ctrl-C for us, nohup a lost terminal, and so would everything that a
# test starts and sends these to.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


# There is a test for each core already: more threads would wait for each other, and use the CPU while they do.
torch.set_num_threads(1)

# How long a machine takes to draw an example says how busy it is, and nothing about us.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

# What tests leave in the folders of a user is nobody's to find.
_HOME = tempfile.TemporaryDirectory(prefix="supervise-tests-")
os.environ["XDG_STATE_HOME"] = os.path.join(_HOME.name, "state")  # noqa: PTH118
os.environ["XDG_CACHE_HOME"] = os.path.join(_HOME.name, "cache")  # noqa: PTH118


@pytest.fixture(autouse=True)
def variables() -> Iterator[None]:
    """What a library sets while a test imports it is no other test's: torch's compiler sets one that a launch would
    have to begin cold for."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def orphans() -> Iterator[None]:
    """The orphans of later tests do not become this process' zombies, each of which makes a walk over /proc longer."""
    yield
    assert not is_subreaper()


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of this test are known to this test alone: `gc` finds those of the same user from any folder."""
    folder = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run that is not started yet; nothing of it is alive after the test, however that ends."""
    made = Run(tmp_path)
    yield made
    made.kill()


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    notes = Notes()
    monkeypatch.setattr(progress, "_current", notes)
    return notes


@pytest.fixture(params=[True, False], ids=["overlapped", "blocking"])
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: Notes, request: pytest.FixtureRequest) -> Here:
    """With a core to spare for copying, and without one."""
    monkeypatch.setattr(memory, "spare_cores", lambda world_size: request.param)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1 if request.param else 2)
    return Here(tmp_path, monkeypatch)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("supervise")
    group.addoption("--all", action="store_true", help="the long tests, too: whole matrices, soaks, every byte")
    group.addoption("--cold", action="store_true", help="each launch begins with an import of torch, as a user's does")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TRIED] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long tests are left out, unless all are asked for, or one by its name."""
    if config.getoption("--all") or any("::" in argument for argument in config.args):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


def pytest_collection_finish() -> None:
    """What was imported is there to the end: neither the garbage collector nor a Checkpointer that looks for models
    looks at it again in each test."""
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    Run.warm = not item.config.getoption("--cold") and item.get_closest_marker("cold") is None


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
