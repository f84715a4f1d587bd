"""The files of a script's own program, as this process has loaded them. With them the supervisor sees whether the next
attempt runs another program."""

from __future__ import annotations

import contextlib
import os
import site
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from ..rundir.files.codec import encode
from ..rundir.files.durable import replace_soon

MOST = 500
_SUFFIXES = (".py", *EXTENSION_SUFFIXES)
_OURS = str(Path(__file__).parents[1])


def loaded() -> list[tuple[str, int, int]]:
    """(path, bytes, ns of its last change) of the loaded modules that were not installed: sources and extensions."""
    elsewhere = installed()
    found: dict[str, tuple[int, int]] = {}
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        # A module without a spec was not imported but made by code: torch.compile writes such modules, and discards
        # them.
        imported = name == "__main__" or getattr(module, "__spec__", None) is not None
        if not isinstance(path, str) or not path.endswith(_SUFFIXES) or not imported:
            continue
        path = os.path.abspath(path)  # A link is the file that the script names.
        if path not in found and not path.startswith(elsewhere) and len(found) < MOST:
            with contextlib.suppress(OSError):
                known = Path(path).stat()
                found[path] = (known.st_size, known.st_mtime_ns)
    return [(path, *about) for path, about in found.items()]


def installed() -> tuple[str, ...]:
    """What the paths begin with of all that was installed, the standard library's and this package's among them."""
    paths = sysconfig.get_paths()
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    users = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    found = {_OURS, *(paths[name] for name in names), *users, *(p for p in sys.path if p.endswith("-packages"))}
    return tuple(os.path.join(path, "") for path in found)  # noqa: PTH118 (a prefix)


def leave(path: Path) -> None:
    """`path` lists the files that loaded() finds now. On a full disk only this list is lost."""
    with contextlib.suppress(OSError, ValueError):
        replace_soon(path, encode(loaded()))
