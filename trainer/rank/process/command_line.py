"""The command line that a process shows to `ps` and to the script: the one of an interpreter started for the script.

`ps` reads it from the place where the kernel put it at the start. The environment follows it and must stay: every
process of a run is found by the mark in it. So the room is as long as the command line at the start. Processes that may
show a script's command line are therefore started with it, after their own.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence

from ...rundir.machine.proc import stat


def take(shown: Sequence[str], arguments: Sequence[str]) -> None:
    """The script sees `arguments` (SCRIPT or -m MODULE, and the rest), as under torchrun. `ps` sees `shown`, which has
    no secrets, as far as there is room."""
    interpreter = [sys.orig_argv[0], "-u"]
    sys.orig_argv[:] = [*interpreter, *arguments]
    show([*interpreter, *shown])


def show(words: Sequence[str]) -> None:
    """`ps` shows `words` for this process; if /proc cannot be read, nothing changes. Empty words fill the rest of the
    room: only a privileged process could shorten it (PR_SET_MM_ARG_END)."""
    me = stat(os.getpid())
    if me is not None and 0 < me.arguments[0] < me.arguments[1]:
        start, end = me.arguments
        text = b"\0".join(map(os.fsencode, words))[: end - start - 1]
        # The last byte stays 0: otherwise the kernel would take the environment for a part of the command line.
        ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)
