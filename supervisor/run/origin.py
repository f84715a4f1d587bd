"""The things that a run was made from, for run.json: the git commit of its script, the machine, the versions.

git may be missing, slow (a home on a network), or refuse (somebody else's repository). Then nothing is known of it, and
the launch goes on.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LIMIT = 1.0
"""The most seconds that a launch waits for git."""
_GIT = ("git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
"""Nothing is written, and no program that the repository names is run."""
_PACKAGES = ("supervise", "torch")


def origin(script: Path | None, cwd: Path, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """`git` (None if nothing is known), `host` and `versions`. `script` None: a module, found from `cwd`."""
    versions = {"python": platform.python_version(), "executable": sys.executable}
    versions |= {name: found for name in _PACKAGES if (found := _version(name))}
    return {"git": git(script, cwd, environ), "host": socket.gethostname(), "versions": versions}


def git(script: Path | None, cwd: Path, environ: Mapping[str, str] = os.environ) -> dict[str, Any] | None:
    """`commit` and `dirty`: whether a tracked file is changed, or the script itself is not tracked."""
    found: list[dict[str, Any] | None] = []

    def look() -> None:
        found.append(_git(script, cwd, environ))

    # In a thread: not even a git that cannot be killed (in a system call on a dead mount) delays the launch.
    thread = threading.Thread(target=look, name="git", daemon=True)
    thread.start()
    thread.join(LIMIT)
    return found[0] if found else None


def _git(script: Path | None, cwd: Path, environ: Mapping[str, str]) -> dict[str, Any] | None:
    folder = script.parent if script is not None else cwd
    status = _ask(folder, environ, "status", "--porcelain=v2", "--branch", "-uno", "--ignore-submodules=all")
    lines = (status or "").splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), "")
    if not commit.isalnum():
        return None
    changed = any(not line.startswith("#") for line in lines)
    unknown = script is not None and not _ask(folder, environ, "ls-files", "-z", "--", script.name)
    return {"commit": commit, "dirty": changed or unknown}


def _ask(folder: Path, environ: Mapping[str, str], *words: str) -> str | None:
    """The output of that git command, or None."""
    env = {name: value for name, value in environ.items() if not name.startswith("GIT_")}
    env |= {"GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            [*_GIT, *words],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIMIT,
            check=False,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def told(body: Mapping[str, Any]) -> str:
    """The commit in run.json, as `9f4f17f` or `9f4f17f, with changes`; "" if it is not known."""
    known = body.get("git")
    if not isinstance(known, Mapping) or not isinstance(known.get("commit"), str):
        return ""
    return str(known["commit"])[:12] + (", with changes" if known.get("dirty") else "")
