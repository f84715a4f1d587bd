"""The script or module of a launch: found, and known to be Python, before anything is started."""

from __future__ import annotations

import os
import re
import shutil
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from supervisor.errors import Pointless, Refusal
from supervisor.run.spec import BUILT_IN

_LARGEST = 1 << 20
"""The largest source, in bytes, that is compiled here. A larger one would delay the start."""
_PYTHON = re.compile(rb"#!.*\bpython")


def command(arguments: Sequence[str], module: bool, folder: Path | None = None) -> dict[str, Any]:
    """What the Spec says of the script or module and its arguments, in `folder` (default: here). Refusal if there is no
    such thing. Pointless if it cannot be compiled: each rank would only find the same."""
    cwd = folder or Path.cwd()
    if is_built_in(arguments, module):
        return {"command": (BUILT_IN, *arguments), "module": True, "cwd": str(cwd)}
    target = arguments[0]
    if module:
        if (file := _module(target, cwd)) is not None:
            _compiles(file)
    elif (cwd / target).is_dir():
        if not (cwd / target / "__main__.py").is_file():
            raise Refusal(f"{target} is a folder, not a script, and has no __main__.py")
        _compiles(cwd / target / "__main__.py")
    elif not (cwd / target).is_file():
        if "/" not in target and shutil.which(target):
            raise Refusal(f"{target!r} is a program, not a Python script; give the script that it starts")
        hint = f"; for a module write: -m {target}" if "/" not in target and not target.endswith(".py") else ""
        raise Refusal(f"no script {target!r} in {cwd}{hint}")
    else:
        _compiles(cwd / target)
    return {"command": tuple(arguments), "module": module, "cwd": str(cwd)}


def is_built_in(arguments: Sequence[str], module: bool) -> bool:
    """Whether neither a script nor a module is asked for. Refusal if a module is, and none is named."""
    if module and not arguments:
        raise Refusal("-m: no module after it; for the built-in GPT leave it out")
    return not arguments or (arguments[0].startswith("-") and not module)


def asks_for_help(arguments: Sequence[str], module: bool) -> bool:
    """Whether somebody wants to see the options of the built-in trainer, and no run."""
    return not module and bool(arguments) and arguments[0] in ("-h", "--help")


def stem(arguments: Sequence[str]) -> str:
    """The name of a run that was given none."""
    if not arguments or arguments[0].startswith("-"):
        return "gpt"
    return re.sub(r"[^A-Za-z0-9._-]", "-", Path(arguments[0]).stem) or "run"


def _module(name: str, cwd: Path) -> Path | None:
    """The file that `python -m name` runs, if that can be told without running code of a package."""
    top, *inner = name.split(".")
    path = [str(cwd), *sys.path]
    # Only find_spec knows the finders of editable installs. Neither of the two looks in the current folder by itself.
    found: ModuleSpec | None = (PathFinder.find_spec(top, path) or _found_otherwise(top)) if top else None
    if found is None:
        raise Refusal(f"no module named {top!r} here or on the Python path")
    for part in [*inner, "__main__"]:
        if found is None or found.submodule_search_locations is None:
            break
        try:
            found = PathFinder.find_spec(f"{found.name}.{part}", [*found.submodule_search_locations])
        except KeyError:
            return None  # A folder without __init__.py in another one is known once that is imported.
    source = found is not None and found.has_location and found.origin is not None and found.origin.endswith(".py")
    return Path(found.origin) if source and found is not None and found.origin is not None else None


def _found_otherwise(top: str) -> ModuleSpec | None:
    try:
        return find_spec(top)
    except ValueError:
        # This very program, `__main__`, has none.
        return None


def _is_application(path: Path) -> bool:
    """Whether the file is an archive that Python can run (see zipapp)."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return not {"__main__.py", "__main__.pyc"}.isdisjoint(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _compiles(path: Path) -> None:
    """Pointless if the file is not Python. What cannot be read here is left to the ranks."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > _LARGEST:
                return
            source = file.read()
    except OSError:
        return
    name, shebang = os.path.relpath(path), source.partition(b"\n")[0]
    if path.suffix == ".pyc" or _is_application(path):
        return
    if source.startswith((b"\x7fELF", b"PK\x03\x04")):
        raise Pointless(f"{name} is no Python source; give the Python script that it runs")
    try:
        with warnings.catch_warnings():
            # A rank will say it, once.
            warnings.simplefilter("ignore")
            compile(source, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        if shebang.startswith(b"#!") and not _PYTHON.match(shebang):
            program = shebang[2:].decode(errors="replace").strip()
            raise Pointless(f"{name} is a script of {program}, not Python; give the script that it starts") from None
        text = (error.text or "").strip()
        line = f":{error.lineno}" if error.lineno else ""
        raise Pointless(
            f"{name}{line}: {type(error).__name__}: {error.msg}{f': {text:.80}' if text else ''}; nothing was started"
        ) from None
    except ValueError as error:
        raise Pointless(f"{name}: it is not Python: {error}; nothing was started") from None
    except (RecursionError, MemoryError):
        # The interpreter of a rank has more room.
        return
