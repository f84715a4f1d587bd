"""W&B, as read in wandb 0.31: all attempts are one run (WANDB_RUN_ID), with each row once.

Its server takes nothing back, and a rewind (`resume_from`) is not everywhere, so a row that is there is not logged a
second time. Its service buffers up to a block of rows, and is killed with the attempt, so a block is filled up at each
save; a row that the server does not have is sent again from the file. A run offline has one file for each attempt;
together they have each step once, and `wandb sync` makes one curve of them.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import operator
import os
import sys
import weakref
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ...rundir.variables import RUN_ID
from .going_on import GoingOn
from .wandb_log import BLOCK, mend, rows
from .wandb_rows import Places, Rows

_ID = "WANDB_RUN_ID"


def _run(module: ModuleType, going_on: GoingOn) -> None:
    kind: Any = module.Run
    log = kind.log
    _several(kind)
    known: weakref.WeakKeyDictionary[Any, Rows | None] = weakref.WeakKeyDictionary()
    saved: weakref.WeakSet[Any] = weakref.WeakSet()

    @functools.wraps(log)
    def logged(self: Any, data: Any, step: Any = None, commit: Any = None, *args: Any, **kwargs: Any) -> Any:
        if self not in known:
            known[self] = None
            with contextlib.suppress(Exception):  # An error in a tracker must not end the training.
                known[self] = _rows(self, going_on, functools.partial(log, self))
        of = known[self]
        if step is not None and hasattr(step, "__index__"):
            step = operator.index(step)
        if of is None or not (step is None or isinstance(step, int)):
            return log(self, data, step, commit, *args, **kwargs)
        if of.again(going_on.position(), step, commit):
            return None
        if isinstance(data, Mapping):
            for tag, value in data.items():
                if isinstance(tag, str) and isinstance(value, float):
                    going_on.told(tag, value)
            data = {**data, **going_on.numbers()}
        result = log(self, data, *of.placed(step, commit), *args, **kwargs)
        of.logged(step, commit)
        if (just := going_on.just_saved()) or self in saved:
            _write_out(self)
        if not just:
            # Not before: W&B holds a row with a given step until the next one begins.
            saved.discard(self)
        return result

    def flush() -> None:
        for run, of in list(known.items()):
            if of is not None:
                _write_out(run)
                saved.add(run)

    kind.log = logged
    going_on.before_saves(flush)


def _several(kind: Any) -> None:
    """Each rank that logs, and each further run of a process, is a run of its own, as without us: the supervisor gives
    all of them one id."""
    run, rank = os.environ.get(RUN_ID, ""), int(os.environ.get("RANK", "0"))
    if not run or os.environ.get(_ID) != run:
        return  # the user's own choice
    first = f"{run}-rank{rank}" if rank else run
    os.environ[_ID] = first
    finish, count = getattr(kind, "_finish", None), 1
    if finish is None:
        return

    @functools.wraps(finish)
    def finished(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        try:
            return finish(self, *args, **kwargs)
        finally:
            if getattr(self, "id", None) == os.environ.get(_ID):
                count += 1
                os.environ[_ID] = f"{first}-{count}"
                with contextlib.suppress(Exception):  # They were read from the environment once.
                    sys.modules["wandb.sdk.wandb_setup"].singleton().settings.run_id = os.environ[_ID]

    kind._finish = finished


def _rows(run: Any, going_on: GoingOn, log: Any) -> Rows | None:
    """What is there of the run. What the server does not have of it is sent again. None if W&B does not log as we know
    it: it is disabled, or several processes share the run."""
    settings = run.settings
    if settings.mode not in ("online", "offline", "run", "dryrun"):
        return None
    places = Places(going_on.file(f"wandb {run.id}", ".rows"), not going_on.later)
    starts = run.starting_step
    if not going_on.later:
        return Rows(places, -1, starts)
    found: dict[int, dict[str, Any]] = {}
    own = os.path.realpath(settings.sync_file)
    where = os.path.join(glob.escape(os.path.dirname(settings.sync_dir)), f"*run-*-{glob.escape(run.id)}")
    for path in sorted(glob.glob(os.path.join(where, "*.wandb"))):
        if os.path.realpath(path) != own:
            mend(path)
            found.update(rows(path, _protobuf().Record))
    have = max(found, default=-1)
    if not settings._offline:
        for step in sorted(step for step in found if step >= starts):
            log(found[step], step, True)
            starts = step + 1
        have = max(have, starts - 1)
    return Rows(places, have, starts)


def _write_out(run: Any) -> None:
    """What was logged so far is in the run's file now, though the service writes only whole blocks: an empty list of
    files, with an id as long as a block. It has no other request for this."""
    with contextlib.suppress(Exception):
        if run._init_pid == os.getpid():
            filling = _protobuf().Record(uuid=" " * BLOCK)
            filling.files.SetInParent()
            run._interface._publish(filling)


def _protobuf() -> Any:
    from wandb.proto import wandb_internal_pb2

    return wandb_internal_pb2


HOOKS = {"wandb.sdk.wandb_run": _run}
