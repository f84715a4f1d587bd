"""Step and save progress of a script that knows nothing of us, through hooks set when torch itself is imported.

torch is not imported for the hooks' sake: a finder notices when the script imports it.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Protocol


class Listener(Protocol):
    def hooked(self, done: int, optimizer: Any) -> None: ...
    def hooked_save(self) -> None: ...
    def hooked_backward(self, entered: bool) -> None: ...


def watch_torch(listener: Listener) -> None:
    """Once the script imports torch, `listener` hears of its first optimizer's steps, backward passes and of torch.save."""
    after: dict[str, Callable[[ModuleType], None]] = {
        "torch.optim.optimizer": functools.partial(_hook_steps, listener=listener),
        "torch.autograd": functools.partial(_hook_backward, listener=listener),
        "torch.serialization": functools.partial(_hook_saves, listener=listener),
    }
    for name in [n for n in after if n in sys.modules]:
        after.pop(name)(sys.modules[name])
    if after:
        sys.meta_path.insert(0, _AfterImport(after))


def _hook_steps(module: ModuleType, listener: Listener) -> None:
    counted: list[Any] = []
    done = 0

    def stepped(optimizer: Any, args: Any, kwargs: Any) -> None:
        nonlocal done
        if not counted:
            counted.append(optimizer)
            done = _steps_before(optimizer)
        # A script with two optimizers (a GAN) counts by its first, or each of its steps would be two.
        if optimizer is counted[0]:
            done += 1
            listener.hooked(done, optimizer)

    module.register_optimizer_step_post_hook(stepped)


def _steps_before(optimizer: Any) -> int:
    """Steps that the restored state says were done before this process's first one; 0 for optimizers that do not count."""
    for state in optimizer.state.values():
        if isinstance(state, dict) and "step" in state:
            # Read after the first step, which is in it already.
            return max(0, int(state["step"]) - 1)
    return 0


def _hook_backward(module: ModuleType, listener: Listener) -> None:
    backward = module.backward

    @functools.wraps(backward)
    def around(*args: Any, **kwargs: Any) -> Any:
        listener.hooked_backward(True)
        try:
            return backward(*args, **kwargs)
        finally:
            listener.hooked_backward(False)

    module.backward = around  # type: ignore[attr-defined]


def _hook_saves(module: ModuleType, listener: Listener) -> None:
    save = module.save

    @functools.wraps(save)
    def saved(*args: Any, **kwargs: Any) -> Any:
        result = save(*args, **kwargs)
        listener.hooked_save()
        return result

    module.save = saved  # type: ignore[attr-defined]
    torch = sys.modules.get("torch")
    if getattr(torch, "save", None) is save:
        # torch was there before us and has taken its own reference.
        torch.save = saved  # type: ignore[union-attr]


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds nothing itself; calls back when a module that others found has been executed."""

    def __init__(self, after: dict[str, Callable[[ModuleType], None]]) -> None:
        self._after = after

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
            spec.loader = _Loader(spec.loader, callback)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any, callback: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._callback = callback

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._callback(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
