"""The target of a call: the argument that names it, and its file."""

from __future__ import annotations

import os
import stat
from typing import Any


def path_of(target: Any) -> str | None:
    """The file of a path or an open file, absolute and with its links resolved. None if there is none: a buffer, a
    pipe, a device, an address."""
    try:
        if isinstance(target, str | os.PathLike):
            path = os.path.realpath(os.fspath(target))
            elsewhere = not isinstance(path, str) or "://" in os.fspath(target)
            return None if elsewhere or _is_special(path) else path
        path, fd = os.path.realpath(target.name), target.fileno()
        found = os.fstat(fd)
        return path if stat.S_ISREG(found.st_mode) and os.path.samestat(found, os.stat(path)) else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _is_special(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


class Argument:
    """The argument of a call that says where it writes, found by its position or one of its names."""

    def __init__(self, index: int, *names: str) -> None:
        self._index, self._names = index, names

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) > self._index:
            return args[self._index]
        return next((kwargs[name] for name in self._names if name in kwargs), None)

    def replaced(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], path: str
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the same call, but to `path`."""
        if len(args) > self._index:
            return (*args[: self._index], path, *args[self._index + 1 :]), kwargs
        name = next(name for name in self._names if name in kwargs)
        return args, {**kwargs, name: path}
