"""The code inside a worker: checkpoints that cannot be torn, and a trainer that uses them. Its import loads no torch.

The package is loaded only as `_supervise`. The public names, `trainer` and `supervise`, give the same object (names.py
says why).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

_REAL = "_supervise"


def __getattr__(name: str) -> Any:
    if name in ("Checkpointer", "save_checkpoint", "load_checkpoint"):
        from . import checkpoint

        return getattr(checkpoint, name)
    if name in ("launch", "Run", "SuperviseError"):
        # `supervisor` may be supervisord's. Then these are found here alone.
        return getattr(importlib.import_module(f"{_REAL}.names").load("_supervisor"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == _REAL:
    from .names import serve

    serve()
else:
    # The first import, under one of the public names, must give the package with the real name.
    if _REAL not in sys.modules and importlib.util.find_spec(_REAL) is None:
        spec = importlib.util.spec_from_file_location(
            _REAL, __file__, submodule_search_locations=[str(Path(__file__).parent)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[_REAL] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[_REAL])
    # The package comes before its module `names`. In the other order, two threads that import us at once would
    # deadlock.
    sys.modules[__name__] = importlib.import_module(_REAL).names.public(__name__)
