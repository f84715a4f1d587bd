"""The first byte of a message tells what it is. Beats, leases and leashes are for the threads, the rest for the loops.

    follower    H hello   B beat   M message   S this is the connection of a rank
    leader      W welcome   N no   L lease   M message

A beat tells when it was sent, by both clocks of the follower, and when the last lease came. A lease repeats when the
beat was sent, and tells its length. So each side knows the other's clock, and the follower its lease. A welcome
answers the hello as a lease answers a beat.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

HELLO, BEAT, MESSAGE, LEASH = b"H", b"B", b"M", b"S"
WELCOME, NO, LEASE = b"W", b"N", b"L"
_BEAT = struct.Struct(">5d")
_LEASE = struct.Struct(">3d")
_WELCOME = struct.Struct(">d")
_LEASH = struct.Struct(">3q")


@dataclass(frozen=True, slots=True)
class Beat:
    sent: float
    """By the follower's CLOCK_BOOTTIME."""
    at: float
    """The same moment by its monotonic clock."""
    leased_at: float
    """`at` of the last lease that came (0: none), and when that came, by the follower's monotonic clock."""
    came: float
    gap: float
    """The most seconds that it has waited for an answer, since the beat that was answered before."""
    body: bytes = b""

    def packed(self) -> bytes:
        return BEAT + _BEAT.pack(self.sent, self.at, self.leased_at, self.came, self.gap) + self.body

    @classmethod
    def of(cls, body: bytes) -> Beat:
        """struct.error if it is none."""
        sent, at, leased_at, came, gap = _BEAT.unpack_from(body, 1)
        return cls(sent, at, leased_at, came, gap, body[1 + _BEAT.size :])


@dataclass(frozen=True, slots=True)
class Grant:
    sent: float
    """When the beat was sent that this answers."""
    seconds: float
    at: float
    """By the leader's monotonic clock."""

    def packed(self) -> bytes:
        return LEASE + _LEASE.pack(self.sent, self.seconds, self.at)

    @classmethod
    def of(cls, body: bytes) -> Grant:
        """struct.error if it is none."""
        return cls(*_LEASE.unpack_from(body, 1))


@dataclass(frozen=True, slots=True)
class Bond:
    """Whose the connection of a rank is."""

    node: int
    attempt: int
    rank: int

    def packed(self) -> bytes:
        return LEASH + _LEASH.pack(self.node, self.attempt, self.rank)

    @classmethod
    def of(cls, body: bytes) -> Bond:
        """struct.error if it is none."""
        return cls(*_LEASH.unpack_from(body, 1))


def welcome(seconds: float, body: bytes) -> bytes:
    """The answer to a hello: the length of the first lease, and what the loop has to say."""
    return WELCOME + _WELCOME.pack(seconds) + body


def welcomed(body: bytes) -> tuple[float, bytes]:
    """The two parts of a welcome. struct.error if it is none."""
    seconds: float = _WELCOME.unpack_from(body, 1)[0]
    return seconds, body[1 + _WELCOME.size :]
