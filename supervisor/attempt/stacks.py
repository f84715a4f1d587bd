"""The stacks of all ranks. They are kept in the attempt's folder before a hung attempt is killed.

The bootstrap registers faulthandler's handler. It answers within milliseconds, even while C code holds the GIL. If it
does not answer, py-spy is asked, if it is installed: the rank may be stopped, or may have taken the signal for itself.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from supervisor.core.stack import Frame, Stack, Stacks, grouped, named, summary
from supervisor.process import kernel
from supervisor.process.kill import kill_child
from supervisor.process.proctree import Process
from trainer.rundir.environment import STACKS_SIGNAL

TIME_LIMIT = 2.0
"""Seconds for all ranks together: evidence must not delay the recovery for long."""
OBSERVED = 10.0
"""Seconds for all ranks together, where a person has asked and nothing waits for it."""
_LOOK_EVERY = 0.01
"""Seconds between two looks whether a rank has answered."""
_CHILDREN = 8
"""The most children of a rank that are asked: DataLoader workers."""
_FAULTHANDLER = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$')
_PYSPY = re.compile(r"^    (?P<function>.*) \((?P<file>.*):(?P<line>\d+)\)$")


def dump(ranks: dict[int, Process], folder: Path, groups: Path) -> Stacks:
    """The stacks are in `folder`: one file for each rank with all its threads; and in `groups` the ranks that stand
    together."""
    folder.mkdir(mode=0o700, exist_ok=True)
    until = time.monotonic() + TIME_LIMIT
    texts = _by_signal({rank: process.pid for rank, process in ranks.items()}, folder, until)
    rest = {rank: process for rank, process in ranks.items() if rank not in texts}
    found = {rank: _main_of_faulthandler(text) for rank, text in texts.items()}
    for rank, text in _by_pyspy({rank: process.pid for rank, process in rest.items()}, until).items():
        texts[rank], found[rank] = text, _main_of_pyspy(text)
    for rank, text in texts.items():
        (folder / f"rank{rank}.txt").write_text(text)
    stacks = [Stack(rank, found.get(rank, ()), kernel.wait_text(process.pid)) for rank, process in ranks.items()]
    stacks += _children(ranks, folder, until)
    result = Stacks(time.monotonic(), tuple(stacks))
    keep(result, groups)
    return result


def keep(found: Stacks, groups: Path) -> None:
    """The ranks that stand together are in the file `groups`, for people. OSError if it cannot be written."""
    groups.write_text(_told(found))


def observed(ranks: dict[int, Process], folder: Path) -> Stacks:
    """The stacks of the ranks and of their children, from outside. Only a rank that py-spy may not read is asked by the
    signal; it answers in `folder`. The stack of a process that cannot be read is empty."""
    known = {process.pid for process in ranks.values()}
    pids: list[tuple[int, int, int | None]] = [(rank, process.pid, None) for rank, process in sorted(ranks.items())]
    for rank, process in sorted(ranks.items()):
        pids += [(rank, child, child) for child in kernel.descendants(process.pid, known)[:_CHILDREN]]
    texts = _by_pyspy({number: pid for number, (_, pid, _) in enumerate(pids)}, time.monotonic() + OBSERVED)
    frames = {number: _main_of_pyspy(text) for number, text in texts.items()}
    asked = {rank: pid for number, (rank, pid, child) in enumerate(pids) if child is None and not frames.get(number)}
    told = _by_signal(asked, folder, time.monotonic() + TIME_LIMIT) if asked and folder.exists() else {}
    for number, (rank, _, child) in enumerate(pids):
        if child is None and rank in told:
            frames[number] = _main_of_faulthandler(told[rank])
    found = [
        Stack(rank, _without_ours(frames.get(number, ())), kernel.wait_text(pid), child)
        for number, (rank, pid, child) in enumerate(pids)
    ]
    return Stacks(time.monotonic(), tuple(stack for stack in found if stack.frames or stack.child is None))


def _without_ours(frames: tuple[Frame, ...]) -> tuple[Frame, ...]:
    """The frames of the script, without those that have started it."""
    inner = [*itertools.takewhile(lambda frame: not frame.file.endswith("/rank/worker.py"), frames)]
    return tuple(inner) or frames


def _told(found: Stacks) -> str:
    """A text for people: the place of each rank, then the whole stack of each group."""
    parts = ["\n".join(summary(found.stacks))]
    for ranks, stack in grouped(found.stacks):
        parts.append("\n".join([named(ranks), *(f"  {f.file}:{f.line} {f.function}" for f in stack.frames)]))
    for stack in (s for s in found.stacks if s.child is not None):
        heads = [f"rank {stack.rank}, its child {stack.child}"]
        parts.append("\n".join([*heads, *(f"  {f.file}:{f.line} {f.function}" for f in stack.frames)]))
    return "\n\n".join(parts) + "\n"


def _children(ranks: dict[int, Process], folder: Path, until: float) -> Iterable[Stack]:
    """A forked child has inherited the rank's handler and its file. So the children are asked one after another."""
    known = {process.pid for process in ranks.values()}
    for rank, process in ranks.items():
        for child in kernel.descendants(process.pid, known)[:_CHILDREN]:
            with contextlib.suppress(OSError):
                text = _by_signal({rank: child}, folder, min(until, time.monotonic() + 0.3)).get(rank, "")
                if text:
                    yield Stack(rank, _main_of_faulthandler(text), kernel.wait_text(child), child)


def pyspy() -> str | None:
    """The py-spy program: beside the running interpreter, or on the PATH."""
    beside = Path(sys.executable).parent / "py-spy"
    return str(beside) if beside.exists() else shutil.which("py-spy")


def _by_pyspy(pids: dict[int, int], until: float) -> dict[int, str]:
    program = pyspy()
    if program is None or not pids:
        return {}
    started = {}
    for rank, pid in pids.items():
        # With --nonblocking it does not wait for a stopped process to stop. The process stands still anyway.
        command = [program, "dump", "--nonblocking", "--full-filenames", "--pid", str(pid)]
        with contextlib.suppress(OSError):
            started[rank] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
    found = {}
    for rank, dumper in started.items():
        try:
            text, _ = dumper.communicate(timeout=max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            kill_child(dumper.pid)
            text, _ = dumper.communicate()
        if text:
            found[rank] = text
    return found


def _by_signal(pids: dict[int, int], folder: Path, until: float) -> dict[int, str]:
    """By rank: the text of the process that shares the rank's file. A process that is stopped or has no handler is not
    asked."""
    asked: dict[int, tuple[Path, int]] = {}
    for rank, pid in pids.items():
        path = folder / f"rank{rank}.faulthandler.txt"
        with contextlib.suppress(OSError):
            size = path.stat().st_size
            # Without the bootstrap's handler, the signal would kill the process before its stacks are known. Also, a
            # script may have closed the handler's descriptor. Then another file may have that number, and must not be
            # written to.
            answers = kernel.catches(pid, STACKS_SIGNAL) and kernel.has_open(pid, path)
            if kernel.glance(pid).state not in "TZ" and answers and _send(pid):
                asked[rank] = path, size
    texts: dict[int, str] = {}
    before: dict[int, str] = {}
    # Looks are counted, not seconds: what came while this process got no CPU is read all the same.
    looks = max(2, round((until - time.monotonic()) / _LOOK_EVERY))
    while asked.keys() - texts.keys() and looks:
        looks -= 1
        time.sleep(_LOOK_EVERY)
        for rank, (path, size) in asked.items():
            text = path.read_bytes()[size:].decode(errors="replace")
            # The text is complete if nothing was added between two looks.
            if rank not in texts and text.endswith("\n") and before.get(rank) == text:
                texts[rank] = text
            before[rank] = text
    return texts


def _send(pid: int) -> bool:
    try:
        process = Process(pid)
    except ProcessLookupError:
        return False
    try:
        return process.send(STACKS_SIGNAL)
    finally:
        process.close()


def _main_of_faulthandler(text: str) -> tuple[Frame, ...]:
    """The frames of the main thread. faulthandler writes it last."""
    frames: list[Frame] = []
    for line in text.splitlines():
        if match := _FAULTHANDLER.match(line):
            frames.append(Frame(match["function"], match["file"], int(match["line"])))
        elif "hread 0x" in line:
            frames = []
    return tuple(frames)


def _main_of_pyspy(text: str) -> tuple[Frame, ...]:
    frames: list[Frame] = []
    ours = False
    for line in text.splitlines():
        if line.startswith("Thread "):
            ours = '"MainThread"' in line
        elif ours and (match := _PYSPY.match(line)):
            frames.append(Frame(match["function"], match["file"], int(match["line"])))
    return tuple(frames)
