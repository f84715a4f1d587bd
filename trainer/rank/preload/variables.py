"""Watches which environment variables are read, as `os.environ[…]`, get, in, getenv, or all of them at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from types import TracebackType
from typing import Any

ALL = "*"
"""In place of a name: all variables were gone through."""


def is_read(variable: str, module: str, reads: Collection[str]) -> bool:
    """Whether `module`, whose import has read `reads`, keeps something of that variable. One that goes through all
    variables looks for those that begin with its own name (TQDM_, FSSPEC_)."""
    return variable in reads or (ALL in reads and variable.startswith(module.partition(".")[0].upper() + "_"))


class Reads:
    """Inside its block `seen` is called with the name of each variable that this process reads, and its value: None if
    it is not set. C libraries read them unseen."""

    def __init__(self, seen: Callable[[str, str | None], None]) -> None:
        self._seen = seen
        self._plain: type[Any] = type(os.environ)
        self._going_through: list[str] = []
        """The names whose values are read next if somebody copies all variables, in reverse."""

    def __enter__(self) -> Reads:
        reads, plain = self, self._plain

        class Watched(plain):  # type: ignore[misc,valid-type]
            def __getitem__(self, name: str) -> str:
                try:
                    value: str | None = plain.__getitem__(self, name)
                except KeyError:
                    value = None
                reads._reads(name, value)
                return value if value is not None else plain.__getitem__(self, name)

            def __iter__(self) -> Iterator[str]:
                names = list(plain.__iter__(self))
                reads._all(names)
                return iter(names)

        os.environ.__class__ = Watched
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.environ.__class__ = self._plain

    def _all(self, names: list[str]) -> None:
        self._going_through = names[::-1]
        self._seen(ALL, None)

    def _reads(self, name: str, value: str | None) -> None:
        # dict(os.environ) and items() read each value after its name. That is no interest in this one.
        if self._going_through and self._going_through[-1] == name:
            self._going_through.pop()
            return
        self._going_through = []
        self._seen(name, value)
