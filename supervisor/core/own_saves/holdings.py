"""What a save holds, by the top keys of the dict that was saved, and by its name. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_OPTIMIZER = re.compile(r"(^|[_.])opt(im\w*|s|_\w+)?$|optimizer", re.IGNORECASE)
"""The name of an optimizer's state in a checkpoint."""
_COUNTER = re.compile(
    r"(finished_|start_|global_|current_)?(epochs?|iter(ation)?s?|steps?)(_run|_num|_count)?", re.IGNORECASE
)
"""The name of a counter of steps or epochs in a checkpoint."""
_OPTIMIZER_FILE = re.compile(r"(^|[^a-z])opt(im\w*)?([^a-z]|$)", re.IGNORECASE)
"""In the name of a file with the state of an optimizer."""
_NO_MODEL = re.compile(
    r"opt|sched|scaler|rng|random|seed|data|sampler|step|epoch|iter|loss|lr|args|conf|metric|time|version", re.I
)
"""In the name of what a checkpoint holds beside the model."""
_LIGHTNING = "pytorch-lightning_version"
_WHOLE_BY_MAKE = ("transformers.Trainer", "accelerate")
"""Savers that save the optimizer as part of a folder, unless they are told not to."""


def keys_of(line: Mapping[str, Any]) -> list[str] | None:
    """The top keys in a journal line. None if nobody has looked inside."""
    holds = line.get("holds")
    return [str(key) for key in holds] if isinstance(holds, list) else None


def has_optimizer(keys: Sequence[str]) -> bool:
    return any(_OPTIMIZER.search(key) for key in keys)


def has_counter(keys: Sequence[str]) -> bool:
    """Whether a counter of steps or epochs is among them. That of Lightning's Trainer is no sign: it cannot resume
    without an optimizer's state."""
    return _LIGHTNING not in keys and any(_COUNTER.fullmatch(key) for key in keys)


def is_beside_model(name: str, keys: Sequence[str] | None) -> bool:
    """Whether the file `name` has the state of an optimizer, and its model is in another file."""
    if keys and has_optimizer(keys):
        return all(map(_NO_MODEL.search, keys))
    return {"state", "param_groups"} <= {*(keys or ())} or _OPTIMIZER_FILE.search(name) is not None


def is_resumable_trainer(names: Iterable[str]) -> bool:
    """Whether the folder of Hugging Face's Trainer with these entries has an optimizer's state: in a file or folder
    (FSDP, DeepSpeed). Without one the Trainer begins optimizer and schedule anew and says nothing: save_only_model."""
    return any("optimizer" in name or name.startswith("global_step") for name in names)


def is_sure(name: str, line: Mapping[str, Any]) -> bool:
    """Whether the save in that line is surely one to resume from, by what it holds or by who has made it."""
    keys = keys_of(line)
    by_make = line.get("how") in _WHOLE_BY_MAKE
    return by_make or (keys is not None and has_optimizer(keys) and not is_beside_model(name, keys))
