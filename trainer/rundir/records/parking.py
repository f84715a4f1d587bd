"""What ranks tell about a standby that waits in Checkpointer.restore(): whether theirs can, and what one of them has
read by the time it waits there."""

from __future__ import annotations

import msgspec

File = tuple[str, int, int, int]
"""(path, bytes, ns of its last change, inode)."""


class Held(msgspec.Struct):
    """What a rank holds of one GPU."""

    device: str
    """Its GPU, by a name that no other one has."""
    reserved: int
    """Bytes that the rank has reserved at most."""
    free: int
    """Bytes that are free."""
    exclusive: bool = False
    """Whether it takes one process only."""


class Reached(msgspec.Struct):
    """attempts/0003/restore.rank0.json: a rank of an attempt has called restore()."""

    park: bool
    """Whether its program asks that a standby waits there."""
    steps: int
    """Optimizer steps that it had made before. A standby must not make them."""
    gpus: list[Held] = []
    """The GPUs that it has reserved memory of."""


class Parked(msgspec.Struct):
    """rank0.parked of a group: a rank of a standby waits in restore()."""

    pid: int
    files: list[File] = []
    """The files of the program that it has loaded, and those that the program has loaded by itself."""
    cuda: bool = False
    """Whether it holds memory of a GPU."""
    told: list[str] = []
    """Effects of its program that are seen outside, and that a standby should not have."""


class Unfit(msgspec.Struct):
    """rank0.unfit of a group: why a rank of a standby cannot wait in restore()."""

    why: str
