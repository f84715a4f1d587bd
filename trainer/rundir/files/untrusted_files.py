"""Files of a run directory as their readers take them in: whatever lies under such a name, reading it neither blocks, nor
leads out of the folder, nor takes more memory than it should.

A run directory may come from somebody else. A pipe, a link or a device in a file's place is an OSError, as is a file that
is larger than its kind can be; JSON that is nested too deeply to be read is a ValueError, as all that is no JSON.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

LIMIT = 64 << 20
"""Bytes of the largest file that is taken in whole."""


def open_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of the regular file `path`; OSError if it is anything else, a link to a file too."""
    # O_NONBLOCK: the open of a pipe would wait for its other end.
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return fd


def read_file(path: Path, limit: int = LIMIT) -> bytes:
    """What the file holds; OSError if it is no regular file, or larger than `limit` bytes."""
    with os.fdopen(open_file(path), "rb") as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise OSError(errno.EFBIG, f"it is larger than {limit} bytes", str(path))
        return file.read(limit)


def parse(text: bytes) -> Any:
    """The JSON value in `text`; ValueError if there is none, or one that no file of ours holds. int() and float() of what
    is a number in it do not fail: it is finite, and has 64 bits at most if it is whole."""
    try:
        return json.loads(text, parse_float=_finite, parse_int=_whole, parse_constant=_refused)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refused(text)


def _whole(text: str) -> int:
    # 19 digits and a sign: what is longer is not even converted.
    value = int(text) if len(text) <= 20 else 1 << 64
    return value if -(1 << 63) <= value < 1 << 63 else _refused(text)


def _refused(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} is not a number that any file of ours holds")


def read_json(path: Path, limit: int = LIMIT) -> Any:
    """The JSON value in the file; OSError or ValueError."""
    return parse(read_file(path, limit))
