"""Imports before they are needed: what they leave as it was."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from trainer.rank.preload import modules


@pytest.mark.parametrize("before", [(700, 10, 10), (0, 10, 10)])
def test_the_collector_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: tuple[int, ...]) -> None:
    """It looks rarely while torch is imported, and for nobody else; one that is off stays off."""
    for name, end in (("as_torch", ""), ("as_torch_fails", "raise OSError"), ("others", "")):
        (tmp_path / f"{name}.py").write_text(f"import builtins, gc\nbuiltins.seen.append(gc.get_threshold())\n{end}\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr("builtins.seen", seen, raising=False)
    monkeypatch.setattr(modules, "ALWAYS", ("as_torch", "as_torch_fails"))
    usual = gc.get_threshold()
    gc.set_threshold(*before)
    try:
        failed = modules.load(["as_torch", "as_torch_fails", "others"])
        after = gc.get_threshold()
    finally:
        gc.set_threshold(*usual)
        for name in ("as_torch", "others"):
            sys.modules.pop(name, None)

    assert failed == ["as_torch_fails"]
    assert [looked[0] > 700 for looked in seen] == [before[0] > 0, before[0] > 0, False]
    assert after == seen[2] == before
