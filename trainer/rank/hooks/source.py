"""Facts from the source of a script: the words that it compares its options with, and whether its globals configure it,
as in nanoGPT. The script was compiled a moment ago, so it can be parsed. If that fails, there are no facts."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LARGEST = 1 << 20
_TELLING = frozenset({"latest", "last", "auto", "resume"})
"""Words that tell a script to resume. A name that is compared with none of them does not matter."""
_CONFIGURATOR = re.compile(r"^exec\(open\(.*configurator\.py", re.MULTILINE)


def words_of(path: str) -> dict[str, tuple[str, ...]]:
    """For each variable or attribute by name: the strings that it is compared with."""
    found: dict[str, set[str]] = {}
    try:
        tree = ast.parse(_text(path))
    except (OSError, ValueError, SyntaxError, RecursionError):
        return {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            texts = {text for side in sides for text in _strings(side)}
            for name in filter(None, map(_name, sides)):
                found.setdefault(name, set()).update(texts)
    return {name: tuple(sorted(texts)) for name, texts in found.items() if texts & _TELLING}


def _strings(node: ast.AST) -> list[str]:
    inner = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return [each.value for each in inner if isinstance(each, ast.Constant) and isinstance(each.value, str)]


def _name(node: ast.AST) -> str | None:
    """The name is `resume` for resume, args.resume and args.resume.lower()."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args:
        return _name(node.func.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


def configurator_keys(path: str, globals_: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Tuples (name, value) of the globals that `--name=value` overwrites. None if the script has no configurator."""
    try:
        if not _CONFIGURATOR.search(_text(path)):
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
