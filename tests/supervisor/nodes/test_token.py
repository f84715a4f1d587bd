"""The token of a run: made once, private, and refused where it is neither."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from supervisor.errors import Refusal
from supervisor.nodes.token import VARIABLE, token_of
from trainer.rundir.layout import RunDir


def test_it_is_made_once(tmp_path: Path) -> None:
    """Whoever makes it, all get the same one, and nobody else can read it."""
    run = RunDir(tmp_path)
    with pytest.raises(FileNotFoundError):
        token_of(run, {}, create=False)
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: token_of(run, {}, create=True), range(16)))
    (token,) = made
    assert token_of(run, {}, create=False) == token and len(token) == 64
    assert [path.name for path in tmp_path.iterdir()] == ["token"]
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600


def test_it_is_given(tmp_path: Path) -> None:
    """In the environment of all nodes: then no file is made."""
    assert token_of(RunDir(tmp_path), {VARIABLE: "a secret of all nodes"}, create=True) == b"a secret of all nodes"
    assert not list(tmp_path.iterdir())


def test_what_others_can_read_is_refused(tmp_path: Path) -> None:
    """So is what could be guessed, and what cannot be read: one line each."""
    path = tmp_path / "token"
    path.write_text("x" * 64)
    path.chmod(0o640)
    with pytest.raises(Refusal, match="chmod 600"):
        token_of(RunDir(tmp_path), {}, create=True)
    path.chmod(0o600)
    path.write_text("short\n")
    with pytest.raises(Refusal, match="too short"):
        token_of(RunDir(tmp_path), {}, create=False)
    with pytest.raises(Refusal, match="too short"):
        token_of(RunDir(tmp_path), {VARIABLE: "short"}, create=False)
    with pytest.raises(Refusal, match="cannot be made"):
        token_of(RunDir(tmp_path / "missing"), {}, create=True)
