"""The diagnosis: from exits, exceptions and evidence to one verdict. It names the first failure, not its victims.

who    every rank that failed, by blame (own failure, waited in vain, victim), then by the clock: the first is the root
what   the way it ended: a signal (and its sender), an exception (symptoms.py), an exit code
"""

from __future__ import annotations

from dataclasses import replace

from supervisor.core.diagnosis import gpu
from supervisor.core.diagnosis.gist import gist
from supervisor.core.diagnosis.left import Leaver, leavers, left_verdict
from supervisor.core.diagnosis.presence import all_left_with_0
from supervisor.core.diagnosis.symptoms import (
    Blame,
    blame_of,
    blame_of_abort,
    cause_of,
    chain,
    cut_short,
    dead_workers,
    short_of_shm,
    spoken,
    thrown,
    waited,
)
from supervisor.core.hangs.collectives import told
from supervisor.core.model import SCRIPT, Cause, Exit, Observation, Raised, Verdict
from supervisor.core.nodes.loss import in_doubt
from supervisor.core.size import human_bytes
from trainer.rundir.codes import ExitCode, Phase

_KILLERS = {9: "SIGKILL", 15: "SIGTERM", 2: "SIGINT", 1: "SIGHUP"}
_CRASHES = {11: (Cause.SEGFAULT, "SIGSEGV"), 7: (Cause.SEGFAULT, "SIGBUS"), 6: (Cause.ABORT, "SIGABRT")}
_CRASHES |= {4: (Cause.ABORT, "SIGILL"), 8: (Cause.ABORT, "SIGFPE")}
_UNKNOWN_KILLER = " (nothing here tells whether by the kernel's OOM killer)"

USER_ERRORS = frozenset({"SyntaxError", "IndentationError", "TabError", "ImportError", "ModuleNotFoundError"})
"""Exceptions that a second start cannot cure."""

LAST_WORDS = 1.0
"""Seconds that a rank gets after an exception, to print its traceback and leave by itself: a tenth of that, where it
need not wait for a CPU."""
SETTLE, LEAVES = 0.5, 2.0
"""Seconds that a victim's failure waits until its cause can be seen: at most, and while another rank is leaving, whose
status will tell."""


def diagnose(seen: Observation, stepped: bool, step: int) -> Verdict | None:
    """The verdict on the exits and exceptions so far, or None while there is nothing to judge.

    `stepped` tells whether any rank has finished a step in this attempt. `step` is the highest finished step.
    """
    failed = _failures(seen)
    launcher = next((e for e in seen.exits if e.rank is None), None)
    if not failed or (all(e.spared for e in failed) and (launcher is None or launcher.status == 0)):
        return _launcher_alone(seen, launcher, stepped, step) if launcher else None
    first = min(failed, key=lambda exit_: (_blame(seen, exit_), _when(seen, exit_)))
    blame = _blame(seen, first)
    settle = LEAVES if any(view.phase is Phase.TEARDOWN and view.rank != first.rank for view in seen.ranks) else SETTLE
    settles = seen.now < first.at + settle and (launcher is None or seen.nodes is not None)
    if blame is not Blame.OWN and (settles or _speaks(seen) or in_doubt(seen)):
        return None
    # The failing rank's own step. The other ranks may be ahead, and not by the same number of steps each time.
    own_step = seen.steps.get(first.rank or 0, step)
    if blame is not Blame.OWN and first.status != -15 and (gone := leavers(seen)):
        verdict, followed = _deserted(seen, first, gone[0], stepped), "; rank{} {} failed of it"
    elif blame is Blame.WAITED:
        verdict, followed = _in_vain(seen, first, failed, own_step), ""
    else:
        verdict, followed = _of_rank(seen, first, stepped, own_step), "; rank{} {} followed"
    others = tuple(sorted({e.rank for e in failed if e.rank not in (None, SCRIPT, verdict.rank)}))
    if others:
        followed = followed.format("s" if len(others) > 1 else "", ", ".join(map(str, others)))
        verdict = replace(verdict, reason=verdict.reason + followed, collateral=others)
    return told(gpu.judged(verdict, seen.evidence), seen.evidence.odd)


def unlaunched(seen: Observation) -> Verdict:
    """The verdict on an attempt that the system refused to start."""
    said = Raised(-1, "OSError", seen.launch_error, "", seen.now, kinds=("OSError",))
    reason = f"the attempt could not be launched: {seen.launch_error}"
    return Verdict(cause_of(said) or Cause.STARTUP_ERROR, reason, seen.now, failed_at=seen.now)


def where(step: int, stepped: bool) -> str:
    """The step in words. A `step` below 0 is not known, or there is none."""
    return f"at step {step}" if step >= 0 else "at an unknown step" if stepped else "before the first step"


def _failures(seen: Observation) -> list[Exit]:
    """Every rank that failed. A rank that has raised counts before it is gone: its exit can take seconds, or for
    ever."""
    late = seen.now - LAST_WORDS
    exited = {e.rank: e for e in seen.exits if e.rank is not None}
    failed = [e for e in exited.values() if e.status not in (0, None)]
    return failed + [
        Exit(r.rank, r.exit_code, r.at, r.spared) for r in seen.raised if r.rank not in exited and r.at <= late
    ]


def _speaks(seen: Observation) -> bool:
    """Whether a rank that has raised has its last words still."""
    exited = {e.rank for e in seen.exits}
    return any(r.rank not in exited and r.at > seen.now - LAST_WORDS for r in seen.raised)


def _said(seen: Observation, exit_: Exit) -> Raised | None:
    """The exception that ended the rank. It is on record, or the rank printed it last before it exited by itself, or
    before C++ aborted it."""
    record = next((r for r in seen.raised if r.rank == exit_.rank), None)
    if record is None and exit_.rank is not None:
        lines = seen.evidence.lines.get(exit_.rank, ())
        if (exit_.status or 0) > 0:
            record = spoken(exit_.rank, lines, exit_.at)
        elif exit_.status == -6:
            record = thrown(exit_.rank, lines, exit_.at)
    return record


def _when(seen: Observation, exit_: Exit) -> float:
    raised = _said(seen, exit_)
    return min(raised.at, exit_.at) if raised else exit_.at


def _blame(seen: Observation, exit_: Exit) -> Blame:
    if exit_.status == -15:
        return Blame.VICTIM
    raised = _said(seen, exit_)
    blame = blame_of(raised) if raised else Blame.OWN
    if exit_.status == -6 and blame is Blame.OWN and (raised is None or cause_of(raised) is None):
        return blame_of_abort(seen.evidence.lines.get(exit_.rank, ()))
    return blame


def _deserted(seen: Observation, first: Exit, leaver: Leaver, stepped: bool) -> Verdict:
    """No rank has failed by itself, but a rank has left that the others needed."""
    raised = _said(seen, first)
    words = f": {gist(raised.message)}" if raised else ""
    then = f"rank {first.rank} needed it{words}"
    return left_verdict(seen, leaver, stepped, then, raised.frame if raised else "", _when(seen, first))


def _in_vain(seen: Observation, first: Exit, failed: list[Exit], step: int) -> Verdict:
    """No rank has failed by itself, and a rank waited in vain. The rank that has not even complained is the missing
    one."""
    raised = _said(seen, first)
    lines = seen.evidence.lines.get(first.rank, ())
    words = waited(raised.message if raised else "\n".join(lines))
    spoke = {e.rank for e in failed if e.status != -15} | {r.rank for r in seen.raised}
    silent = sorted(
        {view.rank for view in seen.ranks} | {e.rank for e in failed if e.rank is not None and e.status == -15}
    )
    silent = [rank for rank in silent if rank not in spoke]
    at = where(step, bool(seen.steps))
    told = {"at": seen.now, "step": step, "failed_at": _when(seen, first)}
    if silent:
        names = f"rank{'s' if len(silent) > 1 else ''} {', '.join(map(str, silent))}"
        reason = f"rank {first.rank} waited in vain for {names} in a collective {at}: {words}"
        return Verdict(Cause.HANG, reason, rank=silent[0], **told)  # type: ignore[arg-type]
    reason = f"the ranks waited for each other in vain {at}; rank {first.rank} gave up first: {words}"
    frame = raised.frame if raised else ""
    return Verdict(Cause.NCCL_OR_GLOO_TIMEOUT, reason, rank=first.rank, frame=frame, **told)  # type: ignore[arg-type]


def _of_rank(seen: Observation, first: Exit, stepped: bool, step: int) -> Verdict:
    rank, status, raised = first.rank, first.status or 0, _said(seen, first)
    at = where(step, stepped)
    # After an exception, threads of torch that still run often crash the process. That is not the first failure.
    told = raised is not None and -status in _CRASHES and (rank in {r.rank for r in seen.raised} or cause_of(raised))
    if status < 0 and not told:
        pid = seen.evidence.pids.get(rank)
        cause, reason = _signalled(seen, _who(rank), at, -status, pid)
    elif status == ExitCode.PREEMPTED:
        cause, reason = Cause.PREEMPTED, f"{_who(rank)} exited with 75: it asks to be started again"
    elif raised is not None:
        cause, reason = _raised(seen, raised, at, status, stepped)
    else:
        cause, reason = _exited(seen, rank, status, at, stepped)
    return Verdict(
        cause=cause,
        reason=reason,
        at=seen.now,
        rank=None if rank == SCRIPT else rank,
        signal=-status if status < 0 else None,
        exit_code=status if status >= 0 else None,
        step=step,
        frame=raised.frame if raised else "",
        failed_at=_when(seen, first),
        bad_step=raised.bad_step if raised else -1,
        data_step=raised.data_step if raised else -1,
    )


def _who(rank: int | None) -> str:
    return "the script" if rank == SCRIPT else f"rank {rank}"


def _signalled(seen: Observation, who: str, where: str, number: int, *pids: int | None) -> tuple[Cause, str]:
    """The sender of the signal that ended a rank, or a process that works for a rank."""
    if number in _CRASHES:
        cause, name = _CRASHES[number]
        return cause, f"{who} died of {name} {where}"
    memory = seen.evidence.memory
    if number == 9:
        if oom := next((victim for pid in pids if (victim := memory.victim(pid))), None):
            return Cause.HOST_OOM, f"{who} was killed by the kernel's OOM killer {where}{oom.numbers()}"
        if memory.unknown and pids != (None,):
            return Cause.KILLED, f"{who} was killed by SIGKILL {where}{_UNKNOWN_KILLER}"
    name = _KILLERS.get(number, f"signal {number}")
    return Cause.KILLED, f"{who} was killed by {name} {where}"


def _raised(seen: Observation, raised: Raised, where: str, status: int, stepped: bool) -> tuple[Cause, str]:
    rank = raised.rank
    if workers := dead_workers(raised):
        who = f"{_who(rank)}'s DataLoader worker (pid {', '.join(map(str, workers.pids))})"
        if any(seen.evidence.memory.victim(pid) for pid in workers.pids):
            return _signalled(seen, who, where, 9, *workers.pids)
        if workers.signal is not None:
            cause, reason = _signalled(seen, who, where, workers.signal, *workers.pids)
            return cause, reason + (_more_shm(seen) if short_of_shm(raised) else "")
    proven = cause_of(raised)
    if proven is None and seen.evidence.full and cut_short(raised):
        proven = Cause.NO_SPACE
    if status == ExitCode.NEVER_RESTART and proven is None:
        why = f": {gist(raised.message)}" if raised.message else ""
        return Cause.USER_ERROR, f"{_who(rank)} exited with 78: it says no restart can help{why}"
    in_frame = f", in {raised.frame}" if raised.frame else ""
    what = f"{_who(rank)} raised {raised.type}: {gist(raised.message) or '(no message)'} {where}{in_frame}"
    if proven is not None:
        proven, more = _of_gpu(seen, raised, proven)
        what += more
    if short_of_shm(raised):
        what += _more_shm(seen)
    elif proven is Cause.NO_SPACE and seen.evidence.full:
        what += f"; no room is left on the disk of {', '.join(seen.evidence.full)}"
    elif proven is Cause.NO_SPACE and raised.because:
        # The half-written file is gone by now, and the disk has room again.
        what += f"; it came from {gist(raised.because[0].message)}"
    if raised.unread:
        path, size = raised.unread
        what += f"; it was reading {path} ({human_bytes(size)}), which may be torn: move it away to go on without it"
    if proven is Cause.NAN:
        # The exception itself names the bad step. That is not the last finished step.
        return proven, f"{_who(rank)} raised {raised.type}: {gist(raised.message)}"
    if proven is Cause.STARTED_OVER:
        return proven, f"{_who(rank)} started over: {gist(raised.message)}"
    if proven is not None:
        return proven, what
    if raised.type in USER_ERRORS and not stepped:
        return Cause.USER_ERROR, what
    return Cause.EXCEPTION if stepped else Cause.STARTUP_ERROR, what


def _of_gpu(seen: Observation, raised: Raised, cause: Cause) -> tuple[Cause, str]:
    """The cause, more exactly, and what a kernel of the GPU has said, or who holds the memory."""
    if cause is Cause.GPU_ASSERT and (said := gpu.failed_assert(seen.evidence.lines.get(raised.rank, ()))):
        return cause, f"; its kernel asserted `{said}`"
    if cause is Cause.CUDA_OOM:
        dead = [pid for each in chain(raised) for pid in gpu.holders(each.message) if pid in seen.evidence.gone]
        names = ", ".join(map(str, dead))
        if not dead and seen.standby_on_gpu:
            return Cause.GPU_BUSY, "; the standby holds memory there, too: from now on none will"
        return (Cause.GPU_BUSY, f"; process {names} is dead and still holds memory there") if dead else (cause, "")
    return cause, ""


def _more_shm(seen: Observation) -> str:
    total = seen.evidence.shm
    size = f" has {human_bytes(total)} in all" if total else " is full"
    return f"; /dev/shm{size}: give it more (docker run --shm-size=8g, or --ipc=host), or use fewer DataLoader workers"


def _exited(seen: Observation, rank: int | None, status: int, where: str, stepped: bool) -> tuple[Cause, str]:
    if status == ExitCode.NEVER_RESTART:
        return Cause.USER_ERROR, f"{_who(rank)} exited with 78: it says no restart can help"
    if status == 2 and not stepped:
        return Cause.USER_ERROR, f"{_who(rank)} exited with 2 (usage error) {where}"
    if not stepped and seen.evidence.full and not seen.evidence.lines.get(rank):
        disks = ", ".join(seen.evidence.full)
        return Cause.NO_SPACE, f"{_who(rank)} exited with {status} {where}, without a word: the disk of {disks} is full"
    return Cause.EXCEPTION if stepped else Cause.STARTUP_ERROR, f"{_who(rank)} exited with {status} {where}"


def _launcher_alone(seen: Observation, launcher: Exit, stepped: bool, step: int) -> Verdict:
    def verdict(cause: Cause, reason: str, signal: int | None = None, code: int | None = None) -> Verdict:
        return Verdict(cause, reason, seen.now, None, signal, code, step, failed_at=launcher.at)

    status = launcher.status
    if status == 0 or all_left_with_0(seen):
        return verdict(Cause.FINISHED, "every rank exited with 0" + (f" at step {step}" if step >= 0 else ""), code=0)
    if status is not None and status < 0:
        name = _KILLERS.get(-status, f"signal {-status}")
        oom = seen.evidence.memory.victim(seen.evidence.pids.get(None)) if status == -9 else None
        if oom:
            reason = f"the launcher was killed by the kernel's OOM killer{oom.numbers()}"
            return verdict(Cause.HOST_OOM, reason, signal=9)
        return verdict(Cause.LAUNCHER_DIED, f"the launcher was killed by {name}", signal=-status)
    where = "after the first step" if stepped else "before any rank had started"
    said = spoken(-1, seen.evidence.lines.get(None, ()), launcher.at)
    if said is not None and (proven := cause_of(said)):
        return verdict(proven, f"the launcher raised {said.type}: {gist(said.message)} {where}", code=status)
    cause = Cause.LAUNCHER_DIED if stepped else Cause.STARTUP_ERROR
    return verdict(cause, f"the launcher exited with {status} {where}; see launcher.log", code=status)
