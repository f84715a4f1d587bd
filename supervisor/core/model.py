"""The values that the core sees, concludes and asks for. All are frozen. All times are seconds of one monotonic
clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from supervisor.core.evidence import Evidence
from supervisor.core.members import Group
from supervisor.core.nodes.nodes import Nodes
from supervisor.core.sample import Sample
from supervisor.core.stack import Stacks
from supervisor.core.words import RunState, Word
from trainer.rundir.codes import ExitCode, Phase

STARTUP_TIMEOUT = 1800.0
FREEING = 10.0
"""Times the seconds of `stuck_after` for a process that only frees its memory: 150 GB take it more than 20 s."""
SCRIPT = -1
"""Used in place of a rank: the process of a script that started its ranks itself and is not one of them."""


class Cause(Word):
    """Why an attempt is over."""

    FINISHED = "finished"
    USER_ERROR = "user_error"
    STARTUP_ERROR = "startup_error"
    EXCEPTION = "exception"
    KILLED = "killed"
    SEGFAULT = "segfault"
    ABORT = "abort"
    HOST_OOM = "host_oom"
    CUDA_OOM = "cuda_oom"
    GPU_ASSERT = "gpu_assert"
    GPU_FAULT = "gpu_fault"
    GPU_LOST = "gpu_lost"
    GPU_BUSY = "gpu_busy"
    NCCL_ERROR = "nccl_error"
    NCCL_OR_GLOO_TIMEOUT = "nccl_or_gloo_timeout"
    HANG = "hang"
    STOPPED = "stopped"
    NAN = "nan"
    NO_SPACE = "no_space"
    CHECKPOINT_BAD = "checkpoint_bad"
    REPLICAS_DIFFER = "replicas_differ"
    PORT_IN_USE = "port_in_use"
    PREEMPTED = "preempted"
    STOPPED_BY_USER = "stopped_by_user"
    LAUNCHER_DIED = "launcher_died"
    NODE_LOST = "node_lost"
    STARTED_OVER = "started_over"


_ASYNCHRONOUS = frozenset({Cause.GPU_ASSERT, Cause.GPU_FAULT})
"""Failures of a kernel. The frame, the exit code and the signal are those of a later call."""


class Do(Word):
    """The possible actions after an attempt is over."""

    END = "end"
    GO_ON = "go-on"
    """No verdict at all: the attempt goes on, with a warning."""
    STOP = "stop"
    RESTART = "restart"
    UNCOUNTED = "restart-uncounted"
    """Like RESTART, but it does not count for --max-restarts."""
    OLDER = "restart-older"
    """Restart from a checkpoint older than the newest state."""
    SHRINK = "shrink"
    """Restart without the lost GPU, with fewer ranks if too few are left."""
    ROLLBACK = "rollback"
    """Restart from the newest state before the bad step, and skip the data in between. If it went bad again: from an
    older state."""


class StopKind(Word):
    """The source of a stop request: a person (exit code 103) or the machine's owner (75)."""

    USER = "user"
    PREEMPTION = "preemption"


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one run, as asked for."""

    max_restarts: int = 3
    window: float = 3600.0
    no_progress_limit: int = 3
    backoff: tuple[float, float] = (1.0, 300.0)
    """The first and the longest wait between restarts without progress, in seconds."""
    grace: float = 45.0
    hang_timeout: float | None = None
    """Seconds without a step in the train phase. None: learned from the steps seen. Infinity: never fires."""
    startup_timeout: float = STARTUP_TIMEOUT
    stuck_after: float = 20.0
    """Seconds that a process may outlive its SIGKILL before the run ends with 106."""
    actions: Mapping[Cause, Do] = field(default_factory=dict)
    """The actions for causes that do not have the default action."""

    def __post_init__(self) -> None:
        """ValueError for impossible limits."""
        times = (self.window, *self.backoff, self.grace, self.startup_timeout, self.hang_timeout or 0.0)
        if not min(self.max_restarts, self.no_progress_limit - 1, *times) >= 0:
            raise ValueError("a limit of its policy is too low")


@dataclass(frozen=True, slots=True)
class Exit:
    """An ended process of the attempt. `rank` None is the launcher, SCRIPT the script that has started the ranks.
    `status`: exit code, or minus the signal; None if the system did not tell."""

    rank: int | None
    status: int | None
    at: float
    spared: bool = False
    """The script started it, and may have ended it or not need it. So it is no failure as long as the script goes
    on."""


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception that ended a rank's script, recorded by the rank before it began to exit."""

    rank: int
    type: str
    message: str
    frame: str
    at: float
    exit_code: int = 1
    """The exit code that the rank will exit with."""
    bad_step: int = -1
    """The first step that is not to be kept, or -1."""
    data_step: int = -1
    """The rank's data index, or -1 if the script does not say."""
    kinds: tuple[str, ...] = ()
    """Its type and base types, nearest first, with their modules unless built in."""
    errno: int | None = None
    because: tuple[Raised, ...] = ()
    """The exceptions that it was explicitly raised from, nearest first."""
    frames: tuple[str, ...] = ()
    """The innermost frames of the script, innermost last."""
    unread: tuple[str, int] | None = None
    """The file that it could not parse, and the file's size in bytes."""
    spared: bool = False
    """Like Exit.spared."""


@dataclass(frozen=True, slots=True)
class RankView:
    """A living rank, seen by its beats and by the kernel."""

    rank: int
    step: int
    phase: Phase
    beat_at: float
    announces: bool
    """Whether its loop tells its phases; otherwise only optimizer steps are known."""
    stopped: bool = False
    """State T: a signal or a debugger has stopped it."""
    cpu: float = 0.0
    """CPU seconds that it has used. Once it is quiet, its children's are counted too."""
    starved: float = 0.0
    """Seconds for which its main thread was ready to run but waited for a CPU."""
    disk: bool = False
    """One of its threads is in an uninterruptible wait (state D): for a disk or a file server."""
    held: str = ""
    """The wait of its main thread, if only its own group can end it (a lock, a collective). The text stays the same
    during one wait. Empty if the kernel does not tell, or if anything else could wake the thread."""
    sleeps: bool = False
    """It waits only for the time, for more than some seconds and at most ten minutes. Such a wait ends by itself."""
    polls: bool = False
    """Its main thread polls: it sleeps and looks, again and again. Nothing else in it could be at work."""
    replaced: bool = False
    """Its process has become another program (exec). The beats are not about that program."""
    sample: Sample | None = None
    sampled: bool = False
    """The newest sample of a silent rank, and whether samples are possible."""
    own: float = 0.0
    """Seconds of its steps so far that were its own work: data and forward pass, without the waits for other ranks."""
    apart: bool = False
    """The script started it, and it is in no group: it may wait for any process, like a worker for its next task."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The result of one look at the world."""

    now: float
    ranks: tuple[RankView, ...] = ()
    steps: Mapping[int, int] = field(default_factory=dict)
    """For each rank that has finished a step: its last one; -1 if the run's step is not known. Ranks that are gone are
    included."""
    group: Group | None = None
    """None before a group exists."""
    exits: tuple[Exit, ...] = ()
    raised: tuple[Raised, ...] = ()
    alive: tuple[int, ...] = ()
    """The pids of a stopping attempt that are not gone yet, with any parent."""
    frees: bool = False
    """None of these runs code any more: they free their memory."""
    checkpoint_step: int = -1
    """Newest committed checkpoint, or -1."""
    checkpoints: tuple[int, ...] = ()
    """Steps with a committed checkpoint, oldest first; looked up when no process is alive."""
    saves: int = 0
    """The number of saves that the script has made in its own format in this attempt."""
    own_step: int = -1
    """The newest step that the script has kept by itself, proved by a save or a resume. -1 if none."""
    own_unplaced: bool = False
    """Whether the script has made a save whose step is unknown."""
    safe_step: int = -1
    """The newest step that a restart could go on from, on disk or in memory, or -1."""
    standby: bool = False
    """The next group waits, ready to be released."""
    standby_on_gpu: bool = False
    """It may hold memory of a GPU."""
    stacks: Stacks | None = None
    """The places of the ranks at the last request for stacks."""
    log_grew_at: float = 0.0
    gpus_free: bool | None = None
    """Whether no dead process holds a GPU. Asked only after one did. None if nobody can tell."""
    launch_error: str = ""
    """Why the launcher could not even be started."""
    evidence: Evidence = field(default_factory=Evidence)
    stop: StopKind | None = None
    stop_now: bool = False
    """The stop was requested twice, or with --now."""
    retry: int | None = None
    """The attempt that somebody does not want to wait for."""
    nodes: Nodes | None = None
    """The nodes of the run. None if it has one node."""

    @property
    def gone(self) -> bool:
        """Whether nothing of a stopping attempt can run any more, on any node."""
        return not self.alive and (self.nodes is None or not self.nodes.unfenced())


@dataclass(frozen=True, slots=True)
class Verdict:
    """The conclusion about an attempt, with the evidence in one sentence."""

    cause: Cause
    reason: str
    at: float
    rank: int | None = None
    signal: int | None = None
    exit_code: int | None = None
    step: int = -1
    frame: str = ""
    failed_at: float = 0.0
    """The earliest possible time of the failure."""
    collateral: tuple[int, ...] = ()
    """Ranks that failed because another one had."""
    bad_step: int = -1
    """The first step that must not be kept (the step that failed), or -1."""
    data_step: int = -1
    """The data index of the failing rank, or -1."""
    device: str = ""
    """The PCI address of the GPU that is lost, if it is known."""
    node: int | None = None
    """The node that is lost."""

    @property
    def signature(self) -> tuple[str, ...]:
        """Two failures with the same signature are taken for the same bug."""
        if self.cause in _ASYNCHRONOUS:
            return (self.cause.value, str(self.step))
        parts = (self.cause.value, self.frame, self.step, self.exit_code, self.signal)
        return tuple(str(part) for part in parts)


@dataclass(frozen=True, slots=True)
class Rollback:
    """An order to all attempts after `attempt`. They may not use saves of step `before` and later from attempts up to
    that one. They go on from an earlier state and skip the data up to index `skip_to`."""

    attempt: int
    before: int
    skip_to: int = 0


@dataclass(frozen=True, slots=True)
class Ground:
    """The states to go on from when the attempt `attempt` is over."""

    attempt: int = -1
    newest: int = -1
    """The newest safe step, on disk or in memory."""
    checkpoints: tuple[int, ...] = ()
    """The steps on disk, oldest first."""


@dataclass(frozen=True, slots=True)
class History:
    """The results of the attempts so far that matter for the next one."""

    restarts: tuple[float, ...] = ()
    """The times of the counted restarts since the last progress."""
    barren: int = 0
    """The number of attempts in a row without a new checkpoint."""
    startup_failures: int = 0
    """The number of attempts in a row that failed by themselves before their first step."""
    best_step: int = -1
    """The highest step that was kept: a checkpoint of ours, or the script's own."""
    signature: tuple[str, ...] | None = None
    """The signature of the last failure."""
    rollback: Rollback | None = None
    """The newest rollback. It stays in force."""
    rollbacks: int = 0
    """The number of rollbacks since the run last got past a bad step."""
    bad_step: int = -1
    """The step before which the newest rollback went back."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision: launch again after `delay` seconds, or end the run with `exit_code`."""

    reason: str
    delay: float | None = None
    exit_code: ExitCode = ExitCode.FINISHED
    state: RunState = RunState.FAILED
    do: Do = Do.STOP
    counted: bool = False
    """Whether the restart counts for --max-restarts."""
