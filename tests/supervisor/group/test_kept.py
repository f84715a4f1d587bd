"""--keep-warm: a fork server stays for the next run of the script, for its own user alone, and goes when it says."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.group import kept
from supervisor.process.proctree import carries
from supervisor.run.folder import user_folders
from supervisor.run.spec import Spec
from tests.support.scripts import STEPPING
from tests.support.staying import Taker, gone, refused, stays
from tests.support.supervised import Run
from tests.support.waiting import until
from trainer.rundir.machine.inheritance import inherited
from trainer.rundir.programs import program
from trainer.rundir.records import kept as records
from trainer.rundir.records.kept import Answer, Ask

NOBODY = 65534
MARK = "0123456789abcdef.group"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where fork servers wait: of this test alone, which waits for them as long as it takes."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(records, "TIME_LIMIT", 60.0)
    return tmp_path / "supervise"


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    return Spec("one", "0" * 16, ("script.py",), False, 1, str(tmp_path), keep_warm=600.0)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Of a fork server. It imports a module that the test can change."""
    (tmp_path / "sitecustomize.py").write_text("import os\n")
    # The file is older than the server that loads it.
    until(lambda: time.time() > (tmp_path / "sitecustomize.py").stat().st_ctime + 0.05)
    return {**os.environ, "SUPERVISE_MARK": MARK, "PYTHONPATH": str(tmp_path)}


def test_second_launch_imports_nothing(run: Run) -> None:
    """The second run's ranks are forks of a process that the first one has left; they are the second run's alone, a
    kill is recovered from, and `status`, `doctor` and `gc` know what stays and end it."""
    run.warm = False  # type: ignore[misc]
    script = run.script(STEPPING)
    # It ends just when its modules are being imported for the next attempt.
    assert run.launch("--keep-warm", "5m", "--nproc", "2", script, "16", "0.05") == 0
    stayed = run.events("fork_server_stays")[-1]["pid"]
    first = run.mark()
    assert not carries(stayed, first)

    again = Run(run.folder)
    again.dir = type(run.dir)(run.folder / "again")
    again.start("--run-dir", "again", "--keep-warm", "5m", "--nproc", "2", script, "100000", "0.05")
    try:
        again.until_event("first_step")
        standby = again.until_event("standby_ready")
        assert [event["pid"] for event in again.events("fork_server_taken")] == [stayed] == [standby["forkserver_pid"]]
        pids = again.events("group_ready")[0]["pids"]
        assert [(carries(pid, again.mark()), carries(pid, first)) for pid in pids] == [(True, False)] * 2
        os.kill(pids[1], signal.SIGKILL)
        again.until_event("first_step", 2)
        assert [event["kind"] for event in again.events("attempt_started")] == ["fork", "fork"]
        assert [(event["cause"], event["rank"]) for event in again.events("verdict")] == [("killed", 1)]
        again.cli("stop", "again", "--now")
        assert again.wait() == 103
        stayed = again.events("fork_server_stays")[-1]["pid"]
        assert json.loads(again.cli("status", "--json", "again").stdout)["kept"]["pid"] == stayed
        assert f"pid {stayed}" in again.cli("doctor").stdout
        assert f"{stayed} " in again.cli("gc").stdout and not gone(stayed)
        again.cli("gc", "--yes")
        assert gone(stayed) and kept.found() == []
        assert json.loads(again.cli("status", "--json", "again").stdout)["kept"] is None
    finally:
        again.kill()


def test_it_serves_who_takes_it(spec: Spec, env: dict[str, str], folder: Path) -> None:
    """Once, with the environment and the mark of who takes it; and it ends with its requests."""
    new = {**env, "SUPERVISE_MARK": "f" * 16 + ".group", "SUPERVISE_GRACE": "7", "SHLVL": "9"}
    with stays(spec, env) as pid:
        assert not carries(pid, MARK.partition(".")[0])
        assert folder.stat().st_mode & 0o077 == 0
        taker = Taker(spec, new)
        assert taker.process.pid == pid
        assert carries(pid, "f" * 16)
        assert refused(spec, new) == ""
        assert "why" in taker.ask({"stay": {"path": "/nowhere/at/all", "seconds": 1.0, "script": "x"}})
        taker.close()
        until(lambda: gone(pid))


def test_it_goes_when_it_says(spec: Spec, env: dict[str, str], folder: Path) -> None:
    """After its time no process and no socket is left."""
    with stays(spec, env, seconds=0.3) as pid:
        until(lambda: gone(pid))
        assert list(folder.iterdir()) == []


def test_the_next_one_replaces_it(spec: Spec, env: dict[str, str], folder: Path) -> None:
    """Of one script there is one."""
    with stays(spec, env) as first, stays(spec, env) as second:
        until(lambda: gone(first))
        assert [one.pid for one in kept.found()] == [second]
        assert len(list(folder.iterdir())) == 1


def test_another_environment(spec: Spec, env: dict[str, str]) -> None:
    """It waits on for a launch that has its own; limits, groups and namespaces count, too."""
    with stays(spec, env) as pid:
        assert refused(spec, {**env, "OMP_NUM_THREADS": "77"}) == "OMP_NUM_THREADS is different in the environment"
        assert refused(spec, {k: v for k, v in env.items() if k != "PATH"}) == "PATH is different in the environment"
        before = os.umask(0o037)
        try:
            assert refused(spec, env) == "it was started with another Umask"
        finally:
            os.umask(before)
        assert [one.pid for one in kept.found()] == [pid]
        Taker(spec, env).close()


def test_a_folder_that_was_renamed(spec: Spec, env: dict[str, str], tmp_path: Path) -> None:
    """Another one has its name now. The ranks would run in the old one: it is of no use, and goes."""
    folder, moved = tmp_path / "project", tmp_path / "project.v1"
    folder.mkdir()
    spec = replace(spec, cwd=str(folder))
    with stays(spec, env) as pid:
        folder.rename(moved)
        folder.mkdir()
        assert refused(spec, env) == f"its folder is {moved} now"
        until(lambda: gone(pid))


def test_a_changed_file(spec: Spec, env: dict[str, str], folder: Path) -> None:
    """A module that it has loaded was edited: it is of no use any more, and goes."""
    with stays(spec, env) as pid:
        module = Path(spec.cwd, "sitecustomize.py")
        times = module.stat()
        module.write_text("import io\n")
        os.utime(module, ns=(times.st_atime_ns, times.st_mtime_ns))  # as large as before, and as old
        assert refused(spec, env) == f"{module} has changed"
        until(lambda: gone(pid))
        assert list(folder.iterdir()) == []


def test_a_file_that_changed_before_it_stayed(spec: Spec, env: dict[str, str]) -> None:
    """Then nobody knows which content was loaded: none stays."""
    with subprocess.Popen(
        [sys.executable, *program("rank.engine.fork_server")],
        env=env,
        cwd=spec.cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        until(lambda: _reads(process.pid))
        Path(spec.cwd, "sitecustomize.py").write_text("import sys\n")
        order = {"path": str(kept.place(spec)), "seconds": 600.0, "script": "x"}
        said, _ = process.communicate(json.dumps({"stay": order}).encode() + b"\n", timeout=60)

    assert json.loads(said)["stays"] == 0
    assert json.loads(said)["why"].endswith("sitecustomize.py has changed since it was loaded")
    assert kept.found() == []


def _reads(pid: int) -> bool:
    """Whether the server waits for requests: its stdin is /dev/null by then."""
    return os.readlink(f"/proc/{pid}/fd/0") == os.devnull  # noqa: PTH115


def test_a_stale_socket(spec: Spec, env: dict[str, str]) -> None:
    """One that was killed leaves its socket: the next launch begins cold without a word, and removes it."""
    with stays(spec, env) as pid:
        os.kill(pid, signal.SIGKILL)
        until(lambda: gone(pid))
        assert kept.place(spec).exists()
        assert refused(spec, env) == ""
        assert not kept.place(spec).exists()


def test_a_socket_that_says_nothing(spec: Spec, env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever listens there and does not answer costs a moment; one who talks nonsense, nothing."""
    monkeypatch.setattr(records, "TIME_LIMIT", 0.1)
    path = kept.place(spec)
    with socket.socket(socket.AF_UNIX) as listener, records.beside(path) as short:
        listener.bind(short)
        listener.listen()
        assert refused(spec, env).startswith("it does not answer")
        peer, _ = listener.accept()
        peer.close()
    path.unlink()


def test_nonsense_does_not_end_it(spec: Spec, env: dict[str, str]) -> None:
    """Messages that are none, too long or cut off."""
    with stays(spec, env) as pid:
        for sent in (b"", b"\0", b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff\xff\xff", b"\0\0\0\2{", b"\0\0\0\2[]"):
            with socket.socket(socket.AF_UNIX) as peer, records.beside(kept.place(spec)) as short:
                peer.connect(short)
                peer.sendall(sent)
        with socket.socket(socket.AF_UNIX) as peer, records.beside(kept.place(spec)) as short:
            peer.connect(short)
            records.send(peer, Ask("take", env, inherited()))  # without files
            assert records.receive(peer, Answer)[0].why == "it was asked without files"
        assert [one.pid for one in kept.found()] == [pid]


@as_root
def test_another_user_is_refused(spec: Spec, env: dict[str, str], folder: Path) -> None:
    """The folder keeps others out. Even with it open, the fork server does not answer them."""
    code = f"""
import os, socket, sys
sys.path[:0] = {[str(Path(__file__).parents[3])]!r}
import _supervise
from trainer.rundir.records import kept
os.chdir(os.path.dirname(sys.argv[1]))  # the whole path may be too long for a socket
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
peer = socket.socket(socket.AF_UNIX)
peer.settimeout(60)
try:
    peer.connect(os.path.basename(sys.argv[1]))
    kept.send(peer, kept.Ask("leave"))
    print("answer", peer.recv(100))
except OSError as error:
    print(type(error).__name__)
"""

    path = kept.place(spec)

    def attack() -> str:
        told = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        return told.stdout.strip()

    with stays(spec, env) as pid:
        Path(spec.cwd).chmod(0o755)
        for above in Path(spec.cwd).parents:
            if above.stat().st_mode & 0o001 == 0:
                above.chmod(above.stat().st_mode | 0o011)
        assert attack() == "PermissionError"
        folder.chmod(0o755)
        path.chmod(0o777)
        assert attack() in ("answer b''", "ConnectionResetError", "BrokenPipeError")  # it hangs up
        assert [one.pid for one in kept.found()] == [pid]
        assert folder.stat().st_mode & 0o077 == 0  # closed again by whoever looks


@as_root
def test_another_users_server_is_told_nothing(spec: Spec, env: dict[str, str]) -> None:
    """A process of another user that listens at the place gets no environment and no file."""
    path = kept.place(spec)
    code = f"""
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
os.chdir(os.path.dirname(sys.argv[1]))  # the whole path may be too long for a socket
listener.bind(os.path.basename(sys.argv[1]))
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
listener.listen()
print("ready", flush=True)
print(listener.accept()[0].recv(100))
"""
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as listener:
        assert listener.stdout is not None and listener.stdout.readline() == b"ready\n"
        assert refused(spec, env) == "it does not answer (it is another user's)"
        assert listener.stdout.read() == b"b''\n"
    path.unlink()


def test_what_cannot_be_kept_is_refused(run: Run) -> None:
    """In one line, and before anything is started."""
    script = run.script(STEPPING)
    assert run.launch("--keep-warm", "10m", "--no-standby", script, "1") == 2
    assert run.launch("--keep-warm", "90h", script, "1") == 2
    said = (run.folder / "stderr").read_text()
    assert "leave out --no-standby" in said and "give at most 1d" in said
    assert kept.found() == []


def test_no_folder_is_made_that_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a runtime folder, the first temporary one will do; the others stay as they are."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    places = [tmp_path / name for name in ("one", "two")]
    for place in places:
        place.mkdir()
    monkeypatch.setattr(user_folders, "_TEMPORARY", places)
    assert user_folders.runtime() == places[0] / f"supervise-user-{os.geteuid()}" / "kept"
    assert list(places[1].iterdir()) == []
