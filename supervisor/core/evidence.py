"""The evidence beside exits and exceptions when an attempt fails: kernel counters and log, disks, last log lines.

The shell fills in these frozen values. A value that could not be read is None, and proves nothing.
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
    """Bytes that the process had in memory."""
    used: int | None = None
    """Bytes in use in the full memory group (without a group: in the machine)."""
    limit: int | None = None
    """Bytes that the group may use."""

    def numbers(self) -> str:
        """`: 24 GB of 24 GB were in use, it held 23.8 GB`, as far as the numbers are known."""
        of = f" of {human_bytes(self.limit)}" if self.limit is not None else ""
        used = f"{human_bytes(self.used)}{of} were in use" if self.used is not None else ""
        used = used or (f"the limit is {human_bytes(self.limit)}" if self.limit is not None else "")
        held = f"it held {human_bytes(self.held)}" if self.held is not None else ""
        said = ", ".join(filter(None, (used, held)))
        return f": {said}" if said else ""


@dataclass(frozen=True, slots=True)
class Memory:
    """The actions of the kernel's OOM killer since the attempt began."""

    kills: int | None = None
    """The number of processes that it has killed in the run's memory groups; None without a counter."""
    victims: tuple[OomKill, ...] | None = None
    """The victims in the kernel's log, anywhere on the machine. None if the log cannot be read, or has pids of another
    namespace."""
    used: int | None = None
    """The most bytes that the run's memory group has used."""
    limit: int | None = None

    def victim(self, pid: int | None) -> OomKill | None:
        """The OOM kill of the process `pid`, of which only the SIGKILL is known. None if nothing shows that the OOM
        killer did it."""
        if self.victims is not None:
            return next((v for v in self.victims if v.pid == pid), None)
        return OomKill(pid or 0, used=self.used, limit=self.limit) if self.kills else None

    @property
    def unknown(self) -> bool:
        """Whether the sender of a SIGKILL is unknown: the OOM killer cannot even be excluded."""
        return self.kills is None and self.victims is None


@dataclass(frozen=True, slots=True)
class Xid:
    """An error of an NVIDIA device, in the kernel's log or from the driver (NVML)."""

    bus: str
    """The device's PCI address, such as `0000:3b:00`."""
    number: int
    """NVIDIA's number of the error: 79 is a device that has fallen off the bus."""
    pid: int | None = None
    text: str = ""

    def __str__(self) -> str:
        return f"Xid {self.number} of the device at {self.bus}" + (f": {self.text.rstrip('.')}" if self.text else "")


@dataclass(frozen=True, slots=True)
class Odd:
    """The rank that stands apart from the others in a collective, and how."""

    rank: int
    text: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """The things that were looked at after a failure, and only then."""

    memory: Memory = field(default_factory=Memory)
    pids: Mapping[int | None, int] = field(default_factory=dict)
    """The pids by rank; the launcher is under None."""
    lines: Mapping[int | None, tuple[str, ...]] = field(default_factory=dict)
    """The last log lines of the ranks that failed without a recorded exception."""
    full: tuple[str, ...] = ()
    """Folders whose disk is full."""
    xids: tuple[Xid, ...] = ()
    """The errors of GPUs since the attempt began."""
    odd: Odd | None = None
    """The rank that stands apart by torch's flight recorders."""
    gone: frozenset[int] = frozenset()
    """The processes that hold memory of a GPU, by torch's words, and are dead."""
    shm: int | None = None
    """The size of /dev/shm in bytes; None if it does not exist."""
