"""The script's own modules that have the name of an installed package: its fork of omegaconf beside it, say.

The fork server does not search the script's folder. What it imports would find the installed package, and each of its
forks would have that one in place of the script's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.machinery import PathFinder


def found() -> dict[str, str]:
    """In a rank: where it finds the imported packages of which an installed one is hidden by the script's own."""
    installed = [folder for folder in sys.path if folder.endswith("-packages")]
    tops = sorted({name for name in sys.modules if "." not in name} - sys.stdlib_module_names)
    origins = {name: _origin(name) for name in tops if _origin(name, installed)}
    return {name: origin for name, origin in origins.items() if "-packages" + os.sep not in origin}


def other(own: Mapping[str, str]) -> set[str]:
    """In the fork server: the names of `own` that it would find elsewhere."""
    return {name for name, origin in own.items() if (here := _origin(name)) and here != origin}


def loaded(own: Mapping[str, str]) -> list[str]:
    """In the fork server: the names of `own` that it has imported from elsewhere."""
    specs = {name: getattr(sys.modules.get(name), "__spec__", None) for name in own}
    return [name for name, spec in specs.items() if spec and spec.name == name and spec.origin not in (None, own[name])]


def _origin(name: str, folders: list[str] | None = None) -> str:
    """The file that an import of `name` would find. Empty: none, or only a folder without a file of its own."""
    try:
        spec = PathFinder.find_spec(name, folders)
    except (ImportError, ValueError):
        return ""
    return (spec.origin or "") if spec is not None else ""
