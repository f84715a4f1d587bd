"""The rendezvous of a group on one node. Its launcher is the only member, so there is nobody to meet.

torch's own rendezvous keeps a pickle in a store that listens on every interface and checks no identity: anybody who
reaches the port can run code in the launcher. Here the launcher's store is memory of its process, and nothing is
unpickled. The ranks meet in a file without a name, which only their user can open.

Only torch's store at MASTER_PORT listens, for scripts that connect to it themselves. It is on the loopback interface
alone, where any user of this machine may read and write it.
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
"""Seconds within which a working resolver has answered."""


class OneNode(RendezvousHandler):
    """The group is complete from the beginning. No node joins later: for another group a new one is started."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run_id = parameters.run_id
        self._local = parameters.local_addr
        self._served: list[Store] = []
        self._closed = False

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        # As in torchrun: with this variable rank 0 opens the store, at the port that the variable names.
        return os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "0") != "1"

    def next_rendezvous(self) -> RendezvousInfo:
        """The store of the ranks is open, or at least its port is known. OSError if no interface has the address."""
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
    """The store is open. It is in the returned list as soon as torch has made it.

    torch's own client asks the resolver for the name of that address, only for its log. A resolver may answer very
    late, and we do not wait for it then. By then the server exists, or will when somebody connects.
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
    # Ranks are forked from this process. By then the thread has ended, or sleeps in the resolver and holds nothing.
    thread.join(_ANSWERED)
    if failed:
        raise failed[0]
    return made


def _unnamed_file() -> str:
    """The path of a file in memory. It exists while this process lives. Only its user can open it, whatever its mode
    is."""
    fd = os.memfd_create("supervise-store", os.MFD_CLOEXEC)
    return f"/proc/{os.getpid()}/fd/{fd}"


def register() -> None:
    """Makes the backend known to torchrun."""
    torch_patches.register(BACKEND, OneNode)
