"""`supervise web`: who gets in, that it only reads, and that a page follows its run, also after its stream was cut."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.run import spec as specs
from supervisor.run.spec import Spec
from tests.support.pages import Page
from tests.support.runs_on_disk import EPOCH, Writer
from tests.support.supervised import SUPERVISE, environment
from tests.support.waiting import until
from tests.support.webdriver import CHROMIUM, DRIVER, Browser
from trainer.rundir.layout import RunDir

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
EVIL = "<script>window.alerted = 1</script>"
LIVE = "return document.getElementById('live').textContent"
TAB, ENTER = "\ue004", "\ue007"


class Server:
    """A `supervise web` over runs/, and requests to it."""

    def __init__(self, folder: Path, port: str = "0", token: str = "token") -> None:
        self.folder = folder
        with (folder / "stderr").open("a") as errors:
            self.process = subprocess.Popen(
                [SUPERVISE, "web", "--port", port, "--token-file", token],
                cwd=folder,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        host, _, rest = self.address.removeprefix("http://").partition("/?token=")
        self.token, self.host = rest, host
        self.cookie = ""

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        """Ctrl-C, also while a page still listens: no error, and nothing to wait for."""
        with self.process:
            self.process.send_signal(signal.SIGINT)
            assert self.process.wait(60) == 0

    @contextlib.contextmanager
    def ask(self, path: str, method: str = "GET", **headers: str) -> Iterator[http.client.HTTPResponse]:
        """The answer, whose content is not read yet."""
        with contextlib.closing(http.client.HTTPConnection(self.host, timeout=60)) as connection:
            with_cookie = {"Cookie": self.cookie} if self.cookie else {}
            connection.request(method, path, headers={**with_cookie, **headers})
            with contextlib.closing(connection.getresponse()) as answer:
                yield answer

    def code(self, path: str, method: str = "GET", **headers: str) -> int:
        with self.ask(path, method, **headers) as answer:
            return answer.status

    def page(self, path: str) -> Page:
        with self.ask(path) as answer:
            assert answer.status == 200
            return Page(answer.read().decode())

    def told(self, path: str, last: str = "", count: int = 1) -> list[tuple[str, dict[str, object]]]:
        """(id, data) of the next events of a stream, which is then cut."""
        found: list[tuple[str, dict[str, object]]] = []
        name = ""
        with self.ask(path, **({"Last-Event-ID": last} if last else {})) as answer:
            while len(found) < count and (line := answer.readline().decode()):
                if line.startswith("id: "):
                    name = line[4:].strip()
                elif line.startswith("data: "):
                    found.append((name, json.loads(line[6:])))
        return found


def training(folder: Path) -> Writer:
    """A run of which nothing is heard any more."""
    w = Writer(folder / "runs" / "a-1", "a-1")
    specs.save(w.run, Spec("a-1", f"{0:016x}", ("train.py", EVIL), False, 1, str(folder)))
    w.event("run_started", 0, attempt=-1)
    w.event("attempt_started", 1)
    w.event("first_step", 2, step=1, from_step=0, at_mono=2.0)
    w.event("verdict", 5, cause="exception", rank=0, failed_mono=5.0, step=9, reason=EVIL)
    return w


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "runs").mkdir()
    served = Server(tmp_path)
    try:
        yield served
    finally:
        # Ctrl-C while a page still listens: no error, and nothing to wait for.
        with served.ask("/stream") as answer, served.process:
            assert not served.cookie or answer.readline()
            served.process.send_signal(signal.SIGINT)
            assert served.process.wait(60) == 0
        assert (tmp_path / "stderr").read_text().count("\n") == 1


def test_who_gets_in_and_what_they_see(server: Server) -> None:
    """One server, from a stranger to a page that follows its run."""
    w = training(server.folder)
    token = (server.folder / "token").read_text().strip()
    assert token == server.token and (server.folder / "token").stat().st_mode & 0o077 == 0
    arguments = Path(f"/proc/{server.process.pid}/cmdline").read_text()
    assert token not in arguments and len(token) >= 32

    # Nobody without the token, by another name, or to change something.
    assert [server.code(path) for path in ("/", "/run/a-1", "/stream", "/metrics", "/?token=", "/?token=x")] == [
        401
    ] * 6
    assert server.code("/metrics", Authorization="Bearer x") == 401
    for host in ("evil.example", f"127.0.0.1.evil.example:{server.host.partition(':')[2]}", "127.0.0.1"):
        assert server.code(f"/?token={token}", Host=host) == 421
    assert {server.code(f"/?token={token}", method) for method in ("POST", "PUT", "DELETE", "OPTIONS")} == {405}

    # The token is traded for a cookie, and is then in no address any more.
    with server.ask(f"//evil.example/run/a-1?x=1&token={token}") as answer:
        assert (answer.status, answer.headers["Location"]) == (303, "/evil.example/run/a-1?x=1")
        cookie = answer.headers["Set-Cookie"]
        assert token not in cookie and {"HttpOnly", "SameSite=Strict"} <= {part.strip() for part in cookie.split(";")}
        server.cookie = cookie.partition(";")[0]
    assert server.code("/") == 200 and server.code("/run/..%2f..%2fetc") == 404 and server.code("/run/none") == 404

    with server.ask("/run/a-1") as answer:
        assert answer.headers["Referrer-Policy"] == "no-referrer" and answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Cache-Control"] == "no-store"
    with server.ask("/run/a-1", **{"Accept-Encoding": "br, gzip;q=1.0"}) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        packed = answer.read()
        assert b"a-1" in gzip.decompress(packed) and len(packed) < 40_000
    listed, page = server.page("/"), server.page("/run/a-1")
    assert EVIL in listed.text and EVIL in page.text and not [tag for tag in page.tags if tag == "img"]
    assert len(page.inside["script"]) == 5 and len(listed.inside["script"]) == 2
    # A copy has its original's id, and numbers of its own.
    shutil.copytree(w.run.path, server.folder / "runs" / "copy")
    with server.ask("/metrics", Authorization=f"Bearer {token}") as answer:
        told_of = answer.read().decode().splitlines()
    for name in ("a-1", "copy"):
        assert told_of.count(f'supervise_run_state{{run="{name}",state="lost"}} 1.0') == 1
    shutil.rmtree(server.folder / "runs" / "copy")

    # What is new comes by itself, and after a cut nothing is missing.
    since = json.loads(page.inside["script"][3])["since"]
    assert json.loads(page.inside["script"][3])["folder"] == "a-1"
    soon = time.time() - EPOCH + 60.0
    w.event("group_gone", soon, step=9)
    ((last, told),) = server.told(f"/stream?since={since}")
    assert (told["folder"], told["msg"], told["seq"]) == ("a-1", "group_gone", w.seq)
    w.event("run_ended", soon + 1, exit_code=104, state="failed", reason="the end")
    again = server.told("/stream", last, 2)
    assert [event["msg"] for _, event in again] == ["group_gone", "run_ended"]
    assert "failed" in server.page("/run/a-1").text and "the end" in server.page("/").text


def test_a_run_whose_name_is_not_utf8(server: Server) -> None:
    """It is listed, measured and followed like any other, and takes none of them along."""
    w = training(server.folder)
    name = os.fsdecode(b"b-\xff")
    w.run.path.rename(server.folder / "runs" / name)
    w.run = RunDir(server.folder / "runs" / name)
    with server.ask(f"/?token={server.token}") as answer:
        server.cookie = answer.headers["Set-Cookie"].partition(";")[0]

    assert ("href", "/run/b-%FF") in server.page("/").attributes
    page = server.page("/run/b-%FF")
    about = json.loads(page.inside["script"][3])
    assert about["folder"] == name
    assert server.code("/metrics", Authorization=f"Bearer {server.token}") == 200
    w.event("group_gone", time.time() - EPOCH + 60.0, step=9)
    ((_, told),) = server.told(f"/stream?since={about['since']}")
    assert told["folder"] == name


def test_a_token_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """So is one that anybody could guess, and a port that is taken."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "token").write_text("a" * 40)
    (tmp_path / "token").chmod(0o644)
    (tmp_path / "short").write_text("abc")
    (tmp_path / "short").chmod(0o600)
    for name, says in (("token", "chmod 600"), ("short", "16 or more")):
        words = [SUPERVISE, "web", "--port", "0", "--token-file", name]
        done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "") and says in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.long
@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver here")
def test_a_page_follows_its_run(server: Server, tmp_path: Path) -> None:
    """In a real browser: from the printed address by the keyboard to a run, which then fails; on a narrow screen."""
    w = training(server.folder)
    with Browser(tmp_path / "browser") as browser:
        browser.open(server.address)
        assert browser.run("return location.href + document.cookie") == f"http://{server.host}/"
        # The keyboard reaches the run and opens it.
        focused = "return document.activeElement.textContent"
        for _ in range(5):
            if browser.run(focused) != "a-1":
                browser.press(TAB)
        assert browser.run(focused) == "a-1"
        browser.press(ENTER)
        until(lambda: browser.run("return location.pathname") == "/run/a-1")

        until(lambda: browser.run(LIVE).startswith("live"))
        rows = "return document.querySelectorAll('[aria-labelledby=failures] tbody tr').length"
        state = "return document.querySelector('h1 .state').textContent"
        assert browser.run(rows) == 1 and browser.run(state) == "lost"
        soon = time.time() - EPOCH + 60.0
        w.event("attempt_started", soon, 1)
        w.event("verdict", soon + 1, 1, cause="hang", rank=0, failed_mono=soon + 1, step=20, reason="it stands still")
        until(lambda: browser.run(rows) == 2)
        w.event("run_ended", soon + 2, 1, exit_code=0, state="finished", reason="the end")
        until(lambda: browser.run(state) == "finished")
        assert EVIL in browser.run("return document.body.textContent") and not browser.run("return window.alerted")

        browser.size(390, 800)
        assert browser.run("return document.documentElement.scrollWidth <= 390")
        named = "return [...document.querySelectorAll('svg, .plot')].every(one => one.getAttribute('aria-label'))"
        assert browser.run(named) and browser.run("return document.documentElement.lang") == "en"


@pytest.mark.long
@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver here")
def test_a_tab_that_is_refused_keeps_no_other_from_the_stream(tmp_path: Path) -> None:
    """One that was open when supervise web began anew with another token: its stream is refused for good. A tab with
    the new address follows its run, and then so does the old one."""
    w = training(tmp_path)
    kept = """window.streams = []; window.EventSource = class extends EventSource {
        constructor(url) { super(url); streams.push(this); }
    };"""
    refused = "return streams.some(one => one.readyState === EventSource.CLOSED)"
    state = "return document.querySelector('h1 .state').textContent"
    with Browser(tmp_path / "browser") as browser:
        browser.first(kept)
        with Server(tmp_path) as first:
            browser.open(f"http://{first.host}/run/a-1?token={first.token}")
            until(lambda: browser.run(LIVE).startswith("live"))
        old = browser.here()
        until(lambda: browser.run(LIVE).startswith("not live"))
        with Server(tmp_path, first.host.partition(":")[2], "another") as second:
            until(lambda: browser.run(refused))
            browser.tab()
            browser.open(f"http://{second.host}/run/a-1?token={second.token}")
            until(lambda: browser.run(LIVE).startswith("live"))
            w.event("run_ended", time.time() - EPOCH + 60.0, 1, exit_code=0, state="finished", reason="the end")
            until(lambda: browser.run(state) == "finished")
            browser.turn_to(old)
            until(lambda: browser.run(state) == "finished" and browser.run(LIVE).startswith("live"))
