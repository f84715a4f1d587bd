"""What a script imports, and what of that must be left to it: as a rank and a fork server write it down and read it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..files.codec import encode, read


class Wanted(msgspec.Struct):
    """What a fork server is to import; in a file, for it may be longer than a pipe takes at once."""

    names: list[str] = []
    causes: dict[str, str] = {}
    """By module that must not be imported: what its import does."""
    left_out: set[str] = set()
    """Those, and what imports them."""
    seconds: float = 0.0
    """Of CPU, that importing `left_out` takes."""
    script: str = ""
    """Whose modules these are, in the user's cache."""
    installed: list[int] = []
    """Of the cache: changes when something is installed or upgraded."""

    def is_out(self, name: str) -> bool:
        """Whether the module, or a package that it lies in, is left out."""
        parts = name.split(".")
        return any(".".join(parts[:end]) in self.left_out for end in range(1, len(parts) + 1))

    def write(self, path: Path) -> None:
        """OSError where the disk is full."""
        path.write_bytes(encode(self))

    def learn(self, found: Wanted) -> None:
        """More is left out: what another process has found in place of importing it."""
        self.causes |= found.causes
        self.left_out |= found.left_out
        self.seconds = round(self.seconds + found.seconds, 3)


def remembered(path: Path) -> list[str]:
    """The names that trainer.rank.preload.modules.remember() wrote to `path`; none, if it did not or that cannot be
    read."""
    try:
        return read(path, list[str])
    except (OSError, ValueError):
        return []
