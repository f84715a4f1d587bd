"""The sidecar of a snapshot: its text holds the state of that very step, also where parts of it are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpoint.format.manifest import table
from trainer.checkpoint.format.plan import Layout, plan
from trainer.checkpoint.memory.place import Place
from trainer.checkpoint.memory.sidecar import Sidecars
from trainer.checkpoint.state.packing import Packer
from trainer.rundir.files.codec import decode, encode

PLACE = Place(Path("/dev/shm/none"), 0, 1, 0, "run")
_NAMES = st.text(max_size=3)
_LEAVES = st.none() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=4) | st.just(object)
_VALUES = st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_NAMES, inner, max_size=3))
_STATES = st.dictionaries(st.sampled_from(["model", "optimizer", "optimizer.b", "extra", "step", "é\ud800"]), _VALUES)


def _with_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tensors(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return list(map(_with_tensors, value))
    return torch.zeros(2) if value is object else value


def _whole(tree: Any, layout: Layout) -> Any:
    """What the text must hold, all of it encoded at once."""
    about = {"run": PLACE.run, "attempt": PLACE.attempt, "torch": torch.__version__, "state": tree}
    return decode(encode({**about, "tensors": table(layout)}), dict[str, Any])


@given(st.lists(_STATES, max_size=4))
def test_any_states_one_after_another(states: list[dict[str, Any]]) -> None:
    """Each text is the one that a first snapshot of that state would have, whatever was kept of those before."""
    sidecars, packer = Sidecars(PLACE), Packer(lambda: lambda path, tensor: True)
    for state in (_with_tensors(state) for state in states):
        for _ in range(2):
            packed = packer({"step": 1, **state})
            layout = plan(packed.specs, 1, packed.led)
            assert decode(sidecars.text(packed.tree, layout), dict[str, Any]) == _whole(packed.tree, layout)


def test_what_has_moved_is_told_anew() -> None:
    """The state of an optimizer that gets one more tensor."""
    sidecars, packer = Sidecars(PLACE), Packer(lambda: lambda path, tensor: True)
    state: dict[str, Any] = {"model": {"w": torch.ones(3)}, "optimizer": {"state": {0: {"m": torch.ones(3)}}}}
    for more in ({}, {}, {"v": torch.ones(3)}, {"v": torch.ones(3)}):
        state["optimizer"]["state"][0].update(more)
        packed = packer(state)
        layout = plan(packed.specs, 1, packed.led)
        assert decode(sidecars.text(packed.tree, layout), dict[str, Any]) == _whole(packed.tree, layout)
