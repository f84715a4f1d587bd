"""One package, several names. It is loaded once, under a private name, and served under the public names.

`trainer` and `supervise` are common words. If a user has a module of that name, the user's program must get that one.
So the package is `_supervise` everywhere and imports itself relatively. If the path has no other module of a public
name, a finder serves that name with the same module objects.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType

REAL = {"trainer": "_supervise", "supervise": "_supervise", "supervisor": "_supervisor"}
"""For each public name, the name under which it is loaded."""
_FOLDER = {"_supervise": "trainer", "_supervisor": "supervisor"}
"""The name of the package's folder in a checkout."""


def load(real: str) -> ModuleType:
    """The package `real`, loaded once: as installed, or from its folder beside this one in a checkout."""
    if real in sys.modules or importlib.util.find_spec(real) is not None:
        return importlib.import_module(real)
    folder = Path(__file__).resolve().parents[1] / _FOLDER[real]
    init = folder / "__init__.py"
    spec = importlib.util.spec_from_file_location(real, init, submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None
    module = sys.modules[real] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def serve(always: bool = False) -> None:
    """From now on this process finds us under every name of REAL; with `always`, also if others have the same name."""
    finder = next((finder for finder in sys.meta_path if isinstance(finder, _Names)), None)
    if finder is None:
        sys.meta_path.insert(0, finder := _Names())
    finder.always = finder.always or always


def public(name: str) -> ModuleType:
    """The module for `import name`, one of REAL, in a process that found our facade of that name first. If another
    distribution has a module of that name later on the path, that one; else ours."""
    theirs = _Names().theirs(name)
    if theirs is None:
        return load(REAL[name])
    module = sys.modules[name] = importlib.util.module_from_spec(theirs)
    if theirs.loader is not None:
        theirs.loader.exec_module(module)
    return module


def ours_alone() -> None:
    """This process runs our code alone: the names are ours, and the ranks' PYTHONPATH is searched last."""
    serve(always=True)
    theirs = {os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    sys.path.sort(key=lambda entry: entry in theirs)


class _Names(importlib.abc.MetaPathFinder):
    always = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        first, _, rest = fullname.partition(".")
        if first not in REAL:
            return None
        if not rest:
            return (None if self.always else self.theirs(first)) or _alias(first, REAL[first])
        # `python -m trainer` itself reads the code of trainer.__main__ from the folder.
        ours = sys.modules.get(first) is sys.modules.get(REAL[first]) and rest != "__main__"
        return _alias(fullname, f"{REAL[first]}.{rest}") if ours else None

    def theirs(self, name: str) -> ModuleSpec | None:
        """Another distribution's module of that name, as this process would find it without us."""
        for finder in list(sys.meta_path):
            find = None if isinstance(finder, _Names) else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, None, None) if find else None
            if is_ours(spec):
                # Another module may come after ours on the path, or from a later finder (of an editable install).
                rest = [entry for entry in sys.path if not is_ours(PathFinder.find_spec(name, [entry]))]
                spec = PathFinder.find_spec(name, rest) if finder is PathFinder else None
            if spec is not None and _has_code(spec):
                return spec
        return None


def _has_code(spec: ModuleSpec) -> bool:
    """Whether it is more than a folder with that name. Such a folder gives way to any package."""
    folders = () if spec.origin else spec.submodule_search_locations or ()
    return bool(spec.origin) or any(next(Path(folder).glob("*.py"), None) for folder in folders)


def is_ours(spec: ModuleSpec | None) -> bool:
    """Whether the found package is ours, of any version, and not another one in its place."""
    if spec is None or spec.origin is None or spec.name not in REAL:
        return False
    try:
        return f'"{REAL[spec.name]}"'.encode() in Path(spec.origin).read_bytes()
    except OSError:
        return False


class _Alias(importlib.abc.InspectLoader):
    """Another name for a module that is loaded, or loads now, under its real one."""

    def __init__(self, real: ModuleSpec) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return importlib.import_module(self._real.name)

    def exec_module(self, module: ModuleType) -> None:
        # The import system has just set the alias as its spec; relative imports need the real one.
        module.__spec__ = self._real

    def is_package(self, fullname: str) -> bool:
        return self._real.submodule_search_locations is not None

    def get_code(self, fullname: str) -> CodeType | None:
        """For runpy, which runs the code of a module again."""
        return self._inspected().get_code(self._real.name)

    def get_source(self, fullname: str) -> str | None:
        return self._inspected().get_source(self._real.name)

    def _inspected(self) -> importlib.abc.InspectLoader:
        assert isinstance(self._real.loader, importlib.abc.InspectLoader)
        return self._real.loader


def _alias(name: str, real: str) -> ModuleSpec | None:
    if "." not in name:
        load(real)
    found = importlib.util.find_spec(real)
    return spec_from_loader(name, _Alias(found), origin=found.origin) if found is not None else None
