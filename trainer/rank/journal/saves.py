"""Listens to the saves and loads of programs: torch.save and load, safetensors, torch.distributed.checkpoint, and the
functions of the frameworks. Files are written beside and renamed. So a kill leaves the old content.

The wrappers are installed before anything else is imported, because `from safetensors.torch import save_file` binds its
names for good. They sleep until a rank is released: then they only pass calls through. Awake, they tell a listener of
each save and load. For nested calls, only the outermost counts. In children that the rank forks they tell nobody.
"""

from __future__ import annotations

from ..imports import after_import
from . import dcp, writers
from .wrapping import loading, saving, wake

_installed = False


def install() -> None:
    """Installs the wrappers now, or as soon as their modules are imported. The wrappers sleep. One call is enough, for
    forks too."""
    global _installed
    if _installed:
        return
    _installed = True
    after_import({**writers.WRAPPED, **dcp.WRAPPED})


__all__ = ["install", "loading", "saving", "wake"]
