"""What runs inside a worker: checkpoints that cannot be torn, and a trainer that uses them. Importing it loads no torch.

The package is loaded as `_supervise` alone; under the names that people write, `trainer` and `supervise`, it is the same
object (names.py says why).
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
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == _REAL:
    from .names import serve

    serve()
else:
    # The first import, under one of the public names: it is to find what has the real one.
    if _REAL not in sys.modules and importlib.util.find_spec(_REAL) is None:
        spec = importlib.util.spec_from_file_location(
            _REAL, __file__, submodule_search_locations=[str(Path(__file__).parent)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[_REAL] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[_REAL])
    # The package before its module `names`: the other way round two threads that import us at once wait for each other.
    sys.modules[__name__] = importlib.import_module(_REAL).names.public(__name__)
