"""The page of a run: nothing in a run can add to its structure or its scripts, and its curves are those of the run."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import sys
from pathlib import Path

import pytest

from supervisor.commands import cli
from supervisor.core.telling.progress import Trained
from supervisor.core.telling.story import tell
from supervisor.live.curve import MOST, Curve, samples
from supervisor.pages import document
from supervisor.pages.ranks import of_ranks
from supervisor.pages.series import POINTS, Series, curves, restarts, thinned
from supervisor.pages.timeline import drawing
from supervisor.reading.events_file import read_events
from supervisor.run import spec as specs
from supervisor.run.spec import Spec
from tests.support.pages import Page
from tests.support.runs_on_disk import Writer
from trainer.rundir.files.codec import encode
from trainer.rundir.layout import RunDir
from trainer.rundir.records.errors import ErrorRecord

EVIL = "</script></pre></title><script>alert(1)</script><img src=x onerror=alert(2)>\" onload='x' {{ 7*7 }} "
EVIL += "\x1b[2J\u202e\ud800"
TAME = "a word"


def page_of(path: Path, said: str, monkeypatch: pytest.MonkeyPatch) -> Page:
    """The page of a run of two attempts in which `said` is wherever a program can put words."""
    path.mkdir()
    monkeypatch.chdir(path)
    w = Writer(path / "run", "run")
    specs.save(w.run, Spec("run", f"{0:016x}", (f"{said}.py", said), False, 2, f"/{said}"))
    body = json.loads(w.run.run_json.read_text())
    w.run.run_json.write_text(
        json.dumps({**body, "host": said, "git": {"commit": said, "dirty": said}, "versions": {"torch": said}})
    )
    w.event("run_started", 0, attempt=-1)
    w.event("attempt_started", 1, 0, wanted_mono=0.5)
    w.event("first_step", 3, 0, step=1, from_step=0, at_mono=3.0)
    w.event("pause", 4, 0, rank=1, kind=said, text=said)
    w.event("straggler", 4, 0, rank=1, slow=True, text=said)
    w.event("fault_injected", 5, 0, spec=f"exc:{said}", fired_mono=5.0)
    w.event("script_saved", 5, 0, path=said, step=30, bytes=1000)
    w.event("checkpoint_committed", 5, 0, step=30, bytes=1000, by=said)
    w.event("stacks_dumped", 6, 0, groups=[said])
    w.event("verdict", 6, 0, cause=said, rank=1, step=40, failed_mono=6.0, reason=said)
    w.event("group_gone", 7, 0, step=40)
    w.event("attempt_started", 8, 1, wanted_mono=7.5)
    w.event("first_step", 9, 1, step=31, from_step=30, at_mono=9.0)
    w.event("run_ended", 20, 1, exit_code=0, state=said, reason=said)
    folder = w.run.attempt(0)
    folder.stacks.mkdir(parents=True)
    folder.groups.write_text(said, "utf-8", "surrogatepass")
    error = ErrorRecord(
        said.replace("\ud800", ""), "", rank=1, exit_code=1, mono=6.0, traceback=said.replace("\ud800", "")
    )
    folder.error(1).write_bytes(encode(error))
    about = {
        "exits": [{"rank": 1, "mono": 6.0}],
        "last_lines": {said: [said]},
        "kernel_log": [said],
        "machine": {said: said},
    }
    folder.evidence.write_text(json.dumps(about))
    curve = Curve(w.run)
    for n in range(1, 41):
        curve.see(0, Trained(n, 0, 3.0 + 0.05 * n, loss=1.0 / n, loss_step=n, lr=math.nan))
    for n in range(31, 81):
        curve.see(1, Trained(n, 30, 9.0 + 0.2 * (n - 30), loss=1.0 / n, loss_step=n))
    curve.close()
    assert cli.run(["report", "run", "--html", "page.html"]) == 0
    return Page(Path("page.html").read_text("utf-8"))


def test_a_run_cannot_write_into_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its programs say, the page has the same tags, and the same scripts under its policy."""
    tame, evil = (page_of(tmp_path / name, said, monkeypatch) for name, said in (("tame", TAME), ("evil", EVIL)))

    assert evil.tags == tame.tags
    assert evil.inside["script"][1:] == tame.inside["script"][1:] and len(evil.inside["script"]) == 3
    assert [name for name, _ in evil.attributes] == [name for name, _ in tame.attributes]
    assert not [name for name, _ in evil.attributes if name.startswith("on") or name in ("src", "href", "style")]
    assert "<script>alert(1)</script>" in evil.text and "{{ 7*7 }}" in evil.text
    assert not {"\x1b", "\u202e", "\ud800"} & {*evil.text}
    # The policy lets exactly these scripts and styles run, and nothing be loaded.
    policy = next(value for _, value in evil.attributes if value and value.startswith("default-src 'none'"))
    for text in (*evil.inside["script"][1:], *evil.inside["style"]):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert "unsafe" not in policy and "http" not in policy


def test_the_curves_are_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that were done again stand beside those that count; each restart is at its step."""
    page = page_of(tmp_path / "run", TAME, monkeypatch)
    loss, pace = page.data["curves"]

    assert (loss["name"], pace["name"], pace["unit"]) == ("loss", "time of a step", "ms")
    kept = {x: y for x, y in zip(loss["x"], loss["y"], strict=True) if y is not None}
    lost = {x: y for x, y in zip(loss["x"], loss["lost"], strict=True) if y is not None}
    assert kept == {x: pytest.approx(1 / x, rel=1e-4) for x in kept} and lost == {
        x: pytest.approx(1 / x, rel=1e-4) for x in lost
    }
    assert max(kept) == 80 and max(lost) == 40 and min(lost) > 30 and loss["breaks"] == [40]
    assert {y for x, y in zip(pace["x"], pace["y"], strict=True) if x > 31} == {200.0}
    assert page.data["restarts"] == [{"attempt": 1, "step": 30, "until": 40, "cause": TAME}]
    assert "10 steps" in page.text


def test_the_drawing_is_the_ledger(tmp_path: Path) -> None:
    """Also of more stretches than it has columns: the run's row has no hole."""
    w = Writer(tmp_path / "run")
    w.event("run_started", 0.0, attempt=-1)
    for n in range(400):
        w.event("attempt_started", n + 0.25, n)
        w.event("first_step", n + 0.5, n, step=n + 1, from_step=n, at_mono=n + 0.5)
        w.event("verdict", n + 0.75, n, cause="killed", rank=n % 2, failed_mono=n + 0.75, step=n + 1)
        w.event("group_gone", n + 0.9, n)
    w.event("run_ended", 400.0, 399, state="failed")
    events = read_events(w.run.events)[0]
    story = tell(events)
    drawn, ranks = drawing(story, events, 0.0), of_ranks(story, [], [], {(1, 1): 1.6}, 2, 0.0)

    assert drawn is not None and ranks is not None
    boxes = drawn.rows[0].boxes
    assert boxes[0].x == 0.0 and len(boxes) <= 1000
    assert all(abs(a.x + a.width - b.x) < 0.5 for a, b in itertools.pairwise(boxes))
    assert abs(boxes[-1].x + boxes[-1].width - 1000.0) < 0.5
    assert len(drawn.rows) == 41 and drawn.left_out == 360
    assert {shape.kind for shape in ranks.rows[1].shapes} >= {"first_step", "redone", "stop"}
    assert len(ranks.rows[0].marks) == len(ranks.rows[1].marks) == 200


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def test_the_file_of_a_long_run_stays_small(run: RunDir) -> None:
    """It always has the whole run, evenly; another supervisor goes on with it; a torn end and garbage do no harm."""
    for begin in (0, 30_000):
        curve = Curve(run)
        for n in range(begin, begin + 30_000):
            curve.see(n // 20_000, Trained(n, 0, 0.2 * n, loss=0.5, loss_step=n, lr=1e-3))
        curve.close()
        run.curve.write_bytes(run.curve.read_bytes() + b"torn")
    found = samples(run)

    assert run.curve.stat().st_size <= 48 * (MOST + 1) + 4 and len(found) > MOST // 4
    steps = [sample.step for sample in found]
    assert steps == sorted(steps) and steps[0] == 0 and steps[-1] == 59_999
    assert {19_999, 20_000, 39_999, 40_000} <= {*steps}
    assert max(b - a for a, b in itertools.pairwise(steps)) < 60_000 / len(steps) * 4
    assert found[-1].lr == 1e-3 and found[-1].loss_step == 59_999 and found[-1].placed
    for garbage in (b"", b"x" * 4096, bytes(4096)):
        run.curve.write_bytes(garbage)
        assert samples(run) == []
        curve = Curve(run)
        curve.see(0, Trained(7, None, 1.0))
        curve.close()
        assert [(sample.step, sample.placed, sample.loss) for sample in samples(run)] == [(7, False, None)]


def test_a_disk_that_refuses_leaves_a_gap(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    run.path.chmod(0o700)
    missing = RunDir(run.path / "nowhere")
    curve = Curve(missing)
    curve.see(0, Trained(1, 0, 1.0))
    missing.path.mkdir()
    curve.see(0, Trained(2, 0, 2.0))
    curve.see(0, Trained(90, 0, 60.0))
    curve.close()
    assert [sample.step for sample in samples(missing)] == [90]


def test_of_a_long_file_of_metrics_a_part_is_read(run: RunDir) -> None:
    """And the curve spans the run, in no more points than are drawn."""
    with run.metrics.open("w") as file:
        file.writelines(f'{{"step":{n},"loss":{n / 7:.4f},"lr":0.001,"tokens":{n}}}\n' for n in range(60_000))
        file.write('{"step":60000,"los')
    loss, rate = curves(run, tell([]), [])

    assert loss.name == "loss" and rate.points[-1][1] == 0.001
    assert POINTS // 2 < len(loss.points) <= POINTS and loss.points[0][0] == 0 and loss.points[-1][0] > 59_800
    assert all(value == pytest.approx(step / 7, abs=1e-4) for step, value in loss.points)
    assert restarts(tell([])) == []


def test_a_value_that_json_does_not_have_is_a_gap() -> None:
    """Also one that only becomes so when it is rounded, as the largest float."""
    series = Series("loss", "", [(1, sys.float_info.max), (2, 2.0), (3, math.inf)], [(4, -sys.float_info.max)])
    shown = series.shown()
    assert (shown["x"], shown["y"], shown["lost"]) == ([1, 2, 3, 4], [None, 2.0, None, None], [None] * 4)


def test_no_peak_is_lost_when_a_curve_is_thinned() -> None:
    points = [(n, 100.0 if n == 777 else float(n % 10)) for n in range(10_000)]
    few = thinned(points, 100)
    assert len(few) <= 100 and (777, 100.0) in few and few == sorted(few)


def test_uplot_is_what_it_says() -> None:
    """The one file of another's, unmodified."""
    folder = Path(document.__file__).parent / "uplot"
    digest = hashlib.sha256((folder / "uPlot.iife.min.js").read_bytes()).hexdigest()
    assert digest in (folder / "README.md").read_text() and "MIT" in (folder / "LICENSE").read_text()
