"""Hears what programs save and load with: torch.save and load, safetensors, torch.distributed.checkpoint, and what the
frameworks have for it; and has their files written beside and renamed, so that a kill leaves what was there.

The wrappers are installed before anything else is imported, because `from safetensors.torch import save_file` binds its
names for good, and sleep until a rank is let go: then they pass calls through and do nothing else. Awake, they tell a
listener of each save and load. Of calls within calls the outermost counts. In children that the rank forks they tell
nobody.
"""

from __future__ import annotations

from ..imports import after_import
from . import dcp, writers
from .wrapping import loading, saving, wake

_installed = False


def install() -> None:
    """The wrappers are in place, or will be as soon as what they wrap is imported; they sleep. Once is enough,
    for forks too."""
    global _installed
    if _installed:
        return
    _installed = True
    after_import({**writers.WRAPPED, **dcp.WRAPPED})


__all__ = ["install", "loading", "saving", "wake"]
