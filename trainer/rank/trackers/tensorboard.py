"""TensorBoard, by torch.utils.tensorboard or tensorboardX. A writer without a folder continues in the first attempt's
folder. A writer without the user's `purge_step` hides the old points that are written again.

Which points these are is known only at the program's first point. So the hiding event comes before that point, not at
the beginning of the file. TensorBoard's own server compares steps. It does not need the event, and loses nothing by it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import weakref
from types import ModuleType
from typing import Any

from . import event_files
from .curve import cut
from .event_files import START
from .going_on import GoingOn

_MOST_HELD = 100
_MOST_TRIED = 1000
"""After so many points nothing is hidden any more. The program counts in a way that we do not understand."""


class _Folder:
    """The writes of this attempt into one folder. It may have several writers there."""

    def __init__(self, path: str, going_on: GoingOn, write: Any) -> None:
        self._path, self._going_on, self._write = path, going_on, write
        self._first: Any = None
        self._own: set[str] = set()
        self._old: list[tuple[str, int]] | None = None
        self._held: list[Any] = []
        """Events that were written before the program's position was known. If they get hidden too, they are written
        once more."""
        self._tried = 0
        self.settled = not going_on.later

    def opened(self, writer: Any, files: set[str]) -> None:
        """`writer` has made `files` in the folder."""
        self._own |= files
        self._first = self._first or writer

    def before(self, writer: Any, event: Any) -> None:
        """`writer` is about to write `event`."""
        if event.HasField("session_log"):
            self.settled = True  # The user gave a purge_step.
        elif event.HasField("summary") and event.summary.value:
            self._look(writer, event)

    def _look(self, writer: Any, event: Any) -> None:
        at = self._going_on.position()
        if at is not None:
            if self._old is None:
                self._old = event_files.points(self._path, self._own, self._going_on.since, type(event))
            start = cut(self._old, event.summary.value[0].tag, event.step, at)
            if start is not None:
                self._hide(writer, start, type(event))
            self._tried += 1
            beyond = event.step > max((step for _, step in self._old), default=-1)
            self.settled = start is not None or beyond or self._tried > _MOST_TRIED
        if self.settled:
            self._held.clear()
        elif len(self._held) < _MOST_HELD:
            self._held.append(event)

    def _hide(self, writer: Any, start: int, make: Any) -> None:
        again = [event for event in self._held if event.step >= start]
        # The event goes into this attempt's first file. In a later file it would also hide new points of the first
        # file.
        for each in (self._first, writer):
            try:
                self._write(each, make(step=start, session_log={"status": START}))
            except OSError:
                continue  # The writer is closed.
            break
        for event in again:
            self._write(writer, event)


def _events(module: ModuleType, going_on: GoingOn) -> None:
    """Wraps EventFileWriter. It writes all files of SummaryWriter, also those of add_scalars."""
    kind: Any = module.EventFileWriter
    make, write = kind.__init__, kind.add_event
    folders: dict[str, _Folder] = {}
    first: tuple[Any, str] | None = None
    """The writer and the name of the first number."""
    writers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
    """The process of each writer. In a fork, the writer has no thread, and a flush would wait for ever."""

    @functools.wraps(make)
    def opened(self: Any, logdir: Any, *args: Any, **kwargs: Any) -> None:
        path = os.path.abspath(str(logdir))
        before = event_files.names(path)
        make(self, logdir, *args, **kwargs)
        folder = folders.setdefault(path, _Folder(path, going_on, write))
        folder.opened(self, event_files.names(path) - before)
        going_on.board(path)
        self._supervise_folder = folder
        writers[self] = os.getpid()

    @functools.wraps(write)
    def add_event(self: Any, event: Any) -> Any:
        folder = getattr(self, "_supervise_folder", None)
        if folder is not None and not folder.settled:
            with contextlib.suppress(Exception):  # An error in a tracker must not end the training.
                folder.before(self, event)
        result = write(self, event)
        with contextlib.suppress(Exception):
            if event.HasField("summary"):
                logged(self, event)
            if going_on.just_saved():
                self.flush()
        return result

    def logged(writer: Any, event: Any) -> None:
        """People see the loss, and the run's numbers go where the first number of the program went."""
        nonlocal first
        value = next((each for each in event.summary.value if each.HasField("simple_value")), None)
        if value is None:
            return
        going_on.told(value.tag, value.simple_value)
        first = first or (writer, value.tag)
        if first[0] is writer and first[1] == value.tag and (numbers := going_on.numbers()):
            told = [{"tag": name, "simple_value": number} for name, number in numbers.items()]
            write(writer, type(event)(wall_time=event.wall_time, step=event.step, summary={"value": told}))

    def flush() -> None:
        for writer, pid in list(writers.items()):
            if pid == os.getpid():
                with contextlib.suppress(Exception):
                    writer.flush()

    kind.__init__, kind.add_event = opened, add_event
    going_on.before_saves(flush)


def _writer(module: ModuleType, going_on: GoingOn) -> None:
    """Wraps SummaryWriter(). Without a folder it makes one whose name has the time."""
    kind: Any = module.SummaryWriter
    make = kind.__init__

    @functools.wraps(make)
    def chosen(self: Any, *args: Any, **kwargs: Any) -> None:
        if args or kwargs.get("log_dir") or kwargs.get("logdir"):
            make(self, *args, **kwargs)
            return
        named = {name: value for name, value in kwargs.items() if name not in ("log_dir", "logdir")}
        made: list[str] = []

        def choose() -> str:
            make(self, **named)
            folder = getattr(self, "log_dir", None) or getattr(self, "logdir", None)
            made.append(os.path.abspath(str(folder)) if folder else "")
            return made[-1]

        folder = going_on.recall(f"{module.__name__} {named.get('comment', '')}", choose)
        if not made:
            make(self, *([folder] if folder else []), **named)

    kind.__init__ = chosen


def _default_logdir(module: ModuleType, going_on: GoingOn) -> None:
    """Wraps transformers' function that makes a folder with the time in its name. Its module depends on the version."""
    original = getattr(module, "default_logdir", None)
    if original is not None:
        module.default_logdir = lambda: going_on.recall("transformers", original)  # type: ignore[attr-defined]


HOOKS = {
    "tensorboard.summary.writer.event_file_writer": _events,
    "tensorboardX.event_file_writer": _events,
    "torch.utils.tensorboard.writer": _writer,
    "tensorboardX.writer": _writer,
    "transformers.training_args": _default_logdir,
    "transformers.integrations.integration_utils": _default_logdir,
}
