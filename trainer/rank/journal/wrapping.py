"""Wraps functions that save or load. While nobody listens, they are called as they are.

The listener hears of each save, with its path and details. For nested calls, only the outermost counts. One exception:
a folder made of several files counts, and so does each file. A file of a protected save is written beside.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, Protocol

from .beside import Beside, Unsafe, prepare
from .targets import Argument, path_of


class Listener(Protocol):
    def save_begun(self, path: str | None, by: str, about: Mapping[str, Any]) -> Any:
        """A save to `path` begins (None: to no file). The journal has `about`. save_ended() gets the returned value."""

    def save_ended(self, begun: Any, error: BaseException | None) -> None:
        """The save is done, or has failed."""

    def loaded(self, path: str, error: BaseException | None) -> None:
        """`path` was loaded, or could not be."""

    def beside(self, folder: str) -> None:
        """A file is about to be written beside those in `folder`."""

    def staged(self, path: str, still: bool) -> None:
        """The save of the folder `path` has begun, and the whole folder is written beside. Not `still`: no longer."""

    def torn(self, path: str, why: str, begun: Any) -> None:
        """`path` is written over, as the program asked: a kill would tear it. `begun` is its save, if begun."""


Target = Callable[[tuple[Any, ...], dict[str, Any]], Any]
_listener: Listener | None = None
_tag = ""
"""A part of the names of our files beside a program's. Empty: files are written as the program asks."""
_sleeps = False
"""Whether a forked child will tell nobody."""
_nested = threading.local()
_MOST_KEYS, _LONGEST_KEY = 30, 60
under_way: set[str] = set()
"""Paths that torch.distributed.checkpoint saves to in the background. The saving thread must not count again."""


def wake(listener: Listener, tag: str = "") -> None:
    """From now on `listener` hears of the saves and loads of this process. With a `tag`, files are written beside, in
    folders that have the tag in their names."""
    global _listener, _sleeps, _tag
    _listener, _tag = listener, tag
    if not _sleeps:
        os.register_at_fork(after_in_child=_sleep)
    _sleeps = True


def _sleep() -> None:
    global _listener
    _listener = None


def listener() -> Listener | None:
    """The listener for a save that begins here and now."""
    return None if getattr(_nested, "calls", False) else _listener


def tag() -> str:
    """The tag from wake(). Empty if files are written as the program asks."""
    return _tag


def tell_staged(path: str, still: bool = True) -> None:
    """Reports that the whole folder `path` is written beside. Not `still`: no longer."""
    if _listener is not None:
        _listener.beside(os.path.dirname(path))
        _listener.staged(path, still)


@contextlib.contextmanager
def saving(path: str | os.PathLike[str], by: str) -> Iterator[None]:
    """Counts the block as a save of `path`, although no wrapped function makes it. Calls inside do not count, and write
    as they like."""
    if (told := listener()) is None:
        yield
        return
    with counted(told, path_of(path), by):
        yield


@contextlib.contextmanager
def loading(path: str | os.PathLike[str]) -> Iterator[None]:
    """The same for a load."""
    if (told := listener()) is None:
        yield
        return
    with _heard(told, path_of(path)):
        yield


@contextlib.contextmanager
def outermost() -> Iterator[None]:
    """Calls inside the block count as no save or load of their own."""
    _nested.calls = True
    try:
        yield
    finally:
        _nested.calls = False


@contextlib.contextmanager
def counted(told: Listener, path: str | None, by: str, **about: Any) -> Iterator[Any]:
    """Tells `told` of a save. Calls inside belong to this save."""
    within = getattr(_nested, "folder", None)
    if within is not None and path is not None:
        about["within"] = within
    begun = told.save_begun(path, by, about)
    try:
        with outermost():
            yield begun
    except BaseException as error:
        told.save_ended(begun, error)
        raise
    told.save_ended(begun, None)


@contextlib.contextmanager
def _heard(told: Listener, path: str | None) -> Iterator[None]:
    try:
        with outermost():
            yield
    except Exception as error:
        if path is not None:
            told.loaded(path, error)
        raise
    if path is not None:
        told.loaded(path, None)


class Writer:
    """A function that writes one file. One of its arguments is the path."""

    def __init__(
        self, function: Callable[..., Any], target: Argument, probe: Callable[[str], Any] | None = None
    ) -> None:
        """`probe` makes the function write next to nothing to a path. Some versions put a new file in place of the old
        one by themselves, links and all."""
        self.function, self.target = function, target
        self._probe = probe
        self._replaces: bool | None = None if probe is not None else False

    def place(self, where: Any, path: str | None) -> Beside | Unsafe | None:
        """The place to write the file for `path`. None if the file is written as the program asks, for example if there
        is no path."""
        if not _tag or path is None or not isinstance(where, str | os.PathLike):
            return None
        place = prepare(path, _tag)
        if self._probe is not None and (isinstance(place, Unsafe) or os.path.islink(where)):
            if self._replaces is None:
                self._replaces = self._try(os.path.dirname(path))
            if self._replaces:
                if isinstance(place, Beside):
                    place.abort()
                return None
        if isinstance(place, Beside) and _listener is not None:
            _listener.beside(os.path.dirname(path))
        return place

    def _try(self, folder: str) -> bool:
        place = prepare(os.path.join(folder, "probe"), _tag)
        if not isinstance(place, Beside) or self._probe is None:
            return False
        before = os.stat(place.new).st_ino
        try:
            self._probe(place.new)
            return os.stat(place.new).st_ino != before
        except Exception:
            return False
        finally:
            place.abort()

    def write(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], place: Beside | Unsafe | None, begun: Any = None
    ) -> Any:
        """Calls the function, and moves the file to its place. If there is no room beside the old file, the function is
        called once more, to write over it."""
        if isinstance(place, Beside):
            moved, named = self.target.replaced(args, kwargs, place.new)
            try:
                result = self.function(*moved, **named)
            except BaseException as error:
                if not _is_to_write_over(place, error):
                    raise
            else:
                if why := place.commit():
                    _tell_torn(place.path, why, begun)
                return result
            _tell_torn(place.path, "the disk has no room for a second copy", begun)
        elif isinstance(place, Unsafe):
            _tell_torn(os.path.realpath(self.target(args, kwargs)), place.why, begun)
        return self.function(*args, **kwargs)


def _is_to_write_over(place: Beside, error: BaseException) -> bool:
    """Whether the write failed for want of room that the old file has. Removes the new file."""
    short = isinstance(error, Exception) and place.is_full()
    place.abort()
    if short and not place.replaces() and error.__cause__ is None and not isinstance(error, OSError):
        # torch only says that its archive is not whole. With the half file gone, the disk has room again.
        error.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place.path)
    return short and place.replaces()


def _tell_torn(path: str, why: str, begun: Any) -> None:
    if _listener is not None:
        _listener.torn(path, why, begun)


def save(writer: Writer, by: str, what: Argument | None = None) -> Any:
    """Wraps the function, which saves to a path or an open file: it is reported, and a path is written beside. `what`
    is the argument that is saved."""
    function = writer.function

    @functools.wraps(function)
    def saved(*args: Any, **kwargs: Any) -> Any:
        if _listener is None and not _tag:
            return function(*args, **kwargs)
        if (told := listener()) is None:
            return write_untold(*args, **kwargs)
        where = writer.target(args, kwargs)
        path = path_of(where)
        if path in under_way:
            with outermost():
                return function(*args, **kwargs)
        place = writer.place(where, path)
        about: dict[str, Any] = {"beside": True} if isinstance(place, Beside) else {}
        if what is not None and (keys := _keys(what(args, kwargs))):
            about["holds"] = keys
        with counted(told, path, by, **about) as begun:
            result = writer.write(args, kwargs, place, begun)
            if path is not None and hasattr(where, "flush"):
                with contextlib.suppress(OSError, ValueError):
                    where.flush()
        return result

    write_untold = written(writer)
    return saved


def _keys(saved: Any) -> list[str]:
    """The top keys of a checkpoint that is a dict. A model's own state has many: only the first ones."""
    names = [key[:_LONGEST_KEY] for key in saved if isinstance(key, str)] if isinstance(saved, dict) else []
    return sorted(names, key=lambda name: "opt" not in name.lower())[:_MOST_KEYS]


def written(writer: Writer) -> Any:
    """Wraps the function, which writes a file that is no checkpoint by itself: it writes beside, and reports no
    save."""
    function = writer.function

    @functools.wraps(function)
    def write(*args: Any, **kwargs: Any) -> Any:
        if not _tag or getattr(_nested, "calls", False):
            return function(*args, **kwargs)
        where = writer.target(args, kwargs)
        return writer.write(args, kwargs, writer.place(where, path_of(where)))

    return write


def folder(
    function: Callable[..., Any], by: str, place: Callable[[tuple[Any, ...], dict[str, Any]], tuple[str, int]]
) -> Any:
    """Wraps `function`, which makes a folder of several files. It is reported, and so are the files. `place` returns
    the folder, and how many ranks make it together."""

    @functools.wraps(function)
    def saved(*args: Any, **kwargs: Any) -> Any:
        told = listener()
        if told is None or getattr(_nested, "folder", None) is not None:
            return function(*args, **kwargs)
        try:
            where, ranks = place(args, kwargs)
            path = path_of(where)
        except Exception:
            path = None  # It comes from another version. Its files count.
        if path is None:
            return function(*args, **kwargs)
        begun = told.save_begun(path, by, {"ranks": ranks})
        _nested.folder = path
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            told.save_ended(begun, error)
            raise
        finally:
            _nested.folder = None
        told.save_ended(begun, None)
        return result

    return saved


def load(function: Callable[..., Any], target: Target) -> Any:
    """Wraps `function`, which loads from a path or an open file: it is reported."""

    @functools.wraps(function, updated=())
    def loaded(*args: Any, **kwargs: Any) -> Any:
        if (told := listener()) is None:
            return function(*args, **kwargs)
        with _heard(told, path_of(target(args, kwargs))):
            return function(*args, **kwargs)

    return loaded


def replace(module: ModuleType, name: str, wrapper: Any, *others: str) -> None:
    """Sets `name` to `wrapper` in `module`, and in the `others` that had already imported it from there."""
    original = getattr(module, name)
    for where in (module, *(sys.modules[other] for other in others if other in sys.modules)):
        if getattr(where, name, None) is original:
            setattr(where, name, wrapper)
