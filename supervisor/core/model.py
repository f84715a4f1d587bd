"""What the core sees, concludes and asks for. Frozen values only; every time is in seconds of one monotonic clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from supervisor.core.evidence import Evidence
from supervisor.core.hangs.motion import Sample
from supervisor.core.members import Group
from supervisor.core.stack import Stacks
from supervisor.core.words import RunState, Word
from trainer.rundir.codes import ExitCode, Phase

SCRIPT = -1
"""In place of a rank: the process that runs the script, where it has started the ranks itself and is none of them."""


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
    NCCL_OR_GLOO_TIMEOUT = "nccl_or_gloo_timeout"
    HANG = "hang"
    STOPPED = "stopped"
    NAN = "nan"
    NO_SPACE = "no_space"
    CHECKPOINT_BAD = "checkpoint_bad"
    PORT_IN_USE = "port_in_use"
    PREEMPTED = "preempted"
    STOPPED_BY_USER = "stopped_by_user"
    LAUNCHER_DIED = "launcher_died"
    NODE_LOST = "node_lost"


class Do(Word):
    """What can be done about an attempt that is over."""

    END = "end"
    STOP = "stop"
    RESTART = "restart"
    UNCOUNTED = "restart-uncounted"
    """As RESTART, but it spends nothing of --max-restarts."""
    OLDER = "restart-older"
    """From a checkpoint before the newest state."""
    ROLLBACK = "rollback"
    """From the newest state before the bad step (if it went bad again: from an older one), past the data in between."""


class StopKind(Word):
    """Who wants the run to stop, which settles the exit code: a person (103) or the machine's owner (75)."""

    USER = "user"
    PREEMPTION = "preemption"


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one run, as asked for."""

    max_restarts: int = 3
    window: float = 3600.0
    no_progress_limit: int = 3
    backoff: tuple[float, float] = (1.0, 300.0)
    """From the first wait between restarts without progress to the longest."""
    grace: float = 45.0
    hang_timeout: float | None = None
    """Seconds without a step in the train phase; None learns it from the steps seen; infinity never fires."""
    startup_timeout: float = 1800.0
    stuck_after: float = 20.0
    """Seconds that a process may outlive its SIGKILL before the run ends with 106."""
    actions: Mapping[Cause, Do] = field(default_factory=dict)
    """What to do about a cause where that is not the default."""

    def __post_init__(self) -> None:
        """ValueError for limits that nothing can keep."""
        times = (self.window, *self.backoff, self.grace, self.startup_timeout, self.hang_timeout or 0.0)
        if not min(self.max_restarts, self.no_progress_limit - 1, *times) >= 0:
            raise ValueError("a limit of its policy is too low")


@dataclass(frozen=True, slots=True)
class Exit:
    """A process of the attempt that is gone. `rank` None is the launcher, SCRIPT the script that has started the ranks.
    `status`: exit code, or minus the signal; None where the system did not tell."""

    rank: int | None
    status: int | None
    at: float
    spared: bool = False
    """The script started it, and may have ended it or do without it: no failure as long as the script goes on."""


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception that ended a rank's script, recorded by the rank before it began to exit."""

    rank: int
    type: str
    message: str
    frame: str
    at: float
    exit_code: int = 1
    """With which the rank is about to exit."""
    bad_step: int = -1
    """The first step that is not to be kept, or -1."""
    data_step: int = -1
    """The index of the data that it was at, or -1 where the script does not say."""
    kinds: tuple[str, ...] = ()
    """Its type and those it derives from, nearest first, with their modules unless built in."""
    errno: int | None = None
    because: tuple[Raised, ...] = ()
    """What it was explicitly raised from, nearest first."""
    frames: tuple[str, ...] = ()
    """The innermost frames of the script, innermost last."""
    unread: tuple[str, int] | None = None
    """The file whose content it could make no sense of, and how many bytes that has."""
    spared: bool = False
    """As Exit.spared."""


@dataclass(frozen=True, slots=True)
class RankView:
    """A living rank as seen by its beats and by the kernel."""

    rank: int
    step: int
    phase: Phase
    beat_at: float
    announces: bool
    """Whether its loop says its phases itself; otherwise only optimizer steps are known."""
    stopped: bool = False
    """State T: a signal or a debugger has stopped it."""
    cpu: float = 0.0
    """Seconds of CPU that it (and, once it is quiet, its children too) has used."""
    starved: float = 0.0
    """Seconds that its main thread was ready to run and had to wait for a CPU."""
    disk: bool = False
    """A thread of it is in an uninterruptible wait (state D): a disk or a file server."""
    held: str = ""
    """The wait that its main thread is in, if none but its own group can end that (a lock, a collective); the same text
    as long as it is the same wait. Empty where the kernel does not tell, and where anything else could wake it."""
    sleeps: bool = False
    """It waits for the time alone, for more than some seconds and at most ten minutes: that ends by itself."""
    polls: bool = False
    """Its main thread sleeps and looks, again and again, and nothing else of it could be at work."""
    replaced: bool = False
    """Its process has become another program (exec): what the beats say is not about that one."""
    sample: Sample | None = None
    sampled: bool = False
    """The newest sample of what it does while it is silent, and whether there are any to be had."""
    own: float = 0.0
    """Seconds of its steps so far that were its own work: data and forward pass, not the waiting for other ranks."""
    apart: bool = False
    """The script started it, and it is in no group: it may wait for anybody, as a worker waits for its next task."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What one look at the world saw."""

    now: float
    ranks: tuple[RankView, ...] = ()
    steps: Mapping[int, int] = field(default_factory=dict)
    """By rank, the last step finished, -1 where nothing tells which of the run's it is; of ranks that have gone too, and only
    of those that have finished one."""
    group: Group | None = None
    """None before there is one."""
    exits: tuple[Exit, ...] = ()
    raised: tuple[Raised, ...] = ()
    alive: tuple[int, ...] = ()
    """Of an attempt that is being stopped, the pids that are not yet gone, whoever their parent is."""
    checkpoint_step: int = -1
    """Newest committed checkpoint, or -1."""
    checkpoints: tuple[int, ...] = ()
    """Steps with a committed checkpoint, oldest first; looked up once nothing is alive."""
    saves: int = 0
    """How often the script has saved in its own format in this attempt."""
    own_step: int = -1
    """The newest step that the script has proven to have kept by itself: saved, or gone on from. -1 if none."""
    own_unplaced: bool = False
    """Whether it has saved something of which nothing tells the step."""
    safe_step: int = -1
    """The newest step that a restart could go on from, on disk or in memory, or -1."""
    standby: bool = False
    """The next group waits, ready to be released."""
    stacks: Stacks | None = None
    """Where the ranks were when they were last asked."""
    log_grew_at: float = 0.0
    launch_error: str = ""
    """Why the launcher could not even be started."""
    evidence: Evidence = field(default_factory=Evidence)
    stop: StopKind | None = None
    stop_now: bool = False
    """The stop was asked for a second time, or with --now."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happened, with the evidence in one sentence."""

    cause: Cause
    reason: str
    at: float
    rank: int | None = None
    signal: int | None = None
    exit_code: int | None = None
    step: int = -1
    frame: str = ""
    failed_at: float = 0.0
    """The earliest moment at which the failure can be placed."""
    collateral: tuple[int, ...] = ()
    """Ranks that failed because another one had."""
    bad_step: int = -1
    """The first step that is not to be kept, or -1: the one that failed."""
    data_step: int = -1
    """The index of the data that the failing rank was at, or -1."""

    @property
    def signature(self) -> tuple[str, ...]:
        """Two failures with the same signature are taken for the same bug."""
        parts = (self.cause.value, self.frame, self.step, self.exit_code, self.signal)
        return tuple(str(part) for part in parts)


@dataclass(frozen=True, slots=True)
class Rollback:
    """An order to all attempts after `attempt`: what attempts up to that one saved of step `before` and later is not for
    them, and going on from what is left they pass over the data up to index `skip_to`."""

    attempt: int
    before: int
    skip_to: int = 0


@dataclass(frozen=True, slots=True)
class Ground:
    """What there is to go on from when the attempt `attempt` is over."""

    attempt: int = -1
    newest: int = -1
    """The newest step that is safe, on disk or in memory."""
    checkpoints: tuple[int, ...] = ()
    """The steps on disk, oldest first."""


@dataclass(frozen=True, slots=True)
class History:
    """What the attempts so far say about the next one."""

    restarts: tuple[float, ...] = ()
    """When a counted restart was decided, since the last progress."""
    barren: int = 0
    """Attempts in a row that left no new checkpoint."""
    startup_failures: int = 0
    """Attempts in a row that failed by themselves before their first step."""
    best_step: int = -1
    """The highest step that was kept: a checkpoint of ours, or the script's own."""
    signature: tuple[str, ...] | None = None
    """Of the last failure."""
    rollback: Rollback | None = None
    """The newest one, in force ever after."""
    rollbacks: int = 0
    """How many there were since the run last left a bad step behind."""
    bad_step: int = -1
    """The step that the newest one went back before."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What we do: launch again after `delay` seconds, or end the run with `exit_code`."""

    reason: str
    delay: float | None = None
    exit_code: ExitCode = ExitCode.FINISHED
    state: RunState = RunState.FAILED
    do: Do = Do.STOP
    counted: bool = False
    """Whether the restart is one of --max-restarts."""
