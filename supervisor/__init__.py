"""Launches torchrun jobs, watches them, and relaunches them with resume. Never imports torch.

For people: `from supervisor import launch, Run` (docs/python.md). The package is loaded as `_supervisor` alone;
`supervisor` is the same object (trainer/names.py says why).
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from supervisor.api import Run as Run
    from supervisor.api import SuperviseError as SuperviseError
    from supervisor.api import launch as launch

__all__ = ["Run", "SuperviseError", "launch"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("_supervisor.api"), name)
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("supervise")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# From here on this process finds us under all our names, also as `supervisor`.
_names = importlib.import_module("_supervise").names
if __name__ != "_supervisor":
    sys.modules[__name__] = _names.load("_supervisor")
