"""Starts one of our programs, by path: `python start.py PROGRAM ARGUMENTS…`. PROGRAM is `rank.engine.launcher` or the
like.

The start is by path, so that no module of the user in the current folder or on PYTHONPATH is found in place of ours.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

_REAL = "_supervise"


def _start(program: str, arguments: list[str]) -> int | None:
    folder = Path(__file__).resolve().parent
    init = folder / "__init__.py"
    spec = importlib.util.spec_from_file_location(_REAL, init, submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None
    sys.modules[_REAL] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[_REAL])
    code: int | None = importlib.import_module(f"{_REAL}.{program}").main(arguments)
    return code


if __name__ == "__main__":
    # Nobody may import from the folder of this file. (With PYTHONSAFEPATH it is not on the path.)
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    sys.exit(_start(sys.argv[1], sys.argv[2:]))
