"""A program: nobody opens or reads a file of a mount while it runs. `unread.py FOLDER`, until its input ends."""

from __future__ import annotations

import ctypes
import os
import sys

_CLASS_CONTENT, _CLOEXEC = 0x04, 0x01
_ADD, _MOUNT = 0x01, 0x10
_OPEN_PERM, _ACCESS_PERM = 0x10000, 0x20000
_HERE = -100


def main(folder: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.fanotify_init(_CLASS_CONTENT | _CLOEXEC, os.O_RDONLY)
    what = ctypes.c_uint64(_OPEN_PERM | _ACCESS_PERM)
    if watch < 0 or libc.fanotify_mark(watch, _ADD | _MOUNT, what, _HERE, os.fsencode(folder)) < 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    # Questions are never answered. The kernel lets all of them through when the descriptor is closed.
    print("blocked", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
