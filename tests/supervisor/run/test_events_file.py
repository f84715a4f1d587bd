"""events.jsonl as its readers see it: torn, foreign and damaged lines hurt no one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.reading.events_file import EventReader, read_events

EVENT = st.fixed_dictionaries(
    {"msg": st.sampled_from(["verdict", "resumed"]), "seq": st.integers(0, 2**31)},
    optional={"reason": st.text(), "attempt": st.integers(0, 9) | st.text(), "ts": st.text()},
)
FOREIGN = st.sampled_from(
    [b"{}", b"[]", b"not json", b'{"msg": 1}', b"\xff\xfe", b'{"msg":"torn', b"null", b"[" * 5000]
)


def line(event: dict[str, object]) -> bytes:
    return json.dumps(event).encode()


@settings(deadline=None)
@given(st.lists(EVENT.map(lambda e: (True, e)) | FOREIGN.map(lambda f: (False, f))), st.booleans())
def test_events_are_read_and_the_rest_is_counted(
    tmp_path_factory: pytest.TempPathFactory, items: list[tuple[bool, object]], torn: bool
) -> None:
    """Every event is found between lines that are none, and a torn last line is one more of those."""
    path = tmp_path_factory.getbasetemp() / "events.jsonl"
    text = b"".join((line(i) if ok else i) + b"\n" for ok, i in items)  # type: ignore[arg-type, operator]
    path.write_bytes(text + b'{"msg":"verd' * torn)
    events = [item for ok, item in items if ok]
    reader = EventReader(path)
    followed = [event.fields for event in reader.read()]
    assert read_events(path) == (events, len(items) - len(events) + torn)
    assert (followed, reader.skipped) == (events, len(items) - len(events))


@settings(deadline=None)
@given(st.binary())
def test_no_bytes_make_a_reader_fail(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever is in the file, reading it ends."""
    path = tmp_path_factory.getbasetemp() / "events.jsonl"
    path.write_bytes(data)
    read_events(path)
    assert all(event.attempt >= 0 or event.time for event in EventReader(path).read())


def test_a_torn_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    """An event is given once, when its newline is there, also if a torn one was cut off before it."""
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    seen = [[e.name for e in reader.read()]]
    for text in ('{"msg":"one"}\n{"msg":"tw', '{"msg":"one"}\n', '{"msg":"one"}\n{"msg":"two"}\n'):
        path.write_text(text)
        seen.append([e.name for e in reader.read()])
    assert seen == [[], ["one"], [], ["two"]]


def test_a_line_longer_than_the_window_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes without newlines are passed over in bounded memory."""
    monkeypatch.setattr("trainer.rundir.files.json_lines.WINDOW", 64)
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"x" * 1000 + b"\n" + line({"msg": "after"}) + b"\n")
    reader = EventReader(path)
    assert [e.name for e in reader.read()] == ["after"]
    assert reader.skipped > 0
