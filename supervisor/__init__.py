"""Launches torchrun jobs, watches them, relaunches them with resume. Never imports torch.

The package is loaded as `_supervisor` alone; `supervisor` is the same object (trainer/names.py says why).
"""

import importlib
import sys

if __name__ != "_supervisor":
    sys.modules[__name__] = importlib.import_module("_supervise.names").load("_supervisor")
