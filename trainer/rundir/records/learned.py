"""The imports of a script, and the modules that only the script may import. Ranks and fork servers share this
record."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..files.codec import encode, read


class Settings(msgspec.Struct):
    """What a script finds in a rank that a fork server does not: the variables that it has set, and its own modules."""

    own: list[str] = []
    """The modules that the rank has imported. All others were imported before its script began."""
    late: dict[str, list[str]] = {}
    """For each variable: the modules among them that were imported after it was set."""
    mine: dict[str, str] = {}
    """Where it finds its own modules that have the name of an installed one."""

    @classmethod
    def known(cls, path: Path) -> Settings:
        """What a rank has written to `path`. Nothing if it cannot be read."""
        try:
            return read(path, cls)
        except (OSError, ValueError):
            return cls()

    def of(self, names: list[str], known: dict[str, list[str]]) -> dict[str, list[str]]:
        """For each variable, the modules of `names` that the script imports after it is set. What was imported before
        the script is as in `known`; of a variable that is new there, nothing is known, and all of it is late."""
        own = set(self.own)
        found = {}
        for variable, late in self.late.items():
            others = set(known.get(variable, names)) - own
            found[variable] = [name for name in names if name in others.union(late)]
        return found


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
    late: dict[str, list[str]] = {}
    """For each variable that the script sets: the modules that it imports afterwards. If one of them reads the variable
    at its import, it must not be imported."""
    mine: dict[str, str] = {}
    """Where the script finds its own modules that have the name of an installed one, which must not be imported."""

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
