"""Damages a committed checkpoint, for the faults `torn` and `corrupt`."""

from __future__ import annotations

import os
from pathlib import Path

from ..layout import committed_steps, step_name
from . import faults


def damage(checkpoints: Path, fault: faults.Fault) -> bool:
    """Cuts a file of a committed checkpoint in half (`torn`) or flips bits in it (`corrupt`). False if there is
    none."""
    steps = committed_steps(checkpoints)
    step = fault.checkpoint if fault.checkpoint is not None else (steps[-1] if steps else None)
    if step is None or step not in steps:
        return False
    folder = checkpoints / step_name(step)
    victim = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size, default=None)
    if victim is None:
        return False
    size = victim.stat().st_size
    if fault.kind == "torn":
        os.truncate(victim, size // 2)
        return True
    with victim.open("r+b") as file:
        file.seek(size // 2)
        byte = file.read(1)
        file.seek(size // 2)
        file.write(bytes([byte[0] ^ 0xFF]))
    return True
