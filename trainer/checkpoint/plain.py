"""The tutorial's save and load, made safe: one file at one path, replaced as a whole, its digest checked before use.

The file is what torch.save writes, so torch.load(path, weights_only=True) reads it too. Such a file is a zip archive.
The archive's comment is an XXH3-128 digest of every byte before the comment.

    zip entries, central directory, end record (20 bytes) | comment length (2 bytes) | "xxh3-128:" and 32 hex digits
    '----------------- digested -----------------------'
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn

from ..rank.journal.saves import loading, saving
from ..rundir.files.durable import DISK, replace_file
from .errors import CheckpointError, CheckpointMismatch, Damaged
from .group import own_rank
from .notices import Notices
from .state.parameters import Parameters
from .state.state import Stateful, apply, bare
from .state.tree import plain

_LABEL = b"xxh3-128:"
_COMMENT_BYTES = len(_LABEL) + 32
_END_RECORD_BYTES = 22


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: Stateful,
    step: int,
    scaler: Stateful | None = None,
    extra: Any = None,
) -> None:
    """`path` holds this state, durably. At every moment before, it held its old content. Under DDP call it on rank 0
    only. A dataclass in `extra` is stored as a dict of its fields. StateError names the path of a value that cannot be
    stored."""
    state = {
        "model": bare(model).state_dict(),
        "optimizer": optimizer.state_dict(),
        "parameters": Parameters(bare(model), optimizer).state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "step": step,
        "extra": extra,
    }
    with saving(path, "save_checkpoint"):
        buffer = io.BytesIO()
        torch.save(plain(state), buffer)
        data = buffer.getbuffer()
        # torch writes no comment, so the last two bytes are its length.
        body = data[:-2]
        comment = _LABEL + xxhash.xxh3_128_hexdigest(body).encode()
        replace_file(Path(path), b"".join((body, len(comment).to_bytes(2, "little"), comment)), DISK)


def load_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: Stateful | None = None,
    scaler: Stateful | None = None,
    map_location: Any = None,
) -> tuple[int, Any]:
    """(step, extra). The given parts now have the state in `path`. FileNotFoundError; Damaged if a byte of the file has
    changed; CheckpointMismatch if it is of another model, or holds nothing for a given part, and then nothing was
    changed. What else differs (a layer that was frozen) is told on stderr.

    `path` may also be of another program: a file of torch.save (it has no digest to compare), a safetensors file, or a
    folder of those as Hugging Face has it. Then extra is None."""
    with loading(path):
        if _is_foreign(Path(path)):
            return _load_foreign(Path(path), {"model": bare(model), "optimizer": optimizer, "scaler": scaler})
        return _load(os.fspath(path), {"model": bare(model), "optimizer": optimizer, "scaler": scaler}, map_location)


def _load(where: str, parts: dict[str, Stateful | None], map_location: Any) -> tuple[int, Any]:
    data = Path(where).read_bytes()
    _check(where, data)
    try:
        state = torch.load(io.BytesIO(data), map_location=map_location, weights_only=True)
        step, extra = int(state["step"]), state["extra"]
        states = {key: state[key] for key in parts}
    except Exception as error:
        # For a file that torch did not write, the error depends on the place where torch stops reading.
        raise Damaged(f"{where} is not a checkpoint of save_checkpoint: {error}") from None
    # A file of an older version has no names: there the order of the parameters counts.
    _put_back(parts, {**states, "parameters": state.get("parameters")}, where)
    return step, extra


def _put_back(parts: dict[str, Stateful | None], state: Mapping[str, Any], where: str) -> None:
    # Only the given parts are restored: a model to look at needs no optimizer.
    wanted = {key: part for key, part in parts.items() if part is not None}
    # A disabled GradScaler has no state, and needs none.
    if lost := [key for key, part in wanted.items() if state.get(key) is None and part.state_dict()]:
        raise CheckpointMismatch(f"{where} holds no state for {lost[0]}")
    if optimizer := wanted.get("optimizer"):
        wanted["parameters"] = Parameters(wanted["model"], optimizer)
    notices = Notices(own_rank())
    for sentence in apply(wanted, {key: state.get(key) for key in wanted}, where):
        notices.say(sentence)


def _is_foreign(path: Path) -> bool:
    """Whether another program wrote `path`: an archive that ends without a comment, which no cut of ours does."""
    if path.is_dir() or path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _END_RECORD_BYTES))
        end = file.read()
    return end[:4] == b"PK\x05\x06" and end[-2:] == b"\0\0"


def _load_foreign(path: Path, parts: dict[str, Stateful | None]) -> tuple[int, Any]:
    from .transfer.inward import state_of

    try:
        state = state_of(path, trusted=False)[0]
    except CheckpointError as error:
        raise (error if path.is_dir() else Damaged(str(error))) from None
    _put_back(parts, state, str(path))
    return int(state.get("step", 0)), None


def _check(where: str, data: bytes) -> None:
    body, label = data[: -_COMMENT_BYTES - 2], data[-_COMMENT_BYTES:][: len(_LABEL)]
    if len(data) < _COMMENT_BYTES + _END_RECORD_BYTES or label != _LABEL:
        raise Damaged(f"{where} is cut short, or was not written by save_checkpoint: it does not end with its digest")
    rest = len(_LABEL) + 32
    if data[-rest - 2 : -rest] != rest.to_bytes(2, "little") or data[-32:] != xxhash.xxh3_128_hexdigest(body).encode():
        raise Damaged(f"{where} does not match its digest")
