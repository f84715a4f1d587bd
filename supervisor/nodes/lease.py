"""The lease word: until when the ranks of this node may run, in memory that the warden reads.

    PLACE/lease    three numbers of 8 bytes: until (nanoseconds of CLOCK_BOOTTIME, which counts the sleep of the
                   machine), whether there may be ranks, whether the run is over

One process writes, and only what core/nodes/lease.py has decided. It is memory of this machine: no disk is waited for.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

from supervisor.core.nodes.lease import Lease

_WORD = struct.Struct("=q")
_UNTIL, _ARMED, _OVER = 0, 8, 16
_SIZE = 24
_NEVER = -(1 << 62)


def boottime() -> float:
    """Seconds of the clock that counts the sleep of the machine, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaseWord:
    """The word in the folder `place`, which is on this machine."""

    def __init__(self, place: Path, writes: bool) -> None:
        """`writes`: it is made anew, without a lease. OSError if it cannot be made, or is not there."""
        self._path = path = place / "lease"
        if writes:
            path.unlink(missing_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        else:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if writes:
                os.posix_fallocate(fd, 0, _SIZE)
            elif os.fstat(fd).st_size < _SIZE:
                raise OSError(f"{path} is damaged")
            self._inode = os.fstat(fd).st_ino
            self._memory = mmap.mmap(fd, _SIZE, prot=mmap.PROT_READ | (mmap.PROT_WRITE if writes else 0))
        finally:
            os.close(fd)
        if writes:
            self.put(Lease())

    def put(self, lease: Lease) -> None:
        """The warden reads `lease` from now on."""
        until = int(lease.until * 1e9) if lease.until > _NEVER / 1e9 else _NEVER
        # With ranks, the end comes first: a reader between the two must not take an old end for the new ranks'.
        _WORD.pack_into(self._memory, _UNTIL, until)
        _WORD.pack_into(self._memory, _ARMED, lease.armed)

    def read(self) -> Lease:
        """The newest lease."""
        armed = bool(self._number(_ARMED))
        return Lease(self._number(_UNTIL) / 1e9, armed)

    def end(self) -> None:
        """The run is over here: the warden ends."""
        _WORD.pack_into(self._memory, _OVER, 1)

    @property
    def over(self) -> bool:
        return bool(self._number(_OVER))

    @property
    def stands(self) -> bool:
        """Whether no other supervisor has made a word of its own in this place since."""
        try:
            return self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            return True

    def close(self) -> None:
        self._memory.close()

    def _number(self, at: int) -> int:
        number: int = _WORD.unpack_from(self._memory, at)[0]
        return number
