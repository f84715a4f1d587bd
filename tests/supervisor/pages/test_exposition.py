"""What Prometheus reads is what status and report say."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from supervisor.core.telling.ledger import report
from supervisor.core.telling.story import tell
from supervisor.reading.events_file import read_events
from supervisor.run import spec as specs
from supervisor.run.events import EventLog
from supervisor.run.runs import load
from supervisor.run.spec import Spec
from supervisor.run.status import now_of, status, story_of
from tests.support.runs_on_disk import Writer, recovered_run
from tests.support.supervised import ROOT
from trainer.rundir.layout import RunDir

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from supervisor.pages.exposition import exposition
from supervisor.pages.textfile import Textfile


def made(path: Path) -> None:
    """A run that failed once, and what run.json says of it."""
    recovered_run(path)
    specs.save(RunDir(path), Spec("gpt-7f3a", f"{0:016x}", ("train.py",), False, 2, str(path)))


def read(text: str) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    """The values by name and by labels, but for the run's."""
    found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    for family in text_string_to_metric_families(text):
        for name, labels, value, *_ in family.samples:
            found.setdefault(name, {})[frozenset(item for item in labels.items() if item[0] != "run")] = value
    return found


def test_the_file_says_what_status_and_report_say(tmp_path: Path) -> None:
    """It is there when the block begins and as the run is when it ends; node_exporter, another user, can read it."""
    made(tmp_path / "run")
    run, file = RunDir(tmp_path / "run"), tmp_path / "a.prom"
    with Textfile(file, run, EventLog(run, "gpt-7f3a")):
        pass
    known = load(run.path)
    assert known is not None
    now, told = status(known), report(story_of(run), now_of(story_of(run)))
    values = read(file.read_text())

    assert {key for key, on in values["supervise_run_state"].items() if on} == {frozenset({("state", now["state"])})}
    plain = frozenset[tuple[str, str]]()
    assert values["supervise_step"][plain] == now["step"]
    assert values["supervise_restarts_total"][plain] == now["restarts"]
    assert values["supervise_lost_steps_total"][plain] == told["lost_steps"]
    assert sum(values["supervise_time_seconds"].values()) == pytest.approx(told["wall_s"], abs=0.01)
    assert sum(values["supervise_failures_total"].values()) == 1
    assert 'supervise_step{run="gpt-7f3a"} ' in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [path.name for path in tmp_path.iterdir() if ".tmp" in path.name] == []


def test_names_of_any_kind_are_whole(tmp_path: Path) -> None:
    """Whatever a run, a script or a folder is called, the text is read back as it was."""
    odd = 'a "b"\\n\n{é}'
    made(tmp_path / "run")
    known = load(tmp_path / "run")
    assert known is not None
    now = {**status(known), "command": [odd], "host": odd}
    told = report(story_of(known.run), 1.0)
    ((_, family),) = [
        (f.name, f)
        for f in text_string_to_metric_families(exposition([(odd, now, told)]).decode())
        if f.name == "supervise_run_info"
    ]
    assert {family.samples[0].labels[key] for key in ("run", "script", "host")} == {odd}


def test_what_is_no_text_and_no_time_leaves_the_rest_alone(tmp_path: Path) -> None:
    """The name of a file need not be UTF-8, and an event may be damaged. The others' numbers come all the same."""
    made(tmp_path / "run")
    known = load(tmp_path / "run")
    assert known is not None
    now, told = status(known), report(story_of(known.run), 1.0)
    odd = {**now, "command": ["tr\udce4in.py"], "run_dir": "/x/\udcff", "host": "\ud800", "started": "yesterday"}
    ((labels, _),) = read(exposition([("\udcff", odd, told)]).decode())["supervise_run_info"].items()
    assert {("script", "tr\\udce4in.py"), ("folder", "/x/\\udcff"), ("host", "\\ud800")} <= labels
    both = read(exposition([("\udcff", odd, told), ("a", now, told)]).decode())
    assert both["supervise_step"] and len(both["supervise_run_started_timestamp_seconds"]) == 1


def test_no_error_of_the_file_reaches_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in the numbers, the block ends as without them, and a warning says so."""

    def fails(*_: object) -> bytes:
        raise LookupError("no such number")

    made(tmp_path / "run")
    run = RunDir(tmp_path / "run")
    monkeypatch.setattr("supervisor.pages.textfile.exposition", fails)
    with Textfile(tmp_path / "a.prom", run, EventLog(run, "gpt-7f3a")):
        pass
    *_, warning = read_events(run.events)[0]
    assert warning["msg"] == "warning" and "LookupError: no such number" in str(warning["text"])


def test_the_dashboard_asks_for_what_there_is(tmp_path: Path) -> None:
    """Each name in docs/grafana.json is one of ours. A rate is asked of what only grows."""
    made(tmp_path / "run")
    known = load(tmp_path / "run")
    assert known is not None
    text = exposition([("a", status(known), report(story_of(known.run), 1.0))]).decode()
    panels = json.loads((ROOT / "docs" / "grafana.json").read_text())["panels"]
    asked = {target["expr"].split("{")[0] for panel in panels for target in panel["targets"]}
    assert {one for one in asked if f"# TYPE {one.split('(')[-1]} " not in text} == set()
    rates = {one.split("(")[-1] for one in asked if "rate(" in one or "increase(" in one}
    assert {name for name in rates if f"# TYPE {name} counter" not in text} == set()


def test_what_is_called_a_counter_never_goes_down(tmp_path: Path) -> None:
    """Prometheus takes a decrease for a new begin, and counts all of it once more. A hang moves minutes from the steps
    to the wait for its verdict."""
    w = Writer(tmp_path / "run")
    specs.save(RunDir(tmp_path / "run"), Spec("gpt-7f3a", f"{0:016x}", ("train.py",), False, 2, str(tmp_path)))
    known = load(tmp_path / "run")
    assert known is not None
    events = [
        w.event("run_started", 0, attempt=-1),
        w.event("attempt_started", 1),
        w.event("first_step", 2, step=1, from_step=0, at_mono=2.0),
        w.event("checkpoint_committed", 200, step=20),
        w.event("verdict", 310, cause="hang", rank=0, failed_mono=10.0, step=30, reason="it stands still"),
        w.event("group_gone", 311, step=30),
        w.event("attempt_started", 312, 1),
        w.event("run_ended", 313, 1, exit_code=104, state="failed", reason="the end"),
    ]
    before: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    fallen: set[str] = set()
    for n, event in enumerate(events, 1):
        story = tell(events[:n])
        text = exposition([("a", status(known, story), report(story, event["mono"]))]).decode()
        now = {(name, labels): value for name, lines in read(text).items() for labels, value in lines.items()}
        fallen |= {name for name, labels in before if now.get((name, labels), 0.0) < before[name, labels]}
        before = now
    assert "supervise_time_seconds" in fallen
    assert {name for name in fallen if f"# TYPE {name} counter" in text} == set()


def test_the_script_has_the_name_that_was_typed(tmp_path: Path) -> None:
    """Also the built-in trainer, in the file and in status --json."""
    recovered_run(tmp_path / "run")
    command = (specs.BUILT_IN, "--steps", "80")
    specs.save(RunDir(tmp_path / "run"), Spec("gpt-7f3a", f"{0:016x}", command, True, 2, str(tmp_path)))
    known = load(tmp_path / "run")
    assert known is not None
    now = status(known)
    assert now["command"] == ["trainer", "--steps", "80"]
    text = exposition([("a", now, report(story_of(known.run), now_of(story_of(known.run))))]).decode()
    assert 'script="-m trainer"' in text and "_supervise" not in text
