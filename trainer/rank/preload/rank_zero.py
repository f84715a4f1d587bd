"""Modules that ask for the rank when they are imported, and can be told it later.

Lightning and torchmetrics put it at their import into `rank_zero_only.rank`. Their imports take seconds, so they are
made in the fork server, which is no rank; each rank then asks anew. Any other module that reads a rank's variables at
its import is imported by the ranks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any


def _of_lightning(module: Any) -> int:
    return module._get_rank() or 0


def _of_torchmetrics(module: Any) -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


_ASK: dict[str, Callable[[Any], int]] = {
    "lightning.fabric.utilities.rank_zero": _of_lightning,
    "lightning_fabric.utilities.rank_zero": _of_lightning,
    "torchmetrics.utilities.prints": _of_torchmetrics,
}
"""For each of these modules: its rank in this process. Read in lightning 2.6 and torchmetrics 1.9."""


def can_be_told(name: str) -> bool:
    """Whether settle() corrects what the import of that module has read."""
    ask, module = _ASK.get(name), sys.modules.get(name)
    if ask is None or not hasattr(getattr(module, "rank_zero_only", None), "rank"):
        return False
    return ask is not _of_lightning or hasattr(module, "_get_rank")


def settle() -> None:
    """In a rank, before its script: the modules that are imported already know this rank."""
    for name, ask in _ASK.items():
        if can_be_told(name):
            module: Any = sys.modules[name]
            module.rank_zero_only.rank = ask(module)
