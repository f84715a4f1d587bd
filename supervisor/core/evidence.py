"""What lies beside exits and exceptions when an attempt fails: the kernel's counters, its log, the disks, the last words.

Frozen values that the shell fills in; what could not be read is None, and nothing is concluded from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from supervisor.core.size import human_bytes


@dataclass(frozen=True, slots=True)
class OomKill:
    """A process that the kernel's OOM killer has ended."""

    pid: int
    name: str = ""
    held: int | None = None
    """Bytes it had in memory."""
    used: int | None = None
    """Bytes in use in the memory group that was full (of the machine, where there was none)."""
    limit: int | None = None
    """What that group may use."""

    def numbers(self) -> str:
        """`: 24 GB of 24 GB were in use, it held 23.8 GB`, as far as it is known."""
        of = f" of {human_bytes(self.limit)}" if self.limit is not None else ""
        used = f"{human_bytes(self.used)}{of} were in use" if self.used is not None else ""
        used = used or (f"the limit is {human_bytes(self.limit)}" if self.limit is not None else "")
        held = f"it held {human_bytes(self.held)}" if self.held is not None else ""
        said = ", ".join(filter(None, (used, held)))
        return f": {said}" if said else ""


@dataclass(frozen=True, slots=True)
class Memory:
    """What the kernel's OOM killer has done since the attempt began."""

    kills: int | None = None
    """Processes it has killed in the run's memory groups; None where there is no counter."""
    victims: tuple[OomKill, ...] | None = None
    """By the kernel's log, anywhere on the machine; None where it cannot be read, or names processes by other pids."""
    used: int | None = None
    """The most that the run's memory group has used."""
    limit: int | None = None

    def victim(self, pid: int | None) -> OomKill | None:
        """How the OOM killer ended the process `pid`, of which only the SIGKILL is known; None if nothing says it did."""
        if self.victims is not None:
            return next((v for v in self.victims if v.pid == pid), None)
        return OomKill(pid or 0, used=self.used, limit=self.limit) if self.kills else None

    @property
    def unknown(self) -> bool:
        """Whether nothing can be said of a SIGKILL: not even that it was not the OOM killer's."""
        return self.kills is None and self.victims is None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was looked at when something had failed, and only then."""

    memory: Memory = field(default_factory=Memory)
    pids: Mapping[int | None, int] = field(default_factory=dict)
    """By rank, and of the launcher under None."""
    lines: Mapping[int | None, tuple[str, ...]] = field(default_factory=dict)
    """The last lines of the logs of those that failed without an exception on record."""
    full: tuple[str, ...] = ()
    """Folders on whose disk no room is left."""
    shm: int | None = None
    """Bytes that /dev/shm takes in all; None where there is none."""
