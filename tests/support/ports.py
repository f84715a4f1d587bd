"""Ports that a program of a test will listen at, some seconds after it was told so."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_DRAWN = random.SystemRandom()


def free_port() -> int:
    """Nobody has it now, and the kernel gives it to nobody who asks for any port: those are of another range."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = _DRAWN.randrange(10_000, max(first, 20_000))
        with socket.socket() as here:
            try:
                here.bind(("", port))
            except OSError:
                continue
            return port
