"""The bootstrap of a rank: it waits at the gate of its group, then runs any script under supervision.

Started by torchrun as `start.py rank.worker`, or called in a fork of the fork server. The supervisor's release names
the attempt, the script and its arguments. The rank registers its pid, beats, and records how the script ended. The
script runs as its own `__main__`, with its own argv and sys.path, and need not know us.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import io
import mmap
import os
import pkgutil
import runpy
import signal
import sys
import types
from importlib.machinery import SourceFileLoader, SourcelessFileLoader
from pathlib import Path
from typing import Any, NoReturn

from ..rundir.environment import Supervised, supervised
from ..rundir.files.codec import decode
from ..rundir.records.gate import Gate, Release
from ..rundir.records.learned import remembered
from ..rundir.variables import CHILDREN, GROUP, HIDDEN_ARGUMENTS, LAUNCHERS, LEASH, PRELOAD, RANKS
from . import ending, leash, output, parking, torch_patches
from . import progress as _progress
from .exceptions import record_exception
from .hooks import adapters, flight_recorder
from .journal import saves
from .member import Member, hook
from .preload import modules
from .preload.throttle import Throttle
from .process import command_line, inherited
from .reporter import Reporter
from .trackers import follow as trackers

_MOST_FROM_HEAP = 32 << 20
"""DEFAULT_MMAP_THRESHOLD_MAX of glibc's malloc on 64 bits: the largest size that it learns to serve from its heap."""


def run(arguments: list[str]) -> None:
    """Runs the script to its end. Its exceptions pass through."""
    module = arguments[0] == "-m"
    target, *rest = arguments[1:] if module else arguments
    path = Path(target).absolute()
    archive = not module and pkgutil.get_importer(str(path)) is not None
    # As in the interpreter: the script's folder is searched first, or the current folder for -m. A folder or archive
    # with a __main__.py is searched itself, in any case.
    folder = Path.cwd() if module else path if archive else path.resolve().parent
    if archive or not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, str(folder))
    sys.argv = [target, *rest]
    main = _new_main()
    if module or archive:
        # The interpreter itself calls this. run_module would remove the module after its last line.
        runpy._run_module_as_main(target if module else "__main__", alter_argv=module)  # type: ignore[attr-defined]
    else:
        _run_file(path, main)


def _new_main() -> types.ModuleType:
    """An empty `__main__` in place of our own, as the interpreter makes it."""
    old, new = sys.modules["__main__"], types.ModuleType("__main__")
    new.__dict__["__builtins__"] = builtins
    if "__annotations__" in vars(old):
        new.__annotations__ = {}
    # multiprocessing's other name for this module, after its import.
    for name in [name for name in ("__main__", "__mp_main__") if sys.modules.get(name) is old]:
        sys.modules[name] = new
    return new


def _run_file(path: Path, main: types.ModuleType) -> None:
    """Runs the file as the interpreter does. Unlike in runpy.run_path, __file__ is absolute, argv[0] is as typed, and
    the module stays `__main__` for threads and exit functions that outlive its last line."""
    compiled = path.suffix == ".pyc"
    loader = (SourcelessFileLoader if compiled else SourceFileLoader)("__main__", str(path))
    main.__dict__.update(__file__=str(path), __cached__=None, __loader__=loader)
    if compiled:
        code: Any = loader.get_code("__main__")
    else:
        with io.open_code(str(path)) as file:
            # The script's own future imports count, and not those of this file.
            code = compile(file.read(), str(path), "exec", dont_inherit=True)
    exec(code, main.__dict__)


def serve() -> None:
    """Waits for the release and runs its script; in a standby, runs it up to Checkpointer.restore() and waits there. If
    the supervisor has died, it runs nothing."""
    rank = int(os.environ["RANK"])
    saves.install()
    if preload := os.environ.pop(PRELOAD, None):
        modules.load([*modules.ALWAYS, *remembered(Path(preload))], Throttle().rest)
    parking.started(rank)
    gate = Gate(Path(os.environ.pop(GROUP)))
    if (expected := gate.expected()) is not None:
        # Also if it is released by now: all ranks of a group go the same way, and so through the same collectives.
        gate.come(rank)
        _run_ahead(gate, rank, expected)
    elif (body := gate.wait(rank)) is not None:
        arguments = _settle(body)
        place = _place()
        output.redirect(place.attempt.rank_log(rank))
        output.outlive_full_disk()
        member = Member(place)
        hook(member, place)
        _begin(rank, member)
        with record_exception(member):
            run(arguments)


def _run_ahead(gate: Gate, rank: int, expected: Release) -> None:
    """Runs the script of a standby, which waits in Checkpointer.restore()."""
    arguments = _settle(expected, gate.traces)
    output.redirect(gate.rank_log(rank))
    output.outlive_full_disk()
    place = _place()
    member = Member(place, parked=True)

    def begin(body: Release) -> None:
        _settle_environment(body.env)
        output.move(gate.rank_log(rank), _place().attempt.rank_log(rank))
        flight_recorder.move(rank, gate.traces, _place().attempt)
        _begin(rank, member)

    parking.ahead(parking.Parking(gate, rank, begin))
    hook(member, place)
    with record_exception(member):
        run(arguments)


def _place() -> Supervised:
    place = supervised()
    assert place is not None
    return place


def _settle(body: Release, pipes: str = "") -> list[str]:
    """This process has the environment and the command line of `body`. Returns the script and its arguments. `pipes`:
    where the flight recorder's pipe is until the attempt begins."""
    _settle_environment(body.env)
    shown = list(body.arguments)
    arguments = list(shown)
    for index, secret in decode(os.environ.pop(HIDDEN_ARGUMENTS, "{}").encode(), dict[int, str]).items():
        if index < len(arguments):
            arguments[index] = secret
    for index, count, words in body.edits:
        for each in (shown, arguments):
            each[index : index + count] = words
    command_line.take(shown, arguments)
    _settle_malloc()
    flight_recorder.follow(_place().attempt, pipes)
    return arguments


def _begin(rank: int, member: Member) -> None:
    """This process is the rank `member` of an attempt, and reports."""
    place = _place()
    if path := os.environ.pop(LEASH, None):
        leash.hold(Path(path), place.attempt_number, rank)
    reporter = Reporter(place, rank)
    _progress.install(reporter)
    member.begin(place, reporter)
    if (recorder := adapters.follow(place, rank, lambda text: reporter.note("warning", text=text))) is not None:
        reporter.on_first_step = recorder.first_step
    trackers.follow(place)
    if torch_patches.missing and rank == 0:
        what = ", ".join(torch_patches.missing)
        reporter.note(
            "warning", text=f"this torch has no {what}: the run goes on, but the parts that need it work less well"
        )


def _settle_environment(release: dict[str, str]) -> None:
    """The environment is that of the attempt. For a script that starts its ranks itself, torchrun's variables are
    removed."""
    if release.get(CHILDREN) == RANKS:
        for name in [name for name in os.environ if LAUNCHERS.fullmatch(name)]:
            del os.environ[name]
    os.environ.update(release)


def _settle_malloc() -> None:
    """glibc serves blocks as large as a step's tensors from its heap, and keeps freed blocks.

    At first it takes pages from the kernel for each such block, with a page fault at every use (2.5 µs each here,
    10,000 in a forward pass). From freed blocks it learns to use the heap (mallopt(3), M_MMAP_THRESHOLD). A recovery
    would have to learn that again. The price: up to 64 MB of free heap are kept. Another malloc than glibc's is not
    affected.
    """
    with contextlib.suppress(AttributeError):
        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        libc.free(libc.malloc(ctypes.c_size_t(_MOST_FROM_HEAP - 2 * mmap.PAGESIZE)))


def forked_rank() -> NoReturn:
    """The whole life of a forked rank, as if the interpreter had been started for the script."""
    inherited.undo()
    code: object = 0
    by = None
    try:
        serve()
    except SystemExit as exit_:
        code = exit_.code
    except BaseException as error:
        ending.tell(error)
        code, by = 1, signal.SIGINT if isinstance(error, KeyboardInterrupt) else None
    ending.end(code, by)


def main(arguments: list[str]) -> None:
    try:
        serve()
    except Exception as error:
        ending.tell(error)
        sys.exit(1)
