"""Wrappers around what programs save and load with: torch.save and load, safetensors, torch.distributed.checkpoint.

They are installed before anything else is imported, because `from safetensors.torch import save_file` binds its names for
good, and sleep until a rank is let go: then they pass calls through and do nothing else. Awake, they tell a listener of
each save and load. Of calls within calls the outermost counts. In children that the rank forks they sleep again.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Protocol

from ..imports import after_import

_TORCH, _TENSORS = "torch.serialization", "safetensors"
_SAVER, _LOADER = "torch.distributed.checkpoint.state_dict_saver", "torch.distributed.checkpoint.state_dict_loader"


class Listener(Protocol):
    def save_begun(self, path: str | None, by: str) -> Any:
        """A save to `path` begins (None: to no file). What it returns is handed back."""

    def save_ended(self, begun: Any, error: BaseException | None) -> None:
        """It is done, or has failed."""

    def loaded(self, path: str, error: BaseException | None) -> None:
        """`path` was loaded, or could not be."""


_installed = False
_listener: Listener | None = None
_sleeps = False
"""Whether a fork is going to sleep."""
_nested = threading.local()
_under_way: set[str] = set()
"""Where torch.distributed.checkpoint saves in the background; the thread that does so is not to be counted again."""
Path = Callable[[tuple[Any, ...], dict[str, Any]], str | None]


def install() -> None:
    """The wrappers are in place, or will be as soon as what they wrap is imported; they sleep. Once is enough,
    for forks too."""
    global _installed
    if _installed:
        return
    _installed = True
    after_import(
        {_TORCH: _wrap_torch, _TENSORS: _wrap_safetensors, _SAVER: _wrap_saver, _LOADER: _wrap_loader},
    )


def wake(listener: Listener) -> None:
    """From now on `listener` hears of what this process saves and loads."""
    global _listener, _sleeps
    _listener = listener
    if not _sleeps:
        os.register_at_fork(after_in_child=_sleep)
    _sleeps = True


def _sleep() -> None:
    global _listener
    _listener = None


@contextlib.contextmanager
def saving(path: str | os.PathLike[str], by: str) -> Iterator[None]:
    """A save of `path` that is none of the wrapped functions', but counts as one: what it calls does not."""
    listener = _listener
    if listener is None or _inside():
        yield
        return
    with _counted(listener, path_of(path), by):
        yield


@contextlib.contextmanager
def loading(path: str | os.PathLike[str]) -> Iterator[None]:
    """The same of a load."""
    listener = _listener
    if listener is None or _inside():
        yield
        return
    with _heard(listener, path_of(path)):
        yield


def _inside() -> bool:
    return getattr(_nested, "calls", False)


@contextlib.contextmanager
def _outermost() -> Iterator[None]:
    _nested.calls = True
    try:
        yield
    finally:
        _nested.calls = False


@contextlib.contextmanager
def _counted(listener: Listener, path: str | None, by: str) -> Iterator[None]:
    begun = listener.save_begun(path, by)
    try:
        with _outermost():
            yield
    except BaseException as error:
        listener.save_ended(begun, error)
        raise
    listener.save_ended(begun, None)


@contextlib.contextmanager
def _heard(listener: Listener, path: str | None) -> Iterator[None]:
    try:
        with _outermost():
            yield
    except Exception as error:
        if path is not None:
            listener.loaded(path, error)
        raise
    if path is not None:
        listener.loaded(path, None)


def path_of(target: Any) -> str | None:
    """The file, absolute and with its links resolved, that a path or an open file stands for; None if it is none: a buffer,
    a pipe, a device, an address."""
    try:
        if isinstance(target, str | os.PathLike):
            path = os.path.realpath(os.fspath(target))
            elsewhere = not isinstance(path, str) or "://" in os.fspath(target)
            return None if elsewhere or _is_special(path) else path
        path, fd = os.path.realpath(target.name), target.fileno()
        found = os.fstat(fd)
        return path if stat.S_ISREG(found.st_mode) and os.path.samestat(found, os.stat(path)) else None  # noqa: PTH116
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _is_special(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _argument(index: int, *names: str) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
    """How to find an argument of a call: by its place or one of its names."""

    def found(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[index] if len(args) > index else next((kwargs[name] for name in names if name in kwargs), None)

    return found


def _save(function: Callable[..., Any], by: str, target: Callable[[tuple[Any, ...], dict[str, Any]], Any]) -> Any:
    @functools.wraps(function)
    def save(*args: Any, **kwargs: Any) -> Any:
        listener = _listener
        if listener is None or _inside():
            return function(*args, **kwargs)
        where = target(args, kwargs)
        path = path_of(where)
        if path in _under_way:
            with _outermost():
                return function(*args, **kwargs)
        with _counted(listener, path, by):
            result = function(*args, **kwargs)
            if path is not None and hasattr(where, "flush"):
                with contextlib.suppress(OSError, ValueError):
                    where.flush()
        return result

    return save


def _load(function: Callable[..., Any], target: Callable[[tuple[Any, ...], dict[str, Any]], Any]) -> Any:
    @functools.wraps(function, updated=())
    def load(*args: Any, **kwargs: Any) -> Any:
        listener = _listener
        if listener is None or _inside():
            return function(*args, **kwargs)
        with _heard(listener, path_of(target(args, kwargs))):
            return function(*args, **kwargs)

    return load


def _wrap_torch(module: ModuleType) -> None:
    _replace(module, "save", _save(module.save, "torch.save", _argument(1, "f")), "torch")
    _replace(module, "load", _load(module.load, _argument(0, "f")), "torch")


def _wrap_safetensors(module: ModuleType) -> None:
    """What all of its save and load functions come down to, of torch, numpy and the others."""
    write, read = module.serialize_file, module.safe_open
    users = [f"{_TENSORS}.{name}" for name in ("torch", "numpy", "flax", "tensorflow", "mlx", "paddle")]
    _replace(module, "serialize_file", _save(write, "safetensors", _argument(1, "filename")), *users)
    opened = _load(read, _argument(0, "filename"))
    _replace(module, "safe_open", _Opener("safe_open", (), {"opened": staticmethod(opened), "real": read}), *users)


class _Opener(type):
    """A class in place of one that cannot be derived from: calling it gives an instance of that one."""

    opened: Callable[..., Any]
    real: type

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls.opened(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.real)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.real)


def _of_store(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Where a call of torch.distributed.checkpoint reads or writes: its checkpoint_id, else that of its storage."""
    if (path := kwargs.get("checkpoint_id")) is not None:
        return path
    store = kwargs.get("storage_writer") or kwargs.get("storage_reader") or (args[1] if len(args) > 1 else None)
    return next((path for name in ("checkpoint_id", "path") if (path := getattr(store, name, None))), None)


def _wrap_saver(module: ModuleType) -> None:
    package = "torch.distributed.checkpoint"
    for name in ("save", "save_state_dict"):
        if hasattr(module, name):
            _replace(module, name, _save(getattr(module, name), f"dcp.{name}", _of_store), package)
    if hasattr(module, "async_save"):
        _replace(module, "async_save", _save_later(module.async_save), package)


def _wrap_loader(module: ModuleType) -> None:
    for name in ("load", "load_state_dict"):
        if hasattr(module, name):
            _replace(module, name, _load(getattr(module, name), _of_store), "torch.distributed.checkpoint")


def _save_later(function: Callable[..., Any]) -> Any:
    """Begun when it is called, for that is the state it saves; done when its future is."""

    @functools.wraps(function)
    def async_save(*args: Any, **kwargs: Any) -> Any:
        listener = _listener
        path = path_of(_of_store(args, kwargs)) if listener is not None else None
        if listener is None or path is None or _inside():
            return function(*args, **kwargs)
        begun = listener.save_begun(path, "dcp.async_save")
        _under_way.add(path)

        def ended(error: BaseException | None) -> None:
            _under_way.discard(path)
            listener.save_ended(begun, error)

        try:
            with _outermost():
                response = function(*args, **kwargs)
        except BaseException as error:
            ended(error)
            raise
        future = getattr(response, "upload_completion", response)
        future.add_done_callback(lambda done: ended(done.exception()))
        return response

    return async_save


def _replace(module: ModuleType, name: str, wrapper: Any, *others: str) -> None:
    """`name` is `wrapper` in `module`, and in those `others` that had taken it from there already."""
    original = getattr(module, name)
    for where in (module, *(sys.modules[other] for other in others if other in sys.modules)):
        if getattr(where, name, None) is original:
            setattr(where, name, wrapper)
