"""What there is of a group beside the ranks that have registered."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Member:
    """A living process of the group that is not a registered rank."""

    pid: int
    rank: int | None = None
    """The rank that it will be, where that is known."""
    stopped: bool = False
    launcher: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """What there is of a group beside the ranks that have registered."""

    nproc: int
    launcher: Member | None = None
    """None once it is gone."""
    unborn: tuple[Member, ...] = ()
    """What is to become ranks; looked up while one is missing."""
