"""A script that writes down what it sees of the process that it runs in, by part and name: VIEW is the file."""

import sys

_frame, depth = sys._getframe(), 0
while _frame := _frame.f_back:  # type: ignore[assignment]
    depth += 1
main = {name: type(value).__name__ for name, value in globals().items() if name.startswith("__")}
modules = set(sys.modules)
handled = repr(sys.exc_info())
at_start = {
    "argv": sys.argv[:],
    "orig_argv": sys.orig_argv[:],
    "executable": sys.executable,
    "flags": repr(sys.flags),
    "path": sys.path[:],
    "path_hooks": [getattr(hook, "__qualname__", "") for hook in sys.path_hooks],
    "meta_path": [getattr(finder, "__name__", type(finder).__name__) for finder in sys.meta_path],
    "warnoptions": sys.warnoptions,
    "xoptions": sys._xoptions,
    "exception": handled,
    "hooks": [
        sys.excepthook is sys.__excepthook__,
        sys.displayhook is sys.__displayhook__,
        sys.unraisablehook is sys.__unraisablehook__,
        sys.breakpointhook is sys.__breakpointhook__,
    ],
    "limits": [sys.getrecursionlimit(), sys.getswitchinterval(), sys.gettrace(), sys.getprofile()],
    "bytecode": [sys.dont_write_bytecode, sys.pycache_prefix],
}

import atexit
import builtins
import contextlib
import copyreg
import ctypes
import decimal
import faulthandler
import gc
import json
import locale
import logging
import multiprocessing
import os
import random
import resource
import signal
import socket
import tempfile
import threading
import time
import tracemalloc
import warnings
from multiprocessing import resource_tracker, spawn, util

libc = ctypes.CDLL(None)
libc.getenv.restype = ctypes.c_char_p


def c_environment():
    found = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
    entries = iter(found[i] for i in range(1 << 20))
    pairs = (entry.partition(b"=") for entry in iter(lambda: next(entries), None))
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def prctl(option):
    number = ctypes.c_int()
    libc.prctl(option, ctypes.byref(number))
    return number.value


def read(path):
    with contextlib.suppress(OSError), open(path) as file:
        return file.read()


def open_files():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            # Whoever opens a file gets the next number that is free.
            what = f"{name} {target}" if int(name) < 3 else target.partition(":")[0]
            found[what] = [os.get_inheritable(int(name)), read(f"/proc/self/fdinfo/{name}").split()[3]]
    return found


def stream(file):
    parts = [
        type(file).__name__,
        file.encoding,
        file.errors,
        file.line_buffering,
        file.write_through,
        file.name,
        file.mode,
    ]
    return [*parts, file.fileno(), file.isatty(), file.newlines]


def handlers():
    return {int(number): repr(signal.getsignal(number)).split(" at ")[0] for number in signal.valid_signals()}


def loggers():
    every = {name: one for name, one in logging.root.manager.loggerDict.items() if isinstance(one, logging.Logger)}
    return {
        n: [one.level, [type(h).__name__ for h in one.handlers], one.propagate, one.disabled]
        for n, one in every.items()
    }


def of_the_system():
    status = dict(line.split(":\t", 1) for line in read("/proc/self/status").splitlines() if ":\t" in line)
    mask = os.umask(0)
    os.umask(mask)
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY))
        terminal = "yes"
    except OSError as error:
        terminal = error.strerror
    return {
        "command line": read("/proc/self/cmdline").rstrip("\0").split("\0"),
        "name": read("/proc/self/comm"),
        "umask": mask,
        "nice": os.nice(0),
        "session": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid(), terminal],
        "folder": os.getcwd(),
        "cores": sorted(os.sched_getaffinity(0)),
        "scheduling": [os.sched_getscheduler(0), libc.syscall(252, 1, 0), read("/proc/self/oom_score_adj")],
        "ends with its parent": prctl(2),
        "reaps orphans": prctl(37),
        "dumpable, timer slack": [libc.prctl(3), libc.prctl(30)],
        "rights": [status.get(n) for n in ("NoNewPrivs", "Seccomp", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
        "users": [os.getresuid(), os.getresgid(), os.getgroups()],
        "group": read("/proc/self/cgroup"),
        "signals": {name: status[name] for name in ("SigBlk", "SigIgn", "SigCgt")},
        "timers": [signal.getitimer(which) for which in range(3)],
        "files": open_files(),
        "limits": {n: resource.getrlimit(getattr(resource, n)) for n in dir(resource) if n.startswith("RLIMIT_")},
        "initial environment": dict(e.split("=", 1) for e in read("/proc/self/environ").split("\0") if "=" in e),
        "rounding": ctypes.CDLL("libm.so.6").fegetround(),
        "children": read(f"/proc/self/task/{os.getpid()}/children"),
    }


def of_python():
    me, thread = multiprocessing.current_process(), threading.main_thread()
    return {
        "main": [
            sys.modules["__main__"].__dict__ is globals(),
            sys.modules["__mp_main__"].__dict__ is globals(),
            __name__,
        ],
        "environment": dict(os.environ),
        "environment of C": [c_environment() == os.environ, libc.getenv(b"RANK") == os.environb[b"RANK"]],
        "signal handlers": handlers(),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "wake-up": signal.set_wakeup_fd(-1),
        "streams": [stream(sys.stdin), stream(sys.stdout), stream(sys.stderr)],
        "buffers": [type(sys.stdout.buffer).__name__, type(sys.stderr.buffer).__name__],
        "stdin": [sys.stdin.seekable(), type(sys.stdin.buffer).__name__],
        "original streams": [sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__],
        "what can be read": sys.stdin.read(),
        "thread": [
            thread is threading.current_thread(),
            thread.name,
            thread.ident == threading.get_ident(),
            thread.daemon,
        ],
        "thread's number": thread.native_id == os.getpid(),
        "threads": [
            threading.active_count(),
            threading.stack_size(),
            threading.Thread().name,
            threading.excepthook.__module__,
        ],
        "collector": [gc.isenabled(), gc.get_threshold(), gc.get_debug(), gc.callbacks, gc.garbage],
        "frozen": gc.get_freeze_count() > 0,
        "builtins": {name: type(value).__name__ for name, value in vars(builtins).items()},
        "import": repr(builtins.__import__),
        "process": [me.name, me._identity, me.daemon, me.pid == os.getpid(), me._parent_pid, len(me.authkey)],
        "processes": [multiprocessing.active_children(), multiprocessing.parent_process(), str(type(me))],
        "start method": multiprocessing.get_start_method(allow_none=True),
        "for children": {k: v for k, v in spawn.get_preparation_data("x").items() if k != "authkey"},
        "tracker": [resource_tracker._resource_tracker._fd, resource_tracker._resource_tracker._pid],
        "decimal": repr(decimal.getcontext()),
        "tracing": [faulthandler.is_enabled(), tracemalloc.is_tracing()],
        "warnings": [warnings.defaultaction, warnings.showwarning.__module__, warnings.formatwarning.__module__],
        "logging": [logging.root.level, logging.root.handlers, logging.root.manager.disable, logging.raiseExceptions],
        "log records": [logging.getLoggerClass().__qualname__, logging.getLogRecordFactory().__qualname__],
        "locale": {name: locale.setlocale(getattr(locale, name)) for name in dir(locale) if name.startswith("LC_")},
        "time-out, time zone": [socket.getdefaulttimeout(), time.tzname],
        "temporary files": tempfile.tempdir,
    }


seen = {"main": main, "start": at_start, "depth": depth, "system": of_the_system(), "python": of_python()}
draws = [random.random()]

import numpy
import torch._dynamo
import torch.distributed.run
import torch.multiprocessing
import torch.utils.data
from torch.distributed.elastic import multiprocessing as elastic
from torch.distributed.elastic.agent.server import api
from torch.distributed.elastic.multiprocessing import errors
from torch.distributed.elastic.rendezvous import rendezvous_handler_registry

draws += [float(numpy.random.rand()), torch.rand(1).item(), torch.initial_seed()]
seen["torch"] = {
    "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
    "defaults": [str(torch.get_default_dtype()), str(torch.get_default_device()), torch.get_float32_matmul_precision()],
    "modes": [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()],
    "deterministic": [torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark],
    "autocast": [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")],
    "sharing": [torch.multiprocessing.get_sharing_strategy(), torch.multiprocessing.get_start_method(allow_none=True)],
    "warns always": torch.is_warn_always_enabled(),
    "cuda": [torch.cuda._is_in_bad_fork(), torch.cuda.is_initialized(), torch.cuda.is_available()],
    "counts GPUs": repr(getattr(torch._C, "_cuda_getDeviceCount", None)),
    "group": [torch.distributed.is_initialized(), str(torch.distributed.get_debug_level())],
    "worker": torch.utils.data.get_worker_info(),
    "printing": repr(torch._tensor_str.PRINT_OPTS),
    "tiny numbers": (torch.tensor([1e-310], dtype=torch.float64) * 0.5).item() != 0.0,
    "engine": [elastic.MultiprocessContext.__module__, elastic.MultiprocessContext._poll.__module__],
    "engine's programs": elastic.SubprocessContext._poll.__module__,
    "engine's host": [api._get_fq_hostname.__module__, type(errors.socket).__name__],
    "rendezvous": sorted(rendezvous_handler_registry._registry),
}
seen["numpy"] = {"errors": numpy.geterr(), "printing": repr(numpy.get_printoptions())}
seen["imported"] = {
    "modules": [],
    "exit functions": atexit._ncallbacks(),
    "thread exit functions": len(threading._threading_atexits),
    "finalizers": [len(util._finalizer_registry), len(util._afterfork_registry)],
    "warning filters": sorted(map(repr, warnings.filters)),
    "loggers": loggers(),
    "log handlers": len(logging._handlerList),
    "reductions": len(copyreg.dispatch_table),
    "variables": sorted(os.environ.keys() - seen["python"]["environment"].keys()),
    "signal handlers": handlers(),
    "files": open_files(),
    "limits": [sys.getrecursionlimit(), gc.isenabled(), gc.get_threshold()],
    "hooks": [sys.excepthook is sys.__excepthook__, sys.displayhook is sys.__displayhook__],
    "temporary files": tempfile.tempdir,
    "path": sys.path,
    "locale": locale.setlocale(locale.LC_ALL),
}
with open(os.environ["VIEW"], "w") as file:
    json.dump({"seen": seen, "draws": draws, "modules": sorted(modules)}, file, default=repr)
