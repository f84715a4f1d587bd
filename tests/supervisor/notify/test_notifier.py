"""Messages arrive where the person said, hold nothing up, and no secret of theirs is written down."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from supervisor.attempt.ending import Ending
from supervisor.errors import Refusal
from supervisor.notify import notifier, sender
from supervisor.notify.notifier import Notifier
from supervisor.notify.settings import read_notify
from supervisor.reading.events_file import read_events
from supervisor.run.events import EventLog
from tests.support.waiting import until
from trainer.rundir.layout import RunDir

pytestmark = pytest.mark.usefixtures("busy")
FAILED = {"state": "failed", "exit_code": 104, "reason": "rank 1 raised 'no $HOME \"here\"'"}


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that takes long to start a sender loses no message."""
    monkeypatch.setattr(notifier, "_PATIENT_S", 120.0)


def said(folder: Path, table: str) -> list[str]:
    """The warnings of a run that fails with these settings."""
    settings = folder / "supervise.toml"
    settings.write_text(table)
    log = EventLog(RunDir(folder), "a-1")
    sends = Notifier(str(settings), "a-1", log)
    log.emit("verdict", "error", cause="killed")
    log.emit("run_ended", "error", **FAILED)
    sends.close()
    log.close()
    return [event["text"] for event in read_events(RunDir(folder).events)[0] if event["msg"] == "warning"]


def test_a_command_gets_title_text_and_event(tmp_path: Path) -> None:
    """Whatever they hold; and a command that fails is a warning."""
    command = f"""printf '%s\\n%s' "$1" "$2" > {tmp_path}/said; cat > {tmp_path}/event"""
    assert said(tmp_path, f"[notify]\ncommand = '''{command}'''") == []
    title, reason, look = (tmp_path / "said").read_text().splitlines()
    assert (title, reason, look) == ("a-1 failed", FAILED["reason"], "supervise status a-1")
    assert json.loads((tmp_path / "event").read_text())["reason"] == FAILED["reason"]

    (warning,) = said(tmp_path, "[notify]\ncommand = 'echo no mail here >&2; exit 3'")
    assert warning == "the message 'failed' was not sent: command ended with 3: no mail here"


def test_a_command_that_names_its_webhook_keeps_it(tmp_path: Path) -> None:
    """What it says last is told without addresses: in a webhook's there is the secret."""
    text = "curl: (22) 404 for https://hooks.example.com/T00/SECRET (POST /services/T00/SECRET)"
    (warning,) = said(tmp_path, f"[notify]\ncommand = 'echo \"{text}\" >&2; exit 22'")
    assert warning.endswith("command ended with 22: curl: (22) 404 for <redacted> (POST <redacted>")
    assert b"SECRET" not in RunDir(tmp_path).events.read_bytes()


def test_a_sender_is_spared_and_one_that_is_killed_has_failed(tmp_path: Path) -> None:
    """Those under way are known, each for as long as it is there: another process may get its pid."""
    settings = tmp_path / "supervise.toml"
    settings.write_text(f"[notify]\non = ['hang', 'failed']\ncommand = 'echo > {tmp_path}/begun$PPID; exec sleep 600'")
    log = EventLog(RunDir(tmp_path), "a-1")
    sends = Notifier(str(settings), "a-1", log)
    ending = Ending("no-mark", dict, foreign=False)
    others = {child.pid for child in psutil.Process().children()}
    log.emit("verdict", "error", cause="hang")
    log.emit("run_ended", "error", **FAILED)
    senders = sends.pids()
    assert len(senders) == 2 and set(ending.members(others)) >= senders
    assert ending.force(others | senders, time.monotonic()) == 0
    until(lambda: len(list(tmp_path.glob("begun*"))) == 2)

    began = [each for pid in senders for each in psutil.Process(pid).children(recursive=True)]
    for pid in senders:
        os.kill(pid, signal.SIGKILL)
    for process in began:
        process.kill()

    until(lambda: not sends.pids())
    # Both are told in one look, though each that is told is another one.
    log.emit("run_started")
    sends.close()
    log.close()
    for pid in senders:
        os.waitpid(pid, 0)
    assert [event["text"] for event in read_events(RunDir(tmp_path).events)[0] if event["msg"] == "warning"] == [
        f"the message '{kind}' was not sent: its sender was ended before it was done" for kind in ("hang", "failed")
    ]


def test_a_command_that_leaves_something_in_the_background_is_done(tmp_path: Path) -> None:
    """Though that has the command's stderr open."""
    command = f"(while [ ! -e {tmp_path}/over ]; do sleep 0.05; done; touch {tmp_path}/ended) & exit 0"
    try:
        assert said(tmp_path, f"[notify]\ncommand = '{command}'") == []
        assert not (tmp_path / "ended").exists()
    finally:
        (tmp_path / "over").touch()
        until((tmp_path / "ended").exists)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("printf 'caf\\351\\n' >&2; exit 3", "command ended with 3: caf\ufffd"),
        ("exec sleep 600", "command took longer than 1 s"),
        ("trap '' TERM; while :; do sleep 0.1; done", "command took longer than 1 s"),
    ],
)
def test_why_a_command_failed(command: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it prints, and however much it wants to go on."""
    if "longer" in told:
        monkeypatch.setattr(sender, "_COMMAND_S", 1)
    assert sender.by_command(command, "title", "text", "{}") == [told]


def test_what_nobody_wants_is_not_sent(tmp_path: Path) -> None:
    assert said(tmp_path, f"[notify]\non = ['finished']\ncommand = 'touch {tmp_path}/said'") == []
    assert not (tmp_path / "said").exists()


@pytest.mark.filterwarnings("ignore:.*imghdr.*:DeprecationWarning")
def test_a_url_gets_it_and_stays_secret(tmp_path: Path) -> None:
    """apprise posts it; of a URL that refuses, the number is told."""
    pytest.importorskip("apprise")
    got = list[str]()

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200 if "good" in self.path else 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"json://me:s3cret@127.0.0.1:{server.server_port}"
        # apprise waits 4 s for an answer, unless it is told.
        urls = [f"{where}/{each}?cto=30&rto=30" for each in ("good", "bad")]
        warnings = said(tmp_path, f"[notify]\nurls = {urls}")
        server.shutdown()
    assert [json.loads(body)["title"] for body in got] == ["a-1 failed"] * 2
    assert warnings == ["the message 'failed' was not sent: number 2 of urls (json) did not take it"]
    assert "s3cret" not in RunDir(tmp_path).events.read_text()


@pytest.mark.filterwarnings("ignore:.*imghdr.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("on = ['failing']\ncommand = 'true'", "Invalid enum value"),
        ("url = ['json://x']", "unknown field `url`"),
        ("on = 'failed'", "nowhere to send to"),
        ("urls = ['s3cret']", "apprise"),
    ],
)
def test_settings_that_say_nothing_useful_are_refused(tmp_path: Path, table: str, why: str) -> None:
    (tmp_path / "supervise.toml").write_text(f"[notify]\n{table}")
    with pytest.raises(Refusal, match=why) as refused:
        read_notify(tmp_path / "supervise.toml")
    assert "s3cret" not in str(refused.value)


def test_settings_that_are_gone_cost_the_messages_alone(tmp_path: Path) -> None:
    log = EventLog(RunDir(tmp_path), "a-1")
    Notifier(str(tmp_path / "gone.toml"), "a-1", log).close()
    log.close()
    (warning,) = [event["text"] for event in read_events(RunDir(tmp_path).events)[0]]
    assert "gone.toml cannot be read" in warning
