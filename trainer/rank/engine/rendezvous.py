"""The rendezvous of a group. The supervisor knows its members beforehand, so the launchers have nobody to meet.

torch's own rendezvous keeps a pickle in a store that listens on every interface and checks no identity: anybody who
reaches the port can run code in the launcher. Here each launcher's store is memory of its process, and nothing is
unpickled.

On one node the ranks meet in a file without a name, which only their user can open. Only torch's store at MASTER_PORT
listens, for scripts that connect to it themselves. It is on the loopback interface alone, where any user of this
machine may read and write it.

Ranks on several nodes can only meet in torch's store. The launcher of node 0 serves it, at the one address and port
that the supervisor names. So it must not end before the last rank: it waits for the supervisor's word.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from torch.distributed import HashStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)

from ...rundir.records.gate import Gate
from ...rundir.variables import GROUP, STORE
from .. import torch_patches
from ..loopback import listen
from ..torch_patches import store_on

BACKEND = "supervise"
"""torchrun's --rdzv-backend."""

_TIMEOUT = timedelta(minutes=15)
_ANSWERED = 0.3
"""Seconds within which a working resolver has answered."""


_ROLE = "default"
"""torchrun's role. There is one."""
_LOOK_EVERY = 0.05
_LAST = 300.0
"""Seconds that torch's own launchers wait for the last one."""
_late: list[tuple[socket.socket, str, int, list[Store]]] | None = None
"""The stores that are served once the ranks are forked: (socket that listens, address, port, the store when it is
made). None: ranks are not forked, and a store is served at once.

A server asks the resolver for names, in threads of its own. A fork that comes at that moment inherits the locks of the
resolver, and hangs as soon as one of its own threads ends. Until then, whoever connects waits in the socket's queue.
"""


class Ranks(HashStore):
    """What the launchers of `sizes[i]` ranks each would tell each other. This is the launcher of `node`.

    The names are those of torch 2.13 (`SimpleElasticAgent._assign_worker_ranks`, `store.barrier`).
    """

    def __init__(self, sizes: Sequence[int], node: int) -> None:
        super().__init__()
        self._first = node == 0
        if self._first:
            for other, size in enumerate(sizes):
                told = {"role": _ROLE, "rank": other, "local_world_size": size}
                self.set(f"torchelastic/role_info/{other}", json.dumps(told))
        else:
            first, world = sum(sizes[:node]), sum(sizes)
            self.set(f"torchelastic/assigned_ranks/{node}", json.dumps([first, world, first, world]))

    def wait(self, *arguments: object) -> None:
        """The ranks of this launcher have ended well. The one that serves the store stays until all ranks have."""
        over = Gate(Path(os.environ[GROUP])).over
        until = time.monotonic() + _LAST
        while self._first and not over.exists() and time.monotonic() < until:
            time.sleep(_LOOK_EVERY)


class Members(RendezvousHandler):
    """The group is complete from the beginning. No node joins later: for another group a new one is started."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run_id = parameters.run_id
        self._local = parameters.local_addr
        self._endpoint = parameters.endpoint
        self._node = int(parameters.get("node", 0))
        self._sizes = [int(size) for size in parameters.get("sizes", "").split(".") if size]
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
        if self._sizes:
            return self._among_several()
        with listen(host=self._local) as listener:
            address, port = listener.getsockname()[:2]
            if self.use_agent_store:
                self._served = _serve(listener, address, port)
                os.environ[STORE] = f"{port}:{_unnamed_file()}"
        return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo(address, port))

    def _among_several(self) -> RendezvousInfo:
        address, _, port = self._endpoint.rpartition(":")
        if self._node == 0 and self.use_agent_store:
            with listen(int(port), address) as listener:
                self._served = _serve(listener, address, int(port))
        where = RendezvousStoreInfo(address, int(port))
        return RendezvousInfo(Ranks(self._sizes, self._node), self._node, len(self._sizes), where)

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
    """The store is open, or will be once the ranks are forked. It is in the returned list as soon as torch has made it.

    torch's own client asks the resolver for the name of that address, only for its log. A resolver may answer very
    late, and we do not wait for it then. By then the server exists, or will when somebody connects.
    """
    made: list[Store] = []
    owned = socket.socket(fileno=listener.detach())
    if _late is None:
        _open(owned, address, port, made)
    else:
        _late.append((owned, address, port, made))
    return made


def forked(rank: bool) -> None:
    """The ranks have been forked, and this process is one of them or their launcher. In the launcher the stores are
    served now."""
    waiting = list(_late or ())
    if _late is not None:
        _late.clear()
    for owned, address, port, made in waiting:
        if rank:
            owned.close()
        else:
            _open(owned, address, port, made)


def _open(owned: socket.socket, address: str, port: int, made: list[Store]) -> None:
    """A server listens on the socket, and is in `made` as soon as torch has made it."""
    failed: list[Exception] = []
    options = {"is_master": True, "wait_for_workers": False, "timeout": _TIMEOUT}

    def serve() -> None:
        try:
            libuv = os.environ.get("USE_LIBUV", "1") == "1"
            made.append(store_on(owned, TCPStore, address, port, **options, use_libuv=libuv))
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=serve, name="store", daemon=True)
    thread.start()
    thread.join(_ANSWERED)
    if failed:
        raise failed[0]


def _unnamed_file() -> str:
    """The path of a file in memory. It exists while this process lives. Only its user can open it, whatever its mode
    is."""
    fd = os.memfd_create("supervise-store", os.MFD_CLOEXEC)
    return f"/proc/{os.getpid()}/fd/{fd}"


def register(forks: bool = False) -> None:
    """Makes the backend known to torchrun. `forks`: this process forks the ranks, and calls forked() afterwards."""
    global _late
    _late = [] if forks else None
    torch_patches.register(BACKEND, Members)
