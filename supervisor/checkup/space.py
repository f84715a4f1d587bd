"""The room for a run: memory, shared memory, disk, and the kind of disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from supervisor.checkup.checks import Check, Host, Verdict, read
from trainer.rundir.machine.shm import ROOT, problem

GB = 10**9
_REMOTE = ("nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "9p", "fuse.sshfs", "fuse.glusterfs")
_FLEETING = {"tmpfs": "a reboot empties it", "ramfs": "a reboot empties it", "overlay": "it goes with the container"}


_SHM_HINT = "mount a tmpfs there (docker run --ipc=private --shm-size=8g)"


def without_shm(root: Path = ROOT) -> str:
    """The reason why shared memory cannot be used, and the cost of that. "" if it can be used."""
    missing = problem(root)
    cost = (
        "no snapshots, so a crash goes back to the newest checkpoint on disk; DataLoader workers cannot share tensors"
    )
    return f"{missing}: {cost}" if missing else ""


def warnings() -> list[str]:
    """The warnings of a launch about the places that it depends on, one sentence each."""
    return [f"{text}; {_SHM_HINT}" for text in (without_shm(),) if text]


def shm(host: Host) -> Check:
    if text := without_shm(host.shm):
        return Check("shm", Verdict.WARN, text, _SHM_HINT)
    size = shutil.disk_usage(host.shm)
    text = f"{size.free / GB:.1f} of {size.total / GB:.1f} GB free in {host.shm}"
    if size.total < GB:
        text += ": DataLoader workers and NCCL die with a bus error when it is full"
        return Check("shm", Verdict.WARN, text, "docker run --shm-size=8g (or --ipc=host)")
    return Check("shm", Verdict.OK, text)


def disk(host: Host) -> Check:
    where = host.nearest
    free = shutil.disk_usage(where).free
    text = f"{free / GB:.1f} GB free for {host.run_dir}"
    if not os.access(where, os.W_OK | os.X_OK):
        return Check("disk", Verdict.BAD, f"{where} cannot be written", "give another --run-dir")
    if free < GB:
        return Check(
            "disk", Verdict.BAD, f"{text}: checkpoints will not fit", "make room: supervise gc, supervise ckpt prune"
        )
    if free < 10 * GB:
        return Check("disk", Verdict.WARN, text, "make room: supervise gc, supervise ckpt prune")
    return Check("disk", Verdict.OK, text)


def _mount(host: Host) -> str:
    """The type of the file system that holds the run directory."""
    where, best, kind = str(host.nearest.resolve()), "", "unknown"
    for line in read(host.proc / "self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4].replace("\\040", " ")
        if len(point) >= len(best) and (where == point or where.startswith(point.rstrip("/") + "/")):
            best, kind = point, after.split()[0]
    return kind


def filesystem(host: Host) -> Check:
    kind = _mount(host)
    if kind in _FLEETING:
        text = f"{host.run_dir} is on {kind}: {_FLEETING[kind]}"
        return Check("filesystem", Verdict.WARN, text, "give a --run-dir on a disk or a volume")
    if kind in _REMOTE:
        text = f"{host.run_dir} is on {kind}: slow to sync, and locks depend on its server"
        return Check("filesystem", Verdict.WARN, text, "a local --run-dir is faster, if it outlives the machine's jobs")
    return Check("filesystem", Verdict.OK, f"{host.run_dir} is on {kind}")


def memory(host: Host) -> Check:
    total = next(
        (int(s.split()[1]) * 1024 for s in read(host.proc / "meminfo").splitlines() if s.startswith("MemTotal")), 0
    )
    limit = min((value for value in _limits(host)), default=total)
    if limit < total:
        text = f"a cgroup allows {limit / GB:.1f} of {total / GB:.1f} GB; beyond it ranks are killed"
        verdict = Verdict.WARN if limit < 4 * GB else Verdict.OK
        return Check(
            "memory",
            verdict,
            text,
            "docker run --memory, systemd MemoryMax=, or the job's --mem" if verdict is Verdict.WARN else "",
        )
    return Check("memory", Verdict.OK, f"{total / GB:.1f} GB, no cgroup limit")


def _limits(host: Host) -> list[int]:
    """The memory limits of the cgroups that this process is in, version 1 and 2, in bytes."""
    found = []
    for line in read(host.proc / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        root, name = (
            (host.cgroup, "memory.max") if not controllers else (host.cgroup / "memory", "memory.limit_in_bytes")
        )
        inner = root / path.lstrip("/")
        # In a container the path is the host's, and the container's own limit is at the root.
        for folder in [inner, *inner.parents]:
            text = read(folder / name).strip()
            if text.isdecimal():
                found.append(int(text))
            if folder == root:
                break
    return found
