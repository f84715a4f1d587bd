"""Compares the ends of two runs, to the bit: final checkpoints, metrics, and named files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash

from supervisor.core.chaos.summary import Comparison
from trainer.checkpoint.disk import store
from trainer.checkpoint.errors import CheckpointError
from trainer.checkpoint.format.manifest import Manifest
from trainer.checkpoint.format.shard import Entry, Take
from trainer.rundir.layout import RunDir

_CHUNK = 4 << 20
_AT_ONCE = 256 << 20
"""Bytes of a file that are in memory at a time."""


def compare(reference: RunDir, other: RunDir, globs: Sequence[str], passed_over: Sequence[str] = ()) -> Comparison:
    """Compares the end of `other` with the end of `reference`. `globs` name files in a run's folder. The parts
    `passed_over` of the checkpointed state may differ."""
    compared: list[str] = []
    for what, difference in _parts(reference, other, globs, passed_over):
        if difference:
            return Comparison(False, tuple(compared), difference)
        compared.append(what)
    if not compared:
        return Comparison(
            None,
            difference="no checkpoint of ours, no metrics.jsonl; let the script write into {run} or $SUPERVISE_RUN_DIR "
            "and name its last files with --compare",
        )
    return Comparison(True, tuple(compared))


def _parts(reference: RunDir, other: RunDir, globs: Sequence[str], passed_over: Sequence[str]) -> Any:
    """Yields (the thing compared, how it differs). The second is empty if there is no difference."""
    good = store.newest_good(reference.checkpoints)
    if good is not None and good.manifest is not None:
        yield f"checkpoint {good.step}", _checkpoint(good.path, good.manifest, other, passed_over)
    if reference.metrics.exists():
        yield "metrics.jsonl", _file(reference.metrics, other.metrics)
    for pattern in globs:
        names = sorted(str(p.relative_to(reference.path)) for p in reference.path.glob(pattern) if p.is_file())
        others = sorted(str(p.relative_to(other.path)) for p in other.path.glob(pattern) if p.is_file())
        if names != others:
            only = sorted(set(names) ^ set(others))
            yield pattern, f"{only[0]} is in one of the two runs only"
        for name in names:
            yield name, _file(reference.path / name, other.path / name)


def _file(one: Path, two: Path) -> str:
    if not two.exists():
        return f"{two.name} is missing"
    return "" if _digest(one) == _digest(two) else f"{two.name} differs"


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _checkpoint(path: Path, manifest: Manifest, other: RunDir, passed_over: Sequence[str]) -> str:
    """How the other run's last checkpoint differs from `path`. Empty if it does not differ."""
    good = store.newest_good(other.checkpoints)
    if good is None or good.manifest is None:
        return "it has no good checkpoint"
    theirs = good.manifest
    if theirs.step != manifest.step:
        return f"its last checkpoint is of step {theirs.step}, not {manifest.step}"
    if theirs.world_size != manifest.world_size:
        return f"its last checkpoint is of {theirs.world_size} ranks, not {manifest.world_size}"
    if _state(manifest, passed_over) != _state(theirs, passed_over):
        return "the state beside the tensors differs"
    if theirs.files == manifest.files:
        return ""  # The digests cover every byte, and were just verified.
    for file in manifest.files:
        if difference := _shard(path, manifest, good.path, theirs, file, passed_over):
            return difference
    return ""


def _state(manifest: Manifest, passed_over: Sequence[str]) -> Any:
    if not isinstance(manifest.state, dict):
        return manifest.state
    return {key: value for key, value in manifest.state.items() if key not in passed_over}


def _own(state: Any, passed_over: Sequence[str]) -> Any:
    """A rank's own state, without the values that are marked in the parts `passed_over`."""
    if not isinstance(state, dict) or not isinstance(marked := state.get("per_rank"), dict):
        return state
    return {**state, "per_rank": {path: v for path, v in marked.items() if path.split("/")[0] not in passed_over}}


def _shard(one: Path, manifest: Manifest, two: Path, theirs: Manifest, file: str, passed_over: Sequence[str]) -> str:
    """How the content of a rank's file differs. The layout of the file does not matter."""
    try:
        (mine, own), (other, their_own) = _contents(one, manifest, file), _contents(two, theirs, file)
    except CheckpointError as error:
        return str(error)
    if _own(own, passed_over) != _own(their_own, passed_over):
        return f"the own state of the rank in {file} differs (generators, most likely)"
    for key in mine.keys() | other.keys():
        if mine.get(key) != other.get(key):
            return f"{key} in {file} differs"
    return ""


def _contents(path: Path, manifest: Manifest, file: str) -> tuple[dict[str, str], Any]:
    """The digest of every tensor in the file, and the rank's own state."""
    digests: dict[str, str] = {}
    left = _AT_ONCE
    held: dict[str, bytearray] = {}

    def sink(entry: Entry) -> list[Take]:
        nonlocal left
        key = f"{entry.key} {entry.spec.dtype} {entry.spec.shape}"
        if key in digests or left <= 0:
            return []
        left -= max(1, entry.spec.bytes)
        held[key] = bytearray(entry.spec.bytes)
        return [(0, memoryview(held[key]))]

    while True:
        held, left = {}, _AT_ONCE
        metadata = store.read_file(path, manifest, file, sink)
        if not held:
            return digests, json.loads(metadata.get("state", "null"))
        digests.update((key, xxhash.xxh3_128_hexdigest(data)) for key, data in held.items())
