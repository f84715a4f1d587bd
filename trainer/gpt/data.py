"""Bytes to train on, in batches: batch = f(seed, step, rank, world size). So there is no iterator state to lose."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from ..checkpoint.state.tensors import view_of
from ..errors import UsageError

STDLIB_BYTES = 8 << 20
RANDOM_BYTES = 1 << 20
FOLDER_BYTES = 1 << 30
_PART = 1 << 16
"""Bytes read at once. For larger reads malloc takes pages from the kernel, and gives them back, for each file."""

_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "ensurepip"}
"""Parts of the standard library that some systems put into another package, or that are mostly test data."""


def _source_files(root: str) -> Iterator[str]:
    for folder, names, files in os.walk(root):
        names[:] = [n for n in names if n not in _LEFT_OUT and n != "__pycache__" and not n.startswith("config-")]
        yield from (f"{folder}/{name}" for name in files if name.endswith(".py"))


def _joined(paths: Iterable[str | Path], limit: int) -> bytearray:
    # By descriptor: every recovery waits for hundreds of small files, and a file object takes twice as long as reading
    # the content.
    data = bytearray()
    for path in paths:
        if len(data) == limit:
            break
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while part := os.read(fd, min(_PART, limit - len(data))):
                data += part
        finally:
            os.close(fd)
    return data


def _stdlib() -> bytearray:
    # Sorted by path, so that the same Python gives the same bytes in every place of installation.
    return _joined(sorted(_source_files(sysconfig.get_path("stdlib"))), STDLIB_BYTES)


def _at(path: Path) -> bytearray:
    if path.is_dir():
        return _joined(sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")), FOLDER_BYTES)
    return bytearray(path.read_bytes())


def load_bytes(source: str, seed: int) -> Tensor:
    """The data as flat uint8. "stdlib" gives the sources of the running Python, "random" gives noise that depends on
    `seed`, any other text names a file or folder. UsageError if it cannot be read."""
    if source == "random":
        return torch.randint(0, 256, (RANDOM_BYTES,), generator=_generator(seed, -1), dtype=torch.uint8)
    try:
        data = _stdlib() if source == "stdlib" else _at(Path(source))
    except OSError as error:
        raise UsageError(
            f"--data {source}: {error.strerror}; give stdlib, random, or a file or folder of text"
        ) from None
    if not data:
        raise UsageError(f"--data {source}: there is nothing in it to train on")
    return torch.frombuffer(data, dtype=torch.uint8)


def _generator(seed: int, step: int) -> torch.Generator:
    # Hashed: neighbouring seeds of one generator give related streams.
    digest = hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class Batches:
    """Batches of `batch_size` pieces over all ranks. It is Stateful, so that a checkpoint says which data it was
    trained on."""

    def __init__(self, data: Tensor, batch_size: int, block_size: int, seed: int, rank: int, world_size: int) -> None:
        if batch_size % world_size:
            raise UsageError(
                f"--batch-size {batch_size} does not divide by {world_size} ranks: it is the size of the whole batch, "
                "over all ranks"
            )
        if data.numel() <= block_size:
            raise UsageError(
                f"the data has {data.numel()} bytes, --block-size {block_size} needs at least {block_size + 1}"
            )
        self._data = data
        self._digest = xxhash.xxh3_128_hexdigest(view_of(data))
        self._batch_size = batch_size
        self._seed = seed
        self._own = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self._offsets = torch.arange(block_size + 1)
        self.changed = False
        """Whether the loaded state was of other data. Training goes on, but no longer as the same run."""

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """This rank's part of the batch of `step`: input and target bytes, int64 (batch, block). The whole batch does
        not depend on the number of ranks."""
        last = self._data.numel() - len(self._offsets)
        starts = torch.randint(0, last + 1, (self._batch_size,), generator=_generator(self._seed, step))
        pieces = self._data[starts[self._own, None] + self._offsets].long()
        return pieces[:, :-1].contiguous(), pieces[:, 1:].contiguous()

    def state_dict(self) -> dict[str, object]:
        return {"seed": self._seed, "bytes": self._data.numel(), "digest": self._digest}

    def reshard(self, states: list[dict[str, object]], rank: int, world_size: int) -> dict[str, object]:
        """For another number of ranks: every rank's state is the same, and no place in the data is in it."""
        return states[0]

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.changed = state != self.state_dict()
