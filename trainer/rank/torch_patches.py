"""Private parts of torch that we replace or read, all of them here; read in pytorch 2.13.

Each says what is lost where torch has it no more: a patch that finds nothing to replace does nothing, and is in `missing`.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

from ..rundir.variables import STORE
from .loopback import is_loopback, listen

S = TypeVar("S")

missing: list[str] = []
"""What this torch does not have under the name that we know."""


_undo: list[Callable[[], object]] = []
"""What the engine's own process has replaced, and no rank is to find replaced."""


def _replace(where: Any, name: str, by: Any) -> None:
    _undo.append(functools.partial(setattr, where, name, getattr(where, name)))
    setattr(where, name, by)


def leave_the_engine() -> None:
    """In a fork of the engine, a rank: its script, which may be a launcher itself, finds torch's own engine."""
    while _undo:
        _undo.pop()()


def register(backend: str, handler: type[Any]) -> None:
    """The engine knows a rendezvous of that name. It is forgotten by what it keeps in `_registry`; without that, a rank
    knows a name more."""
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry

    rendezvous_handler_registry.register(backend, handler)
    known = getattr(rendezvous_handler_registry, "_registry", {})
    _undo.append(functools.partial(known.pop, backend, None))


def replace_forks(context: type[Any]) -> None:
    """The engine's forks are a `context`, not its own (`MultiprocessContext`, looked up by `start_processes`).

    Without it: a forked rank that ends by os._exit, or becomes another program, is never seen to end, and there must be a
    /dev/shm for the semaphores of a queue.
    """
    from torch.distributed.elastic import multiprocessing

    if not hasattr(multiprocessing, "MultiprocessContext"):
        missing.append("elastic.multiprocessing.MultiprocessContext")
        return
    _replace(multiprocessing, "MultiprocessContext", context)


def replace_poll(poll: Callable[[Any, Callable[[Any], Any]], Any]) -> None:
    """The engine asks `poll(context, its own way of polling)` whether its ranks have ended (`PContext._poll`).

    Without it: the engine ends all ranks as soon as one has failed, and there is no grace for a last save.
    """
    from torch.distributed.elastic import multiprocessing

    for name in ("MultiprocessContext", "SubprocessContext"):
        context = getattr(multiprocessing, name, None)
        if not hasattr(context, "_poll"):
            missing.append(f"{name}._poll")
            continue
        _wrap_poll(context, poll)


def _wrap_poll(context: Any, poll: Callable[[Any, Callable[[Any], Any]], Any]) -> None:
    original = context._poll
    _replace(context, "_poll", lambda self: poll(self, original))


_count_gpus: list[Any] = []


def count_gpus_apart() -> None:
    """Where NVML cannot be asked how many GPUs there are, a fork of this process asks CUDA, not this process itself
    (`torch._C._cuda_getDeviceCount`).

    torch.cuda.is_available() falls back to it. Without it: on a machine without NVML, CUDA works in no fork of this process.
    """
    torch = sys.modules.get("torch")
    # A torch without CUDA has no such function, and that is how it is known.
    if torch is None or _count_gpus or not hasattr(torch._C, "_cuda_getDeviceCount"):
        return
    original = torch._C._cuda_getDeviceCount
    _count_gpus.append(original)
    torch._C._cuda_getDeviceCount = lambda: _asked_apart(original)


def count_gpus_here() -> None:
    """count_gpus_apart() is undone."""
    while _count_gpus:
        sys.modules["torch"]._C._cuda_getDeviceCount = _count_gpus.pop()


def _asked_apart(count: Callable[[], int]) -> int:
    child = os.fork()
    if child == 0:
        try:
            os._exit(min(count(), 255))
        finally:
            os._exit(0)
    return max(0, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def name_the_host_quickly() -> None:
    """The engine's events name the host as it calls itself (`api._get_fq_hostname`, and the socket module of `errors`).

    Without it: the resolver is asked four times and more for each group, and where it knows nothing each waits for seconds.
    """
    from torch.distributed.elastic.agent.server import api
    from torch.distributed.elastic.multiprocessing import errors

    if hasattr(api, "_get_fq_hostname"):
        _replace(api, "_get_fq_hostname", socket.gethostname)
    else:
        missing.append("elastic.agent.server.api._get_fq_hostname")
    _replace(errors, "socket", SimpleNamespace(getfqdn=socket.gethostname))


def private_stores(rendezvous: ModuleType) -> None:
    """Ranks that would meet at the launcher's port meet in its file, which other users cannot write; a store that a rank
    opens at a loopback address listens there alone (`_create_c10d_store` of torch.distributed.rendezvous, its `TCPStore`).

    Without it: any user of this machine can write where the ranks meet, and send them where he likes.
    """
    create, tcp = getattr(rendezvous, "_create_c10d_store", None), getattr(rendezvous, "TCPStore", None)
    if create is None or tcp is None:
        missing.append("torch.distributed.rendezvous._create_c10d_store")
        return

    def created(
        hostname: str, port: int, rank: int, world_size: int, timeout: timedelta, *args: Any, **more: Any
    ) -> Any:
        if (file := _store_file(port)) is None:
            return create(hostname, port, rank, world_size, timeout, *args, **more)
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        _count_default_groups()
        store = rendezvous.FileStore(file, -1)
        store.set_timeout(timeout)
        return PrefixStore(str(_given_up), store) if _given_up else store

    def opened(*args: Any, **options: Any) -> Any:
        if not options.get("is_master") or not is_loopback(options.get("host_name", "")):
            return tcp(*args, **options)
        try:
            listener = listen(options["port"])
        except OSError:
            # It is taken: by this process, where torch shares its own server, or by another, and torch says so.
            return tcp(*args, **options)
        options["port"] = listener.getsockname()[1]
        return store_on(listener, tcp, *args, **options)

    rendezvous._create_c10d_store = created  # type: ignore[attr-defined]
    rendezvous.TCPStore = opened  # type: ignore[attr-defined]


_TAKES_SOCKETS = (2, 8)
"""The first torch whose libuv server takes a socket that is there (pytorch#150215)."""


def store_on(listener: socket.socket, tcp: Callable[..., S], *args: Any, **options: Any) -> S:
    """A TCPStore, made by `tcp`, that serves on `listener`, and owns it from now on.

    By torch's older server before 2.8: its other one raises NotImplementedError, and no group would start.
    """
    from torch import __version__

    if tuple(map(int, __version__.split(".")[:2])) < _TAKES_SOCKETS:
        options["use_libuv"] = False
    return tcp(*args, **options, master_listen_fd=listener.detach())


_given_up = 0
"""How many default groups this process has had and has no more."""


def _count_default_groups() -> None:
    """Each time that a script gives up its default group is counted (`distributed_c10d._update_default_pg`).

    Without it: its next one meets where the last one did, as under torchrun, and may find who has left.
    """
    from torch.distributed import distributed_c10d, is_initialized

    update = getattr(distributed_c10d, "_update_default_pg", None)
    if update is None or hasattr(update, "__wrapped__"):
        return

    @functools.wraps(update)
    def updated(group: Any) -> Any:
        global _given_up
        _given_up += group is None and is_initialized()
        return update(group)

    distributed_c10d._update_default_pg = updated  # type: ignore[assignment]


def _store_file(port: int) -> str | None:
    """The file in which the ranks meet that were sent to that port by their launcher; None if this is another meeting."""
    ours, _, file = os.environ.get(STORE, "").partition(":")
    if ours != str(port) or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return file if os.access(file, os.R_OK | os.W_OK) else None


_AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"


def own_stores(rendezvous: ModuleType, joining: Callable[[int], None]) -> None:
    """`joining(rank)` hears that this process is about to meet others, and where it meets them elsewhere than at the
    launcher's store, rank 0 opens the store, as in a program that no launcher has started (`_create_c10d_store`).

    Without it: a script that starts its own ranks hangs there, because torch believes that the launcher serves every port;
    and a rank of a process group is known by its first step, not while it waits for the others.
    """
    create = getattr(rendezvous, "_create_c10d_store", None)
    if create is None:
        missing.append("torch.distributed.rendezvous._create_c10d_store")
        return

    def created(hostname: str, port: int, rank: int, *args: Any, **kwargs: Any) -> Any:
        joining(rank)
        ours = os.environ.get(STORE, "").partition(":")[0]
        if not ours or ours == str(port) or _AGENT_STORE not in os.environ:
            return create(hostname, port, rank, *args, **kwargs)
        said = os.environ.pop(_AGENT_STORE)
        try:
            return create(hostname, port, rank, *args, **kwargs)
        finally:
            os.environ[_AGENT_STORE] = said

    rendezvous._create_c10d_store = created  # type: ignore[attr-defined]


def record_spawned(spawn: ModuleType, recorded: Callable[[Any], Any]) -> None:
    """What torch.multiprocessing starts is `recorded` first, inside of what catches its exceptions (`spawn._wrap`).

    Without it: the exception is known by what the parent says of it, not as its rank's own.
    """
    wrap = getattr(spawn, "_wrap", None)
    if wrap is None:
        missing.append("torch.multiprocessing.spawn._wrap")
        return

    def wrapped(fn: Any, *args: Any, **kwargs: Any) -> Any:
        return wrap(recorded(fn), *args, **kwargs)

    # Pickled by its name, and found under it in the child: ours there, if our hooks are there.
    wrapped.__module__, wrapped.__qualname__, wrapped.__name__ = wrap.__module__, wrap.__qualname__, wrap.__name__
    spawn._wrap = wrapped  # type: ignore[attr-defined]


def bucket_order(ddp: Any) -> list[int]:
    """The indices of the parameters of `ddp` in the order of its final buckets, which it has from here on; empty before
    its first synchronised backward pass, and with `find_unused_parameters`, where it keeps its first buckets, or DDP's
    `mixed_precision`, whose reducer is more than its buckets. A collective, if those are due
    (`Reducer._rebuild_buckets`, which DDP calls itself at the next forward pass).

    Without it: no order is stored, and a run that is resumed on three ranks or more differs in its last bits.
    """
    try:
        if ddp.find_unused_parameters or ddp.mixed_precision is not None:
            return []
        ddp.reducer._rebuild_buckets()
        ddp.logger.set_runtime_stats_and_log()
        told = ddp._get_ddp_logging_data().get("rebuilt_per_bucket_param_indices") or ""
    except (AttributeError, RuntimeError):
        # A backward pass that is not over is an error of the script's, and its next forward pass says which.
        return []
    return [int(index) for index in told.replace(",", " ").split()]


def fill_buckets(ddp: Any, order: list[int]) -> bool:
    """Whether `ddp` has its parameters in buckets by `order` now, as bucket_order() gave it. A collective of its group.
    (`_build_params_for_reducer`, `_ddp_init_helper`, `Reducer._push_all_rebuilt_params`.)

    Without it: as for bucket_order().
    """
    try:
        parameters, sparse = ddp._build_params_for_reducer()
        if (
            not order
            or ddp.find_unused_parameters
            or ddp.mixed_precision is not None
            or sorted(order) != list(range(len(parameters)))
        ):
            return False
        names = ddp._build_debug_param_to_name_mapping(parameters)
        again = ddp.reducer._push_all_rebuilt_params, ddp.reducer._rebuild_buckets, ddp._ddp_init_helper
    except AttributeError:
        return False
    del again, ddp.reducer, ddp.logger
    permuted = {place: names[index] for place, index in enumerate(order)} if names else names
    ddp._ddp_init_helper([parameters[i] for i in order], [sparse[i] for i in order], permuted, ddp.static_graph)
    from torch.distributed import _register_comm_hook  # type: ignore[attr-defined]

    for hook, state in ddp._comm_hooks:
        _register_comm_hook(ddp.reducer, state, hook)
    ddp.reducer._push_all_rebuilt_params()
    return bool(ddp.reducer._rebuild_buckets())
