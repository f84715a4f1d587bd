"""Random number generators: torch (CPU and this rank's CUDA device), Python's `random`, and numpy's if it is loaded."""

from __future__ import annotations

import hashlib
import random
import sys
from typing import Any

import torch


def capture() -> dict[str, Any]:
    """The state of every generator of this process."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state()
    if (numpy := sys.modules.get("numpy")) is not None:
        values = numpy.random.get_state(legacy=False)
        key = values["state"]["key"].tolist()
        state["numpy"] = {**values, "state": {"key": key, "pos": int(values["state"]["pos"])}}
    return state


def apply(state: dict[str, Any]) -> None:
    """Every generator goes on from `state`; one that is not in it stays as it is."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if "numpy" in state and (numpy := sys.modules.get("numpy")) is not None:
        values = state["numpy"]
        key = numpy.array(values["state"]["key"], dtype=numpy.uint32)
        numpy.random.set_state({**values, "state": {"key": key, "pos": values["state"]["pos"]}})


def seed(*parts: int) -> None:
    """Every generator of this process starts anew, as a function of `parts` alone."""
    value = int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")
    torch.manual_seed(value)
    random.seed(value)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(value & 0xFFFFFFFF)
