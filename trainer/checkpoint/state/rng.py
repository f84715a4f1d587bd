"""Random number generators: torch (CPU and CUDA devices), Python's `random`, and numpy's if it is loaded.

A rank may draw on another device than its current one: `model.to("cuda:3")` sets none. So all of them are kept.

numpy belongs to the user: nothing here needs it, nor torch's bridge to it.
"""

from __future__ import annotations

import array
import ctypes
import hashlib
import importlib
import importlib.util
import random
import sys
from collections.abc import Callable
from typing import Any

import torch

from .tensors import view_of

_TWISTER = 624 * 4 + 4
"""Bytes of numpy's mt19937_state: its words and a place in them."""
_known: dict[Callable[[], dict[str, Any]], tuple[Any, dict[str, Any]]] = {}


def capture() -> dict[str, Any]:
    """The state of every generator of this process. The words of Mersenne twisters are tensors of bytes."""
    python: Any = random.getstate.__self__  # type: ignore[attr-defined]
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": _remembered(_python, (_memory(python), repr(python.gauss_next))),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state()
        if (count := torch.cuda.device_count()) > 1:
            # On the host: no device is used for it.
            state["cudas"] = torch.stack([torch.cuda.get_rng_state(device) for device in range(count)])
    if (numpy := sys.modules.get("numpy")) is not None:
        bits: Any = getattr(numpy.random, "get_bit_generator", lambda: None)()  # since numpy 1.24
        known = type(bits) is numpy.random.MT19937
        words = ctypes.string_at(bits.ctypes.state_address, _TWISTER) if known else None
        state["numpy"] = _remembered(_numpy, words and (words, _memory(numpy.random.get_state.__self__)))
    return state


def _remembered(state: Callable[[], dict[str, Any]], memory: Any) -> dict[str, Any]:
    """state(), which takes long, asked only if the `memory` of the generator is another one than the last time. None:
    it is asked."""
    known, found = _known.get(state, (None, {}))
    if memory is None or known != memory:
        found = state()
        _known[state] = memory, found
    return found


def _memory(generator: object) -> bytes:
    """The fields of a generator that is written in C, as they lie in the object, behind its counter and its type."""
    head = object.__basicsize__
    return ctypes.string_at(id(generator) + head, type(generator).__basicsize__ - head)


def _python() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    return {"version": version, "words": _bytes_of(array.array("I", words)), "gauss": gauss}


def _numpy() -> dict[str, Any]:
    return _without_arrays(sys.modules["numpy"].random.get_state(legacy=False))


def apply(state: dict[str, Any]) -> str | None:
    """Every generator goes on from `state`. A generator that is not in it is unchanged. Returns which one cannot go on,
    and why."""
    torch.set_rng_state(state["torch"])
    python = state["python"]
    if isinstance(python, tuple):  # as it was stored at first
        random.setstate(python)
    else:
        words = array.array("I", bytes(view_of(python["words"])))
        random.setstate((python["version"], tuple(words), python["gauss"]))
    if "cuda" in state and torch.cuda.is_available():
        for device, each in enumerate(state.get("cudas", ())[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(each, device)
        # The current one last: it may have another number now.
        torch.cuda.set_rng_state(state["cuda"])
    return _apply_numpy(state["numpy"]) if "numpy" in state else None


def _apply_numpy(state: dict[str, Any]) -> str | None:
    # torch imports numpy if it is installed, so numpy's state is saved even if the script never draws from it. A run
    # that resumes without numpy may not need it. A script that imports numpy later must find it unchanged.
    if "numpy" not in sys.modules and importlib.util.find_spec("numpy") is None:
        return (
            "the state of numpy's generator was saved and numpy is not installed here: what draws from it starts anew"
        )
    numpy = importlib.import_module("numpy")
    try:
        numpy.random.set_state(_with_arrays(state, numpy))
    except (ValueError, TypeError, KeyError) as error:
        return f"numpy's generator does not take the state that was saved ({error}): what draws from it starts anew"
    return None


def _without_arrays(state: dict[str, Any]) -> dict[str, Any]:
    """The state of numpy's generator, with tensors of bytes in place of arrays."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if not hasattr(value, "ndim"):
            return value
        return _bytes_of(value) if value.ndim else value.item()

    return {key: plain(value) for key, value in state.items()}


def _with_arrays(state: dict[str, Any], numpy: Any) -> dict[str, Any]:
    word = numpy.uint32 if state["bit_generator"] == "MT19937" else numpy.uint64

    def back(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: back(inner) for key, inner in value.items()}
        if isinstance(value, list):  # as it was stored at first
            return numpy.array(value, dtype=word)
        return numpy.frombuffer(bytes(view_of(value)), dtype=word) if isinstance(value, torch.Tensor) else value

    return {key: back(value) for key, value in state.items()}


def _bytes_of(words: Any) -> torch.Tensor:
    """The bytes of `words`, which nobody else has: they are not copied. The tensor keeps them."""
    return torch.frombuffer(words, dtype=torch.uint8)


def seed(*parts: object) -> None:
    """Seeds every generator of this process. The seeds depend on `parts` alone."""
    value = int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")
    torch.manual_seed(value)
    random.seed(value)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(value & 0xFFFFFFFF)
