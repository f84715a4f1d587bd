"""Facts from the source of a script: the words that it compares its options with, and whether its globals configure it,
as in nanoGPT. The script was compiled a moment ago, so it can be parsed. If that fails, there are no facts."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...adapters.program import CONFIGURATOR, compared

_LARGEST = 1 << 20


def words_of(path: str) -> dict[str, tuple[str, ...]]:
    """For each variable or attribute by name: the strings that it is compared with."""
    try:
        return compared(ast.parse(_text(path)))
    except (OSError, ValueError, SyntaxError, RecursionError):
        return {}


def configurator_keys(path: str, globals_: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Tuples (name, value) of the globals that `--name=value` overwrites. None if the script has no configurator."""
    try:
        if not CONFIGURATOR.search(_text(path)):
            return []
    except (OSError, ValueError):
        return []
    named = globals_.get("config_keys")
    keys = named if isinstance(named, list) else [key for key in globals_ if not key.startswith("_")]
    return [(key, value) for key in keys if isinstance(value := globals_.get(key), str | int | float | bool)]


def _text(path: str) -> str:
    with Path(path).open(encoding="utf-8") as file:
        text = file.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise ValueError("no script is that long")
    return text
