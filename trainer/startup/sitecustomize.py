"""Every Python that a script starts reads this file. When that Python imports torch, it gets our hooks: it may become a
rank.

It is found through PYTHONPATH, because nothing else reaches a program that is started in any way. The user's own
sitecustomize runs as without this one. Any Python may read this, also one without our packages. So it is short, needs
the standard library alone, and ignores its own errors.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))


def _give_way() -> None:
    """The user's own sitecustomize, if there is one, has run, under its usual name."""
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize")
    if spec is not None and spec.loader is not None:
        sys.modules["sitecustomize"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


class _BeforeTorch:
    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> None:
        if name == "torch":
            sys.meta_path.remove(cls)
            # If it fails, we cannot watch this process.
            with contextlib.suppress(Exception):
                _arrive()


def _arrive() -> None:
    real, folder = "_supervise", os.path.dirname(_HERE)
    if real not in sys.modules:
        init = os.path.join(folder, "__init__.py")
        spec = importlib.util.spec_from_file_location(real, init, submodule_search_locations=[folder])
        assert spec is not None and spec.loader is not None
        sys.modules[real] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    importlib.import_module(real + ".rank.member").arrive()


if os.environ.get("SUPERVISE_CHILDREN") and sys.version_info >= (3, 10):
    sys.meta_path.insert(0, _BeforeTorch)
_give_way()
