"""The command line that a process shows to `ps` and to the script: that of an interpreter started for the script.

`ps` reads it where the kernel has put it at the start, with the environment behind it. That stays as it is: by the mark
in it every process of a run is found. So there is room for as much as the process was started with, and those that may
show a script's command line are started with it behind their own.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence

from ...rundir.machine.proc import stat


def take(shown: Sequence[str], arguments: Sequence[str]) -> None:
    """To the script this process was started with `arguments` (SCRIPT or -m MODULE, and what follows), as torchrun does
    it; to `ps` with `shown`, which has no secrets in it, as far as there is room."""
    interpreter = [sys.orig_argv[0], "-u"]
    sys.orig_argv[:] = [*interpreter, *arguments]
    show([*interpreter, *shown])


def show(words: Sequence[str]) -> None:
    """`ps` shows `words` of this process, or what it showed where /proc cannot be read. Empty ones fill what room is
    left: that there is less of it now could only be said with privileges (PR_SET_MM_ARG_END)."""
    me = stat(os.getpid())
    if me is not None and 0 < me.arguments[0] < me.arguments[1]:
        start, end = me.arguments
        text = b"\0".join(map(os.fsencode, words))[: end - start - 1]
        # The last byte stays 0: else the kernel would take the environment for more of it.
        ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)
