"""Imports modules as the fork server would, and tells what came of it: for `supervise doctor`.

The modules are its arguments; `?module.name` is a name in one, and may be missing. What no package manager has
installed (the user's own) is not imported. Each line on stdout is JSON: the name of each module before its import, at
the end an object with `missing`, `causes`, `seconds` and `again`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pkgutil
import time
from collections.abc import Iterable
from typing import Any

from ...rundir.files.codec import encode
from ..process import fork_environment
from . import fitness
from .import_watch import ImportWatch

_LONGEST = 300


def main(arguments: list[str]) -> None:
    out = os.dup(1)
    # What modules print is not our answer.
    os.dup2(2, 1)
    fork_environment.enter()
    os.write(out, encode(_tried(arguments, out)) + b"\n")
    os._exit(0)  # some modules' threads never end


def _tried(names: Iterable[str], out: int) -> dict[str, Any]:
    missing: dict[str, str] = {}
    began = time.process_time()
    with contextlib.suppress(ImportError):
        importlib.import_module("torch")
    fitness.step_aside()
    with ImportWatch((), lambda stack: None) as watch:
        for name in names:
            root = name.lstrip("?").partition(".")[0]
            if root in missing or not _is_installed(root):
                continue
            os.write(out, encode(name) + b"\n")
            try:
                if name.startswith("?"):
                    with contextlib.suppress(Exception):
                        pkgutil.resolve_name(name[1:])
                else:
                    importlib.import_module(name)
            except BaseException as error:
                lines = str(error).splitlines() or [""]
                missing[name] = f"{type(error).__name__}: {lines[0]}"[:_LONGEST]
    causes = dict(watch.causes)
    if not causes and (why := fitness.unfit()):
        causes["one of the modules"] = why
    seconds, again = time.process_time() - began, watch.seconds(watch.left_out())
    return {"missing": missing, "causes": causes, "seconds": seconds, "again": again}


def _is_installed(name: str) -> bool:
    """Also if there is no such module: its import then says so."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return True
    places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
    return spec is None or any(place and f"-packages{os.sep}" in place for place in places)
