"""All path names inside a run directory, each in one place.

run.json  events.jsonl  lock  lock.json  stop  retry  look  metrics.jsonl  curve  lanes  pace.json  options.json
supervisor.log
attempts/0003/    beats  launcher.log  rank0.log  error.rank0.json  notes.rank0.jsonl  saves.rank0.jsonl  evidence.json
                  stacks/
checkpoints/      step-00000040/{manifest.json, rank0.safetensors}  latest  quarantine/
faults/           0001.spec  0001.fired
leaders/          0001         of a run over several nodes; events.0001.jsonl: what a leader saw after a later one began

What works within one machine only (mapped memory, FIFOs) is in the place of each node: standby/ and each attempt's
beats. On one node the place is the run directory itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# Only as many digits as fit 64 bits: no step is larger.
_STEP = re.compile(r"\Astep-([0-9]{8,18})\Z")
_ATTEMPT = re.compile(r"\A[0-9]{4,9}\Z")


SCRIPT = -1
"""In place of a rank: the process of a script that has started its ranks itself and is not one of them."""


@dataclass(frozen=True, slots=True)
class AttemptDir:
    """The folder of one attempt; it is never deleted or reused."""

    path: Path
    place: Path | None = None
    """Its folder on this node, if that is another one."""
    node: int = 0
    """The number of this node. What each node writes has the number in its name, but for that of the leader, 0."""

    @property
    def here(self) -> Path:
        """The folder for what works within this machine only."""
        return self.place or self.path

    @property
    def _node(self) -> str:
        return f".node{self.node}" if self.node else ""

    @property
    def beats(self) -> Path:
        return self.here / "beats"

    @property
    def mirror(self) -> Path:
        """The beats of the ranks on other nodes, for people."""
        return self.path / "beats.others"

    @property
    def launcher_log(self) -> Path:
        return self.path / f"launcher{self._node}.log"

    @property
    def evidence(self) -> Path:
        """The evidence of its failure; supervisor/attempt/evidence.py explains each field."""
        return self.path / f"evidence{self._node}.json"

    @property
    def program(self) -> Path:
        """The script's own files that rank 0 has loaded."""
        return self.path / "program.json"

    @property
    def stacks(self) -> Path:
        return self.path / "stacks"

    @property
    def traces(self) -> str:
        """What the names of the ranks' dumps of torch's flight recorder begin with; the rank follows."""
        return str(self.path / "nccl_trace_rank_")

    def trace(self, rank: int) -> Path:
        """The dump of that rank."""
        return Path(f"{self.traces}{rank}")

    def trace_pipe(self, rank: int) -> Path:
        """The pipe through which that rank can be asked for a dump."""
        return Path(f"{self.traces}{rank}.pipe")

    @property
    def groups(self) -> Path:
        """The place of each rank when the attempt hung, for people."""
        return self.stacks / f"groups{self._node}.txt"

    @property
    def ended(self) -> Path:
        """How ranks that the script started have ended. The process that waited for them writes it."""
        return self.path / "ended.jsonl"

    @property
    def times(self) -> Path:
        """When its logs grew; supervisor/reading/log_times.py explains it."""
        return self.path / f"times{self._node}"

    def rank_log(self, rank: int) -> Path:
        """The log of `rank`. For SCRIPT: the log that it had before it was known that it is not a rank."""
        return self.path / f"rank{max(rank, 0)}.log"

    def error(self, rank: int) -> Path:
        return self.path / ("error.script.json" if rank == SCRIPT else f"error.rank{rank}.json")

    def notes(self, rank: int) -> Path:
        return self.path / f"notes.rank{rank}.jsonl"

    def reached(self, rank: int) -> Path:
        """Is there once `rank` has called Checkpointer.restore(); trainer/rundir/records/parking.py explains it."""
        return self.path / f"restore.rank{rank}.json"

    @property
    def resumed(self) -> Path:
        """The step from which it goes on, if its ranks are on several nodes (trainer/checkpoint/nodes/lineage.py)."""
        return self.path / "resumed.json"

    @property
    def durable(self) -> Path:
        """The list of the script's own saves that are synced."""
        return self.path / "durable.jsonl"

    @property
    def loaded(self) -> Path:
        """Is there if a rank may have loaded what the script should go on from (trainer/rank/journal/missed.py)."""
        return self.path / "loaded"

    def saves(self, rank: int) -> Path:
        """The journal of the script's own saves and loads; trainer/rundir/records/journal.py explains it."""
        return self.path / f"saves.rank{rank}.jsonl"


@dataclass(frozen=True, slots=True)
class RunDir:
    """One run's folder: one request, many attempts."""

    path: Path
    place: Path | None = None
    """The folder of this node alone, of a run over several nodes."""
    node: int = 0

    @property
    def here(self) -> Path:
        """The folder for what works within this machine only."""
        return self.place or self.path

    @property
    def run_json(self) -> Path:
        return self.path / "run.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def leaders(self) -> Path:
        """Its leaders, of a run over several nodes (supervisor/run/folder/epoch.py)."""
        return self.path / "leaders"

    def events_of(self, leader: int) -> Path:
        """What that leader has told after a later one had begun."""
        return self.path / f"events.{leader:04d}.jsonl"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def holder(self) -> Path:
        """The holder of the lock, for people. Only the flock on `lock` counts."""
        return self.path / "lock.json"

    @property
    def supervisor_log(self) -> Path:
        return self.path / "supervisor.log"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def curve(self) -> Path:
        """The steps, times and losses that the supervisor has seen (supervisor/live/curve.py)."""
        return self.path / "curve"

    @property
    def lanes(self) -> Path:
        """What each rank did beside its steps (supervisor/live/lanes.py)."""
        return self.path / "lanes"

    @property
    def trackers(self) -> Path:
        """The choices of the program's trackers in the first attempt, for later attempts."""
        return self.path / "trackers"

    @property
    def boards(self) -> Path:
        """The folders that the program writes for TensorBoard, as JSON lines."""
        return self.trackers / "boards"

    @property
    def numbers(self) -> Path:
        """How the run fares, for the program's own trackers (trainer/rundir/records/boards.py)."""
        return self.path / "numbers.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def stop(self) -> Path:
        """Asks the supervisor to stop: it contains `ask` or `now`, and is removed when it was read."""
        return self.path / "stop"

    @property
    def look(self) -> Path:
        """Asks the supervisor of a run over several nodes for a look at all ranks (supervisor/nodes/lead/looks.py)."""
        return self.path / "look"

    @property
    def retry(self) -> Path:
        """Asks a supervisor that waits before an attempt to begin it now. It contains the attempt's number."""
        return self.path / "retry"

    @property
    def standby(self) -> Path:
        """Groups that wait, or waited before they became an attempt."""
        return self.here / "standby"

    @property
    def modules(self) -> Path:
        """The modules that the script has imported, for the fork server."""
        return self.path / "modules.json"

    @property
    def variables(self) -> Path:
        """The variables that the script has set, for the fork server."""
        return self.path / "variables.json"

    @property
    def program(self) -> Path:
        """The files of the script's program, as the newest attempt has loaded them."""
        return self.path / "program.json"

    @property
    def options(self) -> Path:
        """The options of its script, and the frameworks that it uses (trainer.adapters.program)."""
        return self.path / "options.json"

    @property
    def pace(self) -> Path:
        """The durations of its steps, phases and restarts, as the supervisor has seen them."""
        return self.path / "pace.json"

    @property
    def torn(self) -> Path:
        """The folders that were renamed because a save into them never ended, with their new names."""
        return self.path / "torn.jsonl"

    @property
    def kept(self) -> Path:
        """What the script had saved, had not loaded, and has saved over since."""
        return self.path / "kept"

    @property
    def faults(self) -> Path:
        return self.path / "faults"

    def launcher_log(self, group: str) -> Path:
        """The log of a group's launcher until it has an attempt, where the node's place may be on another disk."""
        return self.path / "launchers" / f"node{self.node}-{group}.log"

    @property
    def attempts_folder(self) -> Path:
        return self.path / "attempts"

    def attempt(self, number: int) -> AttemptDir:
        name = f"attempts/{number:04d}"
        return AttemptDir(self.path / name, self.place / name if self.place is not None else None, self.node)

    def attempts(self) -> list[int]:
        """The numbers of the attempts that have a folder, oldest first."""
        try:
            return sorted(int(p.name) for p in self.attempts_folder.iterdir() if _ATTEMPT.match(p.name))
        except (FileNotFoundError, NotADirectoryError):
            return []


def step_name(step: int) -> str:
    """The folder name of the checkpoint of `step`."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step in the folder name of a committed checkpoint. None for any other name."""
    match = _STEP.match(name)
    # A step has one name only: "step-0000000040" would be a second name for step 40.
    return int(match[1]) if match and step_name(int(match[1])) == name else None


def committed_steps(checkpoints: Path) -> list[int]:
    """The steps with a committed checkpoint folder, oldest first. They are not verified here."""
    try:
        names = [p.name for p in checkpoints.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(step for step in map(step_of, names) if step is not None)


def newest_checkpoint(checkpoints: Path) -> int:
    """The newest committed step, or -1."""
    steps = committed_steps(checkpoints)
    return steps[-1] if steps else -1
