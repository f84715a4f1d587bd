"""The pages in a real browser, where there is one: they draw, and their policy lets them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from supervisor.commands import cli
from tests.supervisor.pages.test_run_page import EVIL, page_of
from tests.support.pages import Page

BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("size", ["1100,900", pytest.param("390,800", marks=pytest.mark.long)])
def test_the_page_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    """Each curve has its canvas and a legend, no script of the run's has run, and nothing was refused."""
    page_of(tmp_path / "run", EVIL, monkeypatch)
    assert cli.run(["report", "run", "--html", "page.html"]) == 0
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=3000"]
    words = [str(BROWSER), *quiet, f"--user-data-dir={tmp_path / 'browser'}", f"--window-size={size}"]
    done = subprocess.run(
        [*words, "--dump-dom", (tmp_path / "run" / "page.html").as_uri()],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=True,
    )
    shown = Page(done.stdout)

    assert shown.tags.count("canvas") == len(shown.data["curves"]) == 2
    assert sum(name == "class" and value == "u-legend u-inline u-live" for name, value in shown.attributes) == 2
    assert "CONSOLE" not in done.stderr and "alert" not in done.stderr
