"""The processes that a script starts by multiprocessing or subprocess: how each of them ends is recorded.

multiprocessing catches and prints an exception that ends a child, so it is recorded before that. Only the parent learns
how a rank's process ended (an older kernel tells nobody else), so the parent records it. Both use private parts of
Python (read in 3.10 to 3.13); missing parts are ignored.
"""

from __future__ import annotations

import functools
import multiprocessing.process
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ...rundir.environment import Supervised
from ...rundir.records.beats import holders
from ...rundir.records.notes import NoteWriter
from .. import torch_patches
from ..exceptions import Failing, record_exception, without_our_frames
from ..imports import after_import


def follow(member: Failing, place: Supervised) -> None:
    """From now on, in a child of multiprocessing, `member` learns of the exception that ends it. The end of every rank
    that this process has started is recorded."""
    _record(member)
    if place.children:
        said = functools.partial(_say, place)
        after_import(
            {
                "multiprocessing.popen_fork": functools.partial(_watch_poll, said=said),
                "multiprocessing.popen_forkserver": functools.partial(_watch_poll, said=said),
                "subprocess": functools.partial(_watch_subprocess, said=said),
                "torch.multiprocessing.spawn": functools.partial(
                    torch_patches.record_spawned, recorded=functools.partial(_recorded, member, printed=True)
                ),
            }
        )


def _record(member: Failing) -> None:
    process = multiprocessing.process.BaseProcess
    original = getattr(process, "_bootstrap", None)
    if original is None:
        return

    def bootstrap(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.run = _recorded(member, self.run)
        return original(self, *args, **kwargs)

    process._bootstrap = bootstrap  # type: ignore[attr-defined]


def _recorded(member: Failing, function: Callable[..., Any], printed: bool = False) -> Callable[..., Any]:
    """With `printed` the exception is also in the rank's log: the code that catches it prints nothing here."""

    def recorded(*args: Any, **kwargs: Any) -> Any:
        with record_exception(member):
            try:
                return function(*args, **kwargs)
            except Exception as error:
                if printed:
                    traceback.print_exception(without_our_frames(error))
                raise

    return recorded


def _watch_poll(module: ModuleType, said: Any) -> None:
    """multiprocessing's handle of a child: popen_fork's (spawn's derives from it), or the fork server's."""
    popen = module.Popen
    original = popen.__dict__.get("poll")
    if original is None:
        return

    def poll(self: Any, *args: Any, **kwargs: Any) -> Any:
        known = self.returncode
        code = original(self, *args, **kwargs)
        if known is None and code is not None:
            said(self.pid, code)
        return code

    popen.poll = poll


def _watch_subprocess(module: ModuleType, said: Any) -> None:
    original = getattr(module.Popen, "_handle_exitstatus", None)
    if original is None:
        return

    def handle(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self.returncode is not None:
            said(self.pid, self.returncode)

    module.Popen._handle_exitstatus = handle


def _say(place: Supervised, pid: int, code: int) -> None:
    if pid in holders(place.attempt.beats):
        NoteWriter(place.attempt.ended)("ended", pid=pid, code=code)
