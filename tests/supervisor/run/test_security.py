"""Who may steer a run, and what a run keeps to itself: owners, links in the place of files, copies, memory, secrets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from supervisor.commands import cli
from supervisor.errors import Refusal
from supervisor.run import spec as specs
from supervisor.run.folder.lock import is_held
from supervisor.run.folder.stops import Stops
from supervisor.run.runs import load
from supervisor.run.spec import Spec
from tests.support.runs_on_disk import recovered_run
from tests.support.supervised import SUPERVISE, Run, environment, start
from tests.support.waiting import until
from trainer.checkpoint.memory.segment import Segment
from trainer.checkpoint.memory.snapshots import newest_snapshot
from trainer.rundir.layout import RunDir
from trainer.rundir.machine import shm
from trainer.rundir.secrets import HIDDEN, Redactor

NOBODY = 65534
TOKEN, LITERAL, PASSWORD = "hf_aB3xY9zQ7w", "sk-4f9a8b7c6d", "pw1234567"
ARGUMENTS = [
    "--token-file",
    "t",
    f"--auth={TOKEN}",
    "--api-key",
    LITERAL,
    f"--url=https://me:{PASSWORD}@host/x",
    "--pad-token",
    "<pad>",
]
KEEPS_SECRETS = """
import json, os, pathlib, sys
def found():
    for path in pathlib.Path(os.environ["SUPERVISE_RUN_DIR"]).rglob("*"):
        if path.is_file() and not path.name.endswith(".log"):
            text = path.read_bytes().decode(errors="replace")
            yield from (f"{secret} in {path}" for secret in %r if secret in text)
attempt = os.environ["SUPERVISE_ATTEMPT"]
seen = [sys.argv, os.environ.get("HF_TOKEN"), list(found()), sorted(os.environ)]
pathlib.Path("seen" + attempt).write_text(json.dumps(seen))
if attempt == "0":
    raise ValueError("no access with " + os.environ["HF_TOKEN"])
""" % [TOKEN, LITERAL, PASSWORD]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
STEERING = (
    ["resume", "run", "--quiet"],
    ["launch", "--run-dir", "run", "--quiet"],
    ["gc", "run", "--yes"],
    ["ckpt", "prune", "run", "--keep", "2"],
)


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run in `run/` of the current folder that would go on with a script which leaves a file `ran`."""
    run = recovered_run(tmp_path / "run").run
    (tmp_path / "script.py").write_text("open('ran', 'w')\n")
    command = ("script.py",)
    specs.save(run, Spec("gpt-7f3a", f"test{os.getpid()}", command, False, 1, str(tmp_path), standby=False))
    run.path.chmod(0o700)
    run.events.write_bytes(run.events.read_bytes().replace(b'"state": "finished"', b'"state": "stopped"'))
    (run.checkpoints / "step-00000040").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return run


def test_the_owner_steers(stopped: RunDir) -> None:
    """What the tests below refuse is, without their traps, done."""
    # In a process of its own: a supervisor ends all that descends from it, and pytest's other children would be that.
    subprocess.run([SUPERVISE, "resume", "run", "--quiet"], env=environment(), check=True, timeout=240)
    assert Path("ran").exists()


def _refused(run: RunDir, capfd: pytest.CaptureFixture[str]) -> None:
    """No command steers the run: each says so in one line, and the script did not run."""
    before = {path: path.lstat() for path in run.path.rglob("*")}
    for command in STEERING:
        code = cli.run(command)
        err = capfd.readouterr().err
        assert (code, err.count("\n")) == (2, 1), (command, code, err)
    assert not Path("ran").exists()
    changed = {p for p in run.path.rglob("*") if p not in before or before[p].st_mtime_ns != p.lstat().st_mtime_ns}
    assert changed == set()


@pytest.mark.parametrize("name", ["run.json", "events.jsonl", "lock", "lock.json", "stop", "metrics.jsonl", "attempts",
                                  "checkpoints", "standby", "faults", "supervisor.log", "modules.json"])  # fmt: skip
def test_links_are_not_steered_through(
    stopped: RunDir, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a link in the place of a file or folder, a run is not taken up, and what the link leads to is untouched."""
    there = tmp_path / "there"
    if (stopped.path / name).exists():
        (stopped.path / name).rename(there)
    elif name in ("standby", "faults"):
        there.mkdir()
    else:
        there.write_text("mine")
    (stopped.path / name).symlink_to(there)
    before = sorted(there.rglob("*")) if there.is_dir() else there.read_bytes()

    _refused(stopped, capfd)

    assert (sorted(there.rglob("*")) if there.is_dir() else there.read_bytes()) == before


@as_root
def test_only_the_owner_steers(stopped: RunDir, capfd: pytest.CaptureFixture[str]) -> None:
    """Another user's run can be read, and not steered; a stop file that another user has laid down is passed over."""
    for path in (stopped.path, *stopped.path.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    _refused(stopped, capfd)
    assert cli.run(["status", "run"]) == 0

    stops = Stops()
    stopped.stop.write_text("now")
    os.chown(stopped.stop, NOBODY, NOBODY)
    stops.read(stopped.stop)
    assert stops.kind is None
    stopped.stop.write_text("now")
    stops.read(stopped.stop)
    assert stops.now


def test_a_folder_that_others_can_write(stopped: RunDir, capfd: pytest.CaptureFixture[str]) -> None:
    """Others may have changed what would be run: it is not, before its owner has looked."""
    stopped.path.chmod(0o770)
    _refused(stopped, capfd)


def test_a_run_is_private(run: Run) -> None:
    """Whatever the umask and the folder that it was given, nobody else may enter a run's folder."""
    run.dir.path.mkdir(mode=0o777)
    run.dir.path.chmod(0o777)
    run.script("print('here')")
    before = os.umask(0)
    try:
        assert run.launch("script.py") == 0
    finally:
        os.umask(before)
    assert run.dir.path.stat().st_mode & 0o777 == 0o700
    assert run.dir.attempt(0).rank_log(0).stat().st_mode & 0o777 == 0o600


def test_a_copy_is_another_run(stopped: RunDir, tmp_path: Path) -> None:
    """A copied folder does not carry the original's mark, which its processes and memory are found by; a moved one
    does."""
    known = load(stopped.path)
    assert known is not None
    shutil.copytree(stopped.path, tmp_path / "copy")
    copy = load(tmp_path / "copy")
    assert copy is not None
    assert copy.spec["mark"] != known.spec["mark"] and shm.is_mark(copy.spec["mark"])
    again = load(tmp_path / "copy")
    assert again is not None and again.spec["mark"] == copy.spec["mark"]

    stopped.path.rename(tmp_path / "moved")
    moved = load(tmp_path / "moved")
    assert moved is not None and moved.spec["mark"] == known.spec["mark"]


@as_root
@pytest.mark.parametrize("trap", ["another user's", "open", "link"])
def test_traps_in_shared_memory(trap: str, tmp_path: Path) -> None:
    """A folder that another user has made under the run's name, or could write, is neither read nor written."""
    segment = shm.segment_of(f"test-{os.getpid()}-{trap[0]}")
    real = tmp_path / "real"
    mine = Segment(segment, 0, 1, 0)
    buffer = mine.begin(4096)
    assert buffer is not None
    mine.commit(buffer, 7, 100, 0)
    assert newest_snapshot(segment) == 7
    try:
        match trap:
            case "another user's":
                os.chown(segment, NOBODY, NOBODY)
            case "open":
                segment.chmod(0o770)
            case "link":
                shutil.move(segment, real)
                segment.symlink_to(real)
        assert newest_snapshot(segment) is None
        with pytest.raises(PermissionError):
            shm.claim(segment)
    finally:
        segment.unlink() if segment.is_symlink() else shutil.rmtree(segment)


def test_modules_of_the_current_folder_are_not_run(tmp_path: Path) -> None:
    """Commands that ask in a folder of somebody else's import nothing from there."""
    recovered_run(tmp_path / "run")
    for name in ("trainer", "supervisor", "torch", "json", "click", "psutil"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')\nraise SystemExit(9)\n")
    supervise = str(Path(sys.executable).with_name("supervise"))
    for command in (["status", "run"], ["doctor"]):
        done = subprocess.run([supervise, *command], cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert done.returncode in (0, 2) and "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()


def _hits(run: Run) -> list[str]:
    """Secrets in what the run has written, but for what the script printed itself."""
    texts = {
        p: p.read_bytes().decode(errors="replace")
        for p in run.dir.path.rglob("*")
        if p.is_file() and p.suffix != ".log"
    }
    return [
        f"{secret} in {path}" for path, text in texts.items() for secret in (TOKEN, LITERAL, PASSWORD) if secret in text
    ]


def test_secrets_are_not_written(run: Run) -> None:
    """The script gets its arguments and environment as they were, in every attempt; what the run writes has no
    secret."""
    run.script(KEEPS_SECRETS)
    assert run.launch("script.py", *ARGUMENTS, HF_TOKEN=TOKEN) == 0

    for attempt in "01":
        argv, token, hits, names = json.loads((run.folder / f"seen{attempt}").read_text())
        assert (argv, token, hits) == (["script.py", *ARGUMENTS], TOKEN, [])
        assert "SUPERVISE_HIDDEN_ARGUMENTS" not in names
    assert _hits(run) == []
    assert "no access with ${HF_TOKEN}" in run.events("verdict")[0]["reason"]
    record = json.loads(run.dir.attempt(0).error(0).read_bytes())
    assert record["message"] == "no access with ${HF_TOKEN}" and "<pad>" in run.dir.run_json.read_text()


def test_resume_takes_secrets_from_its_own_environment(run: Run) -> None:
    """A run goes on with the secrets of whoever resumes it; where those are missing it says which, and starts
    nothing."""
    run.script(
        "import json, os, sys\n"
        "open('seen' + os.environ['SUPERVISE_ATTEMPT'], 'w').write(json.dumps(sys.argv))\nsys.exit(78)"
    )
    assert run.launch("script.py", f"--auth={TOKEN}", HF_TOKEN=TOKEN) == 104
    refused = run.cli("resume", "run", check=2)
    assert "HF_TOKEN" in refused.stderr and not (run.folder / "seen1").exists()

    for number, extra in enumerate(([], ["--detach"]), 1):
        environ = {**environment(), "HF_TOKEN": "hf_rotated_1"}
        with Path(os.devnull).open("w") as out:
            start([SUPERVISE, "resume", "run", "--quiet", *extra], run.folder, environ, out, out).wait(120)
        seen = until(lambda n=number: [p for p in [run.folder / f"seen{n}"] if p.exists() and p.stat().st_size])[0]
        assert json.loads(seen.read_text()) == ["script.py", "--auth=hf_rotated_1"]
        until(lambda: not is_held(run.dir))
    assert "rotated" not in run.dir.run_json.read_text()


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["--api-key=abc"], ["--api-key=<redacted>"]),
        (["--hf-token", "hf_12345"], ["--hf-token", "<redacted>"]),
        (["--db.password", "x"], ["--db.password", "<redacted>"]),
        (["-password=x"], ["-password=<redacted>"]),
        (["--pad-token", "<pad>", "--max-tokens=4096", "--sort-key", "length"], None),
        (["--image-key=image", "--num-key-value-heads", "8", "--monkey", "12345678a"], None),
        (["http://host/a:b@c", "git@host:x", "--lr", "3e-4"], None),
        (["wandb://u:p4ss@h"], ["wandb://u:<redacted>@h"]),
        (["a=verysecret1"], ["a=${MY_SECRET}"]),
        (["token=abc123456789", "HF_TOKEN=hf_12345"], ["token=<redacted>", "HF_TOKEN=<redacted>"]),
        (["wandb.api_key=x", "++db/main.password=x=y"], ["wandb.api_key=<redacted>", "++db/main.password=<redacted>"]),
        (["--api-key", "c2VjcmV0MTIz=", "--hf-token", "ab=123456"], ["--api-key", HIDDEN, "--hf-token", HIDDEN]),
        (["optim.lr=0.0000003", "tokenizer.pad_token=<pad>", "sort_key=length", "https://host/?a_key=b1234567"], None),
    ],
)  # fmt: skip
def test_what_of_a_command_line_is_a_secret(arguments: list[str], written: list[str] | None) -> None:
    """Options are told by their names, and, where those are ambiguous, by their values."""
    redactor = Redactor({"MY_SECRET": "verysecret1", "SHORT_KEY": "abc"})
    assert redactor.command(arguments) == (arguments if written is None else written)


@pytest.mark.parametrize(
    ("typed", "written"),
    [
        ("--token abcdef123456  --from {checkpoint}", "--token '<redacted>' --from '{checkpoint}'"),
        ("db.password='a b' --x", "'db.password=<redacted>' --x"),
        ("--auth  hf_aB3xY9zQ7w '{step}'", "--auth  ${HF_TOKEN} '{step}'"),
        ("--api-key  hf_aB3xY9zQ7w", "--api-key  ${HF_TOKEN}"),
        ("--from  '{checkpoint}' --pad-token '<pad>'", None),
    ],
)
def test_secrets_for_a_relaunch(typed: str, written: str | None, tmp_path: Path) -> None:
    """--resume-args are a command line as well. What the environment knows comes back, the rest is refused."""
    environ = {"HF_TOKEN": TOKEN}
    spec = Spec("a", "0" * 16, ("train.py",), False, 1, str(tmp_path), resume_args=typed)
    shown = specs.shown(spec, environ)
    assert shown.resume_args == (typed if written is None else written)
    if HIDDEN in shown.resume_args:
        with pytest.raises(Refusal, match="keeps no secrets"):
            specs.revealed(shown, environ)
    else:
        assert specs.revealed(shown, environ) == spec


@given(st.lists(st.text(max_size=20), max_size=4), st.text(min_size=6, max_size=12))
def test_a_secret_comes_back_as_it_was(parts: list[str], secret: str) -> None:
    """What stands in the environment is taken out of every argument, and put back exactly."""
    redactor = Redactor({"A_TOKEN": secret})
    argument = secret.join(["x", *parts]) if parts else secret
    assume(HIDDEN not in redactor.text(argument) and "${" not in argument)
    shown = redactor.text(argument)
    assert secret not in shown or secret in "${A_TOKEN}"
    assert redactor.restore(shown) == argument
