"""A state of another program as a checkpoint of ours: `start.py checkpoint.transfer.inward SOURCE FOLDER STEP TRUST`.

torch.save                  torch.load(weights_only=True), mapped: no pickle of any program runs
safetensors, one or many    mapped
torch.distributed.checkpoint   its .metadata is a pickle: only if TRUST is "trust"
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...rundir.files.durable import DISK
from ..disk.save import Order, save
from ..errors import CheckpointError, StateError
from ..group import Ranks
from ..state.packing import Packed, pack

_MODELS = ("model", "state_dict", "model_state_dict", "module")
_OPTIMIZERS = ("optimizer", "optim", "optimizer_state_dict", "optimizer_states")
_TORCH = (".pt", ".pth", ".bin")
"""The names of files of torch.save end so."""
_STEPS = ("step", "global_step", "iteration", "iter_num")


class _Refused(CheckpointError):
    """The source cannot be taken."""


def state_of(source: Path, trusted: bool) -> tuple[dict[str, Any], list[str]]:
    """(state, left out): the parts `model`, `optimizer`, `parameters` and `step` of what is in `source`, and the names
    of what is in it besides. CheckpointError if there is no model."""
    if (source / "manifest.json").exists():
        raise _Refused(f"{source} is a checkpoint of ours already")
    if (source / ".metadata").exists():
        if not trusted:
            raise _Refused(
                f"{source}/.metadata is a pickle, and to read one runs what its writer put into it: give "
                "--trust-pickle if you know who wrote it"
            )
        return _parts(_from_dcp(source), source)
    if source.is_dir() or source.suffix == ".safetensors":
        more = [file.name for file in source.iterdir() if file.suffix in _TORCH] if source.is_dir() else []
        return {"model": _from_safetensors(source)}, sorted(more)
    return _parts(_from_torch(source), source)


def _from_safetensors(source: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    files = sorted(source.glob("*.safetensors")) if source.is_dir() else [source]
    index = source / "model.safetensors.index.json"
    places: dict[str, str] = {}
    if source.is_dir() and index.exists():
        places = dict(json.loads(index.read_bytes())["weight_map"])
        if any(Path(name).name != name for name in places.values()):
            raise _Refused(f"{index} names files in other folders")
        files = [source / name for name in sorted(set(places.values()))]
    if not files:
        one = next((file for file in sorted(source.glob("*")) if file.suffix in _TORCH), None)
        how = f"; give the file {one.name} itself" if one else ""
        raise _Refused(f"{source} has no safetensors files, and is no folder of torch.distributed.checkpoint{how}")
    found: dict[str, torch.Tensor] = {}
    for file in files:
        tensors = load_file(file)
        if twice := sorted(found.keys() & tensors.keys()):
            raise _Refused(f"{twice[0]} is in two files of {source}")
        found.update(tensors)
    if lost := sorted(places.keys() - found.keys()):
        raise _Refused(f"{index} has {lost[0]}, which is in no file")
    return found


def _from_torch(source: Path) -> Any:
    try:
        try:
            return torch.load(source, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:
            # The format of before 2020 cannot be mapped.
            return torch.load(source, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, KeyError, AttributeError) as error:
        raise _Refused(f"{source} is no file of torch.save: {' '.join(str(error).split())[:200]}") from None
    except Exception as error:
        why = next((line for line in str(error).splitlines() if "nsupported" in line or "not allowed" in line), "")
        raise _Refused(
            f"{source} holds objects that are more than data, which torch.load(weights_only=True) refuses. "
            f"{why.strip()[:200]}".strip()
        ) from None


def _from_dcp(source: Path) -> Any:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    # Through a file: so its tensors are mapped, as those of any file of torch.save.
    with tempfile.TemporaryDirectory(prefix=".import-", dir=source.parent) as folder:
        file = Path(folder) / "state.pt"
        dcp_to_torch_save(source, file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def _is_model(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(one, torch.Tensor) for one in value.values())


def _parts(found: Any, source: Path) -> tuple[dict[str, Any], list[str]]:
    if not isinstance(found, Mapping):
        raise _Refused(f"{source} holds a {type(found).__name__}, and no dict with a model in it")
    model = next((name for name in _MODELS if _is_model(found.get(name))), None)
    if model is None:
        if not _is_model(found):
            raise _Refused(
                f"{source} holds {', '.join(map(str, list(found)[:8]))}, and no model under {', '.join(_MODELS)}"
            )
        return {"model": dict(found)}, []
    state: dict[str, Any] = {"model": dict(found[model])}
    taken = {model}
    for name in _OPTIMIZERS:
        given = found.get(name)
        one = given[0] if isinstance(given, list) and len(given) == 1 else given
        if isinstance(one, Mapping) and {"state", "param_groups"} <= one.keys():
            state["optimizer"], names = numbered(one)
            if names := names or (found.get("parameters") or {}).get("names"):
                state["parameters"] = {"names": names}
                taken.add("parameters")
            taken.add(name)
            break
    for name in _STEPS:
        if type(found.get(name)) is int and found[name] >= 0:
            state["step"] = found[name]
            taken.add(name)
            break
    return state, [str(name) for name in found if name not in taken]


def numbered(optimizer: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """An optimizer's state by numbers, as state_dict() has it, and the names of its parameters if it was by names (as
    torch.distributed.checkpoint keeps it)."""
    given = [list(group["params"]) for group in optimizer["param_groups"]]
    names = [name for group in given for name in group]
    if not names or not all(isinstance(name, str) for name in names):
        # There a number has become text, as a key.
        known = {*names}
        return {**optimizer, "state": {_number(key, known): value for key, value in optimizer["state"].items()}}, None
    numbers = {name: number for number, name in enumerate(names)}
    groups = [
        {**group, "params": [numbers[name] for name in inside]}
        for group, inside in zip(optimizer["param_groups"], given, strict=True)
    ]
    state = {numbers[name]: value for name, value in optimizer["state"].items() if name in numbers}
    return {"state": state, "param_groups": groups}, "\n".join(names)


def _number(key: Any, numbers: set[Any]) -> Any:
    return int(key) if isinstance(key, str) and key.isdecimal() and int(key) in numbers else key


def main(arguments: list[str]) -> int:
    source, folder, step, trust = arguments
    try:
        state, left = state_of(Path(source), trust == "trust")
        number = int(step) if step else int(state.get("step", 0))
        packed = pack({"extra": {}, **state, "step": number})
        outcome = save(Order(Path(folder), number, packed, Packed({}, {}, {})), Ranks(), DISK)
        if outcome.error:
            raise _Refused(outcome.error)
        if outcome.existed:
            raise _Refused(f"{folder} has a checkpoint of step {number} already; give another --step")
    except (CheckpointError, OSError, StateError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    parts = [part for part in ("model", "optimizer") if part in state]
    print(json.dumps({"step": number, "bytes": outcome.bytes, "parts": parts, "left_out": left}))
    return 0
