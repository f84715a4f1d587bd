"""Random number generators: torch (CPU and this rank's CUDA device), Python's `random`, and numpy's if it is loaded."""

from __future__ import annotations

import array
import hashlib
import random
import sys
from typing import Any

import torch


def capture() -> dict[str, Any]:
    """The state of every generator of this process; words of Mersenne twisters as tensors of bytes."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": {"version": version, "words": _bytes_of(array.array("I", words)), "gauss": gauss},
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state()
    if (numpy := sys.modules.get("numpy")) is not None:
        values = numpy.random.get_state(legacy=False)
        words = {"key": _bytes_of(values["state"]["key"]), "pos": int(values["state"]["pos"])}
        state["numpy"] = {**values, "state": words}
    return state


def apply(state: dict[str, Any]) -> None:
    """Every generator goes on from `state`; one that is not in it stays as it is."""
    torch.set_rng_state(state["torch"])
    python = state["python"]
    if isinstance(python, tuple):  # as it was stored at first
        random.setstate(python)
    else:
        words = array.array("I", python["words"].numpy().tobytes())
        random.setstate((python["version"], tuple(words), python["gauss"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if "numpy" in state and (numpy := sys.modules.get("numpy")) is not None:
        values = state["numpy"]
        key = values["state"]["key"]
        known = numpy.array(key, dtype=numpy.uint32) if isinstance(key, list) else key.numpy().view(numpy.uint32)
        numpy.random.set_state({**values, "state": {"key": known, "pos": values["state"]["pos"]}})


def _bytes_of(words: Any) -> torch.Tensor:
    return torch.frombuffer(words, dtype=torch.uint8).clone()


def seed(*parts: int) -> None:
    """Every generator of this process starts anew, as a function of `parts` alone."""
    value = int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")
    torch.manual_seed(value)
    random.seed(value)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(value & 0xFFFFFFFF)
