"""The sides of a comparison: the same workload under supervise, under torchrun and under NVRx, each in its own folder.

Each is started with the step hook on its PYTHONPATH and with a fresh user cache, and everything that it started carries
the path of its step log in the environment, by which it is found and ended when the side is left, also by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from common import ROOT
from steps import HOOK, StepLog

from supervisor.reading.events_file import read_events
from trainer.rundir.machine.shm import remove, segment_of

SUPERVISE = str(Path(sys.executable).with_name("supervise"))
_MANY = "1000000"
ENDLESS = ["--max-restarts", _MANY, "--no-progress-limit", _MANY]
"""For supervise: as often as the benchmark kills. torchrun's --max-restarts says the same to torchrun."""
PEERS = ("nvrx", "torchrun-shared-store")
_STALE = ("SUPERVISE_", "TORCHELASTIC_", "PET_", "BENCH_")
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PYTHONPATH")
_COMPILES_ANEW = "PYTHONDONTWRITEBYTECODE"
"""With it a checkout is compiled anew by each process: 0.2 s of a launch, which nobody pays who has the wheel. pip has
compiled it, as it has compiled torch."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a side is started; `command` is followed by the workload."""

    name: str
    command: list[str]
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def supervised(self) -> bool:
        return Path(self.command[0]).name == "supervise"


def supervise(nproc: int, *more: str, name: str = "supervise") -> Plan:
    fixed = [SUPERVISE, "launch", "--quiet", "--run-dir", "run", "--nproc", str(nproc)]
    return Plan(name, [*fixed, *more])


def earlier(program: Path, nproc: int, *more: str, name: str) -> Plan:
    """The program of another commit, which must not find the modules of this one."""
    plan = supervise(nproc, *more, name=name)
    return Plan(name, [str(program), *plan.command[1:]], {"PYTHONPATH": HOOK})


def torchrun(nproc: int, shared_store: bool = False) -> Plan:
    """At its best: each restart with a store of its own.

    By default (`shared_store`) torchrun 2.13 gives a restarted group the store of the last one, where a rank may read
    the old address of another, and on gloo then fails once more, or waits for half an hour.
    """
    python = [sys.executable, "-m", "torch.distributed.run"]
    flags = [f"--nproc-per-node={nproc}", "--max-restarts=1000", "--log-dir=torchelastic"]
    if shared_store:
        return Plan("torchrun, shared store", [*python, *flags])
    return Plan("torchrun", [*python, *flags], {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})


def nvrx(nproc: int) -> Plan | None:
    """NVIDIA's in-job restart, if it is installed."""
    found = shutil.which("ft_launcher", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        return None
    return Plan("ft_launcher", [found, f"--nproc-per-node={nproc}", "--max-restarts=1000"])


def extra(names: Sequence[str], nproc: int) -> list[Plan]:
    """The peers that were asked for by name; one that is not installed is said to be missing."""
    plans = {PEERS[0]: nvrx(nproc), PEERS[1]: torchrun(nproc, shared_store=True)}
    for name in names:
        if plans[name] is None:
            print(f"{name}: ft_launcher is not installed, so there are no figures for it", file=sys.stderr)
    return [plan for name in names if (plan := plans[name]) is not None]


def environment(folder: Path) -> dict[str, str]:
    """Of a shell in which nobody supervises anything, with the step hook; the same on every side."""
    left_out = {*_RANK_VARIABLES, _COMPILES_ANEW}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_STALE) and k not in left_out}
    return {
        **kept,
        # The checkout as well: supervise does not find a module that is installed as editable.
        "PYTHONPATH": f"{HOOK}{os.pathsep}{ROOT}",
        "BENCH_STEPS": str(folder / "steps"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "TMPDIR": str(folder),
        "OMP_NUM_THREADS": "1",
    }


class Side:
    """A plan with its workload, running inside a `with`; at its end nothing of it is left."""

    def __init__(self, plan: Plan, workload: Sequence[str]) -> None:
        self.plan = plan
        self._workload = workload

    def __enter__(self) -> Side:
        self.folder = Path(tempfile.mkdtemp(prefix=f"bench-{self.plan.name.split()[0].strip(',')}-"))
        self.steps = StepLog(self.folder / "steps")
        asked = [value for flag, value in itertools.pairwise(self.plan.command) if flag == "--run-dir"]
        self.run = self.folder / (asked or ["run"])[-1]
        self.started = time.monotonic()
        with (self.folder / "output").open("wb") as output:
            self.process = subprocess.Popen(
                [*self.plan.command, *self._workload],
                cwd=self.folder,
                env=environment(self.folder) | dict(self.plan.env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, Exception):
            print(f"── the end of what {self.plan.name} said ──\n{self.output()[-3000:]}", file=sys.stderr)
        self._stop()
        with contextlib.suppress(OSError, ValueError, KeyError):
            # One that had to be killed leaves its snapshots.
            remove(segment_of(json.loads((self.run / "run.json").read_bytes())["mark"]))
        shutil.rmtree(self.folder, ignore_errors=True)

    def output(self) -> str:
        return (self.folder / "output").read_text(errors="replace")

    def events(self, *names: str) -> list[dict[str, Any]]:
        """The run's events of these names, or all; none under torchrun."""
        events = read_events(self.run / "events.jsonl")[0]
        return [event for event in events if not names or event["msg"] in names]

    def check(self) -> None:
        """RuntimeError if it has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.plan.name} has ended with {self.process.returncode}")

    def _stop(self) -> None:
        """Ended as a user would, so that it cleans up after itself; then whatever is left of it is killed."""
        for number in (signal.SIGINT, signal.SIGINT) if self.plan.supervised else (signal.SIGTERM,):
            if self.process.poll() is None:
                self.process.send_signal(number)
                time.sleep(0.2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        for _ in range(100):
            left = self.processes()
            if not left:
                break
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.05)
        self.process.wait()

    def processes(self) -> list[psutil.Process]:
        """Living processes that were started by this side."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                mine = process.environ().get("BENCH_STEPS") == str(self.folder / "steps")
                if mine and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found
