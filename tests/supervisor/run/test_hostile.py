"""A run directory or a checkpoint that somebody else has laid out: no command hangs, fails with a traceback, runs any
of it, touches anything outside it, or lets it drive the terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash

from supervisor.commands import cli
from supervisor.commands.watch import Watched
from supervisor.errors import Refusal
from supervisor.live.screen import screen
from supervisor.run.runs import find
from tests.support.jobs import write
from tests.support.pages import Page
from tests.support.runs_on_disk import recovered_run
from trainer.rundir.layout import RunDir, step_name
from trainer.rundir.records.beats import create_beats

PROOF = "this must not be there"
DEEP = b"[" * 200_000 + b"]" * 200_000
ESCAPE = "\x1b]0;pwned\x07\x1b[2J\x9b31m\u202e"
CODES = {0, 2, 3, 102}
QUERIES = (
    ["status"],
    ["status", "--json"],
    ["report"],
    ["report", "--json"],
    ["report", "--html", "page.html"],
    ["events"],
    ["events", "--json"],
    ["tail", "--no-follow"],
    ["tail", "--no-follow", "-n", "3", "--grep", "step"],
    ["tail", "--no-follow", "-o", "json"],
    ["ckpt", "ls"],
    ["ckpt", "ls", "--json"],
    ["ckpt", "verify"],
    ["ckpt", "export", "-o", "exported"],
    ["gc"],
    ["stop"],
)


class Evil:
    """What runs when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.system, (f"touch '{self.proof}'",)


def _spec(here: RunDir, /, **fields: Any) -> None:
    body = json.loads(here.run_json.read_bytes())
    here.run_json.write_text(json.dumps({**body, **fields}))


def _as(kind: str, path: Path, victim: Path) -> None:
    """`path` is a `kind` of thing now."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "link":
            path.symlink_to(victim)
        case "folder":
            path.mkdir()
        case "deep":
            path.write_bytes(DEEP)
        case "empty":
            path.touch()
        case "pickle":
            path.write_bytes(pickle.dumps(Evil(victim.with_name(PROOF))))
        case "huge":
            with path.open("wb") as file:
                file.truncate((300 if path.name == "manifest.json" else 80) << 20)


def _manifest(run: RunDir, change: Callable[[dict[str, Any]], None]) -> None:
    """The newest checkpoint's manifest is changed, and its digest made to match."""
    path = run.checkpoints / step_name(3) / "manifest.json"
    body = json.loads(path.read_bytes())
    del body["digest"]
    change(body)
    raw = json.dumps(body, separators=(",", ":")).encode()[:-1]
    path.write_bytes(raw + b',"digest":"%s"}\n' % xxhash.xxh3_128_hexdigest(raw).encode())


def _set(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(body: dict[str, Any]) -> None:
        for key in keys[:-1]:
            body = body[key]
        body[keys[-1]] = value

    return change


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def _rename_file(body: dict[str, Any], name: str) -> None:
    body["files"] = {name: next(iter(body["files"].values()))}
    for tensor in body["tensors"].values():
        for box in tensor["boxes"]:
            box["file"] = name


def _lines(run: RunDir, *events: bytes) -> None:
    with run.events.open("ab") as file:
        file.write(b"\n".join(events) + b"\n")


def _names(run: RunDir) -> None:
    for name in (ESCAPE.replace("/", ""), "step-" + "9" * 200, "step-00000003\n", "attempts", "0" * 200):
        (run.checkpoints / name).mkdir(exist_ok=True)
        (run.path / "attempts" / name).mkdir(exist_ok=True)


READ_WHOLE = ("run.json", "events.jsonl", "lock.json", "checkpoints/step-00000003/manifest.json")
THINGS = (
    *READ_WHOLE,
    *("lock", "stop", "metrics.jsonl", "attempts", "attempts/0001/rank0.log", "attempts/0001/beats", "checkpoints"),
    *("checkpoints/latest", "checkpoints/step-00000003", "checkpoints/step-00000003/rank0.safetensors"),
)
HOSTILE: dict[str, Callable[[RunDir, Path], Any]] = {
    **{
        f"{thing} is {kind}": lambda run, victim, thing=thing, kind=kind: _as(kind, run.path / thing, victim)  # type: ignore[misc]
        for thing in THINGS
        for kind in (("pipe", "link", "deep", "huge") if thing in READ_WHOLE else ("pipe", "link"))
    },
    "its files are pickles": lambda run, victim: [_as("pickle", path, victim) for path in run.path.rglob("*.*")],
    "its files are empty": lambda run, victim: [_as("empty", path, victim) for path in run.path.rglob("*.*")],
    "its files are folders": lambda run, victim: [_as("folder", path, victim) for path in run.path.rglob("*.*")],
    "its mark leads out": lambda run, _: _spec(run, mark="../../etc"),
    "its mark is a list": lambda run, _: _spec(run, mark=[1]),
    "its name drives the terminal": lambda run, _: _spec(run, run=ESCAPE),
    "its command is a number": lambda run, _: _spec(run, command=7),
    "its numbers are absurd": lambda run, _: _spec(run, nproc=10**30, grace=float("nan"), window=-1),
    "its schema is text": lambda run, _: _spec(run, schema="1"),
    "its times are absurd": lambda run, _: _lines(
        run,
        b'{"mono":1e308,"ts":"9999-99-99","msg":"verdict","attempt":-5,"rank":"x"}',
        b'{"mono":-1e308,"ts":7,"msg":"attempt_started","attempt":9223372036854775807}',
        b'{"mono":1,"msg":"run_ended","exit_code":123456789012345678901234567890,"state":{},"reason":[[]]}',
        b'{"mono":2,"msg":"first_step","step":-9223372036854775808,"at_mono":-1e300}',
        b'{"mono":3,"msg":"relaunch_scheduled","signature":[{}],"barren":"a","delay_s":"x"}',
    ),
    "its events are junk": lambda run, _: _lines(run, DEEP, b"\xff\xfe", b"null", b'{"msg":1}', b"[]" * 3_000_000),
    "its events drive the terminal": lambda run, _: _lines(
        run, json.dumps({"mono": 30.0, "msg": "warning", "text": ESCAPE, "level": "error", ESCAPE: ESCAPE}).encode()
    ),
    "its reasons drive the terminal": lambda run, _: _lines(
        run,
        json.dumps({"mono": 30.0, "msg": "attempt_started", "attempt": 2}).encode(),
        json.dumps({"mono": 31.0, "msg": "verdict", "cause": ESCAPE, "reason": ESCAPE, "attempt": 2}).encode(),
        json.dumps({"mono": 32.0, "msg": "run_ended", "state": ESCAPE, "reason": ESCAPE, "exit_code": 1}).encode(),
    ),
    "its log drives the terminal": lambda run, _: run.attempt(1).rank_log(0).write_text(ESCAPE + "\n"),
    "its names are strange": lambda run, _: _names(run),
    "its beats are of a million ranks": lambda run, _: run.attempt(1).beats.write_bytes(
        (0x5355504552563031).to_bytes(8, "little") + (10**6).to_bytes(8, "little") + bytes(112)
    ),
    "its files lead out": lambda run, victim: _manifest(
        run, lambda body: _rename_file(body, f"../../../{victim.name}")
    ),
    "its files are absolute": lambda run, victim: _manifest(run, lambda body: _rename_file(body, str(victim))),
    "its world is large": lambda run, _: _manifest(run, _set("world_size", value=10**12)),
    "its step is no number": lambda run, _: _manifest(run, _set("step", value=3.5)),
    "its step is nan": lambda run, _: _manifest(run, _set("step", value=float("nan"))),
    "its sizes are text": lambda run, _: _manifest(run, _set("bytes", value="many")),
    "its time is a list": lambda run, _: _manifest(run, _set("created", value=[1])),
    "its time drives the terminal": lambda run, _: _manifest(run, _set("created", value=ESCAPE)),
    "its state is deep": lambda run, _: _manifest(run, _set("state", "model", value=_nested(900))),
    "its model is a number": lambda run, _: _manifest(run, _set("state", "model", value=7)),
    "its tensor is another's": lambda run, _: _manifest(
        run, _set("state", "model", value={"w": {"$tensor": "nobody's"}})
    ),
    "its tensor is huge": lambda run, _: _manifest(
        run,
        lambda body: (
            body["files"]["rank0.safetensors"].update(bytes=1 << 50),
            next(iter(body["tensors"].values())).update(shape=[1 << 44]),
            next(iter(body["tensors"].values()))["boxes"][0].update(at=[0], size=[1 << 44]),
        ),
    ),
    "its tensor has a shape that cannot be": lambda run, _: _manifest(
        run, lambda body: next(iter(body["tensors"].values())).update(shape=[0, 1 << 61, 1 << 61])
    ),
    "its box is no number": lambda run, _: _manifest(
        run, lambda body: next(iter(body["tensors"].values()))["boxes"][0].update(at=[0.0], size=["w"])
    ),
    "its header is long": lambda run, _: (run.checkpoints / step_name(3) / "rank0.safetensors").write_bytes(
        (99 << 20).to_bytes(8, "little") + b"[" * 5000
    ),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that finished, with three checkpoints."""
    path = tmp_path_factory.mktemp("original") / "run"
    run = recovered_run(path).run
    _spec(run, command=["train.py"], module=False, nproc=2, cwd="/")
    create_beats(run.attempt(1).beats, 2)
    for step in (1, 2, 3):
        write(run.checkpoints, step)
    return path


@pytest.fixture
def impatient() -> Iterator[None]:
    """A command that hangs raises."""

    def hung(*_: Any) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, hung)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("what", HOSTILE)
def test_every_query_of_a_hostile_run(
    what: str,
    original: Path,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An exit code of the contract, one line if it is not 0, no control character on stdout or stderr, nothing outside
    the folder touched, and no code run."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path = tmp_path / "run"
    shutil.copytree(original, path)
    run = RunDir(path)
    _spec(run, inode=path.stat().st_ino)
    HOSTILE[what](run, victim)
    monkeypatch.chdir(tmp_path)

    for query in QUERIES:
        signal.alarm(60)
        verb = query[:2] if query[0] == "ckpt" else query[:1]
        code = cli.run([*verb, "run", *query[len(verb) :]])
        out, err = capfdbinary.readouterr()
        assert code in CODES, (query, code, err)
        assert b"Traceback" not in err
        assert code in (0, 3) or err.count(b"\n") == 1, (query, err)
        shown = err.decode() + ("" if "json" in "".join(query) else out.decode())
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown), (query, shown)
        (tmp_path / "exported").unlink(missing_ok=True)
        if (page := tmp_path / "page.html").exists():
            text = page.read_text()
            assert len(Page(text).inside["script"]) == 3 and not re.search("[\x00-\x08\x7f\u202e]", text)
            page.unlink()
    signal.alarm(60)
    with contextlib.suppress(Refusal):
        shown = "".join(row.text for row in screen(Watched(find("run")).look(), 80, 24))
        assert not re.search("[\x00-\x1f\x7f-\x9f\u202e]", shown), shown
    assert victim.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "victim"]
