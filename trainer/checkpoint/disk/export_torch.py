"""The model of a checkpoint as one file of torch.save: `start.py checkpoint.disk.export_torch CHECKPOINT FILE`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ..errors import CheckpointError
from .export import written_aside
from .restore import load


def export_torch(path: Path, out: Path) -> None:
    """`out` holds the model's state_dict, verified; torch.load(weights_only=True) reads it. CheckpointError or OSError;
    then there is no `out`."""
    model = load(path, rank=0).shared.get("model")
    if not model:
        raise CheckpointError(f"{path.name} holds no model")
    with written_aside(out) as temporary:
        torch.save(model, temporary)


def main(arguments: list[str]) -> int:
    try:
        export_torch(Path(arguments[0]), Path(arguments[1]))
    except (CheckpointError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
