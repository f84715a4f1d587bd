"""Whether this process may fork ranks: it has one thread, and CUDA has not been started in it."""

from __future__ import annotations

import contextlib
import ctypes
import locale
import logging
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

_DRIVER = "libcuda.so.1"
_NOT_INITIALIZED = 3
"""CUDA_ERROR_NOT_INITIALIZED: cuInit was not called in this process; or it was called before the fork, and cannot be
here."""
_STATUS = re.compile(rb"^(Umask|SigBlk|SigIgn|SigCgt):\s*(\S+)$", re.MULTILINE)
_SIGNALS = sorted(signal.valid_signals())


def threads() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def thread_names() -> list[str]:
    """The names of all threads except this one, as `ps` shows them."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) != os.getpid():
            with contextlib.suppress(OSError):
                names.append((task / "comm").read_text().strip())
    return names


def step_aside() -> None:
    """Thread pools that know about forks (OpenBLAS's) have ended their threads. They start them again when they need
    them."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def cuda_runs() -> bool:
    """Whether CUDA's driver was started in this process. The question does not start it."""
    driver = _driver()
    if driver is None:
        return False
    count = ctypes.c_int()
    return bool(driver.cuDeviceGetCount(ctypes.byref(count)) != _NOT_INITIALIZED)


def _driver() -> Any:
    """The library of the driver, if this process has loaded it."""
    try:
        return ctypes.CDLL(_DRIVER, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return None


def unfit() -> str | None:
    """Why this process must not fork ranks; None if it may."""
    child = os.fork()
    if child == 0:
        os._exit(int(_poisoned()))
    poisoned = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if (count := threads()) > 1:
        return f"{count} threads run in it ({', '.join(thread_names())})"
    return "CUDA has been started in it, and would work in no fork" if poisoned else None


def _poisoned() -> bool:
    """In a fork: whether CUDA can no longer be started here. torch knows only its own calls; the driver knows all
    calls."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda._is_in_bad_fork():
        return True
    driver = _driver()
    return driver is not None and driver.cuInit(0) == _NOT_INITIALIZED


def habits() -> dict[str, Any]:
    """The settings of this process that an import should not change, by name."""
    status = dict(_STATUS.findall(Path("/proc/self/status").read_bytes()))
    handlers = [signal.getsignal(number) for number in _SIGNALS]
    return {
        "the signal handlers": (*(status.get(name) for name in (b"SigBlk", b"SigIgn", b"SigCgt")), *handlers),
        "the mask of file modes": status.get(b"Umask"),
        "the current folder": _folder(),
        "the locale": locale.setlocale(locale.LC_ALL),
        # Each rank draws a seed of its own, in place of the one that an import has set.
        "torch's seed": _seed(),
        # With a handler, the script's basicConfig() would do nothing.
        "the root logger": (logging.root.level, *logging.root.handlers),
    }


def _seed() -> int | None:
    """None if torch is not imported. Its import draws a seed, so it comes before any look for changes."""
    generator = getattr(sys.modules.get("torch"), "default_generator", None)
    return None if generator is None else int(generator.initial_seed())


def _folder() -> str:
    try:
        return str(Path.cwd())
    except OSError:
        return ""
