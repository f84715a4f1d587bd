"""Wraps torch.distributed.checkpoint: each of its saves and loads as a whole."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from . import staged, wrapping
from .targets import path_of
from .wrapping import counted, load, outermost, replace

_PACKAGE = "torch.distributed.checkpoint"


def _of_store(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The place that a call of torch.distributed.checkpoint reads or writes: its checkpoint_id, else its storage's."""
    if (path := kwargs.get("checkpoint_id")) is not None:
        return path
    store = kwargs.get("storage_writer") or kwargs.get("storage_reader") or (args[1] if len(args) > 1 else None)
    return next((path for name in ("checkpoint_id", "path") if (path := getattr(store, name, None))), None)


def _ranks(kwargs: dict[str, Any]) -> int:
    """The number of ranks that save together."""
    dist = sys.modules.get("torch.distributed")
    if kwargs.get("no_dist") or dist is None or not dist.is_available() or not dist.is_initialized():
        return 1
    count: int = dist.get_world_size(kwargs.get("process_group"))
    return max(1, count)


def _save(function: Callable[..., Any], by: str) -> Any:
    @functools.wraps(function)
    def saved(*args: Any, **kwargs: Any) -> Any:
        if (told := wrapping.listener()) is None:
            return function(*args, **kwargs)
        path = path_of(_of_store(args, kwargs))
        if path in wrapping.under_way:
            with outermost():
                return function(*args, **kwargs)
        with counted(told, path, by, ranks=_ranks(kwargs)):
            return function(*args, **kwargs)

    return saved


def _save_later(function: Callable[..., Any]) -> Any:
    """The save begins at the call: it saves the state of then. It is done when its future is."""

    @functools.wraps(function)
    def async_save(*args: Any, **kwargs: Any) -> Any:
        told = wrapping.listener()
        path = path_of(_of_store(args, kwargs)) if told is not None else None
        if told is None or path is None:
            return function(*args, **kwargs)
        begun = told.save_begun(path, "dcp.async_save", {"ranks": _ranks(kwargs)})
        wrapping.under_way.add(path)

        def ended(error: BaseException | None) -> None:
            wrapping.under_way.discard(path)
            told.save_ended(begun, error)

        try:
            with outermost():
                response = function(*args, **kwargs)
        except BaseException as error:
            ended(error)
            raise
        future = getattr(response, "upload_completion", response)
        future.add_done_callback(lambda done: ended(done.exception()))
        return response

    return async_save


def _saver(module: ModuleType) -> None:
    for name in ("save", "save_state_dict"):
        if hasattr(module, name):
            replace(module, name, _save(getattr(module, name), f"dcp.{name}"), _PACKAGE)
    if hasattr(module, "async_save"):
        replace(module, "async_save", _save_later(module.async_save), _PACKAGE)


def _loader(module: ModuleType) -> None:
    for name in ("load", "load_state_dict"):
        if hasattr(module, name):
            replace(module, name, load(getattr(module, name), _of_store), _PACKAGE)


WRAPPED = {
    f"{_PACKAGE}.state_dict_saver": _saver,
    f"{_PACKAGE}.state_dict_loader": _loader,
    f"{_PACKAGE}.filesystem": staged.wrap,
}
