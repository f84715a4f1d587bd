"""What a thread has for the loop: events in order, and a descriptor to sleep on."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """Events from one thread to another."""

    def __init__(self) -> None:
        self.fd, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._events: deque[T] = deque()
        self._failed: BaseException | None = None

    def put(self, event: T) -> None:
        """`event` is taken soon, and the descriptor is readable until then."""
        self._events.append(event)
        # A full pipe is readable.
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b".")

    def fail(self, error: BaseException) -> None:
        """The thread has ended by `error`, which the next take() tells."""
        self._failed = error
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b".")

    def take(self) -> list[T]:
        """All events since the last call. RuntimeError if the thread has failed."""
        if self._failed is not None:
            raise RuntimeError("the thread of the links has failed") from self._failed
        with contextlib.suppress(BlockingIOError):
            # First the pipe: whatever is put from here on makes it readable again.
            os.read(self.fd, 4096)
        found = []
        with contextlib.suppress(IndexError):
            while True:
                found.append(self._events.popleft())
        return found

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._write)
