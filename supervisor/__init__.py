"""Launches torchrun jobs, watches them, and relaunches them with resume. Never imports torch.

The package is loaded as `_supervisor` alone; `supervisor` is the same object (trainer/names.py says why).
"""

import importlib
import sys

# From here on this process finds us under all our names, also as `supervisor`.
_names = importlib.import_module("_supervise").names
if __name__ != "_supervisor":
    sys.modules[__name__] = _names.load("_supervisor")
