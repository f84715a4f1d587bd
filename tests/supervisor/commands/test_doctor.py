"""doctor names what will bite, with the next command, on machines made of files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch as real_torch
from click.testing import CliRunner

from supervisor.checkup import checks, installed, probes, space
from supervisor.checkup.checks import Check, Host, Verdict
from supervisor.checkup.installed import Namesake
from supervisor.commands import doctor
from tests.support.installed import install
from tests.support.supervised import ROOT

MOUNTS = """\
21 1 254:0 / / rw - ext4 /dev/vda rw
22 21 0:20 / {tmp}/net\\040disk rw - nfs4 server:/x rw
23 21 0:21 / {tmp}/box rw - overlay overlay rw
24 21 0:22 / {tmp}/ram rw - tmpfs tmpfs rw
"""


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A machine without limits, whose files a test may change."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:       64000000 kB\n")
    (tmp_path / "proc/self/mountinfo").write_text(MOUNTS.format(tmp=tmp_path))
    (tmp_path / "proc/self/cgroup").write_text("0::/user/job\n")
    for folder in ("cgroup/user/job", "cgroup/memory/job", "runs", "net disk", "box", "ram"):
        (tmp_path / folder).mkdir(parents=True)
    return Host(
        run_dir=tmp_path / "runs",
        proc=tmp_path / "proc",
        cgroup=tmp_path / "cgroup",
        shm=tmp_path,
        systemd=tmp_path / "systemd",
        linger=tmp_path / "linger",
        environ={},
    )


def changed(host: Host, **fields: Any) -> Host:
    return Host(**{name: fields.get(name, getattr(host, name)) for name in Host.__slots__})


@pytest.mark.parametrize(
    ("folder", "expected"), [("runs", "ok"), ("net disk", "nfs4"), ("box", "overlay"), ("ram", "tmpfs")]
)
def test_the_file_system_of_the_run_directory(host: Host, tmp_path: Path, folder: str, expected: str) -> None:
    """Where a run would be slow or would not outlive the container or the machine, it says so and what to do."""
    check = space.filesystem(changed(host, run_dir=tmp_path / folder / "not" / "there"))
    assert (check.verdict.value, bool(check.next)) == (("ok", False) if expected == "ok" else ("warn", True))
    assert expected == "ok" or f"is on {expected}" in check.text


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (Verdict.OK, "65.5 GB, no cgroup limit")),
        ({"cgroup/user/job/memory.max": "max"}, (Verdict.OK, "65.5 GB, no cgroup limit")),
        (
            {"cgroup/user/job/memory.max": "max", "cgroup/user/memory.max": "2000000000"},
            (Verdict.WARN, "a cgroup allows 2.0 of 65.5 GB; beyond it ranks are killed"),
        ),
        (
            {"proc/self/cgroup": "5:cpu,memory:/job\n0::/", "cgroup/memory/job/memory.limit_in_bytes": "8000000000"},
            (Verdict.OK, "a cgroup allows 8.0 of 65.5 GB; beyond it ranks are killed"),
        ),
    ],
    ids=["none", "max", "version 2, above", "version 1"],
)
def test_memory_limits(host: Host, tmp_path: Path, files: dict[str, str], expected: tuple[Verdict, str]) -> None:
    """The smallest limit on the way up counts, in both versions of cgroups."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    check = space.memory(host)
    assert (check.verdict, check.text) == expected


def test_a_small_shm_is_dockers(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MB of shared memory is a warning that says how to have more."""
    usage = type("usage", (), {"total": 64 << 20, "free": 64 << 20})
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: usage)
    assert "--shm-size" in space.shm(host).next


def test_no_shm(host: Host, tmp_path: Path) -> None:
    """Without /dev/shm a run works from the disk tier, which costs something."""
    check = space.shm(changed(host, shm=tmp_path / "nowhere"))
    assert (check.verdict, bool(check.next)) == (Verdict.WARN, True)
    assert "nowhere is not there: no snapshots" in check.text


@pytest.mark.parametrize(("free", "expected"), [(10**8, Verdict.BAD), (5 * 10**9, Verdict.WARN), (10**11, Verdict.OK)])
def test_disk_room(host: Host, monkeypatch: pytest.MonkeyPatch, free: int, expected: Verdict) -> None:
    """A disk that cannot take a checkpoint is bad, one that is filling up is a warning."""
    usage = type("usage", (), {"total": 10**12, "free": free})
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: usage)
    assert space.disk(host).verdict is expected


def test_fewer_cores_than_ranks(host: Host, tmp_path: Path) -> None:
    """A CPU quota counts as cores, and more ranks than that are a warning."""
    (tmp_path / "cgroup/cpu.max").write_text("100000 100000")
    check = checks.cores(changed(host, nproc=8))
    assert (check.verdict, check.text.split(" of ")[0]) == (Verdict.WARN, "1")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("PATH", ""),
        ("MASTER_PORT", "unset MASTER_PORT"),
        ("RANK", "unset RANK"),
        ("SUPERVISE_MARK", "use another shell"),
    ],
)
def test_stale_variables(host: Host, name: str, expected: str) -> None:
    """What another launcher left in the environment is named, its value is not."""
    check = checks.variables(changed(host, environ={name: "secret"}))
    assert (check.next, "secret" in check.text) == (expected, False)


def test_a_user_without_a_home(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for caches, and one for temporary files: each that is missing is said, with what to do."""
    assert checks.home(changed(host, environ={"HOME": str(tmp_path)})).verdict is Verdict.OK
    monkeypatch.setattr(checks, "_passwd_home", str)
    lost = [checks.home(changed(host, environ=env)) for env in ({}, {"HOME": str(tmp_path / "nowhere")})]
    assert [check.verdict for check in lost] == [Verdict.WARN, Verdict.WARN] and all("HOME" in c.next for c in lost)

    def none() -> str:
        raise FileNotFoundError("no usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    assert (checks.home(host).verdict, "TMPDIR" in checks.home(host).next) == (Verdict.BAD, True)


def test_a_name_that_nobody_answers_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this host: a name that is not known, and a resolver that does not answer in time, are said, and that ranks
    meet."""
    monkeypatch.setattr("socket.gethostname", lambda: "nowhere.invalid")
    for time_limit in (60.0, 0.001):
        check = probes.resolver(time_limit)
        assert check.verdict is Verdict.WARN and "nowhere.invalid" in check.text and "/etc/hosts" in check.next
    monkeypatch.setattr("socket.gethostname", lambda: "localhost")
    assert probes.resolver(60.0).verdict is Verdict.OK


def test_a_clock_that_is_behind(host: Host) -> None:
    """A clock from before this program was installed is wrong."""
    assert checks.clock(changed(host, now=0.0)).verdict is Verdict.WARN
    assert checks.clock(host).verdict is Verdict.OK


def test_logout(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under systemd a user without linger is told what a logout does to a detached run, as logind is set up."""
    monkeypatch.setattr(checks.os, "getuid", lambda: 1000)
    etc, run = tmp_path / "etc", tmp_path / "run"
    user = changed(host, environ={"USER": "ann"}, logind=(etc, run))
    (tmp_path / "systemd").mkdir()
    assert "RemoveIPC" in checks.linger(user).text and "enable-linger ann" in checks.linger(user).next
    for folder, file, line in [
        (run, "logind.conf.d/a.conf", "RemoveIPC=no\nKillUserProcesses=yes"),
        (etc, "logind.conf.d/b.conf", "  KillUserProcesses = no\n#RemoveIPC=yes"),
    ]:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(f"[Login]\n{line}\n")
        assert "RemoveIPC" not in checks.linger(user).text
        assert ("KillUserProcesses" in checks.linger(user).text) == (folder == run)
    (etc / "logind.conf").write_text("[Login]\nRemoveIPC=yes\n")
    assert checks.linger(user).verdict is Verdict.OK, "a drop-in is stronger than the main file, wherever it lies"
    (etc / "logind.conf.d/a.conf").touch()
    assert "RemoveIPC" in checks.linger(user).text, "a drop-in of the same name is in place of the other"
    (tmp_path / "linger").mkdir()
    (tmp_path / "linger/ann").touch()
    assert checks.linger(user).verdict is Verdict.OK


TORCH = {"version": "2.13.0+cpu", "seconds": 1.0, "distributed": True, "cuda": None, "devices": 0}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (TORCH, Verdict.OK),
        ({**TORCH, "version": "2.5.1"}, Verdict.WARN),
        ({**TORCH, "version": "2.6.0+cu124"}, Verdict.OK),
        ({**TORCH, "version": "2.15.0"}, Verdict.OK),
        ({**TORCH, "version": "2.16.0a0+git1234"}, Verdict.WARN),
        ({**TORCH, "distributed": False}, Verdict.BAD),
        ("No module named 'torch'", Verdict.BAD),
    ],
)
def test_torch(answer: dict[str, Any] | str, expected: Verdict) -> None:
    """No torch is bad, one older or newer than tested a warning."""
    assert probes.torch(answer).verdict is expected


def test_the_tested_torches_are_those_that_are_tried() -> None:
    """The oldest and the newest of .ci/matrix, and torch's version is told without its import."""
    tried = re.findall(r"^try 3\.\d+ (\d+)\.(\d+)", (ROOT / ".ci/matrix").read_text(), re.MULTILINE)
    versions = sorted((int(major), int(minor)) for major, minor in tried)
    assert (versions[0], versions[-1]) == (installed.OLDEST, installed.NEWEST)
    assert installed.torch_version() == str(real_torch.__version__)


OURS = {f"{name}/__init__.py": (ROOT / "trainer/__init__.py").read_text() for name in ("trainer", "supervise")}
THEIRS = {"trainer/__init__.py": "from .io import whose\n", "trainer/io.py": "whose = 'theirs'\n"}


@pytest.mark.parametrize("first", ["supervise", "coach"])
def test_another_distribution_with_our_names(tmp_path: Path, first: str) -> None:
    """Whoever was installed first, it is found, and what `import trainer` gives is told; nobody's module is no
    finding."""
    order = [("supervise", OURS), ("coach", THEIRS)]
    for name, files in order if first == "supervise" else reversed(order):
        install(tmp_path, name, files)
    theirs = first == "supervise"
    assert installed.namesakes([str(tmp_path)]) == [Namesake("trainer", "coach 1.0", theirs)]
    (tmp_path / "coach-1.0.dist-info/RECORD").unlink()  # as if nobody had installed it: the user's own files
    assert installed.namesakes([str(tmp_path)]) == []


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("print('noise'); print('{\"version\": \"2.9\"}')", {"version": "2.9"}),
        ("import no_such_module_here", "ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("import os; os._exit(3)", "exit code 3"),
        ("import time; time.sleep(60)", "import torch took longer than 1 s"),
    ],
)
def test_torch_is_asked_in_a_child(program: str, expected: object) -> None:
    """Whatever torch does on import, the answer is data or one line."""
    assert probes.ask_torch(program, time_limit=1.0 if "sleep" in program else 60.0) == expected


def test_a_slow_torch_is_not_a_missing_one() -> None:
    """Every start will take as long, and nothing has to be installed."""
    slow, missing = probes.torch(probes.ask_torch("import time; time.sleep(60)", 0.1)), probes.torch("No module")
    assert (slow.verdict, missing.verdict) == (Verdict.WARN, Verdict.BAD)
    assert "pip install" in missing.next and "pip install" not in slow.next


def test_gpus_that_torch_does_not_see(tmp_path: Path) -> None:
    """Devices without a torch that sees them are a warning; no devices are no problem."""
    none = probes.cuda(TORCH, tmp_path).verdict
    (tmp_path / "nvidia0").touch()
    assert (none, probes.cuda(TORCH, tmp_path).verdict) == (Verdict.OK, Verdict.WARN)
    assert probes.cuda({**TORCH, "devices": 1}, tmp_path).text == "1 GPUs"


@pytest.mark.parametrize(("verdict", "code"), [(Verdict.OK, 0), (Verdict.WARN, 0), (Verdict.BAD, 2)])
def test_exit_code_says_whether_something_is_bad(monkeypatch: pytest.MonkeyPatch, verdict: Verdict, code: int) -> None:
    """Warnings are for people; only what is bad fails the command."""
    monkeypatch.setattr(doctor, "examine", lambda host: [Check("disk", verdict, "text", "do this")])
    result = CliRunner().invoke(doctor.command, ["--json"])
    expected = {"name": "disk", "verdict": verdict.value, "text": "text", "next": "do this"}
    assert (result.exit_code, json.loads(result.stdout)["checks"]) == (code, [expected])
    assert "text; next: do this" in CliRunner().invoke(doctor.command, []).stdout


@pytest.mark.parametrize(
    ("answer", "left_out", "expected"),
    [
        ({"threads": 1}, [], (Verdict.OK, "ranks are forked")),
        ({"threads": 3}, [], (Verdict.WARN, "2 threads run once torch is imported")),
        (
            {},
            [("train.py", {"noisy": "starts a thread"}, 2.04)],
            (Verdict.WARN, "train.py, 2.0 s: noisy (starts a thread)"),
        ),
        ("broken", [], (Verdict.OK, "without torch")),
    ],
)
def test_what_a_restart_imports_again(answer: Any, left_out: Any, expected: tuple[Verdict, str]) -> None:
    """Why the next group is not forked, or not with everything, and what that costs at each restart."""
    check = probes.standby({**TORCH, **answer} if isinstance(answer, dict) else answer, left_out)
    assert (check.verdict, expected[1] in check.text, bool(check.next)) == (
        expected[0],
        True,
        expected[0] is Verdict.WARN,
    )


def test_the_whole_examination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check has a name of its own and one line, on this machine too."""
    monkeypatch.setattr(probes, "ask_torch", lambda: TORCH)
    found = doctor.examine(Host(run_dir=tmp_path))
    assert len({check.name for check in found}) == len(found) == 20
    assert not [check for check in found if "\n" in check.text + check.next or not check.text]
