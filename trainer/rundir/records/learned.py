"""The imports of a script, and the modules that only the script may import. Ranks and fork servers share this
record."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..files.codec import encode, read


class Wanted(msgspec.Struct):
    """The imports for a fork server. They are in a file: they may be longer than a pipe takes at once."""

    names: list[str] = []
    causes: dict[str, str] = {}
    """For each module that must not be imported: the effect of its import."""
    left_out: set[str] = set()
    """These modules, and those that import them."""
    seconds: float = 0.0
    """CPU seconds that importing `left_out` takes."""
    script: str = ""
    """The script that has these modules, in the user's cache."""
    installed: list[int] = []
    """In the cache: changes when a package is installed or upgraded."""

    def is_out(self, name: str) -> bool:
        """Whether the module, or a package that contains it, is left out."""
        parts = name.split(".")
        return any(".".join(parts[:end]) in self.left_out for end in range(1, len(parts) + 1))

    def write(self, path: Path) -> None:
        """OSError if the disk is full."""
        path.write_bytes(encode(self))

    def learn(self, found: Wanted) -> None:
        """Adds the modules that another process left out instead of importing them."""
        self.causes |= found.causes
        self.left_out |= found.left_out
        self.seconds = round(self.seconds + found.seconds, 3)


def remembered(path: Path) -> list[str]:
    """The names that trainer.rank.preload.modules.remember() wrote to `path`. Empty if there is no such file, or it
    cannot be read."""
    try:
        return read(path, list[str])
    except (OSError, ValueError):
        return []
