"""Checks of this machine. Each one looks for one possible harm to a run, and tells what to do about it."""

from __future__ import annotations

import enum
import os
import pwd
import resource
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trainer.rundir.variables import MARK

_STALE = ("PET_", "MASTER_", "TORCHELASTIC_", "SUPERVISE_")
_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")


class Verdict(enum.Enum):
    OK = "ok"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `next` tells what to do about it. Empty if there is nothing to do."""

    name: str
    verdict: Verdict
    text: str
    next: str = ""


_FIRST_USER = 1000
"""The first uid of a person (SYS_UID_MAX of login.defs(5), plus one)."""


@dataclass(frozen=True, slots=True)
class Host:
    """The places where the checks look."""

    run_dir: Path
    nproc: int | None = None
    proc: Path = Path("/proc")
    cgroup: Path = Path("/sys/fs/cgroup")
    shm: Path = Path("/dev/shm")
    systemd: Path = Path("/run/systemd/system")
    linger: Path = Path("/var/lib/systemd/linger")
    logind: tuple[Path, ...] = tuple(Path(root) / "systemd" for root in ("/etc", "/run", "/usr/local/lib", "/usr/lib"))
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    now: float = field(default_factory=time.time)

    @property
    def nearest(self) -> Path:
        """The run directory, or the nearest folder above it that exists."""
        path = self.run_dir.absolute()
        return next(p for p in [path, *path.parents] if p.is_dir())


def read(path: Path) -> str:
    """The text of the file. Empty if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def cores(host: Host) -> Check:
    usable, there = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    quota, period = (read(host.cgroup / "cpu.max").split() or ["max", "100000"])[:2]
    allowed = float(usable) if quota == "max" else min(usable, int(quota) / int(period))
    text = f"{allowed:g} of {there} cores are ours"
    if host.nproc is not None and host.nproc > allowed:
        hint = f"--nproc {max(1, int(allowed))}, or OMP_NUM_THREADS=1"
        return Check("cores", Verdict.WARN, f"{text}, for {host.nproc} ranks that compute on the CPU", hint)
    if allowed < there:
        return Check(
            "cores", Verdict.WARN, f"{text}: a library that counts {there} starts too many threads", "OMP_NUM_THREADS=1"
        )
    return Check("cores", Verdict.OK, text)


def limits(host: Host) -> Check:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    core = resource.getrlimit(resource.RLIMIT_CORE)[0]
    if 0 <= files < 1024:
        return Check(
            "limits",
            Verdict.WARN,
            f"{files} open files a process: DataLoader workers run out of them",
            "ulimit -n 65536",
        )
    if core != 0 and not read(host.proc / "sys/kernel/core_pattern").startswith("|"):
        text = "core dumps are on: a rank that aborts writes all its memory to disk before it can be replaced"
        return Check("limits", Verdict.WARN, text, "ulimit -c 0")
    return Check("limits", Verdict.OK, f"{'unlimited' if files < 0 else files} open files, no core files")


def clock(host: Host) -> Check:
    ours = Path(__file__).stat().st_mtime
    if host.now < ours - 86400:
        day = time.strftime("%Y-%m-%d", time.gmtime(host.now))
        return Check(
            "clock", Verdict.WARN, f"it is {day} here, before this program was installed", "set the clock, or start NTP"
        )
    return Check("clock", Verdict.OK, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(host.now)))


def variables(host: Host) -> Check:
    if MARK in host.environ:
        return Check(
            "environment",
            Verdict.WARN,
            "this is inside a run: what is launched here counts as part of it",
            "use another shell",
        )
    stale = sorted(n for n in host.environ if n.startswith(_STALE) or n in _RANK)
    if stale:
        text = f"{' '.join(stale)} set: left over from a launcher, or meant for this one"
        return Check("environment", Verdict.WARN, text, f"unset {' '.join(stale)}")
    return Check("environment", Verdict.OK, "nothing of another launcher is set")


def home(host: Host) -> Check:
    """The home folder, for the user's caches, and the folder for temporary files."""
    try:
        folder = Path(tempfile.gettempdir())
    except OSError:
        text = "no folder takes temporary files: Python's own and torch's fail at their first"
        return Check("home", Verdict.BAD, text, "set TMPDIR to a folder that you can write to")
    known = host.environ.get("HOME") or _passwd_home()
    if not known:
        text = f"user {os.getuid()} has no passwd entry and no HOME: libraries that ask for either fail"
        return Check("home", Verdict.WARN, text, "set HOME (in Docker: -e HOME=/tmp)")
    if not os.access(known, os.W_OK):
        text = f"{known} cannot be written to: a script's imports are learned anew in each run, and caches fail"
        return Check("home", Verdict.WARN, text, "set HOME, or XDG_CACHE_HOME and XDG_STATE_HOME")
    return Check("home", Verdict.OK, f"{known} and {folder} can be written to")


def _passwd_home() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return ""


def linger(host: Host) -> Check:
    """What the end of a user's last login does to a detached run (logind.conf(5)). System users are exempt from it."""
    user = host.environ.get("USER") or host.environ.get("LOGNAME") or str(os.getuid())
    if not host.systemd.is_dir() or os.getuid() < _FIRST_USER:
        return Check("linger", Verdict.OK, "no logout ends a detached run")
    if (host.linger / user).exists():
        return Check("linger", Verdict.OK, f"{user}'s processes outlive a logout")
    harm = []
    if _logind(host, "RemoveIPC", "yes"):
        harm.append("deletes its snapshots in /dev/shm (RemoveIPC)")
    if _logind(host, "KillUserProcesses", "no"):
        harm.append("ends it (KillUserProcesses)")
    if not harm:
        return Check("linger", Verdict.OK, "no logout harms a detached run")
    text = f"the last logout of {user} {' and '.join(harm)} while a run goes on detached"
    return Check("linger", Verdict.WARN, text, f"loginctl enable-linger {user}")


def _logind(host: Host, key: str, default: str) -> bool:
    """Whether `key` is on. Later files, and later lines, are stronger; folders as in systemd's own order."""
    value, files = default, dict[str, Path]()
    for folder in reversed(host.logind):
        files |= {path.name: path for path in sorted((folder / "logind.conf.d").glob("*.conf"))}
    main = next((path for folder in host.logind if (path := folder / "logind.conf").is_file()), None)
    for path in [*([main] if main else []), *(files[name] for name in sorted(files))]:
        for line in read(path).splitlines():
            name, _, given = line.strip().partition("=")
            value = given.strip() if name.strip() == key else value
    return value.lower() in ("yes", "true", "on", "1")
