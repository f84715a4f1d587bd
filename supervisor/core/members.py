"""The processes of a group that are not registered ranks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Member:
    """A living process of the group that is not a registered rank."""

    pid: int
    rank: int | None = None
    """The rank that it will be, if that is known."""
    stopped: bool = False
    launcher: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """The processes of a group that are not registered ranks."""

    nproc: int
    launcher: Member | None = None
    """None once the launcher is gone."""
    unborn: tuple[Member, ...] = ()
    """Processes that will become ranks. They are looked up while a rank is missing."""
