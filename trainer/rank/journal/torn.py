"""Finds the file that a script was reading when the content made no sense: its own checkpoint, cut short by a kill.

The errors of loaders seldom name the file. But a traceback holds the frames that the error came through. Their
variables hold the file's name or the open file: torch.load's `f`, zipfile's `self.filename`, a script's own `file` or
`path`.
"""

from __future__ import annotations

import io
import os
import stat
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

_KINDS = frozenset(
    {
        "builtins.EOFError",
        "_pickle.UnpicklingError",
        "zipfile.BadZipFile",
        "zipfile._path.BadZipFile",
        "zlib.error",
        "gzip.BadGzipFile",
        "_lzma.LZMAError",
        "tarfile.ReadError",
        "json.decoder.JSONDecodeError",
        "safetensors_rust.SafetensorError",
        "safetensors._safetensors_rust.SafetensorError",
    }
)
"""Types of errors that mean: the content makes no sense, in any file."""
_WORDS = (
    "PytorchStreamReader",
    "unexpected EOF",
    "might be corrupted",
    "Ran out of input",
    "invalid load key",
    "Invalid magic number",
    "Failed to interpret file",
    "No data left in file",
    "cannot reshape array",
    "Failed to read all data for array",
)
"""Words in errors of any type that mean the same."""
_REFUSED = "was not an allowed global"
"""In an error of torch.load(weights_only=True) about a file that is whole: it holds an object of another class."""
_NAMES = ("f", "fp", "file", "filename", "filepath", "path", "fname", "fd", "name", "name_or_buffer", "checkpoint_file")
"""Names of variables. A file name counts only in one of these. An open file counts in any variable."""
_LONGEST = 4096


def file_of(error: BaseException) -> str | None:
    """The path of the file that `error` comes from, if it says that a file is damaged and the file can be found."""
    for each in _chain(error):
        if _is_about_content(each):
            # The innermost frame that knows a file knows the right one.
            frames = [frame for frame, _ in traceback.walk_tb(each.__traceback__)]
            if found := next((path for frame in reversed(frames) if (path := _file_in(frame))), None):
                return found
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and the errors that it came from, explicitly or not."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _is_about_content(error: BaseException) -> bool:
    if _REFUSED in str(error):
        return False
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    return bool(kinds & _KINDS) or any(word in str(error) for word in _WORDS)


def _file_in(frame: FrameType) -> str | None:
    """The one file that the variables of `frame` name. An open file goes before a name."""
    values = {**frame.f_locals, **_own_of(frame.f_locals.get("self"))}
    opened = {path for value in values.values() if (path := _opened(value))}
    if len(opened) == 1:
        return opened.pop()
    named = {path for name in _NAMES if (path := _named(values.get(name)))}
    if not named and not opened:
        # A script may use any names: a path counts if it is the only one.
        named = {path for value in values.values() if (path := _named(value))}
    return named.pop() if len(named) == 1 else None


def _own_of(owner: Any) -> dict[str, Any]:
    found = getattr(owner, "__dict__", None)
    return {name: value for name, value in found.items() if name in _NAMES} if isinstance(found, dict) else {}


def _opened(value: Any) -> str | None:
    if not isinstance(value, io.IOBase):
        return None
    try:
        return _named(getattr(value, "name", None)) if value.closed or value.readable() else None
    except ValueError:
        return None


def _named(value: Any) -> str | None:
    if not isinstance(value, str | os.PathLike) or not value:
        return None
    try:
        path = os.fspath(value)
        if not isinstance(path, str) or len(path) > _LONGEST or not stat.S_ISREG(os.stat(path).st_mode):
            return None
        return os.path.abspath(path)  # A link is named as the script names it.
    except (OSError, ValueError, TypeError):
        return None
