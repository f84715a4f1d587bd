"""The model of a checkpoint as a file of torch.save, or as a folder of torch.distributed.checkpoint:
`start.py checkpoint.transfer.torch_files FORMAT CHECKPOINT OUT`.

It goes through a mapped file beside the result, so a model may be larger than memory.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..format.manifest import Manifest
from ..format.shard import entries_in
from ..state import tree
from ..state.tensors import DTYPES
from .safetensors_files import fill, folder_aside, model_of, written_aside


@contextlib.contextmanager
def mapped_model(path: Path, beside: Path) -> Iterator[dict[str, Any]]:
    """The model's state of the checkpoint `path`, verified. Its tensors lie in a file without a name, on the disk of
    `beside`, which goes with them."""
    manifest, keys, _ = model_of(path)
    with tempfile.TemporaryFile(dir=beside.parent) as file:
        fill(file.fileno(), path, manifest, keys)
        memory = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    found = {entry.key: (entry.spec, content) for entry, content in entries_in(memoryview(memory))[0]}
    yield _state(manifest, keys, found)


def _state(manifest: Manifest, keys: Mapping[str, str], found: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, torch.Tensor] = {}
    for key, name in keys.items():
        if name not in first:  # tied weights are one tensor
            spec, content = found[key]
            dtype = DTYPES[spec.dtype]
            flat = torch.frombuffer(content, dtype=dtype) if spec.bytes else torch.empty(0, dtype=dtype)
            first[name] = flat.reshape(spec.shape)
    state: dict[str, Any] = tree.decode(manifest.state["model"], first.__getitem__)
    return state


def export_torch(path: Path, out: Path) -> None:
    """`out` holds the model's state_dict, verified; torch.load(weights_only=True) reads it. CheckpointError or OSError;
    then there is no `out`."""
    with mapped_model(path, out) as model, written_aside(out) as temporary:
        torch.save(model, temporary)


def export_dcp(path: Path, out: Path) -> None:
    """The folder `out` is a checkpoint of torch.distributed.checkpoint with the model under `model`."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    with mapped_model(path, out) as model, folder_aside(out) as folder:
        save({"model": model}, storage_writer=FileSystemWriter(folder, single_file_per_rank=True), no_dist=True)


def main(arguments: list[str]) -> int:
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    form, path, out = arguments
    try:
        {"torch": export_torch, "dcp": export_dcp}[form](Path(path), Path(out))
    except (CheckpointError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
