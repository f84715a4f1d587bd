"""All private parts of torch that we replace or read, as read in pytorch 2.13.

Each says what is lost if torch does not have the part any more. A patch that finds no part does nothing, and is listed
in `missing`.
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

from ..rundir.codes import Doing
from ..rundir.variables import STORE
from .loopback import is_loopback, listen

S = TypeVar("S")

FILLS = "_init_optim_state"
"""In torch.distributed.checkpoint.state_dict: it fills an optimizer's state by a step, before a load. Without that name
the program seems to have begun, and to load nothing."""
missing: list[str] = []
"""The parts that this torch does not have under the known name."""

_undo: list[Callable[[], object]] = []
"""Undo functions for parts that the engine's process has replaced. A rank must find the originals."""


def _replace(where: Any, name: str, by: Any) -> None:
    _undo.append(functools.partial(setattr, where, name, getattr(where, name)))
    setattr(where, name, by)


def leave_the_engine() -> None:
    """In a rank forked from the engine: the script finds torch's own engine, since it may be a launcher itself."""
    while _undo:
        _undo.pop()()


def register(backend: str, handler: type[Any]) -> None:
    """The engine knows a rendezvous with that name. A rank forgets it through `_registry`; without that, a rank knows
    one more name."""
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry

    rendezvous_handler_registry.register(backend, handler)
    known = getattr(rendezvous_handler_registry, "_registry", {})
    _undo.append(functools.partial(known.pop, backend, None))


def replace_forks(context: type[Any]) -> None:
    """The engine's forks are a `context`, not its own (`MultiprocessContext`, looked up by `start_processes`).

    Without it: the end of a forked rank is never seen if it ends by os._exit or becomes another program. And the
    semaphores of a queue need a /dev/shm.
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


_counts: list[tuple[Any, str, Any]] = []


def count_gpus_apart() -> None:
    """A fork of this process counts the GPUs, not this process (`torch._C._cuda_getDeviceCount`, which asks CUDA, and
    `torch.cuda._device_count_nvml`). torch.cuda.is_available() and device_count() use them.

    Without it: in the forks of a process that has asked CUDA, CUDA fails. If it has asked NVML, NVML fails, and NCCL,
    which asks it: its files are closed there.
    """
    torch = sys.modules.get("torch")
    if torch is None or _counts or not hasattr(torch._C, "_cuda_getDeviceCount"):  # a torch without CUDA
        return
    for where, name, least in ((torch._C, "_cuda_getDeviceCount", 0), (torch.cuda, "_device_count_nvml", -1)):
        if original := getattr(where, name, None):
            _counts.append((where, name, original))
            setattr(where, name, functools.partial(_asked_apart, original, least))
        else:
            missing.append(f"torch.cuda.{name}")


def count_gpus_here() -> None:
    """Undoes count_gpus_apart()."""
    while _counts:
        setattr(*_counts.pop())


def _asked_apart(count: Callable[[], int], least: int) -> int:
    """What `count()` says in a fork; `least` if it says less, or nothing."""
    if (child := os.fork()) == 0:
        try:
            os._exit(min(max(count(), -1) + 1, 255))
        finally:
            os._exit(0)
    return max(least, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) - 1)


def name_the_host_quickly() -> None:
    """The engine's events use the host's own name (`api._get_fq_hostname`, and the socket module of `errors`).

    Without it: the resolver is asked at least four times for each group. If it does not know the name, each question
    takes seconds.
    """
    from torch.distributed.elastic.agent.server import api
    from torch.distributed.elastic.multiprocessing import errors

    if hasattr(api, "_get_fq_hostname"):
        _replace(api, "_get_fq_hostname", socket.gethostname)
    else:
        missing.append("elastic.agent.server.api._get_fq_hostname")
    _replace(errors, "socket", SimpleNamespace(getfqdn=socket.gethostname))


def private_stores(rendezvous: ModuleType) -> None:
    """Ranks meet in the launcher's file, which other users cannot write, and not at the launcher's port. A store that a
    rank opens at a loopback address listens only there (`_create_c10d_store` of torch.distributed.rendezvous, its
    `TCPStore`).

    Without it: any user of this machine can write to the ranks' meeting place, and send them to other addresses.
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
            # The port is taken, by this process if torch shares its own server, or by another; then torch says so.
            return tcp(*args, **options)
        options["port"] = listener.getsockname()[1]
        return store_on(listener, tcp, *args, **options)

    rendezvous._create_c10d_store = created  # type: ignore[attr-defined]
    rendezvous.TCPStore = opened  # type: ignore[attr-defined]


_TAKES_SOCKETS = (2, 8)
"""The first torch whose libuv server accepts an existing socket (pytorch#150215)."""


def store_on(listener: socket.socket, tcp: Callable[..., S], *args: Any, **options: Any) -> S:
    """A TCPStore, made by `tcp`, that serves on `listener`. It owns `listener` from now on.

    Before torch 2.8 it uses the older server: the libuv server raises NotImplementedError there, and no group would
    start.
    """
    from torch import __version__

    if tuple(map(int, __version__.split(".")[:2])) < _TAKES_SOCKETS:
        options["use_libuv"] = False
    return tcp(*args, **options, master_listen_fd=listener.detach())


_given_up = 0
"""The number of default groups that this process had and has given up."""


def _count_default_groups() -> None:
    """Counts how often a script gives up its default group (`distributed_c10d._update_default_pg`).

    Without it: the next group meets in the same place as the last one, as under torchrun, and may find old addresses.
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
    """The file in which the ranks meet that their launcher sent to that port. None for any other port."""
    ours, _, file = os.environ.get(STORE, "").partition(":")
    if ours != str(port) or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return file if os.access(file, os.R_OK | os.W_OK) else None


_AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"


def own_stores(rendezvous: ModuleType, joining: Callable[[int], None]) -> None:
    """`joining(rank)` is called when this process is about to join a group. If the group does not meet at the
    launcher's store, rank 0 opens the store, as in a program without a launcher (`_create_c10d_store`).

    Without it: a script that starts its own ranks hangs, because torch believes that the launcher serves every port.
    And a rank of a process group is known only at its first step, not while it waits for the others.
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
    """A function that torch.multiprocessing starts is first wrapped by `recorded`, inside the code that catches its
    exceptions (`spawn._wrap`).

    Without it: the exception is known only from the parent's report, not as the rank's own.
    """
    wrap = getattr(spawn, "_wrap", None)
    if wrap is None:
        missing.append("torch.multiprocessing.spawn._wrap")
        return

    def wrapped(fn: Any, *args: Any, **kwargs: Any) -> Any:
        return wrap(recorded(fn), *args, **kwargs)

    # It is pickled by its name. The child finds ours under that name, if it has our hooks.
    wrapped.__module__, wrapped.__qualname__, wrapped.__name__ = wrap.__module__, wrap.__qualname__, wrap.__name__
    spawn._wrap = wrapped  # type: ignore[attr-defined]


def follow_compilations(callback: ModuleType, told: Callable[[Doing], object]) -> None:
    """`told(COMPILING)` is called when torch.compile begins to compile, `told(NONE)` when it has ended
    (`torch._dynamo.callback.callback_handler`).

    Without it: people see that a first step is long, and not why.
    """
    try:
        callback.callback_handler.register_start_callback(lambda *_: told(Doing.COMPILING))
        callback.callback_handler.register_end_callback(lambda *_: told(Doing.NONE))
    except AttributeError:
        missing.append("torch._dynamo.callback.callback_handler")


def bucket_order(ddp: Any) -> list[int]:
    """The indices of the parameters of `ddp` in the order of its final buckets, which it has from here on. Empty before
    its first synchronised backward pass, with `find_unused_parameters` (it keeps its first buckets), and with DDP's
    `mixed_precision` (its reducer has more than buckets). A collective, if the final buckets are due
    (`Reducer._rebuild_buckets`, which DDP calls itself at the next forward pass).

    Without it: no order is stored, and a resumed run on three or more ranks differs in its last bits.
    """
    try:
        if ddp.find_unused_parameters or ddp.mixed_precision is not None:
            return []
        ddp.reducer._rebuild_buckets()
        ddp.logger.set_runtime_stats_and_log()
        told = ddp._get_ddp_logging_data().get("rebuilt_per_bucket_param_indices") or ""
    except (AttributeError, RuntimeError):
        # An unfinished backward pass is an error of the script, and its next forward pass names it.
        return []
    return [int(index) for index in told.replace(",", " ").split()]


def fill_buckets(ddp: Any, order: list[int]) -> bool:
    """Puts the parameters of `ddp` into buckets by `order`, as bucket_order() gave it. False if it cannot. A collective
    of its group. (`_build_params_for_reducer`, `_ddp_init_helper`, `Reducer._push_all_rebuilt_params`.)

    Without it: as for bucket_order().
    """
    try:
        parameters, sparse = ddp._build_params_for_reducer()
        whole = bool(order) and sorted(order) == list(range(len(parameters)))
        if not whole or ddp.find_unused_parameters or ddp.mixed_precision is not None:
            return False
        names = ddp._build_debug_param_to_name_mapping(parameters)
        if not hasattr(ddp.reducer, "_push_all_rebuilt_params") or not hasattr(ddp, "_ddp_init_helper"):
            return False
    except AttributeError:
        return False
    permuted = {place: names[index] for place, index in enumerate(order)} if names else names
    _new_reducer(ddp, [parameters[i] for i in order], [sparse[i] for i in order], permuted)
    ddp.reducer._push_all_rebuilt_params()
    return bool(ddp.reducer._rebuild_buckets())


def first_buckets(ddp: Any) -> None:
    """`ddp` has the buckets that it had before its first backward pass (the same parts as fill_buckets()).

    Without it: after a warm-up, a run on three or more ranks that begins at step 0 differs in its last bits.
    """
    if ddp.mixed_precision is None and hasattr(ddp, "_ddp_init_helper"):
        parameters, sparse = ddp._build_params_for_reducer()
        _new_reducer(ddp, parameters, sparse, ddp._build_debug_param_to_name_mapping(parameters))


def _new_reducer(ddp: Any, parameters: list[Any], sparse: list[bool], names: dict[int, str]) -> None:
    # The old reducer goes first, and its hooks on the parameters with it; the logger holds it too.
    del ddp.reducer, ddp.logger
    ddp._ddp_init_helper(parameters, sparse, names, ddp.static_graph)
    from torch.distributed import _register_comm_hook  # type: ignore[attr-defined]

    for hook, state in ddp._comm_hooks:
        _register_comm_hook(ddp.reducer, state, hook)
