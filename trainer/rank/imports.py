"""Calls back when any code has imported a module. It imports nothing itself."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

Callback = Callable[[ModuleType], None]


def after_import(callbacks: Mapping[str, Callback], began: Callable[[str], object] = lambda name: None) -> None:
    """Each callback is called with its module: now if it is loaded, else right after its import, before the importer
    goes on. `began` is called with the name of each module whose import begins."""
    after = dict(callbacks)
    for name in [n for n in after if n in sys.modules]:
        after.pop(name)(sys.modules[name])
    if after:
        sys.meta_path.insert(0, _AfterImport(after, began))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds no module itself. Calls back when a module that another finder found has been executed."""

    def __init__(self, after: dict[str, Callback], began: Callable[[str], object]) -> None:
        self._after, self._began = after, began

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        callback = self._after.pop(fullname, None)
        if callback is None:
            return None
        if not self._after:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            self._began(fullname)
            spec.loader = _Loader(spec.loader, callback)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any, callback: Callback) -> None:
        self._loader = loader
        self._callback = callback

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            # As without us, for code that asks the module how it was loaded.
            module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._callback(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
