"""The rendezvous of a group on one node: its launcher is the only member, so there is nobody to meet.

torch's own keep their state, a pickle, in a store that listens on every interface and asks nobody who he is: whoever
reaches the port runs code in the launcher. Here the launcher's own store is memory of its process, and nothing is unpickled.
The ranks meet in a file without a name, that only their user can open.

What listens is torch's store at MASTER_PORT, for scripts that go there by themselves: on the loopback interface alone, where
any user of this machine may read and write it.
"""

from __future__ import annotations

import os
import socket
import threading
from datetime import timedelta

from torch.distributed import HashStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)

from ...rundir.variables import STORE
from .. import torch_patches
from ..loopback import listen
from ..torch_patches import store_on

BACKEND = "supervise"
"""torchrun's --rdzv-backend."""

_TIMEOUT = timedelta(minutes=15)
_ANSWERED = 0.3
"""Seconds within which a resolver has answered that has anything to say."""


class OneNode(RendezvousHandler):
    """Complete from the beginning. No node comes later: a group that is to be another one is started anew."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run_id = parameters.run_id
        self._local = parameters.local_addr
        self._served: list[Store] = []
        self._closed = False

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        # As torchrun has it: with this variable rank 0 opens the store, at the port that it is told.
        return os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "0") != "1"

    def next_rendezvous(self) -> RendezvousInfo:
        """The ranks' store is open, or at least its port is known. OSError if no interface has the address."""
        with listen(host=self._local) as listener:
            address, port = listener.getsockname()[:2]
            if self.use_agent_store:
                self._served = _serve(listener, address, port)
                os.environ[STORE] = f"{port}:{_unnamed_file()}"
        return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo(address, port))

    def is_closed(self) -> bool:
        return self._closed

    def set_closed(self) -> None:
        self._closed = True

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        self._closed = True
        return True


def _serve(listener: socket.socket, address: str, port: int) -> list[Store]:
    """The store is open; it is in the list once torch has it.

    torch's own client of it asks the resolver for the name of that address, only to have it for its log: where the
    answer takes as long as a resolver waits, it is not waited for. The server is there by then, or as soon as somebody
    comes.
    """
    made: list[Store] = []
    failed: list[Exception] = []
    owned = socket.socket(fileno=listener.detach())
    options = {"is_master": True, "wait_for_workers": False, "timeout": _TIMEOUT}

    def serve() -> None:
        try:
            libuv = os.environ.get("USE_LIBUV", "1") == "1"
            made.append(store_on(owned, TCPStore, address, port, **options, use_libuv=libuv))
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=serve, name="store", daemon=True)
    thread.start()
    # Ranks are forked from here: by then the thread has ended, or sleeps in the resolver and holds nothing.
    thread.join(_ANSWERED)
    if failed:
        raise failed[0]
    return made


def _unnamed_file() -> str:
    """The path of a file in memory, as long as this process lives; for its user alone, whatever the mode says."""
    fd = os.memfd_create("supervise-store", os.MFD_CLOEXEC)
    return f"/proc/{os.getpid()}/fd/{fd}"


def register() -> None:
    """torchrun knows the backend."""
    torch_patches.register(BACKEND, OneNode)
