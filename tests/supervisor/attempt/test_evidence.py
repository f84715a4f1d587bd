"""What the evidence is read from: the kernel's log, the counters of memory groups, the end of a log, the disks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.attempt import kernel_log
from supervisor.attempt.evidence import Witness, last_lines
from supervisor.attempt.gpus import Gpus
from supervisor.attempt.kernel_log import KernelLog, oom_kills
from supervisor.attempt.steps import made
from supervisor.core.evidence import Xid
from supervisor.core.model import SCRIPT
from supervisor.process.room import disks, places
from trainer.rundir.codes import Phase
from trainer.rundir.layout import AttemptDir
from trainer.rundir.machine import cgroup
from trainer.rundir.machine.cgroup import MemoryGroup, NoGroup, own_group
from trainer.rundir.records.beats import UNPLACED, Beat, Source

KERNEL = """python invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0
memory: usage 65536kB, limit 65536kB, failcnt 912
oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,oom_memcg=/a,task_memcg=/a,task=python,pid=41,uid=0
Memory cgroup out of memory: Killed process 41 (python) total-vm:8kB, anon-rss:65116kB, file-rss:6508kB, shmem-rss:4kB
sh invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0
Out of memory: Killed process 42 (a) b) total-vm:9kB, anon-rss:8kB, file-rss:0kB""".splitlines()


def test_oom_kills_are_read_from_the_kernels_log() -> None:
    """Who was killed, what it held, how full which limit was; the numbers of one kill are not the next one's."""
    first, second = oom_kills(KERNEL)

    assert (first.pid, first.name, first.held) == (41, "python", (65116 + 6508 + 4) * 1024)
    assert (first.used, first.limit) == (65536 * 1024, 65536 * 1024)
    assert (second.pid, second.held, second.used, second.limit) == (42, 8192, None, None)


@given(st.lists(st.one_of(st.text(), st.sampled_from(KERNEL))))
def test_any_log_is_read(lines: list[str]) -> None:
    """Whatever else a kernel says costs nothing but a line passed over."""
    assert len(oom_kills(lines)) == sum("Killed process 4" in line for line in lines)


def test_log_that_cannot_be_read(tmp_path: Path) -> None:
    """It names nobody, which is not the same as naming that nobody was killed."""
    log = KernelLog(tmp_path / "kmsg")
    log.read()

    assert log.unreadable is not None and "No such file" in log.unreadable
    assert log.victims() is None


def test_no_error_of_a_device_is_missed_or_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much else the kernel says before it and after it, and from the driver where the log cannot be read."""
    monkeypatch.setattr(kernel_log, "_KEPT", 3)
    path = tmp_path / "kmsg"
    path.touch()
    witness = Witness(AttemptDir(tmp_path / "0000"), 0, "mark", [])
    witness._kernel = log = KernelLog(path)

    def said(*lines: str) -> tuple[Xid, ...]:
        for text in lines:
            with path.open("a") as file:
                file.write(f"3,1,1,-;{text}\n")
            log.read()
        return witness.hear((), (), {}, {}, {}).xids

    noise = [f"I/O error {n}" for n in range(5)]
    assert said(*noise) == ()
    first = Xid("0000:3b:00", 79, None, "fallen off the bus")
    assert said("NVRM: Xid (PCI:0000:3b:00): 79, fallen off the bus", *noise) == said(*noise) == (first,)
    assert len(log.lines) == 3

    log.unreadable = "it has overwritten itself"
    second = Xid("0000:3c:00", 48)
    witness.gpus = cast(Gpus, SimpleNamespace(devices=(), news=lambda: [second]))
    assert said(*noise) == (first, second)
    witness.gpus = None
    assert said("NVRM: Xid (PCI:0000:3d:00): 62", *noise) == (first, second, Xid("0000:3d:00", 62))


def test_an_error_that_every_rank_has_outlived_explains_nothing(tmp_path: Path) -> None:
    """As of a device that the run does not use: once all ranks have made many steps since, it is no evidence any more,
    also if the kernel says it again, or a second training begins to count anew."""
    path = tmp_path / "kmsg"
    path.touch()
    witness = Witness(AttemptDir(tmp_path / "0000"), 0, "mark", [])
    witness._kernel = KernelLog(path)
    pids: dict[int | None, int] = {None: 2, SCRIPT: 3, 0: 4, 1: 5}

    def heard(*made: int, line: str = "") -> list[int]:
        with path.open("a") as file:
            file.write(f"3,1,1,-;{line}\n")
        witness._kernel.read()
        return [xid.number for xid in witness.hear((), (), pids, {}, dict(enumerate(made))).xids]

    lost = "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."
    assert heard(1000, line=lost) == [79] and witness.evidence.pids == pids  # whose an error is, also of a hang
    assert heard(1049, 60) == heard(1060, 49) == [79]
    assert heard(1060) == [79]
    assert heard(1050, 50) == []
    assert heard(1050, 50, line=lost) == heard(3, 3) == []
    assert heard(3, 3, line="NVRM: Xid (PCI:0000:3c:00): 62") == heard(52, 53) == [62]


def test_steps_made_are_those_of_the_attempt() -> None:
    """Wherever it went on from, and if nobody knows; none before a rank trains."""
    at = [(50, 40, Phase.TRAIN), (7, UNPLACED, Phase.EVAL), (7, -1, Phase.TRAIN), (40, 40, Phase.RESTORE)]
    beats = [Beat(n, 1, step, phase, 9.0, Source.HOOK, 0, first, 0.0) for n, (step, first, phase) in enumerate(at)]
    assert made(beats) == {0: 10, 1: 7, 2: 7}


def test_pids_of_another_namespace_say_nothing(tmp_path: Path) -> None:
    """In a container the kernel's log names our ranks by pids that we do not know."""
    path = tmp_path / "kmsg"
    path.touch()
    witness = Witness(AttemptDir(tmp_path / "0000"), 0, "mark", [])
    found = []
    for ours in (True, False):
        witness._kernel = KernelLog(path)
        witness._kernel.names_ours = ours
        with path.open("a") as file:
            file.write("3,1,1,-;NVRM: Xid (PCI:0000:3b:00): 95, pid=77, name=python, Uncontained\n")
        witness._kernel.read()
        found += [xid.pid for xid in witness.hear((), (), {}, {}, {}).xids]
        witness._found.clear()
    assert found == [77, None]


def group_files(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"cgroup.procs": "", **files}.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_counters_of_version_1(tmp_path: Path) -> None:
    """Its own files are read; its name for "no limit" is no limit."""
    files = {
        "memory__oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        "memory__failcnt": "912\n",
        "memory__usage_in_bytes": "4096\n",
        "memory__max_usage_in_bytes": "8192\n",
        "memory__stat": "cache 0\nhierarchical_memory_limit 9223372036854771712\n",
    }
    group = MemoryGroup(group_files(tmp_path / "a", **files), 1)

    assert group.oom_kills() == 3
    assert group.counters() == {"oom_kills": 3, "hits": 912, "limit": None, "used": 4096, "peak": 8192}


def test_counters_of_version_2(tmp_path: Path) -> None:
    """The narrowest limit on the way up is the one that holds; a kernel without memory.peak leaves it out."""
    group_files(tmp_path / "a", memory__max="1000\n")
    files = {"memory__events": "low 0\nmax 7\noom 1\noom_kill 1\n", "memory__current": "900\n", "memory__max": "max\n"}
    group = MemoryGroup(group_files(tmp_path / "a" / "b", **files), 2)

    assert group.counters() == {"oom_kills": 1, "hits": 7, "limit": 1000, "used": 900, "peak": None}
    (group.path / "memory.events").unlink()
    with pytest.raises(NoGroup, match=r"memory\.events"):
        group.oom_kills()


@pytest.mark.parametrize(
    ("places_", "mounts", "expected"),
    [
        ("4:memory:/job", "30 20 0:1 / {0} rw - cgroup cgroup rw,memory", ("job", 1)),
        ("0::/job", "30 20 0:1 / {0} rw - cgroup2 cgroup2 rw", ("job", 2)),
        # A container is shown its own part only, under the name that the host gave it.
        ("4:memory:/docker/x/job", "30 20 0:1 /docker/x {0} rw - cgroup cgroup rw,memory", ("job", 1)),
        ("4:memory:/elsewhere", "30 20 0:1 / {0} rw - cgroup cgroup rw,memory", ("", 1)),
        # Version 2 is mounted too, but counts no memory.
        (
            "4:memory:/job\n0::/",
            "9 2 0:1 / /none rw - cgroup2 x rw\n30 20 0:1 / {0} rw - cgroup c rw,memory",
            ("job", 1),
        ),
        ("0::/", "30 20 0:1 / {0} rw - cgroup2 cgroup2 rw", None),
        ("4:cpu:/job", "30 20 0:1 / {0} rw - cgroup cgroup rw,cpu", None),
        ("", "", None),
    ],
)
def test_own_group_is_found(tmp_path: Path, places_: str, mounts: str, expected: tuple[str, int] | None) -> None:
    """In both versions, in a container, in the root group: the folder of the process's own group, or why there is
    none."""
    mount = tmp_path / "cgroup"
    group_files(mount / "job", memory__events="oom_kill 0\n")
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(places_ + "\n")
    (proc / "mountinfo").write_text(mounts.format(mount) + "\n" if mounts else "")

    if expected is None:
        with pytest.raises(NoGroup):
            own_group(proc)
    else:
        found = own_group(proc)
        assert (found.path, found.version) == (mount / expected[0] if expected[0] else mount, expected[1])


def test_group_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where limits are not taken (no memory controller), it is refused, and nothing of it stays."""
    parent = group_files(tmp_path / "a")
    monkeypatch.setattr(cgroup, "own_group", lambda: MemoryGroup(parent, 2))
    monkeypatch.setattr(Path, "write_text", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))

    with pytest.raises(NoGroup, match="Permission denied"):
        cgroup.make("mark.0", 1 << 20)
    assert [path.name for path in parent.iterdir()] == ["cgroup.procs"]


@given(st.binary(max_size=2000))
def test_last_lines_of_anything(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Any bytes give few, short lines of text; a progress bar gives what it showed last."""
    log = tmp_path_factory.mktemp("log") / "rank0.log"
    log.write_bytes(data + b"\n10%\r20%\r30%\n")

    lines = last_lines(log)

    assert lines[-1] == "30%"
    assert len(lines) <= 30 and all(len(line) <= 500 and "\n" not in line for line in lines)


def test_last_lines_of_no_log(tmp_path: Path) -> None:
    """A log that is not there has no lines."""
    assert last_lines(tmp_path / "rank0.log") == []


def test_disks_that_a_script_may_write_to(tmp_path: Path) -> None:
    """The run's, its folder, those it was given: each disk once, and no look at what is not there."""
    (tmp_path / "out").mkdir()
    command = ["train.py", f"--out={tmp_path / 'out'}", "out", "--lr", "0.1", "no/such", "x" * 5000, "--flag"]

    found = places(tmp_path / "run", str(tmp_path), command)

    assert found.count(tmp_path / "out") == 2
    assert tmp_path / "no/such" not in found
    assert all(disk["total"] > 0 for disk in disks([tmp_path, tmp_path, tmp_path / "gone"]))
    assert len(disks([tmp_path, tmp_path / "out"])) == 1
