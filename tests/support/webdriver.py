"""A headless Chromium, driven by chromedriver over its protocol (https://www.w3.org/TR/webdriver2/)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
_ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


class Browser:
    """One window. `folder` takes all that the browser writes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._session = ""

    def __enter__(self) -> Browser:
        words = [str(DRIVER), "--port=0"]
        self._driver = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            self._begin()
        except BaseException:
            self._end()
            raise
        return self

    def _begin(self) -> None:
        assert self._driver.stdout is not None
        started = re.compile(r"successfully on port (\d+)")
        port = next(found[1] for line in self._driver.stdout if (found := started.search(line)))
        self._session = f"http://127.0.0.1:{port}/session"
        arguments = [*_ARGUMENTS.split(), f"--user-data-dir={self._folder}"]
        options = {"goog:chromeOptions": {"binary": CHROMIUM, "args": arguments}}
        made = self._ask("", {"capabilities": {"alwaysMatch": options}})
        self._session += f"/{made['sessionId']}"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._ask("", method="DELETE")
        finally:
            self._end()

    def _end(self) -> None:
        self._driver.terminate()
        with self._driver:
            self._driver.wait(30)

    def open(self, address: str) -> None:
        self._ask("/url", {"url": address})

    def tab(self) -> str:
        """A new tab in front of the others. Returns its name, for turn_to()."""
        name = str(self._ask("/window/new", {"type": "tab"})["handle"])
        self.turn_to(name)
        return name

    def here(self) -> str:
        """The name of the tab in front."""
        return str(self._ask("/window", method="GET"))

    def turn_to(self, tab: str) -> None:
        self._ask("/window", {"handle": tab})

    def first(self, script: str) -> None:
        """Each page that is opened in this tab from now on runs the script before its own."""
        self._ask("/goog/cdp/execute", {"cmd": "Page.addScriptToEvaluateOnNewDocument", "params": {"source": script}})

    def size(self, width: int, height: int) -> None:
        """Of the page, also below the least that a window can have."""
        about = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._ask("/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": about})

    def run(self, script: str) -> Any:
        """What the body of a function returns in the page."""
        return self._ask("/execute/sync", {"script": script, "args": []})

    def press(self, *keys: str) -> None:
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._ask("/actions", {"actions": [{"type": "key", "id": "keys", "actions": strokes}]})

    def _ask(self, path: str, body: object = None, method: str = "POST") -> Any:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self._session + path, data, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())["value"]
