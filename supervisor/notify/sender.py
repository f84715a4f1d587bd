"""A program: sends one message and ends, at the latest when its alarm rings. Each line of its output is a part that
failed; the last one, DONE, says that it has tried them all.

It is run by path, with [urls, command, title, body, event] as JSON on stdin: what is on a command line, everybody on
the machine can read. No line holds a URL.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys

DONE = "done"
ALARM_S = 30
_COMMAND_S = 15
_ADDRESS = re.compile(r"\S*://\S*|/\S{8,}")
"""A URL, or a part of one, in what a command says. A webhook's is its secret, and may look like a file's path."""


def by_url(urls: list[str], title: str, body: str) -> list[str]:
    """One text for each URL that did not take the message. apprise has its own time limits."""
    import apprise

    logging.disable(logging.CRITICAL)
    failed = []
    for number, url in enumerate(urls, 1):
        sender = apprise.Apprise()
        if not sender.add(url) or not sender.notify(title=title, body=body):
            failed.append(f"number {number} of urls ({url.partition('://')[0][:20]}) did not take it")
    return failed


def by_command(command: str, title: str, body: str, event: str) -> list[str]:
    """A text if the command failed or took too long. Then timeout(1) has ended it, with what it started. What it has
    put into the background is not waited for."""
    limited = ["timeout", "--kill-after=1", str(_COMMAND_S), "/bin/sh", "-c", command, "sh", title, body]
    # Not a pipe, which would be at its end only when all who have it have ended. In memory: the disk may be full.
    with os.fdopen(os.memfd_create("stderr"), "w+b") as stderr:
        code = subprocess.run(
            limited, input=event.encode(), stdout=subprocess.DEVNULL, stderr=stderr, check=False
        ).returncode
        stderr.seek(0)
        said = stderr.read().decode(errors="replace")
    # timeout(1) ends its whole group, itself too, if a TERM was not enough.
    if code in (124, 137, -signal.SIGKILL):
        return [f"command took longer than {_COMMAND_S} s"]
    last = _ADDRESS.sub("<redacted>", (said.strip().splitlines() or [""])[-1])[:200]
    return [f"command ended with {code}" + (f": {last}" if last else "")] if code else []


def main() -> None:
    urls, command, title, body, event = json.load(sys.stdin.buffer)
    signal.alarm(ALARM_S)
    failed = []
    if command:
        failed += by_command(command, title, body, event)
    if urls:
        failed += by_url(urls, title, body)
    print("\n".join([*failed, DONE]), end="", flush=True)


if __name__ == "__main__":
    main()
