"""How long a test waits for what must come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
TIME_LIMIT = 180.0
"""Seconds after which it is said not to come. No measure of the product: on machines that were three times as slow as
usual, at a load of ten, a process that imports torch was seen to need a minute to begin."""


def until(what: Callable[[], T], seconds: float = TIME_LIMIT) -> T:
    """The first true value of `what`, polled; AssertionError after `seconds`."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        if value := what():
            return value
        # What comes at once is seen at once; who waits long leaves the machine to the others.
        time.sleep(min(max(0.001, passed / 20), 0.02))
    raise AssertionError(f"{what} was not true within {seconds} s")
