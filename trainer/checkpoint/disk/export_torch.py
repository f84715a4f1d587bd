"""The model of a checkpoint as one file of torch.save: `python export_torch.py CHECKPOINT FILE`."""

from __future__ import annotations

import sys
from pathlib import Path

# Run by path, so that a module of somebody's called `trainer` is not found in place of this package.
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[3])

import torch

from ..errors import CheckpointError
from .export import written_aside
from .restore import load


def export_torch(path: Path, out: Path) -> None:
    """`out` holds the model's state_dict, verified; torch.load(weights_only=True) reads it. CheckpointError or OSError,
    and there is no `out`."""
    model = load(path, rank=0).shared.get("model")
    if not model:
        raise CheckpointError(f"{path.name} holds no model")
    with written_aside(out) as temporary:
        torch.save(model, temporary)


if __name__ == "__main__":
    try:
        export_torch(Path(sys.argv[1]), Path(sys.argv[2]))
    except (CheckpointError, OSError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
